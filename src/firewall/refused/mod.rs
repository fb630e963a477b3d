//! Refused packets as rules log them, with the pods' names and the reason.
//!
//! `sluice policy drops [-f]`: rules log refused packets to an NFLOG group, ten a minute for each rule at most, and [`serve`] reads
//! the group for as long as somebody asks. The reason is that of tracing the packet through the rule set as it is when the packet is read, a
//! moment later; a packet that passes then was refused by rules that have changed since.
//!
//! Who asks comes again with the number of the next packet, so all that ask share one list of the last [`MOST`].

pub mod serve;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use compact_str::CompactString;
use serde_json::{Value, json};

use crate::kernel::nflog::{Logged, Transport};
use crate::model::ObjectName;
use crate::net::{Family, Protocol};

use super::explain::{self, Known, Party, is_this_node, judged, standing_at};
use super::rules::Direction;
use super::verdict::{Packet, Traffic};

/// A refused packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedPacket {
    /// Time when it was read, since 1970.
    pub at: Duration,
    pub logged: Logged,
    pub from: Party,
    pub to: Party,
    /// The direction that refuses it, the pod, and why, as a sentence without its end; `None` if the rules let it pass by now.
    pub refusal: Option<Refusal>,
    /// The rule's limit is reached, so more packets like this one may be refused without being logged.
    pub limited: bool,
}

/// Why a packet is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub direction: Direction,
    pub pod: Option<ObjectName>,
    pub reason: String,
}

/// The last packets, numbered from 0 on.
#[derive(Default)]
pub struct Recent {
    packets: VecDeque<RefusedPacket>,
    /// Number of the next packet.
    next: u64,
}

/// How many packets of each rule were logged in the last minute.
#[derive(Default)]
pub struct Limits {
    times: HashMap<RuleKey, VecDeque<Instant>>,
    /// Rules without a packet in the last minute were forgotten then.
    swept: Option<Instant>,
}

/// A rule that logs, and has a limit of its own.
#[derive(PartialEq, Eq, Hash)]
enum RuleKey {
    /// The rule of a class of pods with the same policies, for both families: nftables logs its name.
    Class(CompactString),
    /// A pod's rule in one family: iptables logs no name. Without a pod, rules for packets that no pod's rule refuses.
    Pod(Family, Option<(Direction, ObjectName)>),
}

/// The packets that are kept.
pub const MOST: usize = 1000;
/// The limit of each rule that logs: so many, and as many a minute.
const BURST: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// Names the ends of a packet, and says why it is refused.
pub fn named(known: Known<'_>, logged: Logged, at: Duration) -> RefusedPacket {
    let party = |address| Party { address, standing: standing_at(known, address) };
    let (from, to) = (party(logged.source), party(logged.destination));
    let traffic = match logged.transport {
        Transport::Ports { protocol, destination, .. } => {
            Protocol::from_number(protocol).map(|protocol| Traffic::Port { protocol, port: destination })
        }
        Transport::Icmp { kind } => Some(Traffic::Icmp { kind }),
        Transport::Other { protocol: 4 | 41 } => Some(Traffic::Tunnel),
        Transport::Other { .. } => None,
    };
    // Only rules for every protocol are about others; a type of ICMP that nobody uses stands for them.
    let traffic = traffic.unwrap_or(Traffic::Icmp { kind: u8::MAX });
    let from_this_node = is_this_node(known.world, logged.source);
    let packet = Packet { source: logged.source, destination: logged.destination, traffic, from_this_node };
    let (verdict, bridges) = judged(known, &packet);
    let sides = [(Direction::Egress, &verdict.egress, &from), (Direction::Ingress, &verdict.ingress, &to)];
    let refusal = sides.into_iter().find(|(_, decision, _)| !decision.passes()).map(|(direction, decision, party)| {
        Refusal { direction, pod: decision.pod().cloned(), reason: explain::side(decision, &bridges, party, direction) }
    });
    RefusedPacket { at, logged, from, to, refusal, limited: false }
}

impl RuleKey {
    fn of(packet: &RefusedPacket) -> RuleKey {
        let pod = || packet.refusal.as_ref().and_then(|refusal| Some((refusal.direction, refusal.pod.clone()?)));
        match packet.logged.prefix.as_str() {
            "" => RuleKey::Pod(Family::from(packet.logged.source), pod()),
            name => RuleKey::Class(name.into()),
        }
    }
}

impl Limits {
    /// Counts a packet; returns whether its rule has reached its limit.
    pub fn note(&mut self, packet: &RefusedPacket, now: Instant) -> bool {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= MINUTE;
        // Prefixes are those of others' rules too, so there is no end of them.
        if is_old(self.swept.get_or_insert(now)) {
            self.times.retain(|_, times| times.back().is_some_and(|last| !is_old(last)));
            self.swept = Some(now);
        }
        let times = self.times.entry(RuleKey::of(packet)).or_default();
        while times.front().is_some_and(is_old) {
            times.pop_front();
        }
        times.push_back(now);
        if times.len() > BURST {
            times.pop_front();
        }
        times.len() == BURST
    }
}

impl Recent {
    pub fn push(&mut self, packet: RefusedPacket) {
        if self.packets.len() == MOST {
            self.packets.pop_front();
        }
        self.packets.push_back(packet);
        self.next += 1;
    }

    /// Returns the number of the next packet.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Forgets the packets, and goes on counting.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    /// Returns the packets from this number on, and how many of them are not kept any more.
    pub fn since(&self, number: u64) -> (impl Iterator<Item = &RefusedPacket>, u64) {
        let first = self.next - self.packets.len() as u64;
        let skipped = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        (self.packets.iter().skip(skipped), first.saturating_sub(number))
    }
}

/// Formats a packet as one line.
pub fn text(packet: &RefusedPacket) -> String {
    let RefusedPacket { at, logged, from, to, refusal, limited } = packet;
    let seconds = at.as_secs() % 86400;
    let clock = format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, at.subsec_millis());
    let what = match logged.transport {
        Transport::Ports { source, destination, .. } => format!("{} {source} to {destination}", protocol(logged)),
        Transport::Icmp { kind } => format!("icmp {kind}"),
        Transport::Other { .. } => protocol(logged),
    };
    let link = |name: &Option<CompactString>| name.as_deref().unwrap_or("this node").to_owned();
    let links = format!("{} to {}", link(&logged.input), link(&logged.output));
    let why = match refusal {
        Some(Refusal { direction, reason, .. }) => format!("{} {reason}", direction.name()),
        None => "refused by rules that have changed since, or because it belongs to no connection".to_owned(),
    };
    let limited = if *limited { "; the limit of logging is reached, so there may be more" } else { "" };
    format!("{clock} {from} to {to}, {what} ({links}): {why}{limited}")
}

/// Formats a packet for programs.
pub fn json(packet: &RefusedPacket) -> Value {
    let RefusedPacket { at, logged, from, to, refusal, limited } = packet;
    let (ports, kind) = match logged.transport {
        Transport::Ports { source, destination, .. } => ([Some(source), Some(destination)], None),
        Transport::Icmp { kind } => ([None, None], Some(kind)),
        Transport::Other { .. } => ([None, None], None),
    };
    let [from_port, to_port] = ports;
    let end = |party: &Party, port: Option<u16>| {
        let pod = party.standing.pod().map(ObjectName::to_string);
        json!({ "address": party.address.to_string(), "port": port, "pod": pod })
    };
    json!({
        "time": at.as_secs_f64(),
        "family": Family::from(logged.source).to_string(),
        "protocol": protocol(logged),
        "icmpType": kind,
        "from": end(from, from_port),
        "to": end(to, to_port),
        "input": logged.input.as_deref(),
        "output": logged.output.as_deref(),
        "prefix": logged.prefix.as_str(),
        "direction": refusal.as_ref().map(|refusal| refusal.direction.name()),
        "refusedFor": refusal.as_ref().and_then(|refusal| refusal.pod.as_ref()).map(ObjectName::to_string),
        "reason": refusal.as_ref().map(|refusal| refusal.reason.as_str()),
        "limitReached": limited,
        "text": text(packet),
    })
}

fn protocol(logged: &Logged) -> String {
    match logged.transport {
        Transport::Icmp { .. } => "icmp".to_owned(),
        Transport::Ports { protocol, .. } | Transport::Other { protocol } => {
            Protocol::from_number(protocol).map_or_else(|| format!("protocol {protocol}"), |known| known.to_string())
        }
    }
}

#[cfg(test)]
mod tests;
