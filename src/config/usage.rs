//! The usage text: the commands and the flags of the agent, in groups by subsystem.

use std::any::TypeId;
use std::fmt::Write as _;

use clap::{Arg, CommandFactory};

use super::ask;
use super::duration::GoDuration;
use super::flags::Flags;
use super::value::{Addresses, Strings, Uints};

/// The word before the flags of an agent that is not to start.
pub(super) const PREFLIGHT: &str = "preflight";

pub(super) const PREFLIGHT_MEANING: &str =
    "Say what an agent with these flags would lack and meet on this host, and change nothing";

pub(super) const PREFLIGHT_USAGE: &str = "\
Usage: sluice preflight [-o text|json] [FLAGS OF THE AGENT]
Says what the agent needs, and finds, on this host and in its cluster, before it starts with these flags: kernel and modules, packet filter and
rules of others, other proxies and pod networks, settings, directories and CNI files, addresses and ranges, rights on the API server. Each
finding is ok, degraded or fatal, with what it is, why it matters and what to do. Nothing is changed, and no module is loaded. Exit status: 0
everything is there, 1 something is degraded, 2 something is fatal, or a flag cannot be read.
  -o, --output   text or json (default text)
  --help without preflight lists the flags of the agent.";

/// The words of the commands that describe the command line to other programs, and their meanings.
pub(super) const COMPLETION: &str = "completion";
pub(super) const COMPLETION_MEANING: &str = "Print the completion of this command line for bash, zsh or fish";
pub(super) const MAN: &str = "man";
pub(super) const MAN_MEANING: &str = "Print the man page of the agent or of a command";

/// The name of a flag's type in the usage text; empty for a switch.
pub(super) fn type_name(arg: &Arg) -> &'static str {
    let value = arg.get_value_parser().type_id();
    let names = [
        (TypeId::of::<String>(), "string"),
        (TypeId::of::<GoDuration>(), "duration"),
        (TypeId::of::<u8>(), "uint8"),
        (TypeId::of::<u16>(), "uint16"),
        (TypeId::of::<u32>(), "uint32"),
        (TypeId::of::<u64>(), "uint"),
        (TypeId::of::<Strings>(), "strings"),
        (TypeId::of::<Uints>(), "uints"),
        (TypeId::of::<Addresses>(), "ipSlice"),
    ];
    names.into_iter().find(|(id, _)| value == *id).map_or("", |(_, name)| name)
}

/// Headings of the usage text, each with the first of its flags in the order in which they are declared.
pub(super) const GROUPS: [(&str, &str); 10] = [
    ("The cluster and this node", "kubeconfig"),
    ("Health, metrics and log", "health-addr"),
    ("What runs", "run-router"),
    ("Network policies", "iptables-sync-period"),
    ("Ranges of Services", "service-cluster-ip-range"),
    ("Service proxy", "ipvs-sync-period"),
    ("Router: pod networking", "routes-sync-period"),
    ("Router: BGP", "cluster-asn"),
    ("Load balancer allocator", "loadbalancer-default-class"),
    ("Of old manifests", "cluster-cidr"),
];

/// The usage text: the commands, and one line for each flag, in groups by subsystem and in alphabetical order there.
pub fn usage(program: &str) -> String {
    let command = Flags::command();
    let mut groups: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
        if let Some((heading, _)) = GROUPS.iter().find(|(_, first)| arg.get_long() == Some(*first)) {
            groups.push((*heading, Vec::new()));
        }
        if let Some((_, flags)) = groups.last_mut() {
            flags.push(arg);
        }
    }
    let mut lines: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for (heading, mut flags) in groups {
        flags.sort_by_key(|arg| arg.get_long());
        lines.push((heading, flags.into_iter().map(usage_line).collect()));
    }
    let mut text = format!("Usage of {program}:");
    for (name, meaning) in commands() {
        let _ = write!(text, "\n  {name:24}   {meaning}");
    }
    let width = lines.iter().flat_map(|(_, flags)| flags).map(|(name, _)| name.len()).max().unwrap_or(0);
    for (heading, flags) in lines {
        let _ = write!(text, "\n\n{heading}:");
        for (name, meaning) in flags {
            let _ = write!(text, "\n{name:width$}   {meaning}");
        }
    }
    text
}

/// The forms of a command line, each with its meaning.
fn commands() -> Vec<(String, String)> {
    let agent = ("sluice [FLAGS]".to_owned(), "Run the agent of this node".to_owned());
    let preflight = (format!("sluice {PREFLIGHT} [FLAGS]"), PREFLIGHT_MEANING.to_owned());
    let described = [(format!("{COMPLETION} SHELL"), COMPLETION_MEANING), (format!("{MAN} [COMMAND]"), MAN_MEANING)];
    let described = described.map(|(words, meaning)| (words, meaning.to_owned()));
    let others = ask::commands().into_iter().chain(described);
    [agent, preflight].into_iter().chain(others.map(|(words, meaning)| (format!("sluice {words}"), meaning))).collect()
}

/// A flag's name and type, and its meaning with its default where that is not the zero of the type.
pub(super) fn usage_line(arg: &Arg) -> (String, String) {
    let long = arg.get_long().unwrap_or_default();
    let mut name = match arg.get_short() {
        Some(short) => format!("  -{short}, --{long}"),
        None => format!("      --{long}"),
    };
    let kind = type_name(arg);
    if !kind.is_empty() {
        name = format!("{name} {kind}");
    }
    let mut meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy()).unwrap_or_default();
    match (kind, &*default) {
        (_, "" | "0s" | "false") => {}
        ("string", text) => meaning.push_str(&format!(" (default {text:?})")),
        (_, "0") => {}
        (_, text) => meaning.push_str(&format!(" (default {text})")),
    }
    (name, meaning)
}
