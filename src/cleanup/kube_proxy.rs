//! `--cleanup-kube-proxy`: what kube-proxy leaves on a host, in whichever of its modes it ran.
//!
//! `kube-proxy --cleanup` empties IPVS, whatever mode it ran in, and with it what a service proxy beside it serves. Here chains, sets, tables and the
//! device go by their names, which only kube-proxy gives. A virtual service keeps no mark of who made it: kube-proxy's are those at addresses of its device, and, while
//! that device is there, those at addresses of this host in the range of node ports. What the service proxy here has marked as its own stays, and what is at `--excluded-cidrs`; one at
//! an external address that this host has itself is not known as kube-proxy's. Where nothing of what is marked is served nothing is removed, because nobody would serve.
//! Connections that were translated already stay.
//!
//! Rules go first, so that no packet is translated to endpoints that nobody keeps up to date, and sets behind the rules that name them. The device is the last
//! one, because it tells which virtual services are kube-proxy's: a cleanup that was ended midway does the rest when it runs again.
//!
//! Names: pkg/proxy/iptables, pkg/proxy/ipvs and pkg/proxy/nftables of Kubernetes 1.36; `KUBE-FIREWALL` of `filter` and the canaries of kubelets are not kube-proxy's. Chains
//! that rules of others jump to stay, and are told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use tracing::{info, warn};

use crate::config::Config;
use crate::kernel::address::{Addresses, host_addresses};
use crate::kernel::iptables::abandoned::Removal;
use crate::kernel::iptables::{Flavour, Leftovers, Ownership, Table, has_unreadable_tables, untold_tables};
use crate::kernel::ipvs::{ServiceKey, Services};
use crate::kernel::link::{LinkName, Links};
use crate::kernel::listening_port::{Transport, listening_ports};
use crate::kernel::{Error, Name, nftables};
use crate::net::Family;
use crate::proxy;
use crate::reconcile::{Mirror, Target};

/// Carries the service addresses in kube-proxy's mode ipvs.
const DEVICE: &str = "kube-ipvs0";
const PROCESS: &str = "kube-proxy";
/// `metricsBindAddress`, on the loopback device by default.
const METRICS_PORT: u16 = 10249;
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
/// The last one is of the mode ipvs before 1.27, and names sets; a kubelet has one in `filter`.
const NAT: [&str; 7] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-FIREWALL",
];
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

const NOBODY_SERVES: &str = "the service proxy of this program has not taken over on this host, and nobody would serve: start it first, or run kube-proxy --cleanup";

/// Removes what kube-proxy left in the network namespace of the calling thread. Returns why something could not be removed.
pub fn remove(config: &Config) -> Vec<String> {
    if let Some(why) = running() {
        return vec![format!(
            "kube-proxy runs on this host ({why}): end it first (kubectl -n kube-system delete ds kube-proxy), or it puts all of it back"
        )];
    }
    let ours = match served_by_ours() {
        Ok(ours) if ours.is_empty() => return vec![NOBODY_SERVES.to_owned()],
        Ok(ours) => ours,
        Err(error) => return vec![error.to_string()],
    };
    let mut removal = Removal::of(ownership(), sets()).sparing_rules_of_others().with_tables(&TABLES);
    let mut left = std::iter::repeat_with(|| removal.step()).flatten().next().unwrap_or_default();
    if has_unreadable_tables() {
        left.push(
            "this kernel has tables of legacy iptables and no program that reads them is installed; rules of kube-proxy in them stay: run this with an image that has iptables-legacy-restore and ip6tables-legacy-restore"
                .to_owned(),
        );
    } else if left.is_empty() {
        // The kernel itself tells what is in tables of nf_tables, and of legacy ones the programs alone.
        left.extend(untold_tables(Flavour::Legacy));
        if left.is_empty() && removal.finds_any() {
            left.push("something of kube-proxy is still there, or is again: run this once more".to_owned());
            left.extend(untold_tables(Flavour::NfTables));
        }
    }
    left.extend(remove_from_ipvs(config, ours).unwrap_or_else(|error| vec![error.to_string()]));
    left
}

/// Returns the virtual services that are marked as ours and that the kernel has. Marks alone outlive them: an agent that was deleted leaves its marks, a kube-proxy in its
/// mode nftables empties IPVS when it starts, and on a kernel without IPVS an agent marks what it cannot serve.
fn served_by_ours() -> Result<BTreeSet<ServiceKey>, Error> {
    let ours = proxy::linux::marked()?;
    match Services::open(Box::new(|_| true))?.read() {
        Ok(all) => Ok(ours.into_iter().filter(|key| all.contains_key(key)).collect()),
        Err(error) if error.is_absent() || error.is_unsupported() => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Removes virtual services and, behind them, the device that tells which are kube-proxy's. `before`: those that were ours when the cleanup began.
fn remove_from_ipvs(config: &Config, before: BTreeSet<ServiceKey>) -> Result<Vec<String>, Error> {
    let Some(served) = served()? else { return Ok(Vec::new()) };
    let mut services = Services::open(Box::new(|_| true))?;
    services.accept_missing_ipvs();
    // Services before marks: the agent marks each before it makes it.
    let all = services.read()?;
    let ours = proxy::linux::marked()?;
    if ours.is_empty() {
        return Ok(vec![NOBODY_SERVES.to_owned()]);
    }
    let is_ours = |key: &ServiceKey| ours.contains(key) || before.contains(key);
    let its: BTreeSet<ServiceKey> =
        all.into_keys().filter(|key| served.may_be_of(key, config, |_| true) && !is_ours(key)).collect();
    services.set_ours(Box::new(move |key| its.contains(key)));
    let (virtual_services, left) = super::remove(PROCESS, Ok(Mirror::new(services)));
    if !left.is_empty() {
        return Ok(left);
    }
    let (_, left) = super::remove(PROCESS, Links::open([LinkName(DEVICE.into())]).map(Mirror::new));
    info!(virtual_services, "What kube-proxy had in IPVS is removed");
    Ok(left)
}

/// Sign that kube-proxy runs in the network namespace of the calling thread: its process, where processes of the host are seen, or its port of metrics.
fn running() -> Option<String> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let is_one = |process: &Path| {
        let name = fs::read_to_string(process.join("comm"));
        name.is_ok_and(|name| name.trim_end() == PROCESS)
            && fs::read_link(process.join("ns/net")).is_ok_and(|namespace| namespace == own)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.map(|entry| entry.path()).find(|process| is_one(process));
    let process = found.and_then(|path| Some(format!("process {}", path.file_name()?.to_string_lossy())));
    process.or_else(|| {
        let listens =
            listening_ports().iter().any(|one| one.transport == Transport::Tcp && one.at.port() == METRICS_PORT);
        listens.then(|| format!("somebody listens on its port {METRICS_PORT}"))
    })
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

/// Virtual services at addresses that a kube-proxy in its mode ipvs has as well, and that are marked as ours; none without its device.
///
/// # Errors
/// The kernel refuses netlink sockets, or does not list what there is.
pub fn served_by_both(config: &Config) -> Result<BTreeSet<ServiceKey>, Error> {
    let Some(served) = served()? else { return Ok(BTreeSet::new()) };
    // Service addresses are on the device of the service proxy here, too.
    let both = proxy::linux::marked()?
        .into_iter()
        .filter(|key| served.may_be_of(key, config, |link| link != proxy::names::DEVICE));
    let both: BTreeSet<ServiceKey> = both.collect();
    if !both.is_empty() {
        warn!(
            virtual_services = both.len(),
            "Virtual services stay that kube-proxy has as well, as its device {DEVICE} says, and nothing marks them as ours any more; where kube-proxy has ended, kube-proxy --cleanup removes them, or ipvsadm --clear and ip link delete {DEVICE}"
        );
    }
    Ok(both)
}

/// Where a kube-proxy in its mode ipvs has virtual services.
struct Served {
    on_device: BTreeSet<IpAddr>,
    /// Addresses of this host, with the device of each: node ports are at all but those above.
    of_host: BTreeMap<IpAddr, LinkName>,
}

impl Served {
    /// Returns whether kube-proxy has such a virtual service, as far as its key tells. `counts`: which devices have node ports, by their names.
    fn may_be_of(&self, key: &ServiceKey, config: &Config, counts: impl Fn(&str) -> bool) -> bool {
        let ServiceKey::Address { address, port, .. } = key else { return false };
        let Some(proxy) = &config.proxy else { return false };
        let is_excluded = proxy.excluded_cidrs.iter().any(|range| range.contains(address));
        let is_node_port = || {
            let is_of_host = self.of_host.get(address).is_some_and(|link| counts(&link.0));
            is_of_host && proxy.service_node_port_range.contains(port)
        };
        !is_excluded && (self.on_device.contains(address) || is_node_port())
    }
}

/// `None` without its device.
fn served() -> Result<Option<Served>, Error> {
    let device = || LinkName(DEVICE.into());
    if Links::open([device()])?.read()?.is_empty() {
        return Ok(None);
    }
    let on_device = Addresses::open([device()])?.read()?;
    let on_device: BTreeSet<IpAddr> = on_device.into_keys().map(|key| key.address.addr()).collect();
    let others = host_addresses()?.into_iter().filter(|one| one.link != device());
    let of_host = others.map(|one| (one.address.addr(), one.link)).collect();
    Ok(Some(Served { on_device, of_host }))
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
