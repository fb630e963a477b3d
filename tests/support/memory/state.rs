//! State of a kernel in memory, and the foreign objects with which it begins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use compact_str::CompactString;
use sluice::kernel::address::AddressKey;
use sluice::kernel::bridge::{Bridge, Hairpin};
use sluice::kernel::conntrack::Flows;
use sluice::kernel::ipset::{ElementKey, Entry, SetKind, SetName, SetSpec};
use sluice::kernel::iptables::{Piece, Rules, Table};
use sluice::kernel::ipvs::{Destination, Forwarding, Service, ServiceKey, Virtual};
use sluice::kernel::link::{Link, LinkKind, LinkName};
use sluice::kernel::nftables::passages::{Passage, Passing};
use sluice::kernel::nftables::{self, Content};
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN};
use sluice::kernel::rule::{Packets, Place, PolicyRule, RuleKey};
use sluice::kernel::sysctl::Setting;
use sluice::kernel::tunnel::{ReceivePort, Tunnel};
use sluice::kernel::vxlan::{self as overlay, EntryKey, Vxlan};
use sluice::kernel::wireguard::{Peer, PeerKey, Wireguard};
use sluice::net::{Family, Protocol, PublicKey};

/// The addresses of the host's own device.
pub const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1));

/// All tables of a kernel, ours and others'.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct State {
    pub links: BTreeMap<LinkName, Link>,
    pub settings: BTreeMap<Setting, CompactString>,
    /// Bridges all of whose ports have hairpin mode.
    pub hairpin_ports: BTreeMap<LinkName, Hairpin>,
    /// The kernel has no settings of bridges, and no module that brings them.
    pub lacks_bridge_filter: bool,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BTreeMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    /// The service proxy's own table of nf_tables, and the router's.
    pub proxy_table: BTreeMap<nftables::Object, Content>,
    pub router_table: BTreeMap<nftables::Object, Content>,
    /// Rules in the host's own chains that let packets pass.
    pub passages: BTreeMap<Passage, Passing>,
    pub virtuals: BTreeMap<ServiceKey, Virtual>,
    pub routes: BTreeMap<RouteKey, Arc<Route>>,
    pub addresses: BTreeMap<AddressKey, ()>,
    pub flows: BTreeSet<Flows>,
    pub bridges: BTreeMap<LinkName, Bridge>,
    pub tunnels: BTreeMap<LinkName, Tunnel>,
    pub overlay_devices: BTreeMap<LinkName, Vxlan>,
    pub overlay_entries: BTreeMap<EntryKey, overlay::Entry>,
    pub wireguard_devices: BTreeMap<LinkName, Wireguard>,
    pub wireguard_peers: BTreeMap<PeerKey, Peer>,
    pub receive_ports: BTreeMap<ReceivePort, ()>,
    pub source_rules: BTreeMap<RuleKey, ()>,
    pub policy_rules: BTreeMap<PolicyRule, ()>,
}

/// The name of any object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    Link(LinkName),
    Setting(Setting),
    HairpinPorts(LinkName),
    Set(SetName),
    Element(ElementKey),
    Rule(Piece),
    InTable(nftables::Object),
    Passage(Passage),
    Virtual(ServiceKey),
    Route(RouteKey),
    Address(AddressKey),
    Bridge(LinkName),
    Tunnel(LinkName),
    OverlayDevice(LinkName),
    OverlayEntry(EntryKey),
    WireguardDevice(LinkName),
    WireguardPeer(PeerKey),
    ReceivePort(ReceivePort),
    SourceRule(RuleKey),
    PolicyRule(PolicyRule),
}

impl State {
    /// A host with a device, a few settings, and in every family something that belongs to somebody else.
    pub fn of_others() -> State {
        let mut state = State::default();
        let device = LinkName("eth0".into());
        let kind = LinkKind::Other("ether".into());
        state.links.insert(device.clone(), Link { kind, up: true });
        for (path, value) in [
            ("net/ipv4/vs/conntrack", "0"),
            ("net/ipv4/vs/conn_reuse_mode", "1"),
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/all/arp_ignore", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "1"),
        ] {
            state.settings.insert(Setting(path.into()), value.into());
        }
        let set = SetName("BLOCKLIST".into());
        let spec = SetSpec { kind: SetKind::HashIp, family: Family::V4, max_elements: 1024, timeout: false };
        state.sets.insert(set.clone(), spec);
        state.elements.insert(ElementKey { set, entry: Entry::Ip([203, 0, 113, 99].into()) }, ());
        for family in Family::BOTH {
            let table = Table::Filter;
            let chain = Piece::Chain { family, table, chain: "BLOCK".into() };
            state.rules.insert(chain, Rules(vec!["-p tcp -j DROP".into()]));
            let jump = Piece::Jump { family, table, from: "FORWARD".into(), to: "BLOCK".into() };
            state.rules.insert(jump, Rules(vec!["-j BLOCK".into()]));
        }
        for address in [HOST_V4, HOST_V6] {
            state.virtuals.insert(
                ServiceKey::Address { address, protocol: Protocol::Tcp, port: 9999 },
                Virtual {
                    service: Service { scheduler: "wlc".into(), flags: 0, persistence_seconds: 0 },
                    destinations: [foreign_destination(address)].into(),
                },
            );
            let family = Family::from(address);
            let next_hops = [NextHop { link: device.clone(), gateway: None, on_link: false }].into();
            let route = Route { kind: RouteKind::Local, protocol: 2, source: Some(address), next_hops };
            let destination = Family::host_prefix(address);
            state.routes.insert(RouteKey { table: TABLE_LOCAL, destination, metric: 0 }, route.clone().into());
            let everywhere = match family {
                Family::V4 => "0.0.0.0/0",
                Family::V6 => "::/0",
            };
            let destination = everywhere.parse().expect("a prefix");
            let main = RouteKey { table: TABLE_MAIN, destination, metric: 0 };
            state.routes.insert(main, Route { kind: RouteKind::Unicast, source: None, ..route }.into());
            state.addresses.insert(AddressKey { link: device.clone(), address: destination_of(address) }, ());
        }
        let mark = ServiceKey::Mark { mark: 7, family: Family::V4 };
        let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        state.virtuals.insert(mark, Virtual { service, destinations: [].into() });
        state.add_ways_of_others(device);
        state
    }

    /// Adds objects of other routing programs: a device and a port for tunnels, routes beside ours, a rule, a bridge.
    fn add_ways_of_others(&mut self, device: LinkName) {
        let end = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        let (local, remote) = (end(1), end(200));
        let (udp_port, has_options, is_numbered) = (None, true, false);
        let tunnel = Tunnel { local, remote, udp_port, ttl: 64, mtu: Some(1400), up: true, has_options, is_numbered };
        self.tunnels.insert(LinkName("tun-office".into()), tunnel);
        let (address, mtu) = (overlay::link_address(local), Some(1400));
        let (is_fixed, is_numbered) = (true, false);
        let calico = Vxlan { local, id: 4096, port: 4789, address, mtu, up: true, is_fixed, is_numbered };
        self.overlay_devices.insert(LinkName("vxlan.calico".into()), calico);
        let node = EntryKey { link: LinkName("vxlan.calico".into()), remote };
        self.overlay_entries.insert(node, overlay::Entry::of(remote));
        let office = Wireguard { port: 51820, mtu: Some(1420), up: true, has_key: true, is_numbered: false };
        self.wireguard_devices.insert(LinkName("wg0".into()), office);
        let key = PublicKey::new(&[9; 32]).expect("a key");
        let peer = Peer { endpoint: None, allowed: [].into(), keepalive: 0, is_plain: true };
        self.wireguard_peers.insert(PeerKey { link: LinkName("wg0".into()), key }, peer);
        self.bridges.insert(LinkName("docker0".into()), Bridge { mtu: Some(1400), up: true });
        self.receive_ports.insert(ReceivePort { family: Family::V4, port: 6000 }, ());
        let prefix = |text: &str| text.parse().expect("a prefix");
        self.source_rules.insert(RuleKey { source: prefix("198.51.100.0/24"), table: 88 }, ());
        let (place, packets) = (Place { priority: 100, table: 78 }, Packets::Marked { value: 7, mask: u32::MAX });
        self.policy_rules.insert(PolicyRule { family: Family::V4, place, packets }, ());
        for (table, destination, protocol) in
            [(TABLE_MAIN, "10.244.77.0/24", 18), (77, "192.0.2.200/32", 4), (88, "10.244.2.0/24", 17)]
        {
            let next_hops = [NextHop { link: device.clone(), gateway: Some(remote), on_link: false }].into();
            let route = Route { kind: RouteKind::Unicast, protocol, source: None, next_hops };
            self.routes.insert(RouteKey::new(table, prefix(destination)), route.into());
        }
    }
}

fn foreign_destination(address: IpAddr) -> Destination {
    let address = match address {
        IpAddr::V4(_) => "203.0.113.50:9999",
        IpAddr::V6(_) => "[2001:db8:113::50]:9999",
    };
    Destination { address: address.parse().expect("a socket address"), weight: 5, forwarding: Forwarding::Nat }
}

fn destination_of(address: IpAddr) -> ipnet::IpNet {
    let length = match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    };
    ipnet::IpNet::new(address, length).expect("a length of this family")
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Link(key) => write!(f, "link {key}"),
            Object::Setting(key) => write!(f, "setting {key}"),
            Object::Set(key) => write!(f, "set {key}"),
            Object::Element(key) => write!(f, "element {key}"),
            Object::Rule(key) => write!(f, "rules {key}"),
            Object::InTable(key) => write!(f, "nf_tables {key}"),
            Object::Passage(key) => write!(f, "rule {key}"),
            Object::Virtual(key) => write!(f, "virtual service {key}"),
            Object::Route(key) => write!(f, "route {key}"),
            Object::Address(key) => write!(f, "address {key}"),
            Object::HairpinPorts(key) => write!(f, "hairpin mode of {key}"),
            Object::Bridge(key) => write!(f, "bridge {key}"),
            Object::Tunnel(key) => write!(f, "tunnel {key}"),
            Object::OverlayDevice(key) => write!(f, "device {key}"),
            Object::OverlayEntry(key) => write!(f, "entry {key}"),
            Object::WireguardDevice(key) => write!(f, "device {key}"),
            Object::WireguardPeer(key) => write!(f, "peer {key}"),
            Object::ReceivePort(key) => write!(f, "receiving {key}"),
            Object::SourceRule(key) => write!(f, "rule {key}"),
            Object::PolicyRule(key) => write!(f, "rule {key}"),
        }
    }
}
