//! `--cleanup-kube-proxy`: what kube-proxy leaves on a host, in whichever of its modes it ran.
//!
//! `kube-proxy --cleanup` empties IPVS, whatever mode it ran in, and with it what a service proxy beside it serves. Here chains, sets, tables and the
//! device go by their names, which only kube-proxy gives. A virtual service keeps no mark of who made it: kube-proxy's are those at addresses of its device, and, while
//! that device is there, those at addresses of this host in the range of node ports. What the service proxy here has marked as its own stays.
//! So do connections that were translated already.
//!
//! Rules go first, so that no packet is translated to endpoints that nobody keeps up to date, and sets behind the rules that name them. The device is the last
//! one, because it tells which virtual services are kube-proxy's: a cleanup that was ended midway does the rest when it runs again.
//!
//! Names: pkg/proxy/iptables, pkg/proxy/ipvs and pkg/proxy/nftables of Kubernetes 1.36; `KUBE-FIREWALL` and the canaries of kubelets are not kube-proxy's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;

use ipnet::IpNet;
use tracing::info;

use crate::kernel::address::{Addresses, host_addresses};
use crate::kernel::iptables::abandoned::Removal;
use crate::kernel::iptables::{Leftovers, Ownership, Table};
use crate::kernel::ipvs::{ServiceKey, Services};
use crate::kernel::link::{LinkName, Links};
use crate::kernel::{Error, Name, nftables};
use crate::net::Family;
use crate::proxy;
use crate::reconcile::{Mirror, Moment, Reflection, Target};

/// Carries the service addresses in kube-proxy's mode ipvs.
const DEVICE: &str = "kube-ipvs0";
const PROCESS: &str = "kube-proxy";
const TABLES: [nftables::Table<'static>; 2] = [
    nftables::Table { family: Family::V4, name: "kube-proxy" },
    nftables::Table { family: Family::V6, name: "kube-proxy" },
];
const FILTER: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
const NAT: [&str; 6] =
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER"];
const CANARY: &str = "KUBE-PROXY-CANARY";
/// Chains of one Service or endpoint, in `nat`; the last one is of versions before 1.24.
const NAT_OF_SERVICES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];
/// Without the beginning, which is [`BEGINNINGS`] for each family.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// Characters of ipset's names (`IPSET_MAXNAMELEN`): kube-proxy cuts two of IPv6 off.
const LONGEST_NAME_OF_A_SET: usize = 31;
const BEGINNINGS: [&str; 2] = ["KUBE-", "KUBE-6-"];

/// Removes what kube-proxy left in the network namespace of the calling thread. Returns why something could not be removed.
pub fn remove(node_ports: &RangeInclusive<u16>) -> Vec<String> {
    if let Some(process) = running() {
        let end = "end it first (kubectl -n kube-system delete ds kube-proxy), or it puts all of it back";
        return vec![format!("kube-proxy runs on this host, as process {process}: {end}")];
    }
    let mut removal = Removal::of(ownership(), sets()).with_tables(&TABLES);
    let mut left = std::iter::repeat_with(|| removal.step()).flatten().next().unwrap_or_default();
    match virtual_services(node_ports).and_then(|ours| {
        let mut services = Services::open(Box::new(move |key| ours.contains(key)))?;
        services.accept_missing_ipvs();
        Ok(services)
    }) {
        Ok(services) => left.extend(remove_all(services)),
        Err(error) => left.push(error.to_string()),
    }
    // Without it the next run would not know the virtual services.
    if left.is_empty() {
        match Links::open([LinkName(DEVICE.into())]) {
            Ok(links) => left.extend(remove_all(links)),
            Err(error) => left.push(error.to_string()),
        }
    }
    left
}

/// The process of kube-proxy in the network namespace of the calling thread, where processes of the host are seen.
fn running() -> Option<String> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let is_one = |process: &Path| {
        let name = fs::read_to_string(process.join("comm"));
        name.is_ok_and(|name| name.trim_end() == PROCESS)
            && fs::read_link(process.join("ns/net")).is_ok_and(|namespace| namespace == own)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.map(|entry| entry.path()).find(|process| is_one(process))?;
    Some(found.file_name()?.to_string_lossy().into_owned())
}

fn ownership() -> Ownership {
    let exact = |table: Table, names: &[&str]| {
        names.iter().map(|name| (table, Name::Exact((*name).into()))).collect::<Vec<_>>()
    };
    let canaries = Table::ALL.into_iter().map(|table| (table, Name::Exact(CANARY.into())));
    let of_services = NAT_OF_SERVICES.iter().map(|prefix| (Table::Nat, Name::Prefix((*prefix).into())));
    let chains = exact(Table::Filter, &FILTER).into_iter().chain(exact(Table::Nat, &NAT)).chain(canaries);
    Ownership { chains: chains.chain(of_services).collect(), leftovers: Leftovers::None }
}

fn sets() -> Vec<Name> {
    let of = |beginning: &str| {
        SETS.map(|name| format!("{beginning}{name}").chars().take(LONGEST_NAME_OF_A_SET).collect::<String>())
    };
    BEGINNINGS.into_iter().flat_map(of).map(|name| Name::Exact(name.into())).collect()
}

/// Addresses at which a kube-proxy in its mode ipvs has virtual services: those of its device, and of this host for node ports. None without that device.
///
/// # Errors
/// The kernel refuses netlink sockets, or does not list devices and addresses.
pub fn served_in_ipvs() -> Result<Vec<IpNet>, Error> {
    let Some(Served { on_device, of_host }) = served()? else { return Ok(Vec::new()) };
    info!(device = DEVICE, "Virtual services that kube-proxy has as well stay");
    Ok(on_device.union(&of_host).map(|address| Family::host_prefix(*address)).collect())
}

/// Where a kube-proxy in its mode ipvs has virtual services.
struct Served {
    on_device: BTreeSet<IpAddr>,
    of_host: BTreeSet<IpAddr>,
}

/// `None` without its device.
fn served() -> Result<Option<Served>, Error> {
    let device = || LinkName(DEVICE.into());
    if Links::open([device()])?.read()?.is_empty() {
        return Ok(None);
    }
    let on_device = Addresses::open([device()])?.read()?;
    let on_device: BTreeSet<IpAddr> = on_device.into_keys().map(|key| key.address.addr()).collect();
    // Service addresses are on the device of the service proxy here, too.
    let of_host =
        host_addresses()?.into_iter().filter(|one| ![DEVICE, proxy::names::DEVICE].contains(&one.link.0.as_str()));
    let of_host = of_host.map(|one| one.address.addr()).collect();
    Ok(Some(Served { on_device, of_host }))
}

/// Virtual services that kube-proxy made and nobody here has taken over; none without its device.
fn virtual_services(node_ports: &RangeInclusive<u16>) -> Result<BTreeSet<ServiceKey>, Error> {
    let Some(Served { on_device, of_host }) = served()? else { return Ok(BTreeSet::new()) };
    let is_marked = proxy::linux::marked()?;
    let is_kube_proxys = |key: &ServiceKey| match *key {
        ServiceKey::Address { address, port, .. } => {
            let is_node_port = of_host.contains(&address) && node_ports.contains(&port);
            (on_device.contains(&address) || is_node_port) && !is_marked(key)
        }
        ServiceKey::Mark { .. } => false,
    };
    let mut all = Services::open(Box::new(|_| true))?;
    all.accept_missing_ipvs();
    Ok(all.read()?.into_keys().filter(is_kube_proxys).collect())
}

/// Removes all that this target recognises. Returns why something could not be removed.
fn remove_all<T: Target<Error = Error>>(target: T) -> Option<String> {
    let mut mirror = Mirror::new(target);
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    if mirror.steps_done() > 0 {
        info!(kind = mirror.name(), removed = mirror.steps_done(), "What kube-proxy left is removed");
    }
    mirror.trouble().map(|trouble| trouble.error.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kubelets_of_kube_router_and_of_this_program_are_not_kube_proxys() {
        let chains = ownership().chains;
        let is_its = |table: Table, chain: &str| chains.iter().any(|(of, name)| *of == table && name.matches(chain));
        for (table, chain) in [
            (Table::Filter, "KUBE-FIREWALL"),
            (Table::Filter, "KUBE-KUBELET-CANARY"),
            (Table::Nat, "KUBE-KUBELET-CANARY"),
            (Table::Mangle, "KUBE-IPTABLES-HINT"),
            (Table::Filter, "KUBE-ROUTER-SERVICES"),
            (Table::Filter, "KUBE-ROUTER-FORWARD"),
            (Table::Nat, "KUBE-ROUTER-SNAT"),
            (Table::Filter, "KUBE-POD-FW-RVYKXYJTWIUEDDZM"),
            (Table::Filter, "KUBE-NWPLCY-DEFAULT"),
            (Table::Nat, "CNI-HOSTPORT-DNAT"),
            (Table::Filter, "KUBE-SVC-NPX46M4PTMTKRN6Y"),
        ] {
            assert!(!is_its(table, chain), "{chain}");
        }
        for (table, chain) in [
            (Table::Filter, "KUBE-FORWARD"),
            (Table::Nat, "KUBE-SVC-NPX46M4PTMTKRN6Y"),
            (Table::Nat, "KUBE-MARK-MASQ"),
            (Table::Mangle, "KUBE-PROXY-CANARY"),
        ] {
            assert!(is_its(table, chain), "{chain}");
        }
    }

    #[test]
    fn sets_of_policies_are_not_kube_proxys() {
        let named = |name: &str| sets().iter().any(|one| one.matches(name));
        let theirs = [
            "KUBE-CLUSTER-IP",
            "KUBE-6-CLUSTER-IP",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
        ];
        theirs.iter().for_each(|name| assert!(named(name), "{name}"));
        for name in ["KUBE-SRC-3A7HYPCJLP7UJ2GI", "KUBE-DST-3A7HYPCJLP7UJ2GI", "kube-router-svip", "inet6:KUBE-SRC-X"] {
            assert!(!named(name), "{name}");
        }
    }
}
