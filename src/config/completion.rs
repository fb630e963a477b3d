//! The command line described for other programs: completion for shells (`sluice completion`) and man pages (`sluice man`), both
//! from the flags and questions that are parsed.

use std::ffi::OsString;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory, ValueEnum};
use clap_complete::aot::{Bash, Fish, Generator, Zsh, generate};
use clap_mangen::Man;

use super::ask::{self, Output};
use super::flags::Flags;
use super::refusal::Refusal;
use super::usage::{
    COMPLETION, COMPLETION_MEANING, GROUPS, MAN, MAN_MEANING, PREFLIGHT, PREFLIGHT_MEANING, PREFLIGHT_USAGE, type_name,
    usage_line,
};

const COMPLETION_USAGE: &str = "\
Usage: sluice completion bash|zsh|fish
Prints what the shell needs to complete the commands and flags of this program. For this shell alone:
  bash   source <(sluice completion bash)
  zsh    source <(sluice completion zsh)      behind compinit
  fish   sluice completion fish | source";

const MAN_USAGE: &str = "\
Usage: sluice man [COMMAND...]
Prints the man page of the agent, or of a command, as in sluice man policy explain. To read one: sluice man | man -l -";

/// Flags that take one of a few words, each with these words.
pub(super) const CHOICES: [(&str, &[&str]); 6] = [
    ("log-format", &["text", "json"]),
    ("netfilter", &["auto", "nftables", "iptables"]),
    ("node-routes", &["bgp", "api"]),
    ("overlay-type", &["subnet", "full"]),
    ("overlay-encap", &["ipip", "fou", "vxlan", "wireguard"]),
    ("drain-label", &["auto", "always", "never"]),
];

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The text that such a command line is to print on standard output, or its usage, which goes where all usage goes.
pub(super) enum Printed {
    Text(String),
    Usage(&'static str),
}

/// Reads one of these commands; `None` where the words are none. `name`: that of the program, for which the shell is to complete;
/// `version`: its version.
pub(super) fn printed(words: &[OsString], name: &str, version: &str) -> Option<Result<Printed, Refusal>> {
    let words: Vec<&str> = words.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    let (command, rest) = words.split_first()?;
    let (usage, text) = match *command {
        COMPLETION => (COMPLETION_USAGE, script(rest, name)),
        MAN => (MAN_USAGE, page(rest, version)),
        _ => return None,
    };
    if rest.iter().any(|word| ["-h", "--help"].contains(word)) {
        return Some(Ok(Printed::Usage(usage)));
    }
    Some(text.map(Printed::Text).ok_or_else(|| Refusal { text: usage.to_owned(), exit_code: 2 }))
}

/// The script for a shell.
fn script(words: &[&str], name: &str) -> Option<String> {
    let [word] = words else { return None };
    Some(match Shell::from_str(word, false).ok()? {
        Shell::Bash => generated(Bash, name),
        Shell::Zsh => generated(Zsh, name),
        Shell::Fish => generated(Fish, name),
    })
}

fn generated(shell: impl Generator, name: &str) -> String {
    let mut script = Vec::new();
    generate(shell, &mut described(), name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The man page of the command that the words name, in the language of troff; the agent's where there are none.
fn page(words: &[&str], version: &str) -> Option<String> {
    let mut all = described();
    all.build();
    let command = words.iter().try_fold(&all, |command, word| command.find_subcommand(word))?;
    // The date is an argument that has to be there; ours has none, so that one source makes one page.
    let page = Man::new(command.clone()).section("8").date("\"\"").source(format!("sluice {version}")).manual("Sluice");
    let mut text = Vec::new();
    page.render(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The whole command line, to be described and not to be parsed: a switch takes no value here.
fn described() -> Command {
    let about = env!("CARGO_PKG_DESCRIPTION");
    let output = Arg::new("output").short('o').long("output").value_parser(clap::value_parser!(Output));
    let preflight =
        Command::new(PREFLIGHT).disable_help_flag(true).about(PREFLIGHT_MEANING).long_about(prose(PREFLIGHT_USAGE));
    let shell = Arg::new("SHELL").required(true).value_parser(clap::value_parser!(Shell));
    let completion = Command::new(COMPLETION).about(COMPLETION_MEANING);
    let man = Command::new(MAN).about(MAN_MEANING).long_about(prose(MAN_USAGE));
    let questions = ask::described().map(|(command, usage)| command.long_about(usage.map_or_else(String::new, prose)));
    Command::new("sluice")
        .about(about)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .override_usage("sluice [FLAGS]\nsluice COMMAND [FLAGS OF THE COMMAND]")
        .subcommand_help_heading("COMMANDS")
        .args(flags())
        .subcommand(
            preflight
                .args(flags().into_iter().filter(|flag| flag.get_id() != "version"))
                .arg(output.help("text or json (default text)")),
        )
        .subcommands(questions)
        .subcommand(completion.long_about(prose(COMPLETION_USAGE)).arg(shell.help("bash, zsh or fish")))
        .subcommand(man.arg(Arg::new("COMMAND").num_args(0..).help("The words of a command, such as policy explain")))
}

/// The flags of the agent, in their groups.
fn flags() -> Vec<Arg> {
    let mut heading = "";
    let all = Flags::command();
    let flags = all.get_arguments().filter(|arg| !arg.is_positional());
    let described = flags.map(|arg| {
        let long = arg.get_long().unwrap_or_default();
        heading = GROUPS.iter().find(|(_, first)| *first == long).map_or(heading, |(heading, _)| heading);
        let (_, meaning) = usage_line(arg);
        let kind = type_name(arg);
        // The meaning names the default; a switch takes no value here, and has none to hide.
        let takes_value = arg.get_action().takes_values();
        let flag = arg.clone().help(meaning).help_heading(heading).hide_default_value(takes_value);
        let flag = if kind.is_empty() { flag } else { flag.value_name(kind) };
        match CHOICES.iter().find(|(name, _)| *name == long) {
            Some((_, words)) => flag.value_parser(PossibleValuesParser::new(words.iter().copied())),
            None => flag,
        }
    });
    described.collect()
}

/// The sentences of a usage text, without its forms and flags.
fn prose(usage: &str) -> String {
    let is_form = |line: &&str| line.starts_with("Usage: ") || line.starts_with("       sluice ");
    let sentences = usage.lines().skip_while(is_form).take_while(|line| !line.starts_with("  "));
    sentences.collect::<Vec<_>>().join(" ")
}
