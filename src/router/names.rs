//! The names and numbers of everything that the router keeps in the kernel.
//!
//! They are a contract with running nodes: kube-router uses the same, so either program finds, adopts and removes the
//! other's objects. Only the chains are ours alone: kube-router writes its rules straight into `FORWARD` and
//! `POSTROUTING`, where their owner cannot be recognised; and so is [`TABLE`], which kube-router does not know.

use std::net::IpAddr;
use std::sync::LazyLock;

use compact_str::{CompactString, format_compact};
use ring::digest::{SHA256, digest};

use crate::kernel::ipset::{ElementKey, Entry, SetName};
use crate::kernel::iptables::Table;
use crate::kernel::link::LinkName;
use crate::kernel::nftables::{Key, Name, Object};
use crate::net::{Family, PerFamily};

/// The bridge of the pods.
pub const BRIDGE: &str = "kube-bridge";

/// The protocol number of learned routes, which iproute2 shows as `mrouted`.
pub const PROTOCOL: u8 = 17;

/// The routing table of nodes behind tunnels, for packets from pods.
pub const TUNNEL_TABLE: u32 = 77;
/// The protocol number of the routes in that table: `boot`, as iproute2 sets it.
pub const TUNNEL_PROTOCOL: u8 = 3;

/// Prefix of tunnel names.
pub const TUNNELS: &str = "tun-";

/// The devices of tunnels by their beginning, as rules name them.
pub const ALL_TUNNELS: &str = "tun-+";

/// The devices of `--overlay-encap=vxlan`, one for each family of nodes' addresses.
pub const VXLAN: PerFamily<&str> = PerFamily { v4: "sluice-vxlan4", v6: "sluice-vxlan6" };

/// The device of `--overlay-encap=wireguard`, for both families.
pub const WIREGUARD: &str = "sluice-wg0";
/// The second one, while the key of a node changes.
pub const WIREGUARD_SECOND: &str = "sluice-wg1";
/// The metric of routes that refuse packets which would leave unencrypted: behind all others.
pub const WALL_METRIC: u32 = u32::MAX;

/// The nat chain that masquerades packets from pods to the outside.
pub const CHAIN_EGRESS: &str = "KUBE-ROUTER-EGRESS";
/// The filter chain that accepts packets of pods.
pub const CHAIN_PODS: &str = "KUBE-ROUTER-PODS";

/// The chains that keep others from sending into `vxlan`: pods, hosts that are no nodes, and who would get a node's address.
pub const CHAIN_OVERLAY_PODS: &str = "KUBE-ROUTER-OVERLAY-PODS";
pub const CHAIN_OVERLAY_IN: &str = "KUBE-ROUTER-OVERLAY-IN";
pub const CHAIN_OVERLAY_OUT: &str = "KUBE-ROUTER-OVERLAY-OUT";
/// Those of tunnels of `fou`.
pub const CHAIN_FOU_PODS: &str = "KUBE-ROUTER-FOU-PODS";
pub const CHAIN_FOU_IN: &str = "KUBE-ROUTER-FOU-IN";
pub const CHAIN_FOU_OUT: &str = "KUBE-ROUTER-FOU-OUT";

/// All our chains of iptables, with their tables.
pub const CHAINS: [(Table, &str); 8] = [
    (Table::Filter, CHAIN_PODS),
    (Table::Nat, CHAIN_EGRESS),
    (Table::Mangle, CHAIN_OVERLAY_PODS),
    (Table::Mangle, CHAIN_OVERLAY_IN),
    (Table::Mangle, CHAIN_OVERLAY_OUT),
    (Table::Mangle, CHAIN_FOU_PODS),
    (Table::Mangle, CHAIN_FOU_IN),
    (Table::Mangle, CHAIN_FOU_OUT),
];

/// The table of nf_tables, with all that follows.
pub const TABLE: &str = "sluice_router";
/// The base chain that masquerades packets from pods to the outside.
pub const NFT_EGRESS: &str = "pod_snat";
/// The base chains that mark answers of pods for the host's own chain, and take the mark away again.
pub const NFT_ANSWERS: &str = "answers";
pub const NFT_ANSWER_MARKS: &str = "answer_marks";
/// The beginnings of the names of base chains that keep others from sending into tunnels inside UDP; of each kind and family there is one: `overlay_pods_vxlan4`.
pub const NFT_OVERLAY_PODS: &str = "overlay_pods";
pub const NFT_OVERLAY_IN: &str = "overlay_in";
pub const NFT_OVERLAY_OUT: &str = "overlay_out";
/// The base chains that keep connection tracking from tunnels inside UDP: from packets that come, and from those that go.
pub const NFT_OVERLAY_UNTRACKED: &str = "overlay_untracked";
pub const NFT_OVERLAY_SENT: &str = "overlay_sent";

/// The sets of all nodes' ranges and addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Set {
    /// The nodes' pod CIDRs.
    PodRanges,
    /// The nodes' own addresses.
    NodeAddresses,
}

impl Set {
    pub const ALL: [Set; 2] = [Set::PodRanges, Set::NodeAddresses];

    /// Returns the set's name in one family. IPv6 names have a prefix.
    pub fn name(self, family: Family) -> SetName {
        let [ranges, addresses] = NAMES.of(family);
        match self {
            Set::PodRanges => ranges.clone(),
            Set::NodeAddresses => addresses.clone(),
        }
    }

    /// Returns the set's name in [`TABLE`], in one family.
    pub fn in_table(self, family: Family) -> Name {
        let [ranges, addresses] = NAMES_IN_TABLE.of(family);
        match self {
            Set::PodRanges => ranges.clone(),
            Set::NodeAddresses => addresses.clone(),
        }
    }

    /// Returns which set an element of ipset is in.
    pub fn of_element(key: &ElementKey) -> Option<Set> {
        Set::ALL.into_iter().find(|set| set.name(key.entry.family()) == key.set)
    }

    /// Returns an element of this set as ipset has it.
    pub fn element(self, entry: Entry) -> ElementKey {
        ElementKey { set: self.name(entry.family()), entry }
    }

    /// Returns an element of this set as [`TABLE`] has it.
    pub fn object(self, entry: &Entry) -> Object {
        let key = match entry {
            Entry::Ip(address) => Key::Address(*address),
            Entry::IpPort(address, protocol, port) => Key::Service(*address, *protocol, *port),
            Entry::Net(prefix) => Key::prefix(*prefix),
            Entry::IpPortNet(entry) => {
                Key::ServiceSource(Box::new((entry.address, entry.protocol, entry.port, entry.range.network())))
            }
        };
        Object::Element(self.in_table(entry.family()), key)
    }
}

/// Names of the sets in [`TABLE`].
static NAMES_IN_TABLE: LazyLock<PerFamily<[Name; 2]>> =
    LazyLock::new(|| PerFamily { v4: ["pods4", "nodes4"].map(Name::from), v6: ["pods6", "nodes6"].map(Name::from) });

/// Names of the sets, shared by all elements to save memory.
static NAMES: LazyLock<PerFamily<[SetName; 2]>> = LazyLock::new(|| PerFamily {
    v4: ["kube-router-pod-subnets", "kube-router-node-ips"].map(|name| SetName(name.into())),
    v6: ["inet6:kube-router-pod-subnets", "inet6:kube-router-node-ips"].map(|name| SetName(name.into())),
});

/// Returns the name of the tunnel to a node: its address without separators.
pub fn tunnel(remote: IpAddr) -> LinkName {
    hashed(&remote.to_string().replace(['.', ':'], ""))
}

/// Returns the name for an address whose usual one is taken: 21.3.0.4 and 2.13.0.4 are equal without their dots.
pub fn other_tunnel(remote: IpAddr) -> LinkName {
    hashed(&remote.to_string())
}

/// Returns whether a device is a tunnel of ours, by its name.
pub fn is_tunnel(name: &str) -> bool {
    let digits = name.strip_prefix(TUNNELS).unwrap_or_default();
    digits.len() == 11 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the name of the `vxlan` device for nodes' addresses of this family.
pub fn vxlan(family: Family) -> LinkName {
    LinkName((*VXLAN.of(family)).into())
}

/// Returns whether a device is ours for `vxlan`, by its name.
pub fn is_vxlan(name: &str) -> bool {
    VXLAN.iter().any(|(_, ours)| *ours == name)
}

/// Returns whether a device is one of ours for `wireguard`, by its name.
pub fn is_wireguard(name: &str) -> bool {
    [WIREGUARD, WIREGUARD_SECOND].contains(&name)
}

/// Returns the prefix and eleven hexadecimal digits of the SHA-256: the fifteen characters of a device name.
fn hashed(text: &str) -> LinkName {
    let hash = digest(&SHA256, text.as_bytes());
    let mut name = CompactString::from(TUNNELS);
    for byte in hash.as_ref().iter().take(6) {
        name.push_str(&format_compact!("{byte:02x}"));
    }
    name.truncate(15);
    LinkName(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, name: fn(IpAddr) -> LinkName) -> String {
        name(text.parse().expect("an address")).to_string()
    }

    #[test]
    fn tunnels_are_called_as_on_running_nodes() {
        for (remote, name) in [
            ("10.0.0.1", "tun-e443169117a"),
            ("192.168.1.10", "tun-28c98c87e81"),
            ("10.240.0.5", "tun-27f9f245919"),
            ("2001:db8::10", "tun-c95e274c9d3"),
            ("fd00:10:244::1", "tun-37818bba79f"),
            ("21.3.0.4", "tun-8bbcaad3138"),
        ] {
            assert_eq!(of(remote, tunnel), name);
        }
    }

    #[test]
    fn two_nodes_whose_usual_names_are_equal_have_another_one() {
        assert_eq!(of("21.3.0.4", tunnel), of("2.13.0.4", tunnel));
        assert_ne!(of("21.3.0.4", other_tunnel), of("2.13.0.4", other_tunnel));
        assert_eq!(of("21.3.0.4", other_tunnel).len(), 15);
    }

    #[test]
    fn only_names_of_this_form_are_ours() {
        assert!(is_tunnel("tun-e443169117a"));
        for foreign in
            ["tun0", "tun-", "tun-office", "tun-e443169117", "tun-e443169117A", "xtun-e443169117a", "tun-e443169117ab"]
        {
            assert!(!is_tunnel(foreign), "{foreign}");
        }
    }

    #[test]
    fn sets_are_called_as_on_running_nodes() {
        let names = Family::BOTH.map(|family| Set::ALL.map(|set| set.name(family).to_string()));
        assert_eq!(names[0], ["kube-router-pod-subnets", "kube-router-node-ips"]);
        assert_eq!(names[1], ["inet6:kube-router-pod-subnets", "inet6:kube-router-node-ips"]);
    }
}
