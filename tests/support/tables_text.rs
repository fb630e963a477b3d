//! A table of nf_tables as text, near to what `nft list table` prints.

use std::fmt::Write;

use sluice::firewall::nftables::desired::Table;
use sluice::kernel::iptables::rule::{Side, States};
use sluice::kernel::nftables::{Content, Fields, Kind, Lookup, Match, Rule, SetSpec, Statement, Verdict};
use sluice::net::Family;

/// Returns the objects of a table, one in a line, and the rules of its chains below them.
pub fn text(table: &Table) -> String {
    let mut text = String::new();
    for (object, content) in table.iter() {
        let line = match content {
            Content::Counter => format!("{object}"),
            Content::Set(spec) => format!("{object} {{ {} }}", set(*spec)),
            Content::Chain(chain) => match chain.base {
                Some(base) => format!("{object} {{ {:?} {:?} priority {} }}", base.kind, base.hook, base.priority),
                None => format!("{object}"),
            },
            Content::Element => format!("{object}"),
            Content::Verdict(one) => format!("{object} : {}", verdict(one)),
            Content::Mark(number) => format!("{object} : {number:#010x}"),
            other => format!("{object} {other:?}"),
        };
        writeln!(text, "{line}").expect("a text takes in any text");
        if let Content::Chain(chain) = content {
            for one in &chain.rules {
                writeln!(text, "    {}", rule(one)).expect("a text takes in any text");
            }
        }
    }
    text
}

/// Returns a rule in the words of `nft`.
pub fn rule(rule: &Rule) -> String {
    let matches = rule.matches().iter().map(condition);
    let statements = rule.statements().iter().map(|one| match one {
        Statement::Count(counter) => format!("counter name {counter}"),
        Statement::SetMss(size) => format!("tcp option maxseg size set {size}"),
        Statement::Log { group, prefix } => format!("log prefix \"{prefix}\" group {group}"),
        other => format!("{other:?}"),
    });
    let comment = rule.comment().map(|comment| format!("comment \"{comment}\""));
    let words = matches.chain(statements).chain(rule.verdict().map(verdict)).chain(comment);
    words.collect::<Vec<_>>().join(" ")
}

fn condition(one: &Match) -> String {
    let not = |negated: &bool| if *negated { "!= " } else { "" };
    match one {
        Match::Family(Family::V4) => "meta nfproto ipv4".into(),
        Match::Family(Family::V6) => "meta nfproto ipv6".into(),
        Match::Address { of, range, negated } => {
            format!("{} {}{range}", field(Family::from(*range), *of), not(negated))
        }
        Match::InSet { lookup, set, negated } => format!("{} {}@{set}", lookup_text(*lookup), not(negated)),
        Match::HostAddress { of: Side::Source, negated } => format!("fib saddr type {}local", not(negated)),
        Match::HostAddress { of: Side::Destination, negated } => format!("fib daddr type {}local", not(negated)),
        Match::ToMany => "fib daddr type { broadcast, multicast }".into(),
        Match::Protocol(protocol) => format!("meta l4proto {protocol}"),
        Match::Authenticated { negated } => format!("meta l4proto {}ah", not(negated)),
        Match::Icmp(Family::V4) => "meta l4proto icmp".into(),
        Match::Icmp(Family::V6) => "meta l4proto ipv6-icmp".into(),
        Match::IcmpKind { family: Family::V4, number } => format!("icmp type {number}"),
        Match::IcmpKind { family: Family::V6, number } => format!("icmpv6 type {number}"),
        Match::DestinationPort { protocol, range } if range.first == range.last => {
            format!("{protocol} dport {}", range.first)
        }
        Match::DestinationPort { protocol, range } => format!("{protocol} dport {}-{}", range.first, range.last),
        Match::Opening => "tcp flags & (syn | rst) == syn".into(),
        Match::Answer => "ct direction reply".into(),
        Match::State { states, negated } => {
            let all = [
                (States::INVALID, "invalid"),
                (States::NEW, "new"),
                (States::RELATED, "related"),
                (States::ESTABLISHED, "established"),
                (States::UNTRACKED, "untracked"),
            ];
            let names = all.into_iter().filter(|(state, _)| states.or(*state) == *states).map(|(_, name)| name);
            format!("ct state {}{}", not(negated), names.collect::<Vec<_>>().join(","))
        }
        Match::InputLink { name, negated } => format!("iifname {}\"{name}\"", not(negated)),
        Match::OutputLink { name, negated } => format!("oifname {}\"{name}\"", not(negated)),
        Match::Limit { per_minute, burst } => format!("limit rate {per_minute}/minute burst {burst} packets"),
        other => format!("{other:?}"),
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Reject => "reject".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Map { lookup, map } => format!("{} vmap @{map}", lookup_text(*lookup)),
        other => format!("{other:?}"),
    }
}

fn lookup_text(lookup: Lookup) -> String {
    match lookup {
        Lookup::Address(family, side) => field(family, side),
        Lookup::Addresses(family) => format!("{} . {}", field(family, Side::Source), field(family, Side::Destination)),
        Lookup::DestinationService(family) => format!("{} . meta l4proto . th dport", field(family, Side::Destination)),
        Lookup::DestinationProtocolPort => "meta l4proto . th dport".into(),
        Lookup::DestinationPort(protocol) => format!("{protocol} dport"),
        Lookup::Mark => "meta mark".into(),
        other => format!("{other:?}"),
    }
}

fn field(family: Family, side: Side) -> String {
    let (family, side) =
        (if family == Family::V4 { "ip" } else { "ip6" }, if side == Side::Source { "saddr" } else { "daddr" });
    format!("{family} {side}")
}

fn set(SetSpec { fields, kind, intervals }: SetSpec) -> String {
    let address = |family| if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
    let fields = match fields {
        Fields::Address(family) => address(family).to_owned(),
        Fields::Addresses(family) => format!("{} . {}", address(family), address(family)),
        Fields::Service(family) => format!("{} . inet_proto . inet_service", address(family)),
        Fields::ServiceSource(family) => format!("{0} . inet_proto . inet_service . {0}", address(family)),
        Fields::ProtocolPort => "inet_proto . inet_service".to_owned(),
        Fields::Port => "inet_service".to_owned(),
        Fields::Mark => "mark".to_owned(),
        Fields::Link => "ifname".to_owned(),
        Fields::LinkEther => "ifname . ether_addr".to_owned(),
        Fields::LinkAddress(family) => format!("ifname . {}", address(family)),
    };
    let to = match kind {
        Kind::Set => "",
        Kind::Verdicts => " : verdict",
        Kind::Marks => " : mark",
    };
    format!("type {fields}{to};{}", if intervals { " flags interval;" } else { "" })
}
