//! Other programs that do what the subsystems here do: service proxies, pod networks, policy engines.
//!
//! They are told by what they leave in the kernel (chains, tables, devices) and by their processes, which are seen from the host's own process
//! namespace alone. Traces without a process may be left over from a program that ended.

use std::collections::BTreeSet;

use crate::config::{Config, NodeRoutes, RouterConfig};
use crate::preflight::facts::Facts;
use crate::preflight::{Finding, Level};

/// A program of another project.
struct Other {
    name: &'static str,
    /// It gives Services their addresses.
    proxies: bool,
    /// It connects pods.
    connects: bool,
    /// It enforces network policies.
    judges: bool,
    /// Names of its processes, 15 bytes at most.
    processes: &'static [&'static str],
    /// Beginnings of the names of its chains, tables and devices.
    chains: &'static [&'static str],
    tables: &'static [&'static str],
    links: &'static [&'static str],
    /// Way to be rid of it.
    removal: &'static str,
}

const BY_ITS_OWN: &str = "remove it by its own manifests, clean up what its page on removal names, and reboot the host or delete its devices and chains";

const OTHERS: [Other; 9] = [
    Other {
        name: "kube-proxy",
        proxies: true,
        connects: false,
        judges: false,
        processes: &["kube-proxy"],
        chains: &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-"],
        tables: &["kube-proxy"],
        links: &["kube-ipvs0"],
        removal: "once agents serve on all nodes, delete its DaemonSet (kubectl -n kube-system delete ds kube-proxy), then run sluice --cleanup-kube-proxy on each node (docs/migration.md)",
    },
    Other {
        name: "flannel",
        proxies: false,
        connects: true,
        judges: false,
        processes: &["flanneld"],
        chains: &["FLANNEL-"],
        tables: &["flannel-ipv"],
        links: &["flannel.", "flannel-"],
        removal: "on a node that has pods, leave it by the steps of docs/migration.md, in which its DaemonSet and its file in /etc/cni/net.d go after the agents' routes are there; on a new one delete them, and its device: ip link delete flannel.1",
    },
    Other {
        name: "Calico",
        proxies: false,
        connects: true,
        judges: true,
        processes: &["calico-node", "calico-felix"],
        chains: &["cali-"],
        tables: &["calico"],
        links: &["cali", "vxlan.calico", "wireguard.cali"],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "Cilium",
        proxies: true,
        connects: true,
        judges: true,
        processes: &["cilium-agent"],
        chains: &["CILIUM_", "OLD_CILIUM_"],
        tables: &[],
        links: &["cilium_"],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "Weave Net",
        proxies: false,
        connects: true,
        judges: true,
        processes: &["weaver", "weave-npc"],
        chains: &["WEAVE"],
        tables: &[],
        links: &["weave"],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "Antrea",
        proxies: true,
        connects: true,
        judges: true,
        processes: &["antrea-agent"],
        chains: &["ANTREA-"],
        tables: &["antrea"],
        links: &["antrea-gw", "antrea-egress"],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "OVN-Kubernetes",
        proxies: true,
        connects: true,
        judges: true,
        processes: &["ovnkube"],
        chains: &["OVN-KUBE-"],
        tables: &["ovn-kubernetes"],
        links: &["ovn-k8s-mp"],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "the AWS VPC CNI",
        proxies: false,
        connects: true,
        judges: false,
        processes: &["aws-k8s-agent"],
        chains: &["AWS-SNAT-CHAIN", "AWS-CONNMARK-CHAIN"],
        tables: &[],
        links: &[],
        removal: BY_ITS_OWN,
    },
    Other {
        name: "kindnet",
        proxies: false,
        connects: true,
        judges: true,
        processes: &["kindnetd"],
        chains: &["KIND-MASQ-AGENT"],
        tables: &["kindnet", "kind-"],
        links: &[],
        removal: "make the cluster with disableDefaultCNI: true",
    },
];

/// Judges what others do that a subsystem here does too. What no subsystem here does may be done by anybody.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = OTHERS.iter().filter_map(|other| clash(other, facts, config)).collect();
    let is_of_proxy =
        facts.network.links.contains("kube-ipvs0") || facts.network.links.contains(crate::proxy::names::DEVICE);
    if facts.network.virtual_services > 0 && !is_of_proxy && config.proxy.is_some() {
        let what =
            format!("{} virtual services of another program; they stay as they are", facts.network.virtual_services);
        findings.push(Finding::ok("IPVS", what));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("other networks", "no other proxy, pod network or policy engine is seen"));
    }
    findings
}

/// Returns why a router with these settings does not go together with another program that connects pods, and the flags by which it does.
fn connects(router: &RouterConfig) -> Option<(&'static str, &'static str)> {
    let routes = "routes to pods of other nodes come from two programs, and the agent's replace the other ones";
    match router.node_routes {
        _ if router.cni_file.is_some() => Some((
            "pods get their addresses and routes from two programs, and do not reach each other",
            "--run-router=false",
        )),
        NodeRoutes::Api => Some((routes, "--node-routes=bgp --enable-ibgp=false")),
        NodeRoutes::Bgp => router.internal_peers.then_some((routes, "--enable-ibgp=false")),
    }
}

fn clash(other: &Other, facts: &Facts, config: &Config) -> Option<Finding> {
    let network = &facts.network;
    let process = other.processes.iter().find(|name| network.processes.contains(**name));
    let begins = |names: &BTreeSet<String>, with: &[&str]| {
        names.iter().find(|name| with.iter().any(|begin| name.starts_with(begin))).cloned()
    };
    let traces: Vec<String> = [
        ("chain", begins(&facts.packet_filter.chains, other.chains)),
        ("table", begins(&facts.packet_filter.tables, other.tables)),
        ("device", begins(&network.links, other.links)),
    ]
    .into_iter()
    .filter_map(|(kind, name)| Some(format!("{kind} {}", name?)))
    .collect();
    if process.is_none() && traces.is_empty() {
        return None;
    }
    let found = match (process, traces.is_empty()) {
        (Some(process), true) => format!("the process {process} runs"),
        (Some(process), false) => format!("the process {process} runs, and there are {}", traces.join(", ")),
        (None, _) => format!("there are {}, of a running program or left over", traces.join(", ")),
    };
    let connecting = config.router.as_ref().and_then(connects);
    let (why_connecting, flags_of_connecting) = connecting.unwrap_or_default();
    let clashes = [
        (
            other.proxies && config.proxy.is_some(),
            "it translates service addresses before IPVS sees them, to endpoints that only it keeps up to date",
            "--run-service-proxy=false",
        ),
        (other.connects && connecting.is_some(), why_connecting, flags_of_connecting),
        (
            other.judges && config.firewall.is_some(),
            "packets pass only where both policy engines let them",
            "--run-firewall=false",
        ),
    ];
    let clashes: Vec<(&str, &str)> =
        clashes.into_iter().filter(|(is, ..)| *is).map(|(_, why, flag)| (why, flag)).collect();
    let subject = other.name.to_owned();
    if clashes.is_empty() {
        return Some(Finding::ok(subject, format!("{found}; no subsystem that runs here does the same")));
    }
    let why = clashes.iter().map(|(why, _)| *why).collect::<Vec<_>>().join("; ");
    let flags = clashes.iter().map(|(_, flag)| *flag).collect::<Vec<_>>().join(" ");
    let todo = format!("{}; or start with {flags}", other.removal);
    Some(Finding::bad(Level::Degraded, subject, [found, why, todo]))
}
