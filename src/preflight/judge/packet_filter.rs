//! The packet filter: which is used and why, and rules of others that drop what ours accept.

use super::{Chosen, filters, modules};
use crate::config::{Backend, Config, Netfilter, Variant};
use crate::distribution::RunningKernel;
use crate::kernel::nftables::foreign::DroppingChain;
use crate::kernel::nftables::probe::MODULES;
use crate::preflight::facts::{Facts, Trial};
use crate::preflight::{Finding, Level};

const SUBJECT: &str = "packet filter";
/// The module of ipset.
const SETS: &str = "ip_set";

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

/// Returns the variant of iptables that rules of ours are written with; `None` where its programs are missing. It is the one that the host uses, but where the agent's trial
/// comes to the other one: because of the kernel, or because the programs of that alone are installed.
pub fn variant(facts: &Facts, config: &Config) -> Option<Variant> {
    let works = |variant| has_programs(facts, variant) && modules::has_table(variant, &facts.kernel, config).is_ok();
    match facts.packet_filter.variant {
        Some(Variant::NfTables) if !works(Variant::NfTables) && works(Variant::Legacy) => Some(Variant::Legacy),
        used => used,
    }
}

/// Returns whether programs of a variant that write rules are installed. Plain ones count for either where they are the only ones.
fn has_programs(facts: &Facts, variant: Variant) -> bool {
    let are_installed = |of: &str| {
        let names = ["iptables", "ip6tables"].map(|begin| format!("{begin}{of}-restore"));
        names.iter().any(|name| facts.process.programs.contains(name.as_str()))
    };
    let (nft, legacy) = (are_installed("-nft"), are_installed("-legacy"));
    let named = match variant {
        Variant::NfTables => nft,
        Variant::Legacy => legacy,
    };
    named || !nft && !legacy && are_installed("")
}

/// Judges the programs by which rules of iptables are read and written, for the families that are on.
fn programs(facts: &Facts, config: &Config, kernel: &RunningKernel) -> Vec<Finding> {
    let variant = if variant(facts, config) == Some(Variant::Legacy) { "legacy" } else { "nft" };
    let families = [(config.families.v4, "iptables"), (config.families.v6, "ip6tables")];
    let needed = families.into_iter().filter(|(is_on, _)| *is_on);
    let lacking = needed.flat_map(|(_, begin)| ["save", "restore"].map(|end| (begin, end))).filter(|(begin, end)| {
        let named = [format!("{begin}-{variant}-{end}"), format!("{begin}-{end}")];
        !named.iter().any(|name| facts.process.programs.contains(name.as_str()))
    });
    let of = |(begin, end): (&str, &str)| {
        let what = "it is not installed".to_owned();
        let lost = match (config.firewall.is_some(), config.proxy.is_some()) {
            (true, true) => "no policies, no Services",
            (true, false) => "no policies",
            (false, true) => "no Services",
            (false, false) => "traffic from pods to the outside keeps their addresses, and the router goes on",
        };
        let why = format!("no rules of this address family are read and written: {lost}");
        let todo = format!("install the package {}, or use the full image", kernel.package_of_iptables());
        let level = modules::level_of_filter(config);
        Finding::bad(level, format!("program {begin}-{variant}-{end}"), [what, why, todo])
    };
    lacking.map(of).collect()
}

/// Decides by the same rule as the agent, from facts, and says so.
pub fn choice(facts: &Facts, config: &Config, kernel: &RunningKernel) -> (Chosen, Vec<Finding>) {
    if !filters(config) && !config.source_guard {
        return (None, vec![Finding::ok(SUBJECT, "none is needed")]);
    }
    let used = facts.packet_filter.variant;
    match config.netfilter.backend(|| nftables(facts, config), || used, |variant| iptables(facts, config, variant)) {
        Ok(backend) => {
            let chosen = Finding::ok(SUBJECT, reason(facts, config, backend));
            // The source guard has no rules of iptables.
            let needs_programs = backend == Backend::Iptables && filters(config);
            let lacking = if needs_programs { programs(facts, config, kernel) } else { Vec::new() };
            (Some(backend), [chosen].into_iter().chain(lacking).collect())
        }
        Err(sentence) => {
            // As at a start: sessions and routes need none.
            let is_needed = config.proxy.is_some() || config.firewall.is_some() || config.netfilter != Netfilter::Auto;
            let level = if is_needed { Level::Fatal } else { Level::Degraded };
            let why = match is_needed {
                true => "the agent starts nothing, is not ready, and tries again every 30 s",
                false => {
                    "the router goes on without one: traffic from pods to the outside keeps their addresses, and /readyz says so"
                }
            };
            let general = format!(
                "install the modules, or the programs (package {}), of one of them",
                kernel.package_of_iptables()
            );
            let way = modules::way(MODULES.into_iter().chain([SETS]), &facts.kernel, config, kernel);
            let todo = [general].into_iter().chain(way).collect::<Vec<_>>().join("; ");
            let what = sentence.trim_end_matches('.').to_owned();
            (None, vec![Finding::bad(level, SUBJECT, [what, why.to_owned(), todo])])
        }
    }
}

fn nftables(facts: &Facts, config: &Config) -> Result<(), String> {
    match &facts.packet_filter.nftables {
        Trial::Works => Ok(()),
        Trial::Refused(reason) => Err(reason.clone()),
        Trial::NotTried => modules::come(MODULES, &facts.kernel, config),
    }
}

/// Returns whether iptables and ipset work, so far as the agent tries them on a host that uses this variant: programs of any variant, and none where there are rules of legacy iptables.
fn iptables(facts: &Facts, config: &Config, used: Variant) -> Result<(), String> {
    match used {
        Variant::NfTables => any_programs(facts, config)?,
        Variant::Legacy => {}
    }
    modules::come([SETS], &facts.kernel, config)
}

/// Returns whether programs of any variant that are installed work on this kernel.
fn any_programs(facts: &Facts, config: &Config) -> Result<(), String> {
    let mut refusals = Vec::new();
    for variant in [Variant::NfTables, Variant::Legacy].into_iter().filter(|variant| has_programs(facts, *variant)) {
        match modules::has_table(variant, &facts.kernel, config) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(refusals.join("; "))
}

fn reason(facts: &Facts, config: &Config, backend: Backend) -> String {
    let (name, asked) = match backend {
        Backend::Nftables => ("nftables", Netfilter::Nftables),
        Backend::Iptables => ("iptables", Netfilter::Iptables),
    };
    let by_flag = if config.netfilter == asked { ", as --netfilter says" } else { "" };
    let why = match (backend, &facts.packet_filter.nftables, variant(facts, config)) {
        (Backend::Nftables, Trial::NotTried, _) => {
            "the kernel has all modules that it needs (it was not tried, because that would load some of them)"
                .to_owned()
        }
        (Backend::Nftables, ..) => "the kernel can do all that is needed".to_owned(),
        (Backend::Iptables, _, None) => "none of its programs is installed".to_owned(),
        (Backend::Iptables, _, Some(Variant::Legacy)) if facts.packet_filter.variant == Some(Variant::Legacy) => {
            "the rules of this host are those of legacy iptables, and what those drop nothing else lets pass".to_owned()
        }
        (Backend::Iptables, _, Some(Variant::Legacy)) => {
            "of its programs those of the variant legacy work on this kernel".to_owned()
        }
        (Backend::Iptables, _, Some(Variant::NfTables)) => match nftables(facts, config) {
            Err(refused) => format!("the kernel refuses what nftables needs ({refused})"),
            Ok(()) => "its programs are installed".to_owned(),
        },
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
