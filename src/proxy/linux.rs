//! The service proxy's kinds of kernel objects on Linux, and which of them are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::{info, warn};

use crate::config::{Backend, ProxyConfig};
use crate::kernel::address::Addresses;
use crate::kernel::bridge::HairpinPorts;
use crate::kernel::conntrack::{Flows, Forgetter, Remaining};
use crate::kernel::ipset::{Elements, Entry, SetName, Sets};
use crate::kernel::iptables::abandoned::{OtherVariant, Removal};
use crate::kernel::iptables::{self, Families, Leftovers, Ownership, Table, Tables};
use crate::kernel::ipvs::{
    self, Connections, Counted, Destination, Observed, RefusedPart, ServiceKey, Services, Timeouts,
};
use crate::kernel::link::{LinkName, Links};
use crate::kernel::nftables::passages::{HostChain, Passages};
use crate::kernel::nftables::{self, Key, Object, OwnTable, TableFamily};
use crate::kernel::route::{self, Routes, TABLE_LOCAL, Through};
use crate::kernel::rule::PolicyRules;
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, Name, module};
use crate::net::Family;
use crate::reconcile::{Optional, Target};

use super::apply::{Connected, Kernel, Owned, Targets};
use super::dsr::rules::{self, marking_chain};
use super::host_input::COMMENTS;
use super::marks::{MarkedElsewhere, given_in_table, is_rule_of_ours};
use super::names::{
    BRIDGE, CHAIN_DSR, CHAIN_DSR_MSS, CHAIN_DSR_SENT, CHAIN_GUARD, CHAIN_HIDDEN, CHAIN_INSIDE, CHAIN_SNAT,
    CHAIN_SOURCES, CHAIN_UNALLOCATED, DEVICE, DSR_TABLE, Set, TABLE,
};

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// The backend that is used; `None` for both.
    used: Option<Backend>,
    /// Our table of nf_tables, where iptables is used and an earlier run has left one.
    left: Option<OwnTable>,
    /// The removal of what a run with iptables left.
    removal: Removal,
    other_variant: OtherVariant,
    forgetter: Forgetter,
}

/// Temporary set, used while another one is replaced.
const TEMPORARY_SET: &str = "sluice-proxy-tmp";

/// Modules that the kernel does not load on first use.
pub const MODULES: [&str; 2] = ["ip_vs", "br_netfilter"];

/// Opens all kinds in the network namespace of the calling thread, which has to be the thread that uses them: settings
/// and programs depend on the thread. Also returns the programs of iptables, where that is the backend.
///
/// # Errors
/// If the kernel refuses netlink sockets, or has no IPVS.
pub fn open(config: &ProxyConfig) -> Result<(Targets<Linux>, Families), Error> {
    for error in module::load(&MODULES) {
        warn!(%error, "Loading a kernel module failed");
    }
    let (mut targets, programs) = opened(Some(config.backend))?;
    set_timeouts(&mut targets.virtuals, config);
    Ok((targets, programs))
}

/// Like [`open`], without loading or setting anything. A kernel without IPVS has no virtual services of ours.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open_for_cleanup() -> Result<Targets<Linux>, Error> {
    let (mut targets, _) = opened(None)?;
    targets.virtuals.accept_missing_ipvs();
    Ok(targets)
}

/// Opens all kinds, of the packet filter those of one backend or of both.
fn opened(used: Option<Backend>) -> Result<(Targets<Linux>, Families), Error> {
    let uses = |backend| used.is_none_or(|used| used == backend);
    let removal = Removal::of(ownership(), with_temporary());
    let other_variant = OtherVariant::of(&iptables::Detected::default(), ownership());
    let device = LinkName(DEVICE.into());
    let mut targets = Targets {
        kernel: Linux { used, left: None, removal, other_variant, forgetter: Forgetter::default() },
        links: Links::open([device.clone()])?,
        settings: Settings::new([]),
        // Nobody resets the option, so that to clean up no bridge is looked at.
        hairpin_ports: HairpinPorts::open(used.map(|_| LinkName(BRIDGE.into())))?,
        sets: Optional::unused("sets"),
        elements: Optional::unused("set elements"),
        rules: Optional::unused("iptables rules"),
        table: Optional::unused("nf_tables rules"),
        passages: Optional::unused(HostChain::Input.kind()),
        virtuals: Services::open(Box::new(|_| false))?,
        policy_rules: PolicyRules::open(is_rule_of_ours)?,
        routes: Routes::open(route_ownership())?,
        addresses: Addresses::open([device])?,
    };
    // To clean up it is opened only where there is one, because opening needs a kernel that has nf_tables.
    if uses(Backend::Nftables) && (used.is_some() || nftables::has_inet_table(TABLE)?) {
        targets.table = Optional::used(OwnTable::open(TABLE)?);
    }
    if uses(Backend::Nftables) {
        targets.passages = Optional::used(Passages::open(HostChain::Input, &COMMENTS)?);
    }
    let mut programs = Families::default();
    if uses(Backend::Iptables) {
        let detected = detected();
        programs = detected.programs;
        targets.kernel.other_variant = OtherVariant::of(&detected, ownership());
        let mut sets = Sets::open(with_temporary(), SetName(TEMPORARY_SET.into()))?;
        let mut elements = Elements::open(set_names())?;
        if used.is_none() {
            sets.accept_missing_ipset();
            elements.accept_missing_ipset();
        }
        targets.sets = Optional::used(sets);
        targets.elements = Optional::used(elements);
        targets.rules = Optional::used(Tables::detected(detected, ownership()));
    }
    Ok((targets, programs))
}

fn detected() -> iptables::Detected {
    let detected = iptables::detect(&ownership());
    for reason in &detected.disabled {
        warn!(%reason, "No iptables rules for this address family");
    }
    for (family, programs) in detected.programs.iter() {
        if let Some(programs) = programs {
            info!(%family, flavour = ?programs.flavour, "Programs of iptables found");
        }
    }
    detected
}

/// The virtual services that elements in the kernel mark as ours, in either packet filter. Looks, and claims nothing: an agent may run.
///
/// # Errors
/// The kernel refuses netlink sockets, or does not list what there is.
pub fn marked() -> Result<BTreeSet<ServiceKey>, Error> {
    let mut elements = Elements::open(set_names())?;
    elements.accept_missing_ipset();
    let table = OwnTable::open_existing(TableFamily::Inet, TABLE, "nf_tables rules")?;
    let table = table.map(|mut table| table.view()).transpose()?.unwrap_or_default();
    let in_sets = elements.read()?.into_keys().filter_map(|key| {
        let is_of_ports = Family::BOTH.into_iter().any(|family| key.set == Set::ServicePorts.name(family));
        match key.entry {
            Entry::IpPort(address, protocol, port) if is_of_ports => Some((address, protocol, port)),
            _ => None,
        }
    });
    let in_table = table.into_keys().filter_map(|object| match object {
        Object::Element(set, Key::Service(address, protocol, port))
            if set == Set::ServicePorts.in_table(Family::from(address)) =>
        {
            Some((address, protocol, port))
        }
        _ => None,
    });
    let all = in_sets.chain(in_table);
    Ok(all.map(|(address, protocol, port)| ServiceKey::Address { address, protocol, port }).collect())
}

/// Removes the table of nf_tables where there is one; returns why it could not be removed.
pub fn remove_table() -> Option<String> {
    nftables::abandoned::remove(TableFamily::Inet, TABLE)
}

impl Kernel for Linux {
    type Links = Links;
    type Settings = Settings;
    type HairpinPorts = HairpinPorts;
    type Sets = Optional<Sets>;
    type Elements = Optional<Elements>;
    type Rules = Optional<Tables>;
    type Table = Optional<OwnTable>;
    type Passages = Optional<Passages>;
    type Virtuals = Services;
    type PolicyRules = PolicyRules;
    type Routes = Routes;
    type Addresses = Addresses;

    fn forget_flows(&mut self, flows: &[Flows]) -> Result<usize, Remaining> {
        self.forgetter.forget(flows)
    }

    fn marked_by_other_backend(&mut self) -> Result<MarkedElsewhere, Error> {
        match self.used {
            Some(Backend::Iptables) if nftables::has_inet_table(TABLE)? => {
                let mut table = OwnTable::open(TABLE)?;
                let found = table.read()?;
                self.left = Some(table);
                let places = found.keys().filter_map(Set::of_object).collect();
                Ok(MarkedElsewhere::by(places, given_in_table(&found)))
            }
            Some(Backend::Nftables) => match Elements::open(set_names())?.read() {
                Ok(found) => {
                    let places: Vec<_> = found.keys().filter_map(Set::of_element).collect();
                    let is_tunnelled = places.iter().any(|(set, _)| *set == Set::TunnelPorts);
                    let given = if is_tunnelled { given_by_chains() } else { BTreeMap::new() };
                    Ok(MarkedElsewhere::by(places, given))
                }
                Err(error) if error.is_unsupported() => Ok(MarkedElsewhere::default()),
                Err(error) => Err(error),
            },
            Some(Backend::Iptables) | None => Ok(MarkedElsewhere::default()),
        }
    }

    fn has_abandoned(&mut self) -> bool {
        match self.used {
            Some(Backend::Nftables) => self.removal.finds_any(),
            Some(Backend::Iptables) => {
                nftables::has_inet_table(TABLE).unwrap_or(false) || self.other_variant.is_there()
            }
            None => false,
        }
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        if self.used == Some(Backend::Nftables) {
            return self.removal.step();
        }
        let mut failed = Vec::new();
        if self.used.is_some() {
            self.left = None;
            failed.extend(remove_table());
            failed.extend(nftables::passages::remove(HostChain::Input, &COMMENTS));
        }
        failed.extend(self.other_variant.remove());
        Some(failed)
    }
}

/// Returns the marks that rules of iptables give to packets. Where they cannot be read, Services get those that they ask for first, as nearly all have.
fn given_by_chains() -> BTreeMap<ServiceKey, u32> {
    let found = Tables::detected(iptables::detect(&ownership()), ownership()).read().unwrap_or_default();
    let chains = Family::BOTH.map(marking_chain);
    chains.iter().filter_map(|chain| found.get(chain)).flat_map(rules::marks_of).collect()
}

impl Owned for Services {
    fn set_ownership(&mut self, whose: ipvs::Ownership) {
        Services::set_ownership(self, whose);
    }
}

impl Connected for Services {
    fn connections(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, u64)>, Error> {
        let listed = Services::connections(self, key)?;
        let count = |has: Connections| u64::from(has.active) + u64::from(has.inactive);
        Ok(listed.into_iter().map(|(destination, has)| (destination, count(has))).collect())
    }

    fn observe(&mut self, key: &ServiceKey) -> Result<Option<Observed>, Error> {
        Services::observe(self, key)
    }

    fn take_refused(&mut self) -> Vec<RefusedPart> {
        Services::take_refused(self)
    }

    fn list_some(&mut self) -> Option<bool> {
        Services::list_some(self)
    }

    fn others_commands(&mut self, now: Instant) -> Counted {
        Services::others_commands(self, now)
    }

    fn has_missed(&mut self) -> bool {
        Services::has_missed(self)
    }

    fn look_anew(&mut self) {
        Services::look_anew(self);
    }
}

/// Returns the ownership rules: our chains, and the rules that kube-router left beside them.
pub fn ownership() -> Ownership {
    Ownership {
        chains: [
            (Table::Filter, CHAIN_GUARD),
            (Table::Filter, CHAIN_UNALLOCATED),
            (Table::Filter, CHAIN_HIDDEN),
            (Table::Nat, CHAIN_SNAT),
            (Table::Mangle, CHAIN_SOURCES),
            (Table::Mangle, CHAIN_INSIDE),
            (Table::Mangle, CHAIN_DSR),
            (Table::Mangle, CHAIN_DSR_MSS),
            (Table::Mangle, CHAIN_DSR_SENT),
        ]
        .map(|(table, chain)| (table, Name::Exact(chain.into())))
        .into(),
        leftovers: Leftovers::Proxy,
    }
}

/// Returns the routes that are ours: the device's, and of the table for direct server return the local default route through the
/// loopback device, which is kube-router's.
pub fn route_ownership() -> route::Ownership {
    let places = [(TABLE_LOCAL, DEVICE, false), (DSR_TABLE.table, DEVICE, false), (DSR_TABLE.table, "lo", true)];
    let through =
        places.map(|(table, link, local_default)| Through { table, link: LinkName(link.into()), local_default });
    route::Ownership::Devices(through.into())
}

fn set_names() -> Vec<Name> {
    let of_family = |family: Family| Set::ALL.map(|set| Name::Exact((*set.name(family).0).into()));
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

fn with_temporary() -> Vec<Name> {
    let mut names = set_names();
    names.push(Name::Exact(TEMPORARY_SET.into()));
    names
}

fn set_timeouts(services: &mut Services, config: &ProxyConfig) {
    let wanted = Timeouts {
        tcp: config.tcp_timeout.unwrap_or_default(),
        tcp_fin: config.tcp_fin_timeout.unwrap_or_default(),
        udp: config.udp_timeout.unwrap_or_default(),
    };
    if wanted == Timeouts::default() {
        return;
    }
    match services.set_timeouts(wanted) {
        Ok(true) => info!(tcp = wanted.tcp, tcp_fin = wanted.tcp_fin, udp = wanted.udp, "IPVS timeouts set"),
        Ok(false) => {}
        Err(error) => warn!(%error, "Setting IPVS timeouts failed"),
    }
}
