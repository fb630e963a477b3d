//! Rules that let packets pass in the host's own chains `FORWARD` and `INPUT`.
//!
//! A packet passes nf_tables where no table drops it: what our own table accepts, the host's may still drop. On a host whose
//! `FORWARD` or `INPUT` drops by default (Docker and ufw make it so) packets pass only by a rule in that chain, which belongs to
//! iptables-nft: `table ip filter` and `table ip6 filter`. So these few rules are as iptables would write them, and its
//! programs show, save and restore them:
//!
//! ```text
//! iptables -I FORWARD -i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT
//! iptables -I INPUT -m mark --mark 0x20000/0x20000 -m comment --comment "allow traffic to ports of Services" -j ACCEPT
//! ```
//!
//! Ours, for a process without memory: the rules of such a chain whose comment is one of a few that the owner names; kube-router
//! writes the same in `FORWARD`. They stand before all other rules, but behind jumps to chains of ours and of kube-router: what a policy
//! forbids is forbidden before. A host without that chain needs none of them. That of legacy iptables cannot be reached by
//! netlink.
//!
//! Kernel: a comment of nf_tables (`NFTA_RULE_USERDATA`) reads as `-m comment`, and becomes one when iptables restores the rule.
//! The state of a connection and the mark have to be asked by the matches of xtables (`nft_compat`, `xt_conntrack`, `xt_mark`): a rule with the
//! expression `ct` would make the whole table unreadable for iptables, and so would one with `meta mark` before iptables 1.8.8.
//! Where the kernel has no `xt_mark`, the mark is asked by `meta mark` all the same. Where it has no `xt_conntrack` ([`has_connection_match`])
//! nothing but a mark tells these chains that a packet belongs to a connection: a table of ours has to mark it before.

mod expressions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use compact_str::CompactString;

use super::foreign::is_absent;
use super::listener::transaction;
use super::rule::Mark;
use super::wire::{self, TABLE, message, rule};
use crate::kernel::netlink::{Bus, Fault, Messages, Socket, flag};
use crate::kernel::{Cause, Error};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Growth, Mirror, Moment, Optional, Phase, Reflection, Step, Target};

use self::expressions::{Found, HANDLE, MarkBy, POSITION, found, write, write_answers};
pub(super) use self::expressions::{jumps_to, passing};

/// A chain of the host's table `filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostChain {
    Forward,
    Input,
}

/// A rule, by its comment, in the chain of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Passage {
    pub family: Family,
    /// At most 200 bytes.
    pub comment: &'static str,
}

/// The packets that the rules with one comment accept: one rule, or one for each link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Passing {
    /// Packets that came in by this link.
    From(CompactString),
    /// Packets that leave by this link.
    To(CompactString),
    /// Packets that leave by one of these links and belong to a connection.
    AnswersTo(BTreeSet<CompactString>),
    /// Packets that leave by one of these links and whose mark has these bits.
    MarkedTo(BTreeSet<CompactString>, Mark),
    /// Packets whose mark has these bits.
    Marked(Mark),
    /// Something else, or not in its place. Only ever read.
    Other,
}

/// The rules of one owner in a chain of both families, as a kind of kernel objects.
#[derive(Debug)]
pub struct Passages {
    socket: Socket,
    chain: HostChain,
    comments: &'static [&'static str],
}

/// Rules for which there is not always a chain.
pub trait InHostChain: Target<Key = Passage, Value = Passing> {
    /// Returns those of the rules for which the host has a chain now.
    fn needed(&mut self, of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing>;
}

impl Passing {
    /// Returns what each rule accepts.
    fn each(&self) -> Vec<Passing> {
        let alone = |link: &CompactString| BTreeSet::from([link.clone()]);
        match self {
            Passing::AnswersTo(links) => links.iter().map(|link| Passing::AnswersTo(alone(link))).collect(),
            Passing::MarkedTo(links, mark) => links.iter().map(|link| Passing::MarkedTo(alone(link), *mark)).collect(),
            one => vec![one.clone()],
        }
    }

    /// Returns what rules of the same comment accept together, as far as one of ours does.
    fn both(one: Passing, other: Passing) -> Passing {
        let union = |one: BTreeSet<CompactString>, other: &BTreeSet<CompactString>| {
            one.is_disjoint(other).then(|| one.union(other).cloned().collect())
        };
        let together = match (one, other) {
            (Passing::AnswersTo(one), Passing::AnswersTo(other)) => union(one, &other).map(Passing::AnswersTo),
            (Passing::MarkedTo(one, mark), Passing::MarkedTo(other, its)) if mark == its => {
                union(one, &other).map(|links| Passing::MarkedTo(links, mark))
            }
            _ => None,
        };
        together.unwrap_or(Passing::Other)
    }
}

const HOST_TABLE: &str = "filter";
/// Chains of ours and of kube-router begin so.
const OUR_CHAINS: &str = "KUBE-ROUTER-";

impl HostChain {
    fn name(self) -> &'static str {
        match self {
            HostChain::Forward => "FORWARD",
            HostChain::Input => "INPUT",
        }
    }

    /// Name of the kind of kernel objects.
    pub fn kind(self) -> &'static str {
        match self {
            HostChain::Forward => "forward rules",
            HostChain::Input => "input rules",
        }
    }
}

impl Passages {
    /// Opens a socket in the network namespace of the calling thread, where it stays.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(chain: HostChain, comments: &'static [&'static str]) -> Result<Passages, Error> {
        Ok(Passages { socket: Socket::open(Bus::Netfilter)?, chain, comments })
    }

    fn has_chain(&mut self, family: Family) -> Result<bool, Fault> {
        let mut message = Messages::new();
        about(&mut message, message::GET_CHAIN, 0, family).text(wire::chain::NAME, self.chain.name());
        match self.socket.request(&mut message, |_| Some(())) {
            Ok(_) => Ok(true),
            // No such chain, no such table, or no nf_tables.
            Err(Fault::Refused(refusal)) if is_absent(refusal.errno) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    fn rules(&mut self, family: Family) -> Result<Vec<Found>, Fault> {
        if !self.has_chain(family)? {
            return Ok(Vec::new());
        }
        let mut message = Messages::new();
        about(&mut message, message::GET_RULE, 0, family).text(rule::CHAIN, self.chain.name());
        let chain = self.chain.name();
        self.socket.dump(&mut message, |answer| found(answer, family, HOST_TABLE, chain))
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

    /// Changes the rules of one family in one transaction; with `meta mark` only where the kernel refuses the match.
    fn change(&mut self, family: Family, steps: &[&Step<'_, Passage, Passing>]) -> Result<(), Fault> {
        let asks_mark =
            |step: &&Step<'_, Passage, Passing>| matches!(step.want, Some(Passing::Marked(_) | Passing::MarkedTo(..)));
        let is_about_marks = steps.iter().any(asks_mark);
        match self.change_by(MarkBy::Match, family, steps) {
            Err(Fault::Refused(_)) if is_about_marks => self.change_by(MarkBy::Meta, family, steps),
            outcome => outcome,
        }
    }

    fn change_by(&mut self, by: MarkBy, family: Family, steps: &[&Step<'_, Passage, Passing>]) -> Result<(), Fault> {
        if steps.is_empty() || !self.has_chain(family)? {
            return Ok(());
        }
        let rules = self.rules(family)?;
        let mut messages = Messages::new();
        wire::mark(&mut messages, message::BATCH_BEGIN);
        let is_changed = |comment: &str| steps.iter().any(|step| step.key.comment == comment);
        for (_, one, _) in self.ours(&rules).into_iter().filter(|(comment, ..)| is_changed(comment)) {
            about(&mut messages, message::DELETE_RULE, 0, family).text(rule::CHAIN, self.chain.name());
            messages.attribute(HANDLE, &one.handle.to_be_bytes());
        }
        let is_our_jump = |one: &&Found| one.jumps_to.as_deref().is_some_and(|to| to.starts_with(OUR_CHAINS));
        let is_head =
            |one: &&Found| is_our_jump(one) || one.comment.as_deref().is_some_and(|its| self.comments.contains(&its));
        let behind = rules.iter().take_while(is_head).filter(is_our_jump).last().map(|one| one.handle);
        let wanted = steps.iter().filter_map(|step| Some((step.key.comment, step.want?)));
        for (comment, passing) in wanted.flat_map(|(comment, of)| of.each().into_iter().map(move |one| (comment, one)))
        {
            let flags = if behind.is_some() { flag::CREATE | flag::APPEND } else { flag::CREATE };
            about(&mut messages, message::NEW_RULE, flags, family).text(rule::CHAIN, self.chain.name());
            if let Some(handle) = behind {
                messages.attribute(POSITION, &handle.to_be_bytes());
            }
            write(&mut messages, &passing, comment, by);
        }
        wire::mark(&mut messages, message::BATCH_END);
        if messages.len() == 2 { Ok(()) } else { transaction(&mut self.socket, &mut messages) }
    }
}

impl Target for Passages {
    type Key = Passage;
    type Value = Passing;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.chain.kind()
    }

    fn read(&mut self) -> Result<BTreeMap<Passage, Passing>, Error> {
        let mut all = BTreeMap::new();
        for family in Family::BOTH {
            let rules = self.rules(family).map_err(|fault| error("list rules", self.chain, fault))?;
            for (comment, one, is_in_place) in self.ours(&rules) {
                let passing = one.passing.clone().filter(|_| is_in_place).unwrap_or(Passing::Other);
                let key = Passage { family, comment };
                let passing = match all.remove(&key) {
                    Some(before) => Passing::both(before, passing),
                    None => passing,
                };
                all.insert(key, passing);
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
                    failures.push(Failure { step, error: error("change rules", self.chain, fault) });
                }
            }
        }
        failures
    }
}

/// Returns whether the kernel has the match for the state of a connection, `xt_conntrack`; also where it does not say so. Tried with a table that is made
/// and deleted in one transaction, which loads the module as the rule itself would.
///
/// # Errors
/// The kernel cannot be asked.
pub fn has_connection_match(family: Family) -> Result<bool, Error> {
    const TRIAL: &str = "sluice_trial";
    let mut socket = Socket::open(Bus::Netfilter)?;
    let mut messages = Messages::new();
    let number = [number_of(family), 0, 0, 0];
    wire::mark(&mut messages, message::BATCH_BEGIN);
    messages.begin(message::NEW_TABLE, flag::CREATE).header(&number).text(TABLE, TRIAL);
    messages.begin(message::NEW_CHAIN, flag::CREATE).header(&number).text(TABLE, TRIAL).text(wire::chain::NAME, TRIAL);
    messages.begin(message::NEW_RULE, flag::CREATE | flag::APPEND).header(&number).text(TABLE, TRIAL);
    messages.text(rule::CHAIN, TRIAL);
    write_answers(&mut messages);
    messages.begin(message::DELETE_TABLE, 0).header(&number).text(TABLE, TRIAL);
    wire::mark(&mut messages, message::BATCH_END);
    match transaction(&mut socket, &mut messages) {
        Ok(()) => Ok(true),
        Err(Fault::Refused(refusal)) => Ok(refusal.errno != libc::ENOENT),
        Err(fault) => Err(Error::new("try nf_tables", "xt_conntrack", fault.into())),
    }
}

/// Removes the rules with these comments from the chains of both families; returns why one could not be removed.
pub fn remove(chain: HostChain, comments: &'static [&'static str]) -> Option<String> {
    let mut mirror = match Passages::open(chain, comments) {
        Ok(passages) => Mirror::new(passages),
        Err(error) => return Some(error.to_string()),
    };
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
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

impl<T: InHostChain> Mirror<T> {
    /// Grows those of the rules for which the host has a chain now.
    pub fn grow_in_host_chain(&mut self, desired: &BTreeMap<Passage, Passing>, growth: Growth, at: Moment) {
        if !self.is_settled() {
            let needed = self.target().needed(desired);
            self.grow(&needed, growth, at);
        }
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.family, self.comment)
    }
}

fn about(messages: &mut Messages, kind: u16, flags: u16, family: Family) -> &mut Messages {
    messages.begin(kind, flags).header(&[number_of(family), 0, 0, 0]).text(TABLE, HOST_TABLE)
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn error(operation: &'static str, chain: HostChain, fault: Fault) -> Error {
    Error::new(operation, format!("of {}", chain.name()), Cause::from(fault))
}
