//! The words of a rule, as `iptables-save` prints them without the leading `-A CHAIN`: written and read here and nowhere
//! else.
//!
//! A word that is not plain stands in double quotes, with a backslash before quotes and backslashes. Reading cuts a rule
//! into its matches and its target. A part counts as understood only if it would be written in exactly these words;
//! everything else is [`Foreign`]. So writing what was read gives the same text, always.

use std::fmt::{self, Write};
use std::str::FromStr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::{Foreign, IpProtocol, Mark, Match, Rule, SetSides, Side, States, Verdict};
use crate::kernel::ipset::SetName;
use crate::net::{Family, PortRange, Protocol};

/// Connection tracking states, in the order in which iptables prints them.
const STATES: [(States, &str); 5] = [
    (States::INVALID, "INVALID"),
    (States::NEW, "NEW"),
    (States::RELATED, "RELATED"),
    (States::ESTABLISHED, "ESTABLISHED"),
    (States::UNTRACKED, "UNTRACKED"),
];

/// Options whose value is free text, which may look like anything.
const FREE: [&str; 3] = ["--comment", "--log-prefix", "--nflog-prefix"];

impl From<&str> for Rule {
    /// Reads any rule.
    fn from(text: &str) -> Rule {
        let words: Vec<&str> = if text.is_empty() { Vec::new() } else { words(text) };
        let mut matches = Vec::new();
        let (mut rest, mut text) = (words.as_slice(), text);
        while let Some(first) = rest.first() {
            if is_target(first) {
                return Rule::of(matches.into(), Some(read_verdict(rest, text)));
            }
            let (part, others) = rest.split_at(length_of_match(rest).min(rest.len()));
            let letters = part.iter().map(|word| word.len()).sum::<usize>() + part.len().saturating_sub(1);
            let (of_part, behind) = text.split_at(letters);
            matches.push(read_match(part, of_part));
            (rest, text) = (others, behind.strip_prefix(' ').unwrap_or(behind));
        }
        Rule::of(matches.into(), None)
    }
}

impl From<String> for Rule {
    fn from(text: String) -> Rule {
        Rule::from(text.as_str())
    }
}

impl From<CompactString> for Rule {
    fn from(text: CompactString) -> Rule {
        Rule::from(text.as_str())
    }
}

impl Rule {
    /// Returns the rule as arguments of iptables: its words without quotes.
    pub fn arguments(&self) -> Vec<CompactString> {
        words(&self.to_string()).into_iter().map(unquoted).collect()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for one in self.matches() {
            write!(f, "{between}{one}")?;
            between = " ";
        }
        self.verdict().map_or(Ok(()), |verdict| write!(f, "{between}{verdict}"))
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Source { range, negated } => write!(f, "{}-s {range}", not(*negated)),
            Match::Destination { range, negated } => write!(f, "{}-d {range}", not(*negated)),
            Match::InputLink(link) => write!(f, "-i {link}"),
            Match::OutputLink(link) => write!(f, "-o {link}"),
            Match::Protocol(protocol) => write!(f, "-p {protocol}"),
            Match::Unauthenticated => f.write_str("! -p ah"),
            Match::Comment(said) => write!(f, "-m comment --comment {}", quoted(said)),
            Match::Set { set, of, negated } => write!(f, "-m set {}--match-set {set} {of}", not(*negated)),
            Match::State { states, negated } => write!(f, "-m conntrack {}--ctstate {states}", not(*negated)),
            Match::Answer => f.write_str("-m conntrack --ctdir REPLY"),
            Match::Mark { mark, negated } => write!(f, "-m mark {}--mark {}", not(*negated), Compared(*mark)),
            Match::ConnectionMark { mark, negated } => {
                write!(f, "-m connmark {}--mark {}", not(*negated), Compared(*mark))
            }
            Match::Limit { per_minute, burst } => write!(f, "-m limit --limit {per_minute}/min --limit-burst {burst}"),
            Match::Ports(ranges) => {
                f.write_str("-m multiport --dports ")?;
                ranges.iter().enumerate().try_for_each(|(place, range)| {
                    write!(f, "{}{}", if place == 0 { "" } else { "," }, Numbers(*range))
                })
            }
            Match::HostAddress { of, negated } => {
                write!(f, "-m addrtype {}--{}-type LOCAL", not(*negated), of.name())
            }
            Match::Port { protocol, side, port } => write!(f, "-m {protocol} {} {port}", side.option()),
            Match::Opening => f.write_str("-m tcp --tcp-flags SYN,RST SYN"),
            Match::OpeningFrom { port } => write!(f, "-m tcp --sport {port} --tcp-flags SYN,RST SYN"),
            Match::ToMany => f.write_str("-m addrtype --dst-type BROADCAST,MULTICAST"),
            Match::IcmpKind { family: Family::V4, number } => write!(f, "-m icmp --icmp-type {number}"),
            Match::IcmpKind { family: Family::V6, number } => write!(f, "-m icmp6 --icmpv6-type {number}"),
            Match::ByIpvs { prints_ipvs } => {
                let ipvs = if *prints_ipvs { "--ipvs " } else { "" };
                write!(f, "-m ipvs {ipvs}--vdir ORIGINAL --vmethod MASQ")
            }
            Match::Foreign(Foreign(text)) => f.write_str(text),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = |random: &bool| if *random { " --random-fully" } else { "" };
        match self {
            Verdict::Accept => f.write_str("-j ACCEPT"),
            Verdict::Drop => f.write_str("-j DROP"),
            Verdict::Return => f.write_str("-j RETURN"),
            Verdict::Reject(Family::V4) => f.write_str("-j REJECT --reject-with icmp-port-unreachable"),
            Verdict::Reject(Family::V6) => f.write_str("-j REJECT --reject-with icmp6-port-unreachable"),
            Verdict::SetMark(mark) => write!(f, "-j MARK --set-xmark {mark}"),
            Verdict::SetMss(size) => write!(f, "-j TCPMSS --set-mss {size}"),
            Verdict::Log { group } => write!(f, "-j NFLOG --nflog-group {group}"),
            Verdict::Masquerade { random_ports } => write!(f, "-j MASQUERADE{}", ports(random_ports)),
            Verdict::SourceNat { to, random_ports } => write!(f, "-j SNAT --to-source {to}{}", ports(random_ports)),
            Verdict::Jump(chain) => write!(f, "-j {chain}"),
            Verdict::Goto(chain) => write!(f, "-g {chain}"),
            Verdict::Foreign { text: Foreign(text), .. } => f.write_str(text),
        }
    }
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpProtocol::Transport(protocol) => write!(f, "{protocol}"),
            IpProtocol::Icmp(Family::V4) => f.write_str("icmp"),
            IpProtocol::Icmp(Family::V6) => f.write_str("ipv6-icmp"),
            IpProtocol::Encapsulated(family) => f.write_str(encapsulation(*family).0),
        }
    }
}

impl fmt::Display for SetSides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetSides::Address(side) => f.write_str(side.name()),
            SetSides::DestinationPort => f.write_str("dst,dst"),
            SetSides::DestinationPortSource => f.write_str("dst,dst,src"),
            SetSides::DestinationPortItself => f.write_str("dst,dst,dst"),
        }
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let included = STATES.iter().filter(|(state, _)| self.includes(*state));
        included.enumerate().try_for_each(|(place, (_, name))| write!(f, "{}{name}", if place == 0 { "" } else { "," }))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// A mark as iptables writes it where it compares one: without a mask that has all bits.
struct Compared(Mark);

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Mark { value, mask: u32::MAX } => write!(f, "{value:#x}"),
            mark => write!(f, "{mark}"),
        }
    }
}

/// Ports as iptables writes them: one number, or the first and the last.
struct Numbers(PortRange);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Numbers(PortRange { first, last }) = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}:{last}") }
    }
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Source => "src",
            Side::Destination => "dst",
        }
    }

    /// The option for the port at this end.
    fn option(self) -> &'static str {
        match self {
            Side::Source => "--sport",
            Side::Destination => "--dport",
        }
    }

    fn of_option(option: &str) -> Option<Side> {
        [Side::Source, Side::Destination].into_iter().find(|side| side.option() == option)
    }

    fn read(name: &str) -> Option<Side> {
        [Side::Source, Side::Destination].into_iter().find(|side| side.name() == name)
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}

fn is_target(word: &str) -> bool {
    matches!(word, "-j" | "-g")
}

/// Returns the number of words of the first match: an extension reaches to the next match or to the target.
fn length_of_match(words: &[&str]) -> usize {
    let negation = usize::from(words.first() == Some(&"!"));
    match words.get(negation) {
        Some(&"-m") => {
            let mut length = negation + 1;
            while let Some([word, behind @ ..]) = words.get(length..) {
                let begins = if *word == "!" { behind.first().unwrap_or(word) } else { word };
                if is_target(word) || *begins == "-m" || is_basic(begins) {
                    break;
                }
                length += if FREE.contains(word) { 2 } else { 1 };
            }
            length
        }
        Some(word) if is_basic(word) => negation + 2,
        _ => negation + 1,
    }
}

/// Returns whether an option belongs to no extension.
fn is_basic(word: &str) -> bool {
    matches!(word, "-s" | "-d" | "-i" | "-o" | "-p")
}

/// Reads these words, which are this text.
fn read_match(words: &[&str], text: &str) -> Match {
    let negated = words.contains(&"!");
    let bare: Vec<&str> = words.iter().copied().filter(|word| *word != "!").collect();
    let read = understood(&bare, negated).filter(|read| is_written(read, text) || is_other_name(read, text));
    read.unwrap_or_else(|| Match::Foreign(Foreign(text.into())))
}

fn understood(words: &[&str], negated: bool) -> Option<Match> {
    let range = |text: &str| text.parse::<IpNet>().ok();
    Some(match *words {
        ["-s", text] => Match::Source { range: range(text)?, negated },
        ["-d", text] => Match::Destination { range: range(text)?, negated },
        ["-i", link] => Match::InputLink(link.into()),
        ["-o", link] => Match::OutputLink(link.into()),
        ["-p", "ah"] if negated => Match::Unauthenticated,
        ["-p", name] => Match::Protocol(protocol(name)?),
        ["-m", "comment", "--comment", said] => Match::Comment(unquoted(said).as_str().into()),
        ["-m", "set", "--match-set", set, "dst,dst"] => {
            Match::Set { set: SetName(set.into()), of: SetSides::DestinationPort, negated }
        }
        ["-m", "set", "--match-set", set, "dst,dst,src"] => {
            Match::Set { set: SetName(set.into()), of: SetSides::DestinationPortSource, negated }
        }
        ["-m", "set", "--match-set", set, "dst,dst,dst"] => {
            Match::Set { set: SetName(set.into()), of: SetSides::DestinationPortItself, negated }
        }
        ["-m", "set", "--match-set", set, side] => {
            Match::Set { set: SetName(set.into()), of: SetSides::Address(Side::read(side)?), negated }
        }
        ["-m", "conntrack", "--ctstate", names] => Match::State { states: states(names)?, negated },
        ["-m", "conntrack", "--ctdir", "REPLY"] if !negated => Match::Answer,
        ["-m", "mark", "--mark", text] => Match::Mark { mark: compared(text)?, negated },
        ["-m", "connmark", "--mark", text] => Match::ConnectionMark { mark: compared(text)?, negated },
        ["-m", "limit", "--limit", limit, "--limit-burst", burst] => {
            Match::Limit { per_minute: number(limit.strip_suffix("/min")?)?, burst: number(burst)? }
        }
        ["-m", "multiport", "--dports", list] => Match::Ports(list.split(',').map(ports).collect::<Option<_>>()?),
        ["-m", "addrtype", option, "LOCAL"] => {
            let side = option.strip_prefix("--")?.strip_suffix("-type")?;
            Match::HostAddress { of: Side::read(side)?, negated }
        }
        ["-m", name, option, port] if let Some(side) = Side::of_option(option) => {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == name)?;
            Match::Port { protocol, side, port: number(port)? }
        }
        ["-m", "tcp", "--tcp-flags", "SYN,RST", "SYN"] if !negated => Match::Opening,
        ["-m", "tcp", "--sport", port, "--tcp-flags", "SYN,RST", "SYN"] => Match::OpeningFrom { port: number(port)? },
        ["-m", "addrtype", "--dst-type", "BROADCAST,MULTICAST"] if !negated => Match::ToMany,
        ["-m", "icmp", "--icmp-type", text] => Match::IcmpKind { family: Family::V4, number: number(text)? },
        ["-m", "icmp6", "--icmpv6-type", text] => Match::IcmpKind { family: Family::V6, number: number(text)? },
        ["-m", "ipvs", "--vdir", "ORIGINAL", "--vmethod", "MASQ"] => Match::ByIpvs { prints_ipvs: false },
        ["-m", "ipvs", "--ipvs", "--vdir", "ORIGINAL", "--vmethod", "MASQ"] => Match::ByIpvs { prints_ipvs: true },
        _ => return None,
    })
}

/// Reads these words, which are this text.
fn read_verdict(words: &[&str], text: &str) -> Verdict {
    let target = || words.get(1).map_or_else(CompactString::default, |word| unquoted(word));
    let read = understood_verdict(words).filter(|read| is_written(read, text));
    read.unwrap_or_else(|| Verdict::Foreign { target: target(), text: Foreign(text.into()) })
}

fn understood_verdict(words: &[&str]) -> Option<Verdict> {
    let source_nat = |to: &str, random_ports| Some(Verdict::SourceNat { to: to.parse().ok()?, random_ports });
    Some(match *words {
        ["-j", "ACCEPT"] => Verdict::Accept,
        ["-j", "DROP"] => Verdict::Drop,
        ["-j", "RETURN"] => Verdict::Return,
        ["-j", "REJECT", "--reject-with", "icmp-port-unreachable"] => Verdict::Reject(Family::V4),
        ["-j", "REJECT", "--reject-with", "icmp6-port-unreachable"] => Verdict::Reject(Family::V6),
        ["-j", "MARK", "--set-xmark", text] => Verdict::SetMark(mark(text)?),
        ["-j", "TCPMSS", "--set-mss", size] => Verdict::SetMss(number(size)?),
        ["-j", "NFLOG", "--nflog-group", group] => Verdict::Log { group: number(group)? },
        ["-j", "MASQUERADE"] => Verdict::Masquerade { random_ports: false },
        ["-j", "MASQUERADE", "--random-fully"] => Verdict::Masquerade { random_ports: true },
        ["-j", "SNAT", "--to-source", to] => source_nat(to, false)?,
        ["-j", "SNAT", "--to-source", to, "--random-fully"] => source_nat(to, true)?,
        ["-j", chain] if is_chain(chain) => Verdict::Jump(chain.into()),
        ["-g", chain] if is_chain(chain) => Verdict::Goto(chain.into()),
        _ => return None,
    })
}

/// Returns whether a target without options is a chain, and not one of the extensions that are of use without options.
fn is_chain(target: &str) -> bool {
    !target.contains('"')
        && !matches!(target, "LOG" | "REJECT" | "TRACE" | "NFLOG" | "AUDIT" | "NOTRACK" | "ACCEPT" | "DROP" | "RETURN")
}

/// Returns whether this is written as this text.
fn is_written(read: &impl fmt::Display, text: &str) -> bool {
    let mut expected = Expected(text);
    write!(expected, "{read}").is_ok() && expected.0.is_empty()
}

/// A writer that accepts one text and no other, without keeping it.
struct Expected<'a>(&'a str);

impl fmt::Write for Expected<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(written).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// The number of the protocol of a packet in a packet, and the names that iptables prints for it where the host has them.
fn encapsulation(family: Family) -> (&'static str, &'static [&'static str]) {
    match family {
        Family::V4 => ("4", &["ipencap", "ipv4"]),
        Family::V6 => ("41", &["ipv6"]),
    }
}

/// Returns whether this is a protocol under another name than it is written with. Which one is printed depends on the host's `/etc/protocols`, and only the
/// number is taken everywhere.
fn is_other_name(read: &Match, text: &str) -> bool {
    let Match::Protocol(IpProtocol::Encapsulated(family)) = read else { return false };
    text.strip_prefix("-p ").is_some_and(|name| encapsulation(*family).1.contains(&name))
}

fn protocol(name: &str) -> Option<IpProtocol> {
    let is_it = |family: &Family| {
        let (number, names) = encapsulation(*family);
        number == name || names.contains(&name)
    };
    if let Some(family) = Family::BOTH.into_iter().find(is_it) {
        return Some(IpProtocol::Encapsulated(family));
    }
    let all = Protocol::ALL.map(IpProtocol::Transport).into_iter().chain(Family::BOTH.map(IpProtocol::Icmp));
    all.into_iter().find(|protocol| protocol.to_string() == name)
}

fn states(names: &str) -> Option<States> {
    names.split(',').try_fold(States(0), |states, name| {
        let (state, _) = STATES.iter().find(|(_, known)| *known == name)?;
        Some(states.or(*state))
    })
}

fn compared(text: &str) -> Option<Mark> {
    let whole = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    mark(text).or_else(|| Some(Mark { value: whole(text)?, mask: u32::MAX }))
}

fn mark(text: &str) -> Option<Mark> {
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (value, mask) = text.split_once('/')?;
    Some(Mark { value: hex(value)?, mask: hex(mask)? })
}

fn ports(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(PortRange { first: number(first)?, last: number(last)? })
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// The words of a rule as they are printed, in their quotes. Joined with single spaces they are the rule again.
fn words(rule: &str) -> Vec<&str> {
    let (mut in_quotes, mut escaped) = (false, false);
    rule.split(|letter: char| {
        match letter {
            _ if escaped => escaped = false,
            '\\' if in_quotes => escaped = true,
            '"' => in_quotes = !in_quotes,
            _ => {}
        }
        letter == ' ' && !in_quotes
    })
    .collect()
}

/// Returns whether a text ends inside a word in quotes: a line break in it has cut the rule.
pub fn ends_in_quotes(text: &str) -> bool {
    let (mut in_quotes, mut escaped) = (false, false);
    for letter in text.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if in_quotes => escaped = true,
            '"' => in_quotes = !in_quotes,
            _ => {}
        }
    }
    in_quotes
}

/// A word without its quotes.
fn unquoted(word: &str) -> CompactString {
    let mut plain = CompactString::default();
    let (mut in_quotes, mut letters) = (false, word.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '"' => in_quotes = !in_quotes,
            '\\' if in_quotes => plain.extend(letters.next()),
            _ => plain.push(letter),
        }
    }
    plain
}

/// A word as `iptables-save` prints it: in quotes unless it is plain.
fn quoted(word: &str) -> CompactString {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    let mut quoted = CompactString::from("\"");
    for letter in word.chars() {
        if matches!(letter, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
}
