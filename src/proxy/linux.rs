//! The service proxy's kinds of kernel objects on Linux, and which of them are ours.

use tracing::{info, warn};

use crate::config::ProxyConfig;
use crate::kernel::address::Addresses;
use crate::kernel::conntrack::{self, Flows, Remaining};
use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::{self, Leftovers, Ownership, Programs, Table, Tables};
use crate::kernel::ipvs::{Connections, Destination, ServiceKey, Services, Timeouts};
use crate::kernel::link::{LinkName, Links};
use crate::kernel::route::{self, Routes, TABLE_LOCAL};
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, Name, module};
use crate::net::{Family, PerFamily};

use super::apply::{Connected, Kernel, Owned, Targets};
use super::names::{CHAIN_GUARD, CHAIN_SNAT, DEVICE, Set};

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// Programs of the iptables variant that the host no longer uses, where its tables still hold rules of ours.
    abandoned: PerFamily<Option<Programs>>,
}

/// Temporary set, used while another one is replaced.
const TEMPORARY_SET: &str = "sluice-proxy-tmp";

/// Modules that the kernel does not load on first use.
const MODULES: [&str; 2] = ["ip_vs", "br_netfilter"];

/// Opens all kinds in the network namespace of the calling thread, which has to be the thread that uses them: settings
/// and programs depend on the thread.
///
/// # Errors
/// If the kernel refuses netlink sockets, or has no IPVS.
pub fn open(config: &ProxyConfig) -> Result<Targets<Linux>, Error> {
    for error in module::load(&MODULES) {
        warn!(%error, "Loading a kernel module failed");
    }
    let mut targets = opened()?;
    set_timeouts(&mut targets.virtuals, config);
    Ok(targets)
}

/// Like [`open`], without loading or setting anything. A kernel without IPVS has no virtual services of ours.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open_for_cleanup() -> Result<Targets<Linux>, Error> {
    let mut targets = opened()?;
    targets.virtuals.accept_missing_ipvs();
    Ok(targets)
}

fn opened() -> Result<Targets<Linux>, Error> {
    let detected = iptables::detect(&ownership());
    for reason in &detected.disabled {
        warn!(%reason, "iptables is not usable for this address family");
    }
    for (family, programs) in detected.programs.iter() {
        if let Some(programs) = programs {
            info!(%family, flavour = ?programs.flavour, "iptables");
        }
    }
    let device = LinkName(DEVICE.into());
    let mut own_sets = set_names();
    own_sets.push(Name::Exact(TEMPORARY_SET.into()));
    Ok(Targets {
        kernel: Linux { abandoned: detected.abandoned },
        links: Links::open([device.clone()])?,
        settings: Settings::new([]),
        sets: Sets::open(own_sets, SetName(TEMPORARY_SET.into()))?,
        elements: Elements::open(set_names())?,
        rules: Tables::detected(detected, ownership()),
        virtuals: Services::open(Box::new(|_| false))?,
        routes: Routes::open(route::Ownership::Device { table: TABLE_LOCAL, link: device.clone() })?,
        addresses: Addresses::open([device])?,
    })
}

impl Kernel for Linux {
    type Links = Links;
    type Settings = Settings;
    type Sets = Sets;
    type Elements = Elements;
    type Rules = Tables;
    type Virtuals = Services;
    type Routes = Routes;
    type Addresses = Addresses;

    fn forget_flows(&mut self, flows: &[Flows]) -> Result<usize, Remaining> {
        conntrack::forget(flows)
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        let abandoned = std::mem::take(&mut self.abandoned);
        if abandoned == PerFamily::default() {
            return Vec::new();
        }
        info!("Removing service proxy rules from the other iptables backend");
        iptables::abandoned::remove(abandoned, ownership()).into_iter().collect()
    }
}

impl Owned for Services {
    fn set_ours(&mut self, ours: Box<dyn Fn(&ServiceKey) -> bool + Send>) {
        Services::set_ours(self, ours);
    }
}

impl Connected for Services {
    fn connections(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, u64)>, Error> {
        let listed = Services::connections(self, key)?;
        let count = |has: Connections| u64::from(has.active) + u64::from(has.inactive);
        Ok(listed.into_iter().map(|(destination, has)| (destination, count(has))).collect())
    }
}

/// Returns the ownership rules: our chains, and the rules that kube-router left beside them.
fn ownership() -> Ownership {
    Ownership {
        chains: vec![(Table::Filter, Name::Exact(CHAIN_GUARD.into())), (Table::Nat, Name::Exact(CHAIN_SNAT.into()))],
        leftovers: Leftovers::Proxy,
    }
}

fn set_names() -> Vec<Name> {
    let of_family = |family: Family| Set::ALL.map(|set| Name::Exact((*set.name(family).0).into()));
    Family::BOTH.into_iter().flat_map(of_family).collect()
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
