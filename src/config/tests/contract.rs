//! The flags of kube-router 2.11, which manifests in the field are written for: name, type, default.

use super::*;

/// One flag per line. A default that is the zero of its type is written out, an empty one is left out.
const FLAGS: &str = "\
advertise-cluster-ip bool false
advertise-external-ip bool false
advertise-loadbalancer-ip bool false
advertise-pod-cidr bool true
auto-mtu bool true
bfd-desired-min-tx-interval uint32 1000
bfd-detection-multiplier uint32 3
bfd-port uint32 3784
bfd-required-min-rx-interval uint32 1000
bgp-graceful-restart bool false
bgp-graceful-restart-deferral-time duration 6m0s
bgp-graceful-restart-time duration 1m30s
bgp-holdtime duration 1m30s
bgp-port uint32 179
cache-sync-timeout duration 1m0s
cleanup-config bool false
cluster-asn uint 0
disable-source-dest-check bool true
enable-bfd bool false
enable-cni bool true
enable-ibgp bool true
enable-ipv4 bool true
enable-ipv6 bool false
enable-overlay bool true
enable-pod-egress bool true
enable-pprof bool false
excluded-cidrs strings
gobgp-admin-address string 127.0.0.1
gobgp-admin-port uint16 50051
hairpin-mode bool false
health-addr string
health-port uint16 20244
help bool false
hostname-override string
injected-routes-sync-period duration 1m0s
iptables-sync-period duration 5m0s
ipvs-graceful-period duration 30s
ipvs-graceful-termination bool false
ipvs-permit-all bool true
ipvs-sync-period duration 5m0s
kubeconfig string
loadbalancer-default-class bool true
loadbalancer-ip-range strings
loadbalancer-sync-period duration 1m0s
masquerade-all bool false
master string
metrics-addr string
metrics-path string /metrics
metrics-port uint16 0
netpol-default-deny bool false
nodeport-bindon-all-ip bool false
nodes-full-mesh bool true
overlay-encap string ipip
overlay-encap-port uint16 5555
overlay-type string subnet
override-nexthop bool false
peer-router-asns uints
peer-router-ips ipSlice
peer-router-multihop-ttl uint8 0
peer-router-passwords strings
peer-router-passwords-file string
peer-router-ports uints
router-id string
routes-sync-period duration 5m0s
run-firewall bool true
run-loadbalancer bool false
run-router bool true
run-service-proxy bool true
runtime-endpoint string
service-cluster-ip-range strings [10.96.0.0/12]
service-external-ip-range strings
service-node-port-range string 30000-32767
service-tcp-timeout duration 0s
service-tcpfin-timeout duration 0s
service-udp-timeout duration 0s
strict-external-ip-validation bool true
use-nftables-for-netpol bool false
v string 0
version bool false";

/// Flags beyond kube-router's: two of the earliest versions, and those of this program.
const MORE: [&str; 35] = [
    "bgp-graceful-restart-notification",
    "bgp-llgr-time",
    "bgp-mesh-holdtime",
    "bgp-mesh-max-prefixes",
    "bgp-mesh-password-file",
    "bgp-mesh-ttl-security",
    "cleanup-kube-proxy",
    "cleanup-nftables",
    "cluster-cidr",
    "config-sync-period",
    "drain-delay",
    "drain-label",
    "drain-taints",
    "enable-bfd-mesh",
    "enable-direct-server-return",
    "gobgp-admin-write",
    "log-format",
    "manifests",
    "netfilter",
    "netpol-cni",
    "netpol-flush-established",
    "netpol-source-guard",
    "node-ip-autodetect",
    "node-pod-cidr-annotations",
    "node-routes",
    "overlay-encap-receive",
    "overlay-vxlan-id",
    "overlay-vxlan-port",
    "overlay-wireguard-port",
    "overlay-wireguard-rotate-key",
    "peer-router-interfaces",
    "peer-router-passwords-dir",
    "rr-server-nodes",
    "socket",
    "state-dir",
];

/// The flags of the usage text, in the form of the table above.
fn offered() -> Vec<String> {
    usage("sluice").lines().filter(|line| is_flag(line)).map(row).collect()
}

fn is_flag(line: &str) -> bool {
    line.starts_with("      --") || line.starts_with("  -")
}

#[test]
fn the_usage_text_has_groups_and_names_every_command() {
    let usage = usage("sluice");
    let groups: Vec<&str> = usage.split("\n\n").collect();
    assert_eq!(groups.len(), 11, "the commands and ten groups:\n{usage}");
    let policy = ["policy explain", "policy diff", "policy drops"];
    for command in [
        "[FLAGS]",
        "preflight",
        "svc",
        "bgp peers",
        "bgp routes",
        "status",
        "audit",
        "completion SHELL",
        "man [COMMAND]",
    ]
    .iter()
    .chain(&policy)
    {
        assert!(groups[0].contains(&format!("\n  sluice {command} ")), "{command}: {}", groups[0]);
    }
    for group in &groups[1..] {
        let mut lines = group.lines();
        assert!(lines.next().is_some_and(|heading| heading.ends_with(':')), "{group}");
        let names: Vec<String> = lines.map(row).collect();
        assert!(!names.is_empty() && names.is_sorted(), "{names:?}");
    }
    let group_of = |flag: &str| groups.iter().position(|group| group.contains(&format!("--{flag} ")));
    assert_eq!(group_of("peer-router-ips"), group_of("cluster-asn"));
    assert_eq!(group_of("masquerade-all"), group_of("ipvs-permit-all"));
    assert_ne!(group_of("run-router"), group_of("overlay-type"));
}

fn row(line: &str) -> String {
    let (_, from_name) = line.split_once("--").expect("a line of the usage text has a flag");
    let (name_and_kind, meaning) = from_name.split_once("   ").expect("a flag has a meaning");
    let (name, kind) = name_and_kind.split_once(' ').unwrap_or((name_and_kind, "bool"));
    let default = match (kind.trim(), meaning.rsplit_once("(default ")) {
        (_, Some((_, default))) => default.strip_suffix(')').unwrap_or(default).trim_matches('"'),
        ("bool", None) => "false",
        ("duration", None) => "0s",
        ("uint" | "uint8" | "uint16" | "uint32", None) => "0",
        _ => "",
    };
    format!("{name} {} {default}", kind.trim()).trim_end().to_owned()
}

#[test]
fn every_flag_of_kube_router_is_here_with_its_type_and_default() {
    assert_eq!(FLAGS.lines().count(), 79);
    let offered = offered();
    for flag in FLAGS.lines() {
        assert!(offered.iter().any(|row| row == flag), "{flag} is not in {offered:#?}");
    }
}

#[test]
fn there_are_no_other_flags_than_the_known_ones() {
    let name = |row: &str| row.split(' ').next().unwrap_or_default().to_owned();
    let mut known: Vec<String> = FLAGS.lines().chain(MORE).map(name).collect();
    known.sort();
    let mut offered: Vec<String> = offered().iter().map(|row| name(row)).collect();
    offered.sort();
    assert_eq!(offered, known);
}

#[test]
fn every_default_is_a_value_that_the_checks_accept() {
    let words: Vec<String> = offered().iter().filter_map(|row| typed_out(row)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(config(&words), config(&[]));
}

/// A flag with its default typed out; none for those that print, choose a subsystem or take no empty value, and for the one whose default is a
/// guess that is known to be right once it is typed.
fn typed_out(row: &str) -> Option<String> {
    let mut parts = row.split(' ');
    let (name, kind) = (parts.next()?, parts.next()?);
    let default = parts.next().unwrap_or_default().trim_matches(['[', ']']);
    let left_out = ["help", "version", "run-router", "run-firewall", "config-sync-period", "service-cluster-ip-range"];
    let absent = left_out.contains(&name) || (kind == "uints" && default.is_empty());
    (!absent).then(|| format!("--{name}={default}"))
}

#[test]
fn the_user_guide_has_the_usage_text() {
    let guide = include_str!("../../../docs/user-guide.md");
    let usage = usage("sluice");
    assert!(guide.contains(&usage), "docs/user-guide.md must have this text verbatim:\n{usage}");
}
