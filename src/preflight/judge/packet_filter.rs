//! The packet filter: which is used and why, and rules of others that drop what ours accept.

use super::{Chosen, filters, modules};
use crate::config::{Backend, Config, Netfilter, Variant};
use crate::distribution::RunningKernel;
use crate::kernel::module::ModuleState;
use crate::kernel::nftables::foreign::DroppingChain;
use crate::kernel::nftables::probe::MODULES;
use crate::preflight::facts::{Facts, Trial};
use crate::preflight::{Finding, Level};

const SUBJECT: &str = "packet filter";

/// Programs of iptables, of either family and variant, and plain.
pub const PROGRAMS: [&str; 12] = [
    "iptables-nft-save",
    "iptables-nft-restore",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "iptables-save",
    "iptables-restore",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Judges the programs by which rules of iptables are read and written, for the families that are on.
fn programs(facts: &Facts, config: &Config, kernel: &RunningKernel) -> Vec<Finding> {
    let variant = if facts.packet_filter.variant == Some(Variant::Legacy) { "legacy" } else { "nft" };
    let families = [(config.families.v4, "iptables"), (config.families.v6, "ip6tables")];
    let needed = families.into_iter().filter(|(is_on, _)| *is_on);
    let lacking = needed.flat_map(|(_, begin)| ["save", "restore"].map(|end| (begin, end))).filter(|(begin, end)| {
        let named = [format!("{begin}-{variant}-{end}"), format!("{begin}-{end}")];
        !named.iter().any(|name| facts.process.programs.contains(name.as_str()))
    });
    let of = |(begin, end): (&str, &str)| {
        let what = "it is not installed".to_owned();
        let why = "no rules of this address family are read and written: no policies, no Services".to_owned();
        let todo = format!("install the package {}, or use the full image", kernel.package_of_iptables());
        Finding::bad(Level::Fatal, format!("program {begin}-{variant}-{end}"), [what, why, todo])
    };
    lacking.map(of).collect()
}

/// Decides by the same rule as the agent, from facts, and says so.
pub fn choice(facts: &Facts, config: &Config, kernel: &RunningKernel) -> (Chosen, Vec<Finding>) {
    if !filters(config) && !config.source_guard {
        return (None, vec![Finding::ok(SUBJECT, "none is needed")]);
    }
    let variant = facts.packet_filter.variant;
    let nftables = || nftables(facts);
    match config.netfilter.backend(nftables, || variant, || iptables(facts, config)) {
        Ok(backend) => {
            let chosen = Finding::ok(SUBJECT, reason(facts, config.netfilter, backend));
            let lacking = if backend == Backend::Iptables { programs(facts, config, kernel) } else { Vec::new() };
            (Some(backend), [chosen].into_iter().chain(lacking).collect())
        }
        Err(sentence) => {
            // As at a start: sessions and routes need none.
            let is_needed = config.proxy.is_some() || config.firewall.is_some() || config.netfilter != Netfilter::Auto;
            let level = if is_needed { Level::Fatal } else { Level::Degraded };
            let why = match is_needed {
                true => "the agent ends at its start",
                false => {
                    "the router goes on without one: traffic from pods to the outside keeps their addresses, and /readyz says so"
                }
            };
            let todo = format!(
                "install the modules, or the programs (package {}), of one of them",
                kernel.package_of_iptables()
            );
            let what = sentence.trim_end_matches('.').to_owned();
            (None, vec![Finding::bad(level, SUBJECT, [what, why.to_owned(), todo])])
        }
    }
}

fn nftables(facts: &Facts) -> Result<(), String> {
    match &facts.packet_filter.nftables {
        Trial::Works => Ok(()),
        Trial::Refused(reason) => Err(reason.clone()),
        Trial::NotTried => all_there(facts, MODULES.iter().copied()),
    }
}

fn iptables(facts: &Facts, config: &Config) -> Result<(), String> {
    all_there(facts, modules::of_iptables(config, facts.packet_filter.variant).into_iter().map(|need| need.module))
}

/// Returns whether all of the modules are there or on the disk. Of one of which nothing is known it is assumed.
fn all_there(facts: &Facts, names: impl Iterator<Item = &'static str>) -> Result<(), String> {
    let missing: Vec<&str> =
        names.filter(|name| facts.kernel.modules.get(name) == Some(&ModuleState::Missing)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("it lacks the modules {}", missing.join(", "))) }
}

fn reason(facts: &Facts, netfilter: Netfilter, backend: Backend) -> String {
    let (name, asked) = match backend {
        Backend::Nftables => ("nftables", Netfilter::Nftables),
        Backend::Iptables => ("iptables", Netfilter::Iptables),
    };
    let by_flag = if netfilter == asked { ", as --netfilter says" } else { "" };
    let why = match (backend, &facts.packet_filter.nftables, facts.packet_filter.variant) {
        (Backend::Nftables, Trial::NotTried, _) => {
            "the kernel has all modules that it needs (it was not tried, because that would load some of them)"
                .to_owned()
        }
        (Backend::Nftables, ..) => "the kernel can do all that is needed".to_owned(),
        (Backend::Iptables, _, Some(Variant::Legacy)) => {
            "the rules of this host are those of legacy iptables, and what those drop nothing else lets pass".to_owned()
        }
        (Backend::Iptables, Trial::Refused(refused), _) => {
            format!("the kernel refuses what nftables needs ({refused})")
        }
        (Backend::Iptables, ..) => "its programs are installed".to_owned(),
    };
    format!("{name}{by_flag}: {why}")
}

/// Judges chains of others that drop what none of their own rules accepts.
pub fn rules_of_others(facts: &Facts, config: &Config, backend: Chosen) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.packet_filter.has_unreadable_tables {
        let what = "there are tables of legacy iptables, and no program that reads them is installed".to_owned();
        let why =
            "what their rules drop our rules cannot let pass, and rules of an earlier run in them stay".to_owned();
        let todo =
            "use an image that has iptables-legacy-restore, or reboot a host that has changed to nf_tables".to_owned();
        findings.push(Finding::bad(Level::Degraded, "legacy iptables", [what, why, todo]));
    }
    if let Some(reason) = &facts.packet_filter.unread {
        let todo = "run it as root, in the network namespace of the host".to_owned();
        let why = "another program's rules may drop what ours accept".to_owned();
        let what = format!("they cannot be read: {reason}");
        findings.push(Finding::bad(Level::Degraded, "rules of others", [what, why, todo]));
    }
    if !filters(config) {
        return findings;
    }
    let before = findings.len();
    for chain in &facts.packet_filter.dropping {
        // Rules that let packets pass are put into these (`kernel::nftables::passages`, and with iptables our chains stand before).
        let is_ours_to_open = ["ip", "ip6"].contains(&chain.family)
            && chain.table == "filter"
            && ["INPUT", "FORWARD"].contains(&&*chain.chain);
        let subject = chain.to_string();
        if is_ours_to_open {
            let opened = "it drops by default; rules of the agent in it let packets of pods and Services pass";
            let of_bgp = config.router.as_ref().filter(|_| chain.chain == "INPUT");
            let of_bgp = of_bgp.map(|router| format!(", and it has to accept BGP itself (TCP port {})", router.port));
            findings.push(Finding::ok(subject, format!("{opened}{}", of_bgp.unwrap_or_default())));
            continue;
        }
        let what = format!("{chain} drops what none of its own rules accepts");
        let why = "packets pass only where every table lets them: it drops traffic of pods, Services and BGP, also what policies allow".to_owned();
        let todo = if chain.table == "firewalld" { TRUSTED.to_owned() } else { opened_by_hand(chain) };
        findings.push(Finding::bad(Level::Degraded, subject, [what, why, todo]));
    }
    if backend.is_some() && findings.len() == before && facts.packet_filter.unread.is_none() {
        findings.push(Finding::ok("rules of others", "no chain drops by default"));
    }
    findings
}

const TRUSTED: &str = "put kube-bridge and the devices of pods into a zone with target ACCEPT: \
    firewall-cmd --permanent --zone=trusted --add-interface=kube-bridge";

fn opened_by_hand(chain: &DroppingChain) -> String {
    let list = format!("nft list table {} {}", chain.family, chain.table);
    format!(
        "let it accept what comes from and goes to kube-bridge or the devices of pods, and what is for this host's ports; {list} shows it"
    )
}
