//! The tables of the source guard.
//!
//! ```text
//! table bridge sluice_sources {
//!     set ports_1    { type ifname; }
//!     set links_1    { type ifname . ether_addr; }
//!     set sources_4  { type ifname . ipv4_addr; }
//!     set sources_6  { type ifname . ipv6_addr; }
//!     chain from_ports {
//!         type filter hook prerouting priority filter
//!         iifname @ports_1 goto from_pod
//!     }
//!     chain from_pod { … }
//!     chain from_pod_6 { … }
//!     chain target_6 { … }
//! }
//! ```
//!
//! A frame of a guarded port is accepted by what is known of it, and what remains is dropped and counted by its reason:
//! - its link address is the pod's own, always;
//! - IPv4: the source is one of the pod's addresses, or 0.0.0.0, as of a DHCP client (RFC 2131 4.1);
//! - ARP: the sender's link address is the pod's own, and the sender is one of its addresses, or 0.0.0.0, as of a probe (RFC 5227 2.1);
//! - IPv6: the source is one of the pod's addresses, a link-local one, or `::`; with `::` a neighbour solicitation asks for an own target alone
//!   (duplicate address detection, RFC 4862 5.4). The target of a neighbour advertisement is an own one (RFC 4861 4.4). An own target is one of the
//!   pod's addresses or link-local. Router advertisements and redirects, by which a pod would be taken for the router, do not pass;
//! - a frame with a second tag of a VLAN is dropped: what is behind it cannot be looked at. One tag is taken off by the kernel before;
//! - any other protocol passes.
//!
//! Link-local addresses are the pod's own choice (RFC 7217), so a pod may use another pod's: with its own link address.
//!
//! Before `br_netfilter` and connection tracking, so that nothing is remembered of what is dropped. In the family `bridge` rules
//! know a frame by its EtherType (`meta protocol`).
//!
//! Frames to the groups 01:80:c2:00:00:00 to 0f, which a bridge does not forward (IEEE 802.1Q 8.6.3), never meet that hook. The host takes a packet in
//! one of them as it takes any that comes by the port itself, which none but these does: what a bridge hands on has the bridge as its link. So all of them are dropped, and
//! the bridge may not learn from such frames whose addresses are where ([`Desired::bridges`]).
//!
//! ```text
//! table inet sluice_sources {
//!     set ports_1    { type ifname; }
//!     chain by_port {
//!         type filter hook prerouting priority -450
//!         iifname @ports_1 counter name bridge_group drop
//!     }
//! }
//! table arp sluice_sources {
//!     set ports_1    { type ifname; }
//!     chain by_port {
//!         type filter hook input priority filter
//!         iifname @ports_1 counter name bridge_group drop
//!     }
//! }
//! ```
//!
//! ARP meets no chain of the family `inet`, hence the third table: without it the host would take the senders of such messages for its neighbours.
//! These two name a port only while it is known to be one of a bridge, or nothing is known: all that a link on no bridge receives comes by the link itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::ports::{GuardedPort, Ports};
use crate::kernel::bridge::NoGroupLearning;
use crate::kernel::link::LinkName;
use crate::kernel::nftables::{
    Base, BaseKind, Chain, Content, Fields, FrameField, Hook, Key, Kind, Lookup, Match, Name, Object, Rule, SetSpec,
    Statement, Verdict,
};
use crate::model::{AttachmentId, LinkAddress};
use crate::net::{Family, icmp};

/// The tables, one each of the families `bridge`, `inet` and `arp`.
pub const TABLE: &str = "sluice_sources";

/// The names of the kinds of kernel objects.
pub const NAME: &str = "source guard";
pub const BY_PORT_NAME: &str = "source guard of the host";
pub const ARP_NAME: &str = "source guard of ARP";

/// Contents of a table.
pub type Contents = BTreeMap<Object, Content>;

/// Desired kernel objects, by table.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Of the table of the family `bridge`.
    pub frames: Contents,
    /// Of the table of the family `inet`.
    pub by_port: Contents,
    /// Of the table of the family `arp`.
    pub arp: Contents,
    /// The bridges with guarded ports.
    pub bridges: BTreeMap<LinkName, NoGroupLearning>,
}

impl Desired {
    /// The contents of the tables of the families `bridge`, `inet` and `arp`.
    pub fn tables(&self) -> [&Contents; 3] {
        [&self.frames, &self.by_port, &self.arp]
    }
}

/// Why packets in frames are dropped that no bridge hands on, in the metrics, and the name of its counter in the tables of the families `inet` and `arp`.
pub const BY_PORT_REASON: (&str, &str) = (BRIDGE_GROUP, "bridge-group");

/// Why frames are dropped in the table of the family `bridge`, each with the counter of this name.
pub const REASONS: [(&str, &str); 6] = [
    (WRONG_LINK, "link-address"),
    (WRONG_IPV4, "ipv4"),
    (WRONG_ARP, "arp"),
    (WRONG_IPV6, "ipv6"),
    (WRONG_TARGET, "neighbor"),
    (TWO_TAGS, "vlan-tags"),
];

const WRONG_LINK: &str = "wrong_link";
const WRONG_IPV4: &str = "wrong_ipv4";
const WRONG_ARP: &str = "wrong_arp";
const WRONG_IPV6: &str = "wrong_ipv6";
const WRONG_TARGET: &str = "wrong_target";
const TWO_TAGS: &str = "two_tags";
const BRIDGE_GROUP: &str = "bridge_group";

const PORTS: &str = "ports_1";
const LINKS: &str = "links_1";
const SOURCES_4: &str = "sources_4";
const SOURCES_6: &str = "sources_6";

const FROM_PORTS: &str = "from_ports";
const FROM_POD: &str = "from_pod";
const FROM_POD_6: &str = "from_pod_6";
const TARGET_6: &str = "target_6";
const BY_PORT: &str = "by_port";

/// `filter` of the family `bridge` (`NF_BR_PRI_FILTER_BRIDGED`): before `br_netfilter`.
const PRIORITY: i32 = -200;

/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`: before connection tracking puts fragments together.
const BEFORE_FRAGMENTS: i32 = -450;

/// `filter` of the family `arp`, which has no other.
const ARP_PRIORITY: i32 = 0;

/// EtherTypes (IEEE 802.3): IPv4, ARP, IPv6, 802.1Q and 802.1ad.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// Returns the contents of the tables for these ports, nothing without any. Which bridges that concerns is known from the host's links alone.
/// `is_on_bridge`: false for a port that is known to be on no bridge.
pub fn contents(ports: &Ports, is_on_bridge: impl Fn(&GuardedPort) -> bool) -> Desired {
    if ports.is_empty() {
        return Desired::default();
    }
    let on_bridges: Contents = ports.iter().filter(|port| is_on_bridge(port)).map(by_port).collect();
    let of_host = |priority: i32| -> Contents {
        if on_bridges.is_empty() {
            return Contents::new();
        }
        fixed_by_port(priority).into_iter().chain(on_bridges.clone()).collect()
    };
    Desired {
        frames: fixed().chain(ports.iter().flat_map(elements)).collect(),
        by_port: of_host(BEFORE_FRAGMENTS),
        arp: of_host(ARP_PRIORITY),
        bridges: BTreeMap::new(),
    }
}

/// Returns the ports that a table of the family `bridge` guards; whose they are it does not say.
pub fn guarded(frames: &Contents) -> Vec<GuardedPort> {
    let elements = || {
        frames.keys().filter_map(|object| match object {
            Object::Element(set, key) => Some((set.as_str(), key)),
            _ => None,
        })
    };
    let of = |link: &Name| -> Box<[IpAddr]> {
        let addresses = elements().filter_map(|(_, key)| match key {
            Key::LinkAddress(fields) if fields.0 == *link && !fields.1.is_unspecified() => Some(fields.1),
            _ => None,
        });
        addresses.collect()
    };
    let port = |(set, key): (&str, &Key)| match key {
        Key::LinkEther(link, address) if set == LINKS => Some(GuardedPort {
            id: AttachmentId { container: "".into(), interface: "".into() },
            network: "".into(),
            link: link.as_str().into(),
            link_address: LinkAddress(*address),
            addresses: of(link),
        }),
        _ => None,
    };
    elements().filter_map(port).collect()
}

/// The element of one port in the tables of the families `inet` and `arp`.
fn by_port(port: &GuardedPort) -> (Object, Content) {
    (Object::Element(PORTS.into(), Key::Link(port.link.as_str().into())), Content::Element)
}

/// Everything else of such a table. The hook is called `input` in the family `arp`.
fn fixed_by_port(priority: i32) -> [(Object, Content); 3] {
    let base = Base { kind: BaseKind::Filter, hook: Hook::Prerouting, priority };
    let by_port = Match::InSet { lookup: Lookup::InputLink, set: PORTS.into(), negated: false };
    let chain = Chain { base: Some(base), rules: vec![refused([by_port], BRIDGE_GROUP)] };
    let spec = SetSpec { fields: Fields::Link, kind: Kind::Set, intervals: false };
    [
        (Object::Counter(BRIDGE_GROUP.into()), Content::Counter),
        (Object::Set(PORTS.into()), Content::Set(spec)),
        (Object::Chain(BY_PORT.into()), Content::Chain(chain.into())),
    ]
}

/// Returns the elements of one port.
pub fn elements(port: &GuardedPort) -> impl Iterator<Item = (Object, Content)> + use<> {
    let link = Name::from(port.link.as_str());
    let unspecified = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let source = |address: IpAddr| {
        let set = if address.is_ipv6() { SOURCES_6 } else { SOURCES_4 };
        Object::Element(set.into(), Key::LinkAddress(Box::new((link.clone(), address))))
    };
    let mut objects: Vec<Object> = port.addresses.iter().copied().chain(unspecified).map(source).collect();
    objects.push(Object::Element(LINKS.into(), Key::LinkEther(link.clone(), port.link_address.0)));
    objects.push(Object::Element(PORTS.into(), Key::Link(link)));
    objects.into_iter().map(|object| (object, Content::Element))
}

/// Everything but the elements.
fn fixed() -> impl Iterator<Item = (Object, Content)> {
    let set = |name: &str, fields| {
        (Object::Set(name.into()), Content::Set(SetSpec { fields, kind: Kind::Set, intervals: false }))
    };
    let chain = |name: &str, base, rules| (Object::Chain(name.into()), Content::Chain(Chain { base, rules }.into()));
    let base = Base { kind: BaseKind::Filter, hook: Hook::Prerouting, priority: PRIORITY };
    let enter = Rule::new(
        [Match::InSet { lookup: Lookup::InputLink, set: PORTS.into(), negated: false }],
        Verdict::Goto(FROM_POD.into()),
    );
    let counters = REASONS.map(|(name, _)| (Object::Counter(name.into()), Content::Counter));
    let sets = [
        set(PORTS, Fields::Link),
        set(LINKS, Fields::LinkEther),
        set(SOURCES_4, Fields::LinkAddress(Family::V4)),
        set(SOURCES_6, Fields::LinkAddress(Family::V6)),
    ];
    let chains = [
        chain(FROM_PORTS, Some(base), vec![enter]),
        chain(FROM_POD, None, from_pod()),
        chain(FROM_POD_6, None, from_pod_6()),
        chain(TARGET_6, None, target_6()),
    ];
    counters.into_iter().chain(sets).chain(chains)
}

fn from_pod() -> Vec<Rule> {
    let mut rules: Vec<Rule> = TAGS.map(|number| refused([of_type(number)], TWO_TAGS)).into();
    let foreign =
        Match::InSet { lookup: Lookup::InputLinkWith(FrameField::EtherSource), set: LINKS.into(), negated: true };
    rules.extend([
        refused([foreign], WRONG_LINK),
        Rule::new([of_type(IPV4), is_own(FrameField::Source(Family::V4))], Verdict::Accept),
        refused([of_type(IPV4)], WRONG_IPV4),
        Rule::new([of_type(IPV6)], Verdict::Goto(FROM_POD_6.into())),
        Rule::new([of_type(ARP), is_own(FrameField::ArpEther), is_own(FrameField::ArpSource)], Verdict::Accept),
        refused([of_type(ARP)], WRONG_ARP),
    ]);
    rules
}

fn from_pod_6() -> Vec<Rule> {
    let unspecified = within(FrameField::Source(Family::V6), Ipv6Addr::UNSPECIFIED, 128);
    vec![
        refused([is_message(icmp::Kind::RouterAdvertisement)], WRONG_TARGET),
        refused([is_message(icmp::Kind::Redirect)], WRONG_TARGET),
        Rule::new([is_message(icmp::Kind::NeighbourAdvertisement)], Verdict::Jump(TARGET_6.into())),
        Rule::new([is_message(icmp::Kind::NeighbourSolicitation), unspecified], Verdict::Jump(TARGET_6.into())),
        Rule::new([is_own(FrameField::Source(Family::V6))], Verdict::Accept),
        Rule::new([link_local(FrameField::Source(Family::V6))], Verdict::Accept),
        refused([], WRONG_IPV6),
    ]
}

/// Returns where the target is an own one.
fn target_6() -> Vec<Rule> {
    vec![
        Rule::new([is_own(FrameField::NeighborTarget)], Verdict::Return),
        Rule::new([link_local(FrameField::NeighborTarget)], Verdict::Return),
        refused([], WRONG_TARGET),
    ]
}

/// The packet is a message of neighbour discovery of this kind.
fn is_message(kind: icmp::Kind) -> Match {
    Match::NeighborMessage(kind.number(Family::V6))
}

fn of_type(number: u16) -> Match {
    Match::EtherType { number, negated: false }
}

/// The field has a value that the port's pod was given.
fn is_own(field: FrameField) -> Match {
    let set = match field {
        FrameField::EtherSource | FrameField::ArpEther => LINKS,
        FrameField::Source(Family::V4) | FrameField::ArpSource => SOURCES_4,
        FrameField::Source(Family::V6) | FrameField::NeighborTarget => SOURCES_6,
    };
    Match::InSet { lookup: Lookup::InputLinkWith(field), set: set.into(), negated: false }
}

fn link_local(field: FrameField) -> Match {
    within(field, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)
}

fn within(of: FrameField, address: Ipv6Addr, length: u8) -> Match {
    let range = Ipv6Net::new(address, length).expect("the length is of the family");
    Match::FrameAddress { of, range: IpNet::V6(range) }
}

fn refused(matches: impl Into<Box<[Match]>>, counter: &str) -> Rule {
    Rule::with(matches, [Statement::Count(counter.into())], Some(Verdict::Drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(link: &str, last: u8) -> GuardedPort {
        GuardedPort {
            id: AttachmentId { container: link.into(), interface: "eth0".into() },
            network: "mynet".into(),
            link: link.into(),
            link_address: LinkAddress([2, 0, 0, 0, 0, last]),
            addresses: [IpAddr::from([10, 244, 1, last]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])]
                .into(),
        }
    }

    #[test]
    fn another_port_is_its_own_elements_alone_and_without_ports_there_is_nothing() {
        assert_eq!(contents(&Ports::default(), |_| true), Desired::default());
        let one = contents(&Ports::restored(vec![port("veth1", 7)]), |_| true);
        let two = contents(&Ports::restored(vec![port("veth1", 7), port("veth2", 8)]), |_| true);
        let added = |one: &Contents, two: &Contents| -> Vec<String> {
            assert!(one.iter().all(|(object, content)| two.get(object) == Some(content)));
            two.keys().filter(|object| !one.contains_key(*object)).map(ToString::to_string).collect()
        };
        assert_eq!(added(&one.by_port, &two.by_port), ["element veth2 of ports_1"]);
        assert_eq!(added(&one.arp, &two.arp), ["element veth2 of ports_1"]);
        assert_eq!(
            added(&one.frames, &two.frames),
            [
                "element veth2 . 02:00:00:00:00:08 of links_1",
                "element veth2 of ports_1",
                "element veth2 . 0.0.0.0 of sources_4",
                "element veth2 . 10.244.1.8 of sources_4",
                "element veth2 . :: of sources_6",
                "element veth2 . fd00::8 of sources_6",
            ]
        );
    }

    #[test]
    fn ports_are_known_by_the_table_alone_but_not_their_attachments() {
        let ports = [port("veth1", 7), port("veth2", 8)];
        let unknown = AttachmentId { container: "".into(), interface: "".into() };
        let expected = ports.clone().map(|port| GuardedPort { id: unknown.clone(), network: "".into(), ..port });
        assert_eq!(guarded(&contents(&Ports::restored(ports.into()), |_| true).frames), expected);
        assert!(guarded(&Contents::new()).is_empty());
    }

    #[test]
    fn every_reason_has_its_counter_and_every_counter_its_rule() {
        let all = contents(&Ports::restored(vec![port("veth1", 7)]), |_| true).frames;
        let rules = all.values().filter_map(|content| match content {
            Content::Chain(chain) => Some(chain.rules.clone()),
            _ => None,
        });
        let statements: Vec<Statement> = rules.flatten().flat_map(|rule| rule.statements().to_vec()).collect();
        for (counter, _) in REASONS {
            assert!(statements.contains(&Statement::Count(counter.into())), "{counter}");
            assert!(all.contains_key(&Object::Counter(counter.into())), "{counter}");
        }
    }
}
