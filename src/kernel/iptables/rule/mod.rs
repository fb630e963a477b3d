//! A rule as a value: its matches, and the target for a packet for which all of them hold.
//!
//! Kernel: a rule is a list of matches and a target, and iptables prints them in this order. Everything that rules of ours
//! are made of is here, and what kube-router's leftovers are made of. [`text`] is the only place that knows the words of
//! iptables: it writes them and reads them. What it reads and does not know is kept as it was printed ([`Foreign`]), match
//! by match, so that every rule is printed as it was read, and two rules are equal where their texts are.
//!
//! A comment is a match as far as the kernel and iptables are concerned: it has its place among the others.

mod text;

pub(super) use self::text::ends_in_quotes;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::ipset::SetName;
use crate::net::{Family, PortRange, Protocol};

/// A rule without the chain that it stands in. Clones share one value in memory, so a rule that stands in many chains
/// costs little where it was made once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(Arc<Parts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    matches: Box<[Match]>,
    verdict: Option<Verdict>,
}

/// One condition on a packet. With `negated` it holds where it would not hold otherwise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Match {
    /// `-s`: the source address is in this range.
    Source { range: IpNet, negated: bool },
    /// `-d`: the destination address is in this range.
    Destination { range: IpNet, negated: bool },
    /// `-i`: the packet came by this link.
    InputLink(Box<str>),
    /// `-o`: the packet leaves by this link.
    OutputLink(Box<str>),
    /// `-p`.
    Protocol(IpProtocol),
    /// `! -p ah`: the packet has no Authentication Header (RFC 4302). With iptables of nf_tables it holds of no packet whose protocol that does not know;
    /// over IPv6 the legacy variant looks behind that header, and it always holds.
    Unauthenticated,
    /// A comment, which always holds.
    Comment(Box<str>),
    /// These addresses of the packet are in this set.
    Set { set: SetName, of: SetSides, negated: bool },
    /// Connection tracking gives the packet one of these states.
    State { states: States, negated: bool },
    /// The packet answers: its connection, which is known, was opened by whom it is for.
    Answer,
    /// The bits of the packet's mark under the mask equal the value.
    Mark { mark: Mark, negated: bool },
    /// The same of the mark of the packet's connection.
    ConnectionMark { mark: Mark, negated: bool },
    /// Holds this many times a minute, and for this many packets in a row.
    Limit { per_minute: u32, burst: u32 },
    /// The destination port is in one of these ranges; at most 15 numbers, a range of several ports being two.
    Ports(Box<[PortRange]>),
    /// The port at this end is this one; the protocol has to be matched before.
    Port { protocol: Protocol, side: Side, port: u16 },
    /// A segment of TCP that opens a connection, or accepts one: it has SYN and not RST.
    Opening,
    /// The same from this source port.
    OpeningFrom { port: u16 },
    /// This address of the packet is one of the host's own.
    HostAddress { of: Side, negated: bool },
    /// The destination is a group, or everybody on a link, by the routes of the host. Of IPv4 only.
    ToMany,
    /// The kind of an ICMP or ICMPv6 message.
    IcmpKind { family: Family, number: u8 },
    /// IPVS sends the packet, which is on the way to the service, to a backend with masquerading. Some tools print
    /// `--ipvs` before the rest, without further meaning.
    ByIpvs { prints_ipvs: bool },
    /// A match that is never written here, as it was printed.
    Foreign(Foreign),
}

/// The target of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    Accept,
    /// The packet is dropped without an answer.
    Drop,
    /// The chain from which this one was entered goes on.
    Return,
    /// The packet is rejected with "port unreachable" in the ICMP of this family.
    Reject(Family),
    /// The bits of the packet's mark that the mask names become those of the value, and the next rule follows.
    SetMark(Mark),
    /// The maximum segment size that a segment of TCP announces becomes this, unless it is smaller, and the next rule follows.
    SetMss(u16),
    /// A copy goes to whoever listens to this netlink group, and the next rule follows.
    Log {
        group: u16,
    },
    /// The source becomes the address of the link by which the packet leaves.
    Masquerade {
        random_ports: bool,
    },
    /// The source becomes this address.
    SourceNat {
        to: IpAddr,
        random_ports: bool,
    },
    /// That chain decides; if it does not, the next rule follows.
    Jump(CompactString),
    /// That chain decides; if it does not, the chain from which this one was entered goes on.
    Goto(CompactString),
    /// Another target, as it was printed.
    Foreign {
        target: CompactString,
        text: Foreign,
    },
}

/// Words of iptables that were read and that are never written here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Foreign(Box<str>);

/// A protocol of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum IpProtocol {
    Transport(Protocol),
    /// ICMP or, in IPv6, ICMPv6.
    Icmp(Family),
    /// A packet of this family in a packet of the same family (RFC 2003, RFC 2473).
    Encapsulated(Family),
}

/// An end of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    Source,
    Destination,
}

/// The parts of a packet that are looked up in a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SetSides {
    Address(Side),
    /// The destination's address, together with protocol and port.
    DestinationPort,
    /// The same, together with the source's address.
    DestinationPortSource,
    /// The same, together with the destination's address once more.
    DestinationPortItself,
}

/// A set of connection tracking states.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct States(u8);

/// A value under a mask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mark {
    pub value: u32,
    pub mask: u32,
}

impl Rule {
    pub fn new(matches: impl Into<Box<[Match]>>, verdict: Verdict) -> Rule {
        Rule::of(matches.into(), Some(verdict))
    }

    fn of(matches: Box<[Match]>, verdict: Option<Verdict>) -> Rule {
        Rule(Arc::new(Parts { matches, verdict }))
    }

    pub fn matches(&self) -> &[Match] {
        &self.0.matches
    }

    /// `None` for a rule that does nothing but count.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.0.verdict.as_ref()
    }

    /// The chain that the rule jumps or goes to.
    pub fn chain(&self) -> Option<&CompactString> {
        match self.verdict()? {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    /// The argument of `-j` or `-g`: a chain or an extension.
    pub(super) fn target(&self) -> Option<&str> {
        Some(match self.verdict()? {
            Verdict::Accept => "ACCEPT",
            Verdict::Drop => "DROP",
            Verdict::Return => "RETURN",
            Verdict::Reject(_) => "REJECT",
            Verdict::SetMark(_) => "MARK",
            Verdict::SetMss(_) => "TCPMSS",
            Verdict::Log { .. } => "NFLOG",
            Verdict::Masquerade { .. } => "MASQUERADE",
            Verdict::SourceNat { .. } => "SNAT",
            Verdict::Jump(target) | Verdict::Goto(target) | Verdict::Foreign { target, .. } => target,
        })
    }

    /// Returns whether the rule jumps or goes to this chain.
    pub fn jumps_to(&self, to: &str) -> bool {
        self.chain().is_some_and(|chain| chain == to)
    }

    /// Returns the rule for an ICMP or, in IPv6, an ICMPv6 message of this kind.
    pub fn of_icmp(family: Family, number: u8, comment: Match, verdict: Verdict) -> Rule {
        let protocol = Match::Protocol(IpProtocol::Icmp(family));
        Rule::new([protocol, comment, Match::IcmpKind { family, number }], verdict)
    }

    /// The sets that the rule looks into.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        self.matches().iter().filter_map(|one| match one {
            Match::Set { set, .. } => Some(set),
            _ => None,
        })
    }

    /// Returns the rule without its target.
    pub fn without_verdict(&self) -> Rule {
        Rule::of(self.0.matches.clone(), None)
    }

    /// Returns whether the rule fits on one line of a script.
    pub(super) fn is_one_line(&self) -> bool {
        !self.to_string().contains(['\n', '\0'])
    }

    /// The rule with its values taken out, so that rules of one shape are equal: the same matches and the same target.
    pub(super) fn shape(&self) -> Rule {
        Rule::of(self.matches().iter().map(Match::shape).collect(), self.verdict().map(Verdict::shape))
    }
}

impl Match {
    /// Returns a match for the packet's source or destination in a set.
    pub fn in_set(set: &SetName, of: SetSides) -> Match {
        Match::Set { set: set.clone(), of, negated: false }
    }

    pub fn not_in_set(set: &SetName, of: SetSides) -> Match {
        Match::Set { set: set.clone(), of, negated: true }
    }

    fn shape(&self) -> Match {
        let everything = IpNet::from(IpAddr::from([0; 4]));
        match self.clone() {
            Match::Source { negated, .. } => Match::Source { range: everything, negated },
            Match::Destination { negated, .. } => Match::Destination { range: everything, negated },
            Match::InputLink(_) => Match::InputLink("".into()),
            Match::OutputLink(_) => Match::OutputLink("".into()),
            Match::Comment(_) => Match::Comment("".into()),
            Match::Set { negated, .. } => {
                Match::Set { set: SetName("".into()), of: SetSides::Address(Side::Source), negated }
            }
            Match::State { negated, .. } => Match::State { states: States(0), negated },
            Match::Mark { negated, .. } => Match::Mark { mark: Mark { value: 0, mask: 0 }, negated },
            Match::ConnectionMark { negated, .. } => {
                Match::ConnectionMark { mark: Mark { value: 0, mask: 0 }, negated }
            }
            Match::Limit { .. } => Match::Limit { per_minute: 0, burst: 0 },
            Match::Ports(_) => Match::Ports([].into()),
            Match::Port { protocol, side, .. } => Match::Port { protocol, side, port: 0 },
            Match::OpeningFrom { .. } => Match::OpeningFrom { port: 0 },
            Match::IcmpKind { family, .. } => Match::IcmpKind { family, number: 0 },
            same @ (Match::Protocol(_)
            | Match::Unauthenticated
            | Match::HostAddress { .. }
            | Match::ToMany
            | Match::Opening
            | Match::Answer
            | Match::ByIpvs { .. }
            | Match::Foreign(_)) => same,
        }
    }
}

impl Verdict {
    /// The name of a chain is a value: nothing is printed otherwise because of it.
    fn shape(&self) -> Verdict {
        match self.clone() {
            Verdict::SetMark(_) => Verdict::SetMark(Mark { value: 0, mask: 0 }),
            Verdict::SetMss(_) => Verdict::SetMss(0),
            Verdict::Log { .. } => Verdict::Log { group: 0 },
            Verdict::SourceNat { random_ports, .. } => Verdict::SourceNat { to: IpAddr::from([0; 4]), random_ports },
            Verdict::Jump(_) => Verdict::Jump(CompactString::default()),
            Verdict::Goto(_) => Verdict::Goto(CompactString::default()),
            same => same,
        }
    }
}

impl States {
    pub const INVALID: States = States(1);
    pub const NEW: States = States(2);
    pub const RELATED: States = States(4);
    pub const ESTABLISHED: States = States(8);
    pub const UNTRACKED: States = States(16);

    /// These or those.
    pub const fn or(self, others: States) -> States {
        States(self.0 | others.0)
    }

    /// Returns whether one of these states is among them.
    pub fn includes(self, one: States) -> bool {
        self.0 & one.0 != 0
    }
}

impl fmt::Debug for Rule {
    /// As it is printed, the form that people know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests;
