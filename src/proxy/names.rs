//! The names of everything that the service proxy keeps in the kernel.
//!
//! They are a contract with running nodes: kube-router uses the same ones, so either program finds, adopts and removes
//! the other's objects. Only [`CHAIN_SNAT`] is ours alone: kube-router writes its masquerade rules straight into
//! POSTROUTING, where their owner cannot be recognised. So is all of [`TABLE`], which kube-router does not know.

use std::sync::LazyLock;

use ipnet::IpNet;

use crate::kernel::ipset::{ElementKey, Entry, IpPortNet, SetName};
use crate::kernel::nftables::{Key, Name, Object};
use crate::kernel::rule::Place;
use crate::net::{Family, PerFamily};

/// The bridge that kube-router's CNI configuration creates.
pub const BRIDGE: &str = "kube-bridge";

/// The dummy device of the local routes to service addresses.
pub const DEVICE: &str = "kube-dummy-if";

/// The table of routes for packets of direct server return, and the priority of the rules that lead to it.
pub const DSR_TABLE: Place = Place { priority: 32764, table: 78 };
/// A table that kube-router keeps empty, and the priority of its rule for all packets.
pub const EMPTY_TABLE: Place = Place { priority: 32765, table: 79 };

/// The filter chain that accepts known service ports and rejects all others.
pub const CHAIN_GUARD: &str = "KUBE-ROUTER-SERVICES";
/// The filter chain that rejects packets to cluster IPs that no Service has.
pub const CHAIN_UNALLOCATED: &str = "KUBE-ROUTER-UNALLOCATED";
/// The filter chain that drops packets to service addresses whose port no rule sees.
pub const CHAIN_HIDDEN: &str = "KUBE-ROUTER-HIDDEN";
/// The mangle chain that drops packets to load balancer addresses from clients outside the source ranges of the Service.
pub const CHAIN_SOURCES: &str = "KUBE-ROUTER-SOURCES";
/// The mangle chain that drops packets from outside to what is served to this node only.
pub const CHAIN_INSIDE: &str = "KUBE-ROUTER-INSIDE";
/// The mangle chain that marks packets to addresses in tunnel mode.
pub const CHAIN_DSR: &str = "KUBE-ROUTER-DSR";
/// The mangle chain that has answers from these addresses announce smaller segments.
pub const CHAIN_DSR_MSS: &str = "KUBE-ROUTER-DSR-MSS";
/// The mangle chain that takes these marks away from packets which IPVS sends on to endpoints.
pub const CHAIN_DSR_SENT: &str = "KUBE-ROUTER-DSR-SENT";
/// The nat chain that masquerades connections to remote backends.
pub const CHAIN_SNAT: &str = "KUBE-ROUTER-SNAT";

/// The table of nf_tables, with all that follows.
pub const TABLE: &str = "sluice_proxy";
/// The base chain that sends packets for service addresses to the next one.
pub const NFT_GUARD: &str = "service_guard";
/// The chain that accepts known service ports and rejects all others.
pub const NFT_PORTS: &str = "service_ports";
/// The base chains that reject packets to cluster IPs that no Service has: those that are routed on, and the host's own.
pub const NFT_UNALLOCATED_FORWARDED: &str = "unallocated_forwarded";
pub const NFT_UNALLOCATED_OUT: &str = "unallocated_from_node";
/// The base chain that takes the guard's mark away.
pub const NFT_MARKS: &str = "service_marks";
/// The base chain that sends connections to Services to the chain of their family.
pub const NFT_SNAT: &str = "service_snat";
/// The chains that masquerade connections to remote backends.
pub const NFT_TRANSLATED: PerFamily<&str> = PerFamily { v4: "translated4", v6: "translated6" };

/// The base chain that sends packets to service addresses to the chain that drops those whose port no rule sees, and the counter of these.
pub const NFT_HIDDEN_IN: &str = "hidden_ports";
pub const NFT_HIDDEN: &str = "hidden_ports6";
pub const NFT_HIDDEN_COUNT: &str = "hidden_ports_dropped";

/// The base chains that send packets to restricted services to the next one.
pub const NFT_SOURCES_IN: &str = "service_sources";
pub const NFT_SOURCES_OUT: &str = "own_service_sources";
/// The chain of each family that drops packets from clients outside the source ranges of the Service.
pub const NFT_SOURCES: PerFamily<&str> = PerFamily { v4: "source_ranges4", v6: "source_ranges6" };
/// The counter of what that chain drops.
pub const NFT_OUTSIDE_SOURCES: PerFamily<&str> = PerFamily { v4: "outside_sources4", v6: "outside_sources6" };
/// The base chain that sends packets to what is served to this node only to the next one.
pub const NFT_INSIDE_IN: &str = "inside_services";
/// The chain of each family that drops packets from outside.
pub const NFT_INSIDE: PerFamily<&str> = PerFamily { v4: "from_inside4", v6: "from_inside6" };

/// The base chains that mark packets to addresses in tunnel mode, and have answers announce smaller segments. The second one takes the marks away
/// from packets that IPVS sends on to endpoints.
pub const NFT_DSR_IN: &str = "dsr_in";
pub const NFT_DSR_OUT: &str = "dsr_out";
/// The set of the marks that packets to ports in tunnel mode are given, or were until a moment ago. Its name comes before those of the maps that give
/// them, because elements are added in that order.
pub const NFT_DSR_GIVEN: &str = "dsr_given";

/// The sets that the guard's rules match; they also mark virtual services as ours for a process without memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Set {
    /// The host's own addresses.
    LocalAddresses,
    /// Every service address.
    ServiceAddresses,
    /// Every service address with its protocol and port.
    ServicePorts,
    /// Those that are open to some clients only; there are none where the set does not exist.
    Restricted,
    /// Their clients: address, protocol and port, and a range of source addresses. In [`TABLE`] one set for each length
    /// of prefixes. Its name in ipset comes before that of [`Set::Restricted`], because elements are added in that order.
    AllowedSources,
    /// Those that are open to this node only (`inside`); there are none where the set does not exist.
    InsideOnly,
    /// The endpoints on this node: address, protocol and port, and the address again, as that of the client.
    Hairpin,
    /// The addresses that have ports in tunnel mode (`dsr`); there are none where the set does not exist.
    TunnelAddresses,
    /// Their ports in tunnel mode: address, protocol and port. In [`TABLE`] it is a map to the marks of packets.
    TunnelPorts,
}

impl Set {
    pub const ALL: [Set; 9] = [
        Set::LocalAddresses,
        Set::ServiceAddresses,
        Set::ServicePorts,
        Set::Restricted,
        Set::AllowedSources,
        Set::Hairpin,
        Set::InsideOnly,
        Set::TunnelAddresses,
        Set::TunnelPorts,
    ];
    /// Those that always exist.
    pub const BASIC: [Set; 4] = [Set::LocalAddresses, Set::ServiceAddresses, Set::ServicePorts, Set::Hairpin];

    /// Those whose elements close a virtual service to some clients.
    pub const CLOSING: [Set; 2] = [Set::Restricted, Set::InsideOnly];

    /// Returns the set's name in one family. IPv6 names have a prefix.
    pub fn name(self, family: Family) -> SetName {
        let [local, addresses, ports, restricted, sources, hairpin, inside, tunnelled, tunnel_ports] = NAMES.of(family);
        match self {
            Set::LocalAddresses => local.clone(),
            Set::ServiceAddresses => addresses.clone(),
            Set::ServicePorts => ports.clone(),
            Set::Restricted => restricted.clone(),
            Set::AllowedSources => sources.clone(),
            Set::Hairpin => hairpin.clone(),
            Set::InsideOnly => inside.clone(),
            Set::TunnelAddresses => tunnelled.clone(),
            Set::TunnelPorts => tunnel_ports.clone(),
        }
    }

    /// Returns the set's name in [`TABLE`], in one family; of [`Set::AllowedSources`] what the names of its sets begin with.
    pub fn in_table(self, family: Family) -> Name {
        let [local, addresses, ports, restricted, sources, hairpin, inside, tunnelled, tunnel_ports] =
            NAMES_IN_TABLE.of(family);
        match self {
            Set::LocalAddresses => local.clone(),
            Set::ServiceAddresses => addresses.clone(),
            Set::ServicePorts => ports.clone(),
            Set::Restricted => restricted.clone(),
            Set::AllowedSources => sources.clone(),
            Set::Hairpin => hairpin.clone(),
            Set::InsideOnly => inside.clone(),
            Set::TunnelAddresses => tunnelled.clone(),
            Set::TunnelPorts => tunnel_ports.clone(),
        }
    }

    /// Returns the name of the set of [`TABLE`] that holds the source ranges of this length.
    pub fn sources_in_table(family: Family, length: u8) -> Name {
        Name::from(format!("{}_{length}", Set::AllowedSources.in_table(family)))
    }

    /// Returns the family and the length of prefixes of such a set.
    pub fn sources_of_table(name: &Name) -> Option<(Family, u8)> {
        Family::BOTH.into_iter().find_map(|family| {
            let rest = name.as_str().strip_prefix(Set::AllowedSources.in_table(family).as_str())?;
            Some((family, rest.strip_prefix('_')?.parse().ok()?))
        })
    }

    /// Returns an element of this set as ipset has it.
    pub fn element(self, entry: Entry) -> ElementKey {
        ElementKey { set: self.name(entry.family()), entry }
    }

    /// Returns an element of this set as [`TABLE`] has it.
    pub fn object(self, entry: &Entry) -> Object {
        let name = self.in_table(entry.family());
        match entry {
            Entry::Ip(address) => Object::Element(name, Key::Address(*address)),
            Entry::IpPort(address, protocol, port) => Object::Element(name, Key::Service(*address, *protocol, *port)),
            Entry::Net(prefix) => Object::Element(name, Key::prefix(*prefix)),
            Entry::IpPortNet(entry) => {
                let IpPortNet { address, protocol, port, range } = &**entry;
                let of_sources = || Set::sources_in_table(Family::from(*address), range.prefix_len());
                let name = if self == Set::Hairpin { name } else { of_sources() };
                let fields = (*address, *protocol, *port, range.network());
                Object::Element(name, Key::ServiceSource(Box::new(fields)))
            }
        }
    }

    /// Returns which set of ours an element of ipset is in.
    pub fn of_element(key: &ElementKey) -> Option<(Set, Entry)> {
        let family = key.entry.family();
        Set::ALL.into_iter().find(|set| set.name(family) == key.set).map(|set| (set, key.entry.clone()))
    }

    /// Returns which set of [`TABLE`] an object is in; `None` for other objects than elements.
    pub fn of_object(object: &Object) -> Option<(Set, Entry)> {
        let Object::Element(name, key) = object else { return None };
        let entry = match key {
            Key::Address(address) => Entry::Ip(*address),
            Key::Service(address, protocol, port) => Entry::IpPort(*address, *protocol, *port),
            Key::ServiceSource(fields) => {
                let (address, protocol, port, source) = **fields;
                let family = Family::from(address);
                let (set, length) = match Set::sources_of_table(name) {
                    Some((_, length)) => (Set::AllowedSources, length),
                    None if *name == Set::Hairpin.in_table(family) => (Set::Hairpin, family.host_bits()),
                    None => return None,
                };
                let range = IpNet::new(source, length).ok()?;
                return Some((set, Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port, range }))));
            }
            _ => return None,
        };
        Set::ALL.into_iter().find(|set| set.in_table(entry.family()) == *name).map(|set| (set, entry))
    }

    fn text(self, family: Family) -> &'static str {
        match (self, family) {
            (Set::LocalAddresses, Family::V4) => "kube-router-local-ips",
            (Set::LocalAddresses, Family::V6) => "inet6:kube-router-local-ips",
            (Set::ServiceAddresses, Family::V4) => "kube-router-svip",
            (Set::ServiceAddresses, Family::V6) => "inet6:kube-router-svip",
            (Set::ServicePorts, Family::V4) => "kube-router-svip-prt",
            (Set::ServicePorts, Family::V6) => "inet6:kube-router-svip-prt",
            (Set::Restricted, Family::V4) => "kube-router-restricted",
            (Set::Restricted, Family::V6) => "inet6:kube-router-restricted",
            (Set::AllowedSources, Family::V4) => "kube-router-allowed-src",
            (Set::AllowedSources, Family::V6) => "inet6:kube-router-allowed-src",
            (Set::Hairpin, Family::V4) => "kube-router-hairpin",
            (Set::Hairpin, Family::V6) => "inet6:kube-router-hairpin",
            (Set::InsideOnly, Family::V4) => "kube-router-inside",
            (Set::InsideOnly, Family::V6) => "inet6:kube-router-inside",
            (Set::TunnelAddresses, Family::V4) => "kube-router-dsr",
            (Set::TunnelAddresses, Family::V6) => "inet6:kube-router-dsr",
            (Set::TunnelPorts, Family::V4) => "kube-router-dsr-prt",
            (Set::TunnelPorts, Family::V6) => "inet6:kube-router-dsr-prt",
        }
    }
}

/// Names of the sets, shared by all elements to save memory.
static NAMES: LazyLock<PerFamily<[SetName; 9]>> =
    LazyLock::new(|| PerFamily::from_fn(|family| Set::ALL.map(|set| SetName(set.text(family).into()))));

/// Names of the sets in [`TABLE`].
static NAMES_IN_TABLE: LazyLock<PerFamily<[Name; 9]>> = LazyLock::new(|| PerFamily {
    v4: ["own4", "addresses4", "ports4", "restricted4", "sources4", "hairpin4", "inside4", "dsr4", "dsr_marks4"]
        .map(Name::from),
    v6: ["own6", "addresses6", "ports6", "restricted6", "sources6", "hairpin6", "inside6", "dsr6", "dsr_marks6"]
        .map(Name::from),
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    #[test]
    fn an_element_is_known_by_its_set_in_both_backends() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let address = text.parse().expect("an address");
            for (set, entry) in [
                (Set::LocalAddresses, Entry::Ip(address)),
                (Set::ServiceAddresses, Entry::Ip(address)),
                (Set::ServicePorts, Entry::IpPort(address, Protocol::Udp, 53)),
                (Set::Restricted, Entry::IpPort(address, Protocol::Sctp, 99)),
                (Set::InsideOnly, Entry::IpPort(address, Protocol::Tcp, 80)),
                (Set::TunnelAddresses, Entry::Ip(address)),
                (Set::TunnelPorts, Entry::IpPort(address, Protocol::Tcp, 80)),
                (Set::AllowedSources, source(address, 9)),
                (Set::AllowedSources, source(address, 32)),
                (Set::Hairpin, source(address, Family::from(address).host_bits())),
            ] {
                assert_eq!(Set::of_object(&set.object(&entry)), Some((set, entry.clone())));
                assert_eq!(Set::of_element(&set.element(entry.clone())), Some((set, entry)));
            }
        }
        assert_eq!(Set::of_object(&Object::Set(Set::ServicePorts.in_table(Family::V4))), None);
    }

    fn source(address: std::net::IpAddr, length: u8) -> Entry {
        let range = IpNet::new(address, length).expect("a length").trunc();
        Entry::IpPortNet(Box::new(IpPortNet { address, protocol: Protocol::Tcp, port: 80, range }))
    }

    #[test]
    fn source_ranges_are_added_before_the_service_is_restricted_to_them() {
        for family in Family::BOTH {
            assert!(Set::AllowedSources.name(family) < Set::Restricted.name(family));
        }
    }

    #[test]
    fn names_are_those_of_running_nodes() {
        assert_eq!((DEVICE, CHAIN_GUARD), ("kube-dummy-if", "KUBE-ROUTER-SERVICES"));
        let names: Vec<String> =
            Family::BOTH.into_iter().flat_map(|family| Set::BASIC.map(|set| set.name(family).to_string())).collect();
        assert_eq!(
            names,
            [
                "kube-router-local-ips",
                "kube-router-svip",
                "kube-router-svip-prt",
                "kube-router-hairpin",
                "inet6:kube-router-local-ips",
                "inet6:kube-router-svip",
                "inet6:kube-router-svip-prt",
                "inet6:kube-router-hairpin"
            ]
        );
    }
}
