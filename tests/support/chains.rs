//! Trace of a packet through the firewall's chains: the rules as they are written, read word by word, and the sets.
//!
//! Only the words that our rules use are understood; any other one fails the test, so that a new word gets its meaning
//! here before it goes unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice::firewall::verdict::{Packet, Traffic};
use sluice::kernel::ipset::{ElementKey, Entry, SetName};
use sluice::kernel::iptables::{Piece, Rule, Rules, Table};
use sluice::net::{Family, Protocol};
use sluice::reconcile::Sorted;

/// Rules, sets and host facts by which the chains of the table `filter` judge.
pub struct Chains<'a, E> {
    pub rules: &'a BTreeMap<Piece, Rules>,
    pub elements: &'a E,
    /// The addresses of the host itself.
    pub local: &'a BTreeSet<IpAddr>,
}

/// Connection tracking state of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    New,
    Established,
    /// Established, and the packet has the mark of a port in tunnel mode.
    Tunnelled,
    Invalid,
}

/// Verdict on a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Accepted,
    Rejected,
    Dropped,
    /// It is left to the rules of others.
    Left,
}

/// A packet on its way.
pub struct Traced {
    pub packet: Packet,
    pub state: State,
    pub mark: u32,
}

/// A packet's way so far.
struct Way {
    traced: Traced,
    /// Rules that it has met.
    rules: usize,
}

enum Outcome {
    Ended(Fate),
    Returned,
}

impl Fate {
    pub fn passes(self) -> bool {
        matches!(self, Fate::Accepted | Fate::Left)
    }
}

impl<E: Sorted<ElementKey, ()>> Chains<'_, E> {
    /// Verdict on a packet in a built-in chain, and its mark afterwards.
    pub fn fate(&self, builtin: &str, traced: Traced) -> (Fate, u32) {
        let mut way = Way { traced, rules: 0 };
        (self.end(builtin, &mut way), way.traced.mark)
    }

    /// The number of rules that a packet meets behind a built-in chain.
    pub fn rules_met(&self, builtin: &str, traced: Traced) -> usize {
        let mut way = Way { traced, rules: 0 };
        self.end(builtin, &mut way);
        way.rules
    }

    fn end(&self, builtin: &str, way: &mut Way) -> Fate {
        let family = Family::from(way.traced.packet.destination);
        for (piece, rules) in self.rules {
            let Piece::Jump { family: its, table: Table::Filter, from, to } = piece else { continue };
            let enters = |rule: &Rule| self.matches(&rule.to_string(), &way.traced);
            if *its != family || from != builtin || !rules.0.iter().any(enters) {
                continue;
            }
            if let Outcome::Ended(fate) = self.chain(family, to, way, 0) {
                return fate;
            }
        }
        Fate::Left
    }

    fn chain(&self, family: Family, name: &str, way: &mut Way, depth: usize) -> Outcome {
        assert!(depth < 10, "chains that jump in a circle: {name}");
        let piece = Piece::Chain { family, table: Table::Filter, chain: name.into() };
        let rules = self.rules.get(&piece).unwrap_or_else(|| panic!("a jump to {piece}, which does not exist"));
        for rule in rules.0.iter().map(ToString::to_string) {
            way.rules += 1;
            if !self.matches(&rule, &way.traced) {
                continue;
            }
            let words = words(&rule);
            let at = words.iter().position(|word| word == "-j" || word == "-g").expect("a rule has a target");
            match words[at + 1].as_str() {
                "ACCEPT" => return Outcome::Ended(Fate::Accepted),
                "REJECT" => return Outcome::Ended(Fate::Rejected),
                "DROP" => return Outcome::Ended(Fate::Dropped),
                "RETURN" => return Outcome::Returned,
                "NFLOG" => {}
                "MARK" => {
                    let (value, mask) = mark(&words[at + 3]);
                    assert_eq!(words[at + 2], "--set-xmark");
                    way.traced.mark = (way.traced.mark & !mask) ^ value;
                }
                chain => {
                    let outcome = self.chain(family, chain, way, depth + 1);
                    if matches!(outcome, Outcome::Ended(_)) || words[at] == "-g" {
                        return outcome;
                    }
                }
            }
        }
        Outcome::Returned
    }

    fn matches(&self, rule: &str, traced: &Traced) -> bool {
        let words = words(rule);
        let mut words = words.iter().map(String::as_str);
        let mut negated = false;
        while let Some(word) = words.next() {
            let mut next = || words.next().expect("an option has a value");
            let holds = match word {
                "-j" | "-g" => break,
                "!" => {
                    negated = true;
                    continue;
                }
                "-m" => {
                    next();
                    continue;
                }
                "--comment" | "--limit" | "--limit-burst" => {
                    next();
                    continue;
                }
                // Where it matters, packets come in by the bridge of the pods, and leave by it.
                "-i" | "-o" => next() == "kube-bridge",
                "-s" => prefix(next()).contains(&traced.packet.source),
                "-d" => prefix(next()).contains(&traced.packet.destination),
                "-p" => is_protocol(next(), traced.packet.traffic),
                "--icmp-type" | "--icmpv6-type" => {
                    let number: u8 = next().parse().expect("the number of a kind");
                    traced.packet.traffic == Traffic::Icmp { kind: number }
                }
                "--ctstate" => next().split(',').any(|state| is_state(state, traced.state)),
                "--mark" => {
                    let (value, mask) = mark(next());
                    traced.mark & mask == value
                }
                "--src-type" => next() == "LOCAL" && self.local.contains(&traced.packet.source),
                "--dst-type" => next().split(',').any(|kind| self.is_of_type(kind, traced.packet.destination)),
                "--dports" => is_among(next(), traced.packet.traffic),
                "--match-set" => {
                    let set = next();
                    self.is_in(set, next(), &traced.packet)
                }
                other => panic!("{other:?} is a word that this reader does not know: {rule}"),
            };
            if holds == std::mem::take(&mut negated) {
                return false;
            }
        }
        true
    }

    /// Without routes, so that no broadcast address of a network is known.
    fn is_of_type(&self, kind: &str, address: IpAddr) -> bool {
        match (kind, address) {
            ("LOCAL", address) => self.local.contains(&address),
            ("BROADCAST", IpAddr::V4(address)) => address.is_broadcast() || address.is_unspecified(),
            ("MULTICAST", address) => address.is_multicast(),
            other => panic!("{other:?} is a type of address that this reader does not know"),
        }
    }

    fn is_in(&self, set: &str, sides: &str, packet: &Packet) -> bool {
        let set = SetName(set.into());
        let has = |entry| self.elements.value(&ElementKey { set: set.clone(), entry }).is_some();
        let address = match sides {
            "src" => packet.source,
            "dst" => packet.destination,
            "dst,dst" => {
                let Traffic::Port { protocol, port } = packet.traffic else { return false };
                return has(Entry::IpPort(packet.destination, protocol, port));
            }
            other => panic!("{other:?} is a side that this reader does not know"),
        };
        let bits = Family::from(address).host_bits();
        let around = |length| IpNet::new(address, length).expect("a length of the family").trunc();
        has(Entry::Ip(address)) || (0..=bits).any(|length| has(Entry::Net(around(length))))
    }
}

fn is_protocol(name: &str, traffic: Traffic) -> bool {
    match traffic {
        Traffic::Icmp { .. } => name == "icmp" || name == "ipv6-icmp",
        Traffic::Port { protocol, .. } => Protocol::ALL.into_iter().any(|p| p.to_string() == name && p == protocol),
        Traffic::Tunnel => false,
    }
}

fn is_state(name: &str, state: State) -> bool {
    match name {
        "NEW" => state == State::New,
        "ESTABLISHED" => matches!(state, State::Established | State::Tunnelled),
        "INVALID" => state == State::Invalid,
        "RELATED" | "UNTRACKED" => false,
        other => panic!("{other:?} is a state that this reader does not know"),
    }
}

fn is_among(ranges: &str, traffic: Traffic) -> bool {
    let Traffic::Port { port, .. } = traffic else { return false };
    assert!(ranges.split([',', ':']).count() <= 15, "multiport takes 15 numbers: {ranges}");
    ranges.split(',').any(|range| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().expect("a port");
        (number(first)..=number(last)).contains(&port)
    })
}

fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn mark(text: &str) -> (u32, u32) {
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number of a mark");
    let (value, mask) = text.split_once('/').expect("a mark has a mask");
    (number(value), number(mask))
}

/// The words of a rule, without quotes.
fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in rule.split('"').enumerate() {
        match place % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}
