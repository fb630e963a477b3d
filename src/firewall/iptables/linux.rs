//! The firewall's kinds of kernel objects on Linux, and which of them are ours.

use std::time::Duration;

use tracing::{info, warn};

use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::{self, Families, Leftovers, Ownership, Refusal, Table, Tables, Timing};
use crate::kernel::sysctl::{Setting, Settings, Wanted};
use crate::kernel::{Error, Name, module, nftables};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Growth, Mirror, Moment, Reflection};

use super::apply::{Kernel, Refusing, Targets, Timed};
use super::names::{CHAIN_FORWARD, CHAIN_INPUT, CHAIN_OUTPUT, OF_IPV6, POD_CHAINS, POLICY_CHAINS, SETS, local_pods};
use super::overlay;

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// Programs of the iptables variant that the host no longer uses, where its tables still hold rules of ours.
    abandoned: Families,
    settings: Mirror<Settings>,
}

/// Temporary set, used while another one is replaced.
const TEMPORARY_SET: &str = "sluice-firewall-tmp";

/// Modules that the kernel does not load on first use: packets between the pods of a bridge only traverse the rules
/// with it.
const MODULES: [&str; 1] = ["br_netfilter"];

/// The tables of kube-router's network policies with `--use-nftables-for-netpol`.
pub const KUBE_ROUTERS_TABLES: [nftables::Table<'static>; 2] = [
    nftables::Table { family: Family::V4, name: "kube-router-filter-ipv4" },
    nftables::Table { family: Family::V6, name: "kube-router-filter-ipv6" },
];

/// Opens all kinds in the network namespace of the calling thread, which has to be the thread that uses them: programs
/// depend on the thread. Also returns the programs of each family.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open() -> Result<(Targets<Linux>, Families), Error> {
    for error in module::load(&MODULES) {
        warn!(%error, "Loading a kernel module failed");
    }
    open_for_cleanup()
}

/// Like [`open`], without loading anything.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<(Targets<Linux>, Families), Error> {
    let detected = iptables::detect(&ownership());
    for reason in &detected.disabled {
        warn!(%reason, "iptables is not usable for this address family");
    }
    let (programs, abandoned) = (detected.programs, detected.abandoned);
    Ok((targets(Tables::detected(detected, ownership()), abandoned)?, programs))
}

/// Like [`open_for_cleanup`], with these programs.
///
/// # Errors
/// As [`open`].
pub fn open_with(programs: Families) -> Result<Targets<Linux>, Error> {
    targets(Tables::new(programs, ownership()), Families::default())
}

fn targets(rules: Tables, abandoned: Families) -> Result<Targets<Linux>, Error> {
    let mut sets = set_names();
    sets.push(Name::Exact(TEMPORARY_SET.into()));
    Ok(Targets {
        kernel: Linux { abandoned, settings: Mirror::new(Settings::new(settings())) },
        sets: Sets::open(sets, SetName(TEMPORARY_SET.into()))?,
        elements: Elements::open(set_names())?,
        rules: rules.waiting_for(overlay::has_stand_in),
    })
}

impl Kernel for Linux {
    type Sets = Sets;
    type Elements = Elements;
    type Rules = Tables;

    fn keep_settings(&mut self, pods_on_bridge: bool, at: Moment) -> Result<(), String> {
        self.settings.forget();
        let mut wanted = self.settings.target().wanted();
        let mut reasons = Vec::new();
        if pods_on_bridge && wanted.len() < settings().len() {
            // The module was missing at the start, or has been unloaded.
            reasons = module::load(&MODULES);
            wanted = self.settings.target().wanted();
        }
        self.settings.grow(&wanted, Growth::Full, at);
        if let Some(trouble) = self.settings.trouble() {
            return Err(trouble.error.clone());
        }
        let is_missing = |(setting, _): &(Setting, Wanted)| !wanted.contains_key(setting);
        match settings().into_iter().find(is_missing).filter(|_| pods_on_bridge) {
            None => Ok(()),
            Some((setting, _)) => {
                let why: String = reasons.iter().map(|error| format!(": {error}")).collect();
                Err(format!(
                    "no policy sees packets between pods of one bridge: {setting} is missing, which br_netfilter brings{why}"
                ))
            }
        }
    }

    fn has_ipv6(&self) -> bool {
        iptables::kernel_has_ipv6()
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        let mut left = remove_kube_routers_tables();
        let abandoned = std::mem::take(&mut self.abandoned);
        if abandoned == Families::default() {
            return left;
        }
        info!("Removing network policy rules from the other iptables backend");
        left.extend(iptables::abandoned::remove(abandoned, ownership()));
        left
    }
}

impl Timed for Elements {
    fn take_took(&mut self) -> PerFamily<Duration> {
        Elements::take_took(self)
    }
}

impl Refusing for Tables {
    fn take_refused(&mut self) -> Vec<Refusal> {
        Tables::take_refused(self)
    }

    fn take_timings(&mut self) -> Vec<Timing> {
        Tables::take_timings(self)
    }

    fn is_unreadable(&self, family: Family) -> bool {
        Tables::is_unreadable(self, family)
    }
}

/// Removes the tables that a kube-router with `--use-nftables-for-netpol` left: they go on enforcing its last policies.
/// Returns why something could not be removed.
fn remove_kube_routers_tables() -> Vec<String> {
    match nftables::remove(&KUBE_ROUTERS_TABLES) {
        Ok(removed) => {
            for table in removed {
                info!(family = %table.family, table = table.name, "Removed the nftables table of kube-router's network policies");
            }
            Vec::new()
        }
        Err(error) => vec![error.to_string()],
    }
}

/// Returns the settings by which rules see packets between pods on one bridge. A host without bridges lacks them.
fn settings() -> [(Setting, Wanted); 2] {
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
        .map(|path| (Setting(path.into()), Wanted::Always("1".into())))
}

/// Returns our chains, and those of a kube-router that ran here before.
pub fn ownership() -> Ownership {
    let exact = [CHAIN_INPUT, CHAIN_FORWARD, CHAIN_OUTPUT].map(|chain| Name::Exact(chain.into()));
    let prefixes = [POLICY_CHAINS, POD_CHAINS].map(|prefix| Name::Prefix(prefix.into()));
    let chains = exact.into_iter().chain(prefixes).map(|name| (Table::Filter, name)).collect();
    Ownership { chains, leftovers: Leftovers::None }
}

/// Returns our sets, and those of a kube-router that ran here before.
pub fn set_names() -> Vec<Name> {
    let prefixes = SETS.into_iter().flat_map(|prefix| [prefix.to_owned(), format!("{OF_IPV6}{prefix}")]);
    let pods = Family::BOTH.map(|family| Name::Exact((*local_pods(family).0).into()));
    prefixes.map(|prefix| Name::Prefix(prefix.into())).chain(pods).collect()
}
