//! The firewall's kinds of kernel objects on Linux, and which of them are ours.

use std::path::Path;
use std::time::Duration;

use tracing::{info, warn};

use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::abandoned::{OtherVariant, Removal};
use crate::kernel::iptables::{
    self, Detected, Families, Flavour, Leftovers, Ownership, Refusal, Table, Tables, Timing,
};
use crate::kernel::netlink::{Bus, Socket};
use crate::kernel::nftables::dropping_chains::ChainsOfOthers;
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, Name, module, nftables};
use crate::net::{Family, PerFamily};

use super::super::frames::linux::FrameTables;
use super::super::frames::{self, FrameTable};
use super::super::settings;
use super::apply::{Kernel, Refusing, Targets, Timed};
use super::names::{CHAIN_FORWARD, CHAIN_INPUT, CHAIN_OUTPUT, OF_IPV6, POD_CHAINS, POLICY_CHAINS, SETS, local_pods};
use super::{dispatch, overlay};

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// Programs of the iptables variant that the host no longer uses, where its tables still hold rules of ours.
    other_variant: OtherVariant,
    filters_ipv6: bool,
    others: ChainsOfOthers,
}

/// Exists where the kernel has legacy tables of IPv6.
const LEGACY_TABLES_V6: &str = "/proc/thread-self/net/ip6_tables_names";

/// Temporary set, used while another one is replaced.
const TEMPORARY_SET: &str = "sluice-firewall-tmp";

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
    let (errors, detected) = module::load_beside(&settings::MODULES, || iptables::detect(&ownership()));
    for error in errors {
        warn!(%error, "Loading a kernel module failed");
    }
    // After the programs have listed the tables: a trial would let them begin again.
    let (mut targets, programs) = of_detected(detected, frames::linux::open()?)?;
    let is_legacy = programs.v6.is_some_and(|programs| programs.flavour == Flavour::Legacy);
    if is_legacy {
        // These programs print nothing, and no error, where the kernel has no tables. A failed load proves nothing: a
        // kernel may have the tables built in and no list of modules.
        let _ = module::load(&["ip6_tables"]);
        targets.kernel.filters_ipv6 &= Path::new(LEGACY_TABLES_V6).exists();
    }
    if iptables::kernel_has_ipv6() && !targets.kernel.filters_ipv6 {
        warn!("ip6tables is not usable; without --enable-ipv6, IPv6 link-local traffic between pods is not filtered");
    }
    Ok((targets, programs))
}

/// Like [`open`], without loading anything.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<(Targets<Linux>, Families), Error> {
    of_detected(iptables::detect(&ownership()), frames::linux::open_for_cleanup()?)
}

fn of_detected(detected: Detected, frames: FrameTables) -> Result<(Targets<Linux>, Families), Error> {
    for reason in &detected.disabled {
        warn!(%reason, "No iptables rules for this address family");
    }
    let (programs, other_variant) = (detected.programs, OtherVariant::of(&detected, ownership()));
    let filters_ipv6 = iptables::kernel_has_ipv6() && detected.printed.v6.is_some();
    let kernel = Linux { other_variant, filters_ipv6, others: ChainsOfOthers::default() };
    Ok((targets(Tables::detected(detected, ownership()), kernel, frames)?, programs))
}

/// Like [`open`], with these programs, and without loading anything.
///
/// # Errors
/// As [`open`].
pub fn open_with(programs: Families) -> Result<Targets<Linux>, Error> {
    let filters_ipv6 = iptables::kernel_has_ipv6() && programs.v6.is_some();
    let other_variant = OtherVariant::of(&Detected::default(), ownership());
    let kernel = Linux { other_variant, filters_ipv6, others: ChainsOfOthers::default() };
    targets(Tables::new(programs, ownership()), kernel, frames::linux::open()?)
}

fn targets(rules: Tables, kernel: Linux, frames: FrameTables) -> Result<Targets<Linux>, Error> {
    let FrameTables { tags, groups } = frames;
    Ok(Targets {
        kernel,
        settings: Settings::new([]),
        frames: tags,
        groups,
        sets: Sets::open(with_temporary(), SetName(TEMPORARY_SET.into()))?,
        elements: Elements::open(set_names())?,
        rules: rules.waiting_for(overlay::has_stand_in),
    })
}

impl Kernel for Linux {
    type Settings = Settings;
    type Frames = FrameTable;
    type Sets = Sets;
    type Elements = Elements;
    type Rules = Tables;

    fn filters_ipv6(&self) -> bool {
        self.filters_ipv6
    }

    fn dropping_chains(&mut self) -> Vec<String> {
        self.others.notes(|chain| !opens(chain))
    }

    fn has_abandoned(&mut self) -> bool {
        let mut socket = Socket::open(Bus::Netfilter);
        let of_kube_router = socket.as_mut().is_ok_and(|socket| nftables::has_any(socket, &KUBE_ROUTERS_TABLES));
        of_kube_router
            || nftables::has_inet_table(super::super::nftables::names::TABLE).unwrap_or(false)
            || self.other_variant.is_there()
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        let mut left = remove_kube_routers_tables();
        left.extend(super::super::nftables::linux::remove());
        left.extend(self.other_variant.remove());
        left
    }
}

/// Returns whether rules of ours in this chain of the host accept what policies allow: it holds a jump to them, and the tail accepts.
fn opens(chain: &nftables::foreign::DroppingChain) -> bool {
    let has_jump = |(from, to): &(&str, &str)| chain.chain == *from && chain.enters.contains(*to);
    chain.table == Table::Filter.name() && chain.family != "inet" && dispatch::ENTRANCES.iter().any(has_jump)
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

/// Returns the removal of everything that this backend and kube-router left, of both iptables backends, and then of the tables of a kube-router with
/// `--use-nftables-for-netpol`. A host without ipset or programs of iptables has nothing of the former.
pub fn removal() -> Removal {
    Removal::of(ownership(), with_temporary()).with_tables(&KUBE_ROUTERS_TABLES)
}

/// Removes the tables that a kube-router with `--use-nftables-for-netpol` left: they go on enforcing its last policies.
/// Returns why something could not be removed.
fn remove_kube_routers_tables() -> Vec<String> {
    match Socket::open(Bus::Netfilter).and_then(|mut socket| nftables::remove(&mut socket, &KUBE_ROUTERS_TABLES)) {
        Ok(removed) => {
            for table in removed {
                info!(family = %table.family, table = table.name, "Removed the nftables table of kube-router's network policies");
            }
            Vec::new()
        }
        Err(error) => vec![error.to_string()],
    }
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

fn with_temporary() -> Vec<Name> {
    let mut names = set_names();
    names.push(Name::Exact(TEMPORARY_SET.into()));
    names
}
