//! Outcome of a new connection to an address: the packet's way through routing, our guard and IPVS.
//!
//! Only the forms of rules that the guard has are understood; any other one fails the test, so that a new rule
//! gets its meaning here before it goes unnoticed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use sluice::kernel::ipset::{ElementKey, Entry, SetName};
use sluice::kernel::iptables::{Piece, Rules, Table, Verdict};
use sluice::kernel::ipvs::ServiceKey;
use sluice::kernel::nftables::rule::{Side, States};
use sluice::kernel::nftables::{self, Content, Hook, Key, Lookup, Object, Statement};
use sluice::kernel::route::{Route, RouteKey, RouteKind, TABLE_LOCAL};
use sluice::kernel::rule::{Packets, PolicyRule};
use sluice::net::{Family, Protocol};
use sluice::proxy::dsr::rules::{left_mark, marking_chain};
use sluice::proxy::marks::port;
use sluice::proxy::names::{CHAIN_DSR, CHAIN_UNALLOCATED, DSR_TABLE, NFT_DSR_IN, Set};

use super::memory::State;

/// Where a connection ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The address is not this host's: it goes where routing says.
    Elsewhere,
    /// The client is outside of the source ranges of the Service, or of the node, and the Service has no local endpoint.
    Dropped,
    /// The guard, or a virtual service without a backend, refuses it, or the address is a cluster IP that no Service has.
    Refused,
    /// A program of the host itself answers.
    Host,
    /// It goes through a tunnel, and the kernel takes no answers from pods of this node: their source is an address of the host.
    Martian,
    /// One of these backends answers.
    Backends(BTreeSet<SocketAddr>),
}

/// A client outside the cluster.
const CLIENT: (&str, &str) = ("198.51.100.9", "2001:db8:100::9");
/// Another one, which is in no source range but that of everybody.
const STRANGER: (&str, &str) = ("100.64.0.1", "2001:db8:999::1");

/// A pod of this node.
const POD: (&str, &str) = ("10.244.0.200", "fd00:10:244::c8");

/// The end of a new connection of a client outside the cluster.
pub fn end(state: &State, key: ServiceKey) -> End {
    end_from(state, key, of_family(CLIENT, key))
}

/// The end of a new connection of another client, which source ranges do not name.
pub fn end_of_stranger(state: &State, key: ServiceKey) -> End {
    end_from(state, key, of_family(STRANGER, key))
}

/// The end of a new connection of a pod of this node, in the range that generated nodes have.
pub fn end_of_pod(state: &State, key: ServiceKey) -> End {
    end_from(state, key, of_family(POD, key))
}

fn of_family((v4, v6): (&str, &str), key: ServiceKey) -> IpAddr {
    let is_v6 = matches!(key, ServiceKey::Address { address, .. } if address.is_ipv6());
    if is_v6 { v6 } else { v4 }.parse().expect("an address")
}

/// The end of a new connection of this client.
pub fn end_from(state: &State, key: ServiceKey, client: IpAddr) -> End {
    let ServiceKey::Address { address, protocol, port } = key else { return End::Elsewhere };
    let packet = Packet { state, client, address, protocol, port, mark: Cell::new(0) };
    packet.is_marked();
    let mark = packet.mark.get();
    if !is_local(state, address) && !is_local_for_marked(state, address, mark) {
        return if packet.passes(Table::Filter, ("FORWARD", Hook::Forward)) { End::Elsewhere } else { End::Refused };
    }
    let input = ("INPUT", Hook::Input);
    if !packet.passes(Table::Mangle, input) {
        return End::Dropped;
    }
    if !packet.passes(Table::Filter, input) {
        return End::Refused;
    }
    let by_mark = state.virtuals.get(&ServiceKey::Mark { mark, family: key.family() }).filter(|_| mark != 0);
    let Some(found) = by_mark.or_else(|| state.virtuals.get(&key)) else { return End::Host };
    let serving: BTreeSet<SocketAddr> = found.destinations.iter().filter(|d| d.weight > 0).map(|d| d.address).collect();
    match () {
        () if serving.is_empty() => End::Refused,
        () if by_mark.is_some() && address.is_ipv4() && is_local(state, address) => End::Martian,
        () => End::Backends(serving),
    }
}

/// The virtual service for the mark that packets to a port get.
pub fn mark(state: &State, key: ServiceKey) -> Option<ServiceKey> {
    let ServiceKey::Address { address, protocol, port } = key else { return None };
    let packet = Packet { state, client: of_family(CLIENT, key), address, protocol, port, mark: Cell::new(0) };
    packet.is_marked();
    Some(ServiceKey::Mark { mark: packet.mark.get(), family: key.family() }).filter(|_| packet.mark.get() != 0)
}

/// All ports of service addresses that this kernel serves: by address, protocol and port, or by a mark that packets to them get.
pub fn ports(state: &State) -> BTreeSet<ServiceKey> {
    let by_address = state.virtuals.keys().filter(|key| matches!(key, ServiceKey::Address { .. })).copied();
    let elements = state.elements.keys().filter_map(Set::of_element);
    let places = elements.chain(state.proxy_table.keys().filter_map(Set::of_object));
    by_address.chain(places.filter(|(set, _)| *set == Set::TunnelPorts).filter_map(|(_, entry)| port(&entry))).collect()
}

/// Whether packets to this address that have a mark are delivered to the host by that.
fn is_local_for_marked(state: &State, address: IpAddr, mark: u32) -> bool {
    let family = Family::from(address);
    let leads = |rule: &PolicyRule| {
        rule.family == family
            && rule.place == DSR_TABLE
            && match rule.packets {
                Packets::All => true,
                Packets::Marked { value, mask } => mark & mask == value,
                Packets::NotMarked { value, mask } => mark & mask != value,
            }
    };
    let is_its = |key: &RouteKey| key.table == DSR_TABLE.table && key.destination.contains(&address);
    let local = |(key, route): (&RouteKey, &Arc<Route>)| is_its(key) && route.kind == RouteKind::Local;
    state.policy_rules.keys().any(leads) && state.routes.iter().any(local)
}

/// Whether packets to this address are delivered to the host.
pub fn is_local(state: &State, address: IpAddr) -> bool {
    let prefix = Family::host_prefix(address);
    state
        .routes
        .iter()
        .any(|(key, route)| key.table == TABLE_LOCAL && key.destination == prefix && route.kind == RouteKind::Local)
}

struct Packet<'a> {
    state: &'a State,
    client: IpAddr,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    mark: Cell<u32>,
}

impl Packet<'_> {
    /// Gives the packet its mark, as it comes in.
    fn is_marked(&self) {
        let family = Family::from(self.address);
        for (piece, rules) in &self.state.rules {
            if let (Piece::Leftover { family: its, rule, .. }, Some((port, mark))) = (piece, left_mark(piece)) {
                let is_its = *its == family && self.matches(&rule.to_string());
                assert!(!is_its || port == self.service(), "{rule}");
                self.mark.set(if is_its { mark } else { self.mark.get() });
            }
            let Piece::Jump { family: its, table, from, to } = piece else { continue };
            if *its != family || *table != Table::Mangle || from != "PREROUTING" || to != CHAIN_DSR {
                continue;
            }
            let is_taken = rules.0.iter().any(|rule| self.matches(&rule.to_string()));
            let chain = self.state.rules.get(&marking_chain(family)).filter(|_| is_taken);
            for rule in chain.iter().flat_map(|rules| &rules.0) {
                let Some(Verdict::SetMark(to)) = rule.verdict() else { panic!("{rule} sets no mark") };
                if self.matches(&rule.to_string()) {
                    self.mark.set(self.mark.get() & !to.mask | to.value);
                }
            }
        }
        let chain = self.state.proxy_table.get(&Object::Chain(NFT_DSR_IN.into()));
        if let Some(Content::Chain(chain)) = chain {
            assert_eq!(self.verdict(&chain.rules), None, "packets are marked there, and no more");
        }
    }

    fn service(&self) -> ServiceKey {
        ServiceKey::Address { address: self.address, protocol: self.protocol, port: self.port }
    }

    /// Whether the rules of a table let the packet in, or on; in our table of nf_tables the chains of that priority.
    fn passes(&self, table: Table, (chain, hook): (&str, Hook)) -> bool {
        let family = Family::from(self.address);
        // What others do with packets that are routed on is another matter.
        let is_ours = |to: &str| chain != "FORWARD" || to == CHAIN_UNALLOCATED;
        for (piece, rules) in &self.state.rules {
            match piece {
                Piece::Jump { family: its, table: of, from, to }
                    if *its == family && *of == table && from == chain && is_ours(to) =>
                {
                    if let Some(verdict) = self.jump(rules, (family, table), to) {
                        return verdict;
                    }
                }
                _ => {}
            }
        }
        self.passes_table(table, hook)
    }

    /// The verdict of the chain behind a jump, if the packet takes it and the chain has one.
    fn jump(&self, rules: &Rules, (family, table): (Family, Table), to: &str) -> Option<bool> {
        let text = |rules: &Rules| rules.0.iter().map(ToString::to_string).collect::<Vec<String>>();
        let taken = text(rules).iter().any(|rule| self.matches(rule));
        let chain = Piece::Chain { family, table, chain: to.into() };
        let rules = self.state.rules.get(&chain).filter(|_| taken)?;
        let hit = text(rules).into_iter().find(|rule| self.matches(rule))?;
        let verdict = hit.split("-j ").nth(1).expect("a rule has a verdict");
        Some(match verdict.split(' ').next() {
            Some("ACCEPT") => true,
            Some("REJECT" | "DROP") => false,
            Some("RETURN") => return None,
            other => panic!("{other:?} is a verdict that this tracer does not know: {hit}"),
        })
    }

    fn matches(&self, rule: &str) -> bool {
        let text = without_comment(rule);
        let text = text.split("-j ").next().unwrap_or_default().trim();
        if text.starts_with("-p icmp") || text.starts_with("-p ipv6-icmp") {
            return false;
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            // Nothing is known of the connection yet.
            ["-m", "set", "--match-set", _, "dst", "-m", "conntrack", "--ctdir", "REPLY"] => false,
            // Clients here come from ports that no speaker has, without a header of IPsec.
            ["-p", _, "-m", _, "--sport", ..] => false,
            ["!", "-p", "ah"] => true,
            ["-m", "set", "--match-set", set, "dst"] => self.is_in(set, Entry::Ip(self.address)),
            ["-m", "set", "!", "--match-set", set, "dst"] => !self.is_in(set, Entry::Ip(self.address)),
            ["-m", "set", "--match-set", set, "dst,dst"] => {
                self.is_in(set, Entry::IpPort(self.address, self.protocol, self.port))
            }
            ["-m", "set", "!", "--match-set", set, "dst,dst,src"] => !self.is_source_in(set),
            ["-d", range, "-p", protocol, "-m", "multiport", "--dports", port] => {
                range.parse::<IpNet>().expect("a range").contains(&self.address)
                    && *protocol == self.protocol.to_string()
                    && *port == self.port.to_string()
            }
            ["-d", range, "-p", protocol, "-m", _, "--dport", port] => {
                range.parse::<IpNet>().expect("a range").contains(&self.address)
                    && *protocol == self.protocol.to_string()
                    && *port == self.port.to_string()
            }
            [
                "-m",
                "conntrack",
                "--ctstate",
                "NEW",
                "-m",
                "set",
                "!",
                "--match-set",
                set,
                "dst",
                "-m",
                "addrtype",
                "!",
                "--dst-type",
                "LOCAL",
            ] => !self.is_in(set, Entry::Ip(self.address)) && !is_local(self.state, self.address),
            ["-d", range] => range.parse::<IpNet>().expect("a range").contains(&self.address),
            ["-s", range] => range.parse::<IpNet>().expect("a range").contains(&self.client),
            ["-m", "addrtype", "--src-type", "LOCAL"] => is_local(self.state, self.client),
            // It is the first packet of its connection.
            ["-p", _, "-m", "conntrack", "--ctstate", "ESTABLISHED"] => false,
            [] => true,
            _ => panic!("a rule that this tracer does not know: {rule}"),
        }
    }

    /// Whether the chains of our table of nf_tables that are entered there let it pass.
    fn passes_table(&self, table: Table, hook: Hook) -> bool {
        let chains = self.state.proxy_table.values().filter_map(|content| match content {
            Content::Chain(chain) => Some(chain),
            _ => None,
        });
        let mut entered: Vec<_> = chains
            .filter_map(|chain| Some((chain.base.filter(|base| base.hook == hook)?.priority, chain)))
            .filter(|(priority, _)| (*priority < -100) == (table == Table::Mangle))
            .collect();
        entered.sort_by_key(|(priority, _)| *priority);
        entered.into_iter().all(|(_, chain)| self.verdict(&chain.rules).unwrap_or(true))
    }

    /// Verdict of these rules on the first packet of a connection; `None` if no rule matches.
    fn verdict(&self, rules: &[nftables::Rule]) -> Option<bool> {
        use nftables::Verdict;
        for rule in rules.iter().filter(|rule| rule.matches().iter().all(|one| self.holds(one))) {
            for statement in rule.statements() {
                match statement {
                    Statement::SetMark(to) => self.mark.set(self.mark.get() & !to.mask | to.value),
                    Statement::MarkFrom { lookup: Lookup::DestinationService(its), map } => {
                        let key = Key::Service(self.address, self.protocol, self.port);
                        let element = self.state.proxy_table.get(&Object::Element(map.clone(), key));
                        if let (Some(Content::Mark(mark)), true) = (element, *its == Family::from(self.address)) {
                            self.mark.set(*mark);
                        }
                    }
                    Statement::SetMss(_) | Statement::Count(_) => {}
                    other => panic!("{other:?} is a statement that this tracer does not know"),
                }
            }
            match rule.verdict() {
                None => {}
                Some(Verdict::Accept) => return Some(true),
                Some(Verdict::Reject | Verdict::Drop) => return Some(false),
                Some(Verdict::Return) => return None,
                Some(Verdict::Jump(to)) => {
                    let Some(Content::Chain(chain)) = self.state.proxy_table.get(&Object::Chain(to.clone())) else {
                        panic!("a jump to {to}, which is not there")
                    };
                    if let Some(verdict) = self.verdict(&chain.rules) {
                        return Some(verdict);
                    }
                }
                other => panic!("{other:?} is a verdict that this tracer does not know"),
            }
        }
        None
    }

    fn holds(&self, one: &nftables::Match) -> bool {
        use nftables::Match;
        let family = Family::from(self.address);
        match one {
            Match::State { states, negated: false } if *states == States::NEW => true,
            // Nothing is known of the connection yet, and it is not of ICMP.
            Match::State { negated: false, .. } | Match::IcmpKind { .. } | Match::Answer => false,
            // Clients here come from ports that no speaker has, without a header of IPsec.
            Match::SourcePort { .. } => false,
            Match::Authenticated { negated } => *negated,
            Match::Protocol(protocol) => *protocol == self.protocol,
            Match::Opening => self.protocol == Protocol::Tcp,
            Match::Address { of: Side::Source, range, negated } => range.contains(&self.client) != *negated,
            Match::Address { of: Side::Destination, range, negated } => range.contains(&self.address) != *negated,
            Match::HostAddress { of: Side::Destination, negated } => is_local(self.state, self.address) != *negated,
            Match::HostAddress { of: Side::Source, negated } => is_local(self.state, self.client) != *negated,
            Match::Mark { mark, negated } => (self.mark.get() & mark.mask == mark.value) != *negated,
            Match::InSet { lookup, set, negated } => {
                let key = match lookup {
                    Lookup::Address(its, Side::Destination) if *its == family => Key::Address(self.address),
                    Lookup::Address(its, Side::Source) if *its == family => Key::Address(self.client),
                    Lookup::DestinationService(its) if *its == family => {
                        Key::Service(self.address, self.protocol, self.port)
                    }
                    Lookup::ServiceSource(its, bits) if *its == family => {
                        let source = IpNet::new(self.client, *bits).expect("a length").network();
                        Key::ServiceSource(Box::new((self.address, self.protocol, self.port, source)))
                    }
                    Lookup::ServiceItself(its) if *its == family => {
                        Key::ServiceSource(Box::new((self.address, self.protocol, self.port, self.address)))
                    }
                    Lookup::Mark => Key::Mark(self.mark.get()),
                    Lookup::Address(..)
                    | Lookup::DestinationService(_)
                    | Lookup::ServiceSource(..)
                    | Lookup::ServiceItself(_) => return false,
                    other => panic!("{other:?} is a lookup that this tracer does not know"),
                };
                self.state.proxy_table.contains_key(&Object::Element(set.clone(), key)) != *negated
            }
            other => panic!("{other:?} is a match that this tracer does not know"),
        }
    }

    fn is_source_in(&self, set: &str) -> bool {
        let all = self.state.elements.keys().filter(|key| *key.set.0 == *set);
        all.into_iter().any(|key| match &key.entry {
            Entry::IpPortNet(entry) => {
                (entry.address, entry.protocol, entry.port) == (self.address, self.protocol, self.port)
                    && entry.range.contains(&self.client)
            }
            _ => false,
        })
    }

    fn is_in(&self, set: &str, entry: Entry) -> bool {
        self.state.elements.contains_key(&ElementKey { set: SetName(set.into()), entry })
    }
}

fn without_comment(rule: &str) -> String {
    match rule.split_once("-m comment --comment \"") {
        Some((before, rest)) => format!("{before}{}", rest.split_once('"').map_or("", |(_, after)| after.trim_start())),
        None => rule.to_owned(),
    }
}
