//! A rule of nf_tables as a value: its matches, its statements in between, and the verdict for a packet for which all hold.
//!
//! What a match needs in a table of the family `inet` (that a packet is of IPv4, or of TCP, before its fields are loaded) comes
//! with it: a rule for an IPv4 address says nothing else of the family.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::object::Name;
use crate::net::{Family, PortRange, Protocol};

pub use crate::kernel::iptables::rule::{Mark, Side, States};

/// A rule without the chain that it stands in. Clones share one value in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule(Arc<Parts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Parts {
    matches: Box<[Match]>,
    statements: Box<[Statement]>,
    verdict: Option<Verdict>,
    comment: Option<Box<str>>,
    foreign: Option<Box<Foreign>>,
}

/// A rule that somebody else wrote and that is not understood, as the kernel gave it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub(super) struct Foreign {
    /// The attributes inside `NFTA_RULE_EXPRESSIONS`.
    pub expressions: Box<[u8]>,
    /// The value of `NFTA_RULE_USERDATA`.
    pub userdata: Option<Box<[u8]>>,
}

/// One condition on a packet. With `negated` it holds where it would not hold otherwise, among packets of the same family
/// and protocol.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Match {
    /// `meta nfproto`.
    Family(Family),
    /// `ip saddr`, `ip6 daddr`: the address is in this range.
    Address { of: Side, range: IpNet, negated: bool },
    /// The fields of the packet are an element of this set.
    InSet { lookup: Lookup, set: Name, negated: bool },
    /// `fib saddr type local`: the address is one of the host's own.
    HostAddress { of: Side, negated: bool },
    /// `fib daddr type { broadcast, multicast }`, in IPv4: the kernel gives no IPv6 address these types.
    ToMany,
    /// `meta l4proto`.
    Protocol(Protocol),
    /// `meta l4proto icmp`, `meta l4proto ipv6-icmp`: an ICMP or ICMPv6 message of any type.
    Icmp(Family),
    /// `meta l4proto 4`, `meta l4proto 41`: a packet of this family in another one (RFC 2003, RFC 2473, RFC 4213). `nft` prints the names that the host has for these.
    Encapsulated(Family),
    /// `meta l4proto ah`: the packet has an Authentication Header (RFC 4302). It hides the protocol behind it: nf_tables sees none but this one,
    /// also over IPv6, where IPVS looks further. Of a packet whose protocol nf_tables does not know neither form holds.
    Authenticated { negated: bool },
    /// The type of an ICMP or ICMPv6 message.
    IcmpKind { family: Family, number: u8 },
    /// `tcp sport`: the source port.
    SourcePort { protocol: Protocol, port: u16 },
    /// `tcp dport`: the destination port is in this range.
    DestinationPort { protocol: Protocol, range: PortRange },
    /// `@th,96,24`: the number of the network (VNI) in the header of VXLAN (RFC 7348 5), 24 bits, in a packet of UDP. The port says that there is such a header.
    VxlanNumber(u32),
    /// `tcp flags & (syn | rst) == syn`: a segment of TCP that opens a connection, or accepts one.
    Opening,
    /// `ct state`: connection tracking gives the packet one of these states.
    State { states: States, negated: bool },
    /// `ct direction reply`: the packet answers: its connection, which is known, was opened by whom it is for.
    Answer,
    /// `meta mark`: the bits of the packet's mark under the mask equal the value.
    Mark { mark: Mark, negated: bool },
    /// `ct mark`: the same of the mark of the packet's connection.
    ConnectionMark { mark: Mark, negated: bool },
    /// `iifname`.
    InputLink { name: CompactString, negated: bool },
    /// `oifname`; of both a `+` at the end stands for whatever follows.
    OutputLink { name: CompactString, negated: bool },
    /// `meta protocol`: the EtherType of a frame (IEEE 802.3), behind the tag of a VLAN that the kernel takes off a frame which it receives:
    /// one at most.
    EtherType { number: u16, negated: bool },
    /// `ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00`: the packet came by Ethernet, in a frame to one of the groups that bridges do not forward
    /// (IEEE 802.1Q 8.6.3).
    ToBridgeGroup,
    /// An address in a frame is in this range. In a table of the family `bridge`, behind a match for what the frame is.
    FrameAddress { of: FrameField, range: IpNet },
    /// The type of an ICMPv6 message, in a table of the family `bridge`, behind a match for IPv6.
    NeighborMessage(u8),
    /// `limit rate`: holds this many times a minute, and for this many packets in a row.
    Limit { per_minute: u32, burst: u32 },
}

/// The fields of a packet that are looked up in a set or map; the set's [`Fields`](super::object::Fields) have to be the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lookup {
    /// One address.
    Address(Family, Side),
    /// `ip saddr . ip daddr`.
    Addresses(Family),
    /// `ip daddr . meta l4proto . th dport`.
    DestinationService(Family),
    /// `ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.0`: so many leading bits of the source's address, the others 0.
    ServiceSource(Family, u8),
    /// `ip daddr . meta l4proto . th dport . ip daddr`: the destination's address twice, so that of a set whose elements end with a source those
    /// match whose source is the destination itself.
    ServiceItself(Family),
    /// `ct original ip daddr . meta l4proto . ct original proto-dst`: the service that the client asked for, also behind IPVS.
    OriginalService(Family),
    /// `meta l4proto . th dport`.
    DestinationProtocolPort,
    /// `tcp dport`.
    DestinationPort(Protocol),
    /// `meta mark`.
    Mark,
    InputLink,
    OutputLink,
    /// `meta ibrname`, in a table of the family `bridge`: the bridge by one of whose ports the frame came.
    InputBridge,
    /// The name of the input link and a field of the frame, in a table of the family `bridge`, behind a match for what the frame is.
    InputLinkWith(FrameField),
}

/// A field of a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrameField {
    /// `ether saddr`.
    EtherSource,
    /// `ip saddr`, `ip6 saddr`.
    Source(Family),
    /// `arp saddr ether`, with addresses of Ethernet and IPv4 (RFC 826).
    ArpEther,
    /// `arp saddr ip`.
    ArpSource,
    /// The target of a neighbour solicitation or advertisement (RFC 4861 4.3, 4.4).
    NeighborTarget,
}

impl FrameField {
    pub const ALL: [FrameField; 6] = [
        FrameField::EtherSource,
        FrameField::Source(Family::V4),
        FrameField::Source(Family::V6),
        FrameField::ArpEther,
        FrameField::ArpSource,
        FrameField::NeighborTarget,
    ];
}

/// A statement of a rule, which acts on a packet without ending its way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Statement {
    /// The named counter counts it.
    Count(Name),
    /// A copy goes to whoever listens to this netlink group, with this prefix.
    Log { group: u16, prefix: Box<str> },
    /// The bits of the packet's mark that the mask names become those of the value.
    SetMark(Mark),
    /// `tcp option maxseg size set`: the maximum segment size that a segment of TCP announces becomes this, unless it is smaller.
    SetMss(u16),
    /// The packet's mark becomes what the map has for these fields; a packet without an element leaves the rule.
    MarkFrom { lookup: Lookup, map: Name },
    /// `notrack`: connection tracking leaves the packet out. Before it looks at packets, at the priority of raw tables.
    Untrack,
}

/// The verdict on a packet for which a rule holds, or for which a verdict map has an element.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// This base chain, and all that led here from it, is over; other tables still judge.
    Accept,
    /// The packet is dropped without an answer, whatever others say.
    Drop,
    /// The chain from which this one was jumped to goes on.
    Return,
    /// The packet is rejected with "port unreachable" of its family.
    Reject,
    /// That chain decides; if it does not, the next rule follows.
    Jump(Name),
    /// That chain decides; if it does not, the chain from which this one was jumped to goes on.
    Goto(Name),
    /// The element of this verdict map decides; without one the next rule follows.
    Map { lookup: Lookup, map: Name },
    /// The source becomes the address of the link by which the packet leaves.
    Masquerade { random_ports: bool },
    /// The source becomes this address.
    SourceNat { to: IpAddr, random_ports: bool },
}

impl Rule {
    /// Makes a rule; its parts come in the order of the arguments. More than one verdict is more than one rule.
    pub fn new(matches: impl Into<Box<[Match]>>, verdict: Verdict) -> Rule {
        Rule::of(matches.into(), Box::default(), Some(verdict))
    }

    /// Makes a rule with statements between its matches and its verdict, if it has one.
    pub fn with(
        matches: impl Into<Box<[Match]>>,
        statements: impl Into<Box<[Statement]>>,
        verdict: Option<Verdict>,
    ) -> Rule {
        Rule::of(matches.into(), statements.into(), verdict)
    }

    /// The same rule with a comment, which the kernel keeps and `nft` shows: at most 128 bytes, longer ones are cut.
    pub fn commented(self, comment: &str) -> Rule {
        let Parts { matches, statements, verdict, .. } = &*self.0;
        Rule(Arc::new(Parts {
            matches: matches.clone(),
            statements: statements.clone(),
            verdict: verdict.clone(),
            comment: Some(quotable(comment, LONGEST_COMMENT)),
            foreign: None,
        }))
    }

    /// A rule that is not understood: different from every rule of ours. Where it has to stay, it is written as it was read.
    pub(super) fn of_others(foreign: Foreign) -> Rule {
        let (matches, statements, foreign) = (Box::default(), Box::default(), Some(Box::new(foreign)));
        Rule(Arc::new(Parts { matches, statements, verdict: None, comment: None, foreign }))
    }

    /// Puts the values into the form in which the kernel gives them back.
    fn of(mut matches: Box<[Match]>, mut statements: Box<[Statement]>, verdict: Option<Verdict>) -> Rule {
        for one in &mut matches {
            match one {
                Match::Address { range, .. } | Match::FrameAddress { range, .. } => *range = range.trunc(),
                Match::InputLink { name, .. } | Match::OutputLink { name, .. } => {
                    name.truncate(longest_of(name, LONGEST_LINK));
                }
                Match::Limit { burst, .. } if *burst == 0 => *burst = USUAL_BURST,
                Match::VxlanNumber(number) => *number &= 0x00ff_ffff,
                _ => {}
            }
        }
        for statement in &mut statements {
            match statement {
                Statement::Log { prefix, .. } => *prefix = quotable(prefix, LONGEST_PREFIX),
                Statement::SetMark(mark) => mark.value &= mark.mask,
                Statement::Count(_) | Statement::MarkFrom { .. } | Statement::SetMss(_) | Statement::Untrack => {}
            }
        }
        Rule(Arc::new(Parts { matches, statements, verdict, comment: None, foreign: None }))
    }

    /// Returns whether somebody else wrote the rule, and it is not understood.
    pub fn is_foreign(&self) -> bool {
        self.0.foreign.is_some()
    }

    pub(super) fn foreign(&self) -> Option<&Foreign> {
        self.0.foreign.as_deref()
    }

    pub fn matches(&self) -> &[Match] {
        &self.0.matches
    }

    pub fn statements(&self) -> &[Statement] {
        &self.0.statements
    }

    /// `None` for a rule that does nothing but what its statements say.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.0.verdict.as_ref()
    }

    pub fn comment(&self) -> Option<&str> {
        self.0.comment.as_deref()
    }
}

/// Length of the longest comment of a rule that `nft` takes, in bytes.
const LONGEST_COMMENT: usize = 128;
/// Length of the longest prefix of a log that the kernel takes, in bytes.
const LONGEST_PREFIX: usize = 127;

/// The name of a link, in bytes (`IFNAMSIZ` less the closing zero).
const LONGEST_LINK: usize = 15;
/// The burst that the kernel takes for 0 (`NFT_LIMIT_PKT_BURST_DEFAULT`).
const USUAL_BURST: u32 = 5;

/// So many bytes of a text, at most, are whole characters.
fn longest_of(text: &str, longest: usize) -> usize {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.unwrap_or_default()
}

/// Text that `nft` can print and load: no longer than this, and without what would end its quotes or its line.
fn quotable(text: &str, longest: usize) -> Box<str> {
    let text = text.get(..longest_of(text, longest)).unwrap_or(text);
    let readable = |one: char| match one {
        '"' => '\'',
        one if one.is_control() => ' ',
        one => one,
    };
    text.chars().map(readable).collect()
}
