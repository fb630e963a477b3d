//! Rules that let forwarded packets pass in the host's own chain `FORWARD`.
//!
//! A packet passes nf_tables where no table drops it: what our own table accepts, the host's may still drop. On a host whose
//! `FORWARD` drops by default (Docker makes it so) packets pass only by a rule in that chain, which belongs to
//! iptables-nft: `table ip filter` and `table ip6 filter`. So these few rules are as iptables would write them, and its
//! programs show, save and restore them:
//!
//! ```text
//! iptables -I FORWARD -i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT
//! ```
//!
//! Ours, for a process without memory: the rules of this chain whose comment is one of a few that the owner names; kube-router
//! writes the same. They stand before all other rules, but behind jumps to chains of ours and of kube-router: what a policy
//! forbids is forbidden before. A host without that chain needs none of them. That of legacy iptables cannot be reached by
//! netlink.
//!
//! Kernel: a comment of nf_tables (`NFTA_RULE_USERDATA`) reads as `-m comment`, and becomes one when iptables restores the rule.
//! The state of a connection has to be asked by the match of xtables (`nft_compat`, `xt_conntrack`): a rule with the expression `ct`
//! would make the whole table unreadable for iptables.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use compact_str::CompactString;

use super::wire::{self, HEADER, ITEM, TABLE, data, message, rule};
use crate::kernel::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket, flag};
use crate::kernel::{Cause, Error};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Mirror, Moment, Optional, Phase, Reflection, Step, Target};

/// A rule, by its comment, in the chain of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Passage {
    pub family: Family,
    /// At most 200 bytes.
    pub comment: &'static str,
}

/// What a rule lets pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Passing {
    /// What came by this link.
    From(CompactString),
    /// What leaves by this link.
    To(CompactString),
    /// What leaves by this link and belongs to a connection.
    AnswersTo(CompactString),
    /// Something else, or not in its place. Only ever read.
    Other,
}

/// The rules of one owner in the chains `FORWARD` of both families, as a kind of kernel objects.
#[derive(Debug)]
pub struct Passages {
    socket: Socket,
    comments: &'static [&'static str],
}

/// Rules for which there is not always a chain.
pub trait InHostChain: Target<Key = Passage, Value = Passing> {
    /// Returns those of the rules for which the host has a chain now.
    fn needed(&mut self, of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing>;
}

const HOST_TABLE: &str = "filter";
const HOST_CHAIN: &str = "FORWARD";
/// Chains of ours and of kube-router begin so.
const OUR_CHAINS: &str = "KUBE-ROUTER-";

/// The attributes of a rule that only this file needs.
const HANDLE: u16 = 3;
const POSITION: u16 = 6;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const CONTENT: u16 = 2;
/// `NFTA_META_KEY` and its values for the names of links.
const META_KEY: u16 = 2;
const INPUT_LINK: u32 = 6;
const OUTPUT_LINK: u32 = 7;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`.
const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;

/// One rule of the chain, as far as it matters here.
#[derive(Default, Debug)]
struct Found {
    handle: u64,
    comment: Option<String>,
    passing: Option<Passing>,
    /// The chain that it jumps to.
    jumps_to: Option<String>,
}

impl Passages {
    /// Opens a socket in the network namespace of the calling thread, where it stays.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(comments: &'static [&'static str]) -> Result<Passages, Error> {
        Ok(Passages { socket: Socket::open(Bus::Netfilter)?, comments })
    }

    fn has_chain(&mut self, family: Family) -> Result<bool, Fault> {
        let mut message = Messages::new();
        about(&mut message, message::GET_CHAIN, 0, family).text(wire::chain::NAME, HOST_CHAIN);
        match self.socket.request(&mut message, |_| Some(())) {
            Ok(_) => Ok(true),
            // No such chain, no such table, or no nf_tables.
            Err(Fault::Refused(refusal)) if [libc::ENOENT, libc::EINVAL, libc::EOPNOTSUPP].contains(&refusal.errno) => {
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    fn rules(&mut self, family: Family) -> Result<Vec<Found>, Fault> {
        if !self.has_chain(family)? {
            return Ok(Vec::new());
        }
        let mut message = Messages::new();
        about(&mut message, message::GET_RULE, 0, family).text(rule::CHAIN, HOST_CHAIN);
        self.socket.dump(&mut message, |answer| found(answer, family))
    }

    /// The rules of ours, and whether each stands where it belongs.
    fn ours<'r>(&self, rules: &'r [Found]) -> Vec<(&'static str, &'r Found, bool)> {
        let mut is_head = true;
        let mut ours = Vec::new();
        for one in rules {
            let comment = self.comments.iter().find(|comment| one.comment.as_deref() == Some(**comment));
            match comment {
                Some(comment) => ours.push((*comment, one, is_head)),
                None => is_head &= one.jumps_to.as_deref().is_some_and(|to| to.starts_with(OUR_CHAINS)),
            }
        }
        ours
    }

    /// Changes the rules of one family in one transaction.
    fn change(&mut self, family: Family, steps: &[&Step<'_, Passage, Passing>]) -> Result<(), Fault> {
        if steps.is_empty() || !self.has_chain(family)? {
            return Ok(());
        }
        let rules = self.rules(family)?;
        let mut messages = Messages::new();
        wire::mark(&mut messages, message::BATCH_BEGIN);
        let is_changed = |comment: &str| steps.iter().any(|step| step.key.comment == comment);
        for (_, one, _) in self.ours(&rules).into_iter().filter(|(comment, ..)| is_changed(comment)) {
            about(&mut messages, message::DELETE_RULE, 0, family).text(rule::CHAIN, HOST_CHAIN);
            messages.attribute(HANDLE, &one.handle.to_be_bytes());
        }
        let is_our_jump = |one: &&Found| one.jumps_to.as_deref().is_some_and(|to| to.starts_with(OUR_CHAINS));
        let is_head =
            |one: &&Found| is_our_jump(one) || one.comment.as_deref().is_some_and(|its| self.comments.contains(&its));
        let behind = rules.iter().take_while(is_head).filter(is_our_jump).last().map(|one| one.handle);
        for (comment, passing) in steps.iter().filter_map(|step| Some((step.key.comment, step.want?))) {
            let flags = if behind.is_some() { flag::CREATE | flag::APPEND } else { flag::CREATE };
            about(&mut messages, message::NEW_RULE, flags, family).text(rule::CHAIN, HOST_CHAIN);
            if let Some(handle) = behind {
                messages.attribute(POSITION, &handle.to_be_bytes());
            }
            write(&mut messages, passing, comment);
        }
        wire::mark(&mut messages, message::BATCH_END);
        if messages.len() == 2 { Ok(()) } else { self.socket.transaction(&mut messages) }
    }
}

impl Target for Passages {
    type Key = Passage;
    type Value = Passing;
    type Error = Error;

    fn name(&self) -> &'static str {
        "forward rules"
    }

    fn read(&mut self) -> Result<BTreeMap<Passage, Passing>, Error> {
        let mut all = BTreeMap::new();
        for family in Family::BOTH {
            let rules = self.rules(family).map_err(|fault| error("list rules", fault))?;
            for (comment, one, is_in_place) in self.ours(&rules) {
                let passing = one.passing.clone().filter(|_| is_in_place).unwrap_or(Passing::Other);
                let twice = all.insert(Passage { family, comment }, passing).is_some();
                if twice {
                    all.insert(Passage { family, comment }, Passing::Other);
                }
            }
        }
        Ok(all)
    }

    /// The steps of a family are one transaction, unless the kernel refuses one of them.
    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, Passage, Passing>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        for family in Family::BOTH {
            let its: Vec<_> = steps.iter().enumerate().filter(|(_, step)| step.key.family == family).collect();
            let together: Vec<_> = its.iter().map(|(_, step)| *step).collect();
            if self.change(family, &together).is_ok() {
                continue;
            }
            // One that the kernel refuses, because it has no `xt_conntrack`, keeps the others from nothing.
            for (step, one) in its {
                if let Err(fault) = self.change(family, &[one]) {
                    failures.push(Failure { step, error: error("change rules", fault) });
                }
            }
        }
        failures
    }
}

/// Removes the rules with these comments from the chains `FORWARD` of both families; returns why one could not be removed.
pub fn remove(comments: &'static [&'static str]) -> Option<String> {
    let mut mirror = match Passages::open(comments) {
        Ok(passages) => Mirror::new(passages),
        Err(error) => return Some(error.to_string()),
    };
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}

/// Returns the chain that a rule jumps to.
pub(super) fn jumps_to(rule: &Attributes<'_>) -> Option<String> {
    let mut reading = Reading::default();
    for item in rule.get(rule::EXPRESSIONS)?.attributes() {
        let _ = reading.read(&item.attributes());
    }
    reading.jumps_to
}

impl InHostChain for Passages {
    fn needed(&mut self, of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing> {
        // A chain that cannot be asked for shows when its rules are read.
        let has = PerFamily::from_fn(|family| self.has_chain(family).unwrap_or(false));
        of.iter().filter(|(key, _)| *has.of(key.family)).map(|(key, passing)| (*key, passing.clone())).collect()
    }
}

impl<T: InHostChain> InHostChain for Optional<T> {
    fn needed(&mut self, of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing> {
        self.target().map(|target| target.needed(of)).unwrap_or_default()
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {HOST_CHAIN} {:?}", self.family, self.comment)
    }
}

fn about(messages: &mut Messages, kind: u16, flags: u16, family: Family) -> &mut Messages {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    messages.begin(kind, flags).header(&[number, 0, 0, 0]).text(TABLE, HOST_TABLE)
}

/// Appends expressions and comment of a rule, as iptables would write it but for the comment.
fn write(messages: &mut Messages, passing: &Passing, comment: &str) {
    let (key, link) = match passing {
        Passing::From(link) => (INPUT_LINK, link),
        Passing::To(link) | Passing::AnswersTo(link) => (OUTPUT_LINK, link),
        Passing::Other => return,
    };
    messages.nest(rule::EXPRESSIONS);
    messages.nest(ITEM).text(NAME, "meta").nest(CONTENT).u32_be(META_KEY, key).u32_be(1, 1).end().end();
    messages.nest(ITEM).text(NAME, "cmp").nest(CONTENT).u32_be(1, 1).u32_be(2, 0);
    messages.nest(3).text(data::VALUE, link).end().end().end();
    if matches!(passing, Passing::AnswersTo(_)) {
        messages.nest(ITEM).text(NAME, "match").nest(CONTENT).text(MATCH_NAME, "conntrack");
        messages.u32_be(MATCH_REVISION, 3).attribute(MATCH_INFO, &conntrack::answers()).end().end();
    }
    messages.nest(ITEM).text(NAME, "counter").nest(CONTENT).end().end();
    messages.nest(ITEM).text(NAME, "immediate").nest(CONTENT).u32_be(1, 0);
    messages.nest(2).nest(data::VERDICT).u32_be(data::CODE, data::ACCEPT as u32).end().end().end().end();
    messages.end();
    let mut userdata = vec![rule::COMMENT, u8::try_from(comment.len() + 1).expect("a comment of ours is short")];
    userdata.extend_from_slice(comment.as_bytes());
    userdata.push(0);
    messages.attribute(rule::USERDATA, &userdata);
}

/// The match `conntrack` of xtables, revision 3 (`struct xt_conntrack_mtinfo3`,
/// include/uapi/linux/netfilter/xt_conntrack.h).
mod conntrack {
    /// Rounded up to 8 bytes.
    const LENGTH: usize = 168;
    const FLAGS: usize = 146;
    const INVERTED: usize = 148;
    const STATES: usize = 150;
    /// `XT_CONNTRACK_STATE`.
    const BY_STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
    const OF_CONNECTION: u16 = 2 | 4;

    /// The content of a match for packets that belong to a connection.
    pub fn answers() -> [u8; LENGTH] {
        let mut info = [0; LENGTH];
        for (at, number) in [(FLAGS, BY_STATE), (STATES, OF_CONNECTION)] {
            for (place, byte) in info.iter_mut().skip(at).zip(number.to_ne_bytes()) {
                *place = byte;
            }
        }
        info
    }

    pub fn is_answers(info: &[u8]) -> bool {
        let number = |at: usize| info.get(at..at + 2).and_then(|two| Some(u16::from_ne_bytes(two.try_into().ok()?)));
        [(FLAGS, BY_STATE), (INVERTED, 0), (STATES, OF_CONNECTION)].iter().all(|(at, is)| number(*at) == Some(*is))
    }
}

/// Reads one rule; `None` if it is of another chain: not every kernel obeys every filter.
fn found(answer: &Answer<'_>, family: Family) -> Option<Found> {
    let [number, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let is_of_chain =
        attributes.get(TABLE)?.text()? == HOST_TABLE && attributes.get(rule::CHAIN)?.text()? == HOST_CHAIN;
    let is_of_family = number == if family == Family::V4 { 2 } else { 10 };
    if !is_of_chain || !is_of_family {
        return None;
    }
    let mut reading = Reading::default();
    let expressions = attributes.get(rule::EXPRESSIONS).map(|list| list.attributes());
    for item in expressions.into_iter().flatten() {
        reading.is_odd |= reading.read(&item.attributes()).is_none();
    }
    let userdata = attributes.get(rule::USERDATA).and_then(|userdata| comment(userdata.value));
    let handle = attributes.get(HANDLE)?.u64_be()?;
    Some(Found {
        handle,
        comment: userdata.or(reading.comment.take()),
        passing: reading.passing(),
        jumps_to: reading.jumps_to,
    })
}

/// What is known of a rule after some of its expressions.
#[derive(Default)]
struct Reading {
    key: Option<u32>,
    link: Option<CompactString>,
    comment: Option<String>,
    is_for_answers: bool,
    accepts: bool,
    jumps_to: Option<String>,
    is_odd: bool,
}

impl Reading {
    fn read(&mut self, item: &Attributes<'_>) -> Option<()> {
        let content = item.get(CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        match item.get(NAME)?.text()? {
            "meta" if self.key.is_none() => self.key = Some(content.get(META_KEY)?.u32_be()?),
            "cmp" if self.link.is_none() && content.get(2)?.u32_be()? == 0 => {
                let value = content.get(3)?.attributes().get(data::VALUE)?.value;
                // Without a closing zero it is the beginning of names.
                self.link = Some(CompactString::from(text(value)?));
            }
            "match" => {
                let info = content.get(MATCH_INFO)?.value;
                match content.get(MATCH_NAME)?.text()? {
                    "comment" => self.comment = Some(text(info)?.to_owned()),
                    "conntrack" if conntrack::is_answers(info) => self.is_for_answers = true,
                    _ => return None,
                }
            }
            "counter" => {}
            "immediate" => {
                let verdict = content.get(2)?.attributes().get(data::VERDICT)?.attributes();
                let code = verdict.get(data::CODE)?.u32_be()? as i32;
                self.accepts = code == data::ACCEPT;
                self.jumps_to = verdict.get(data::CHAIN).and_then(|chain| chain.text()).map(str::to_owned);
            }
            _ => return None,
        }
        Some(())
    }

    fn passing(&mut self) -> Option<Passing> {
        let link = self.link.take().filter(|_| self.accepts && !self.is_odd)?;
        match (self.key?, self.is_for_answers) {
            (INPUT_LINK, false) => Some(Passing::From(link)),
            (OUTPUT_LINK, false) => Some(Passing::To(link)),
            (OUTPUT_LINK, true) => Some(Passing::AnswersTo(link)),
            _ => None,
        }
    }
}

/// The text up to its closing zero.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

/// The comment in a rule's userdata: fields of a type, a length and a value.
fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == rule::COMMENT {
            return text(value).map(str::to_owned);
        }
        userdata = rest.get(usize::from(*length)..)?;
    }
    None
}

fn error(operation: &'static str, fault: Fault) -> Error {
    Error::new(operation, format!("of {HOST_CHAIN}"), Cause::from(fault))
}
