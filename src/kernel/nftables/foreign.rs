//! Whole tables of other programs, by their names: to find and to remove those that they left.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nf_tables.h). Changes stand between the
//! marks of a batch (include/uapi/linux/netfilter/nfnetlink.h) and are one transaction. Nothing here is ours: the
//! caller names the tables, and a table goes with everything in it.
//!
//! A kernel without nf_tables has no tables.
//!
//! [`DroppingChains`] reads which base chains of others drop what none of their rules accepts (`NFTA_CHAIN_POLICY`, or a rule without a condition, as
//! firewalld has it as its last): what a table of ours accepts they may still drop. Rules count in their order, up to the first that leaves nothing to those behind
//! it. Chains that are entered from there are not followed. The chains of legacy iptables
//! cannot be reached by netlink.

use std::collections::BTreeSet;
use std::fmt;

use rustix::io::Errno;

use super::listener::transaction;
use super::passages::{self, Passing};
use super::wire::{HEADER, INET, TABLE, chain, data, message, rule};
use crate::kernel::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// A table of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

/// A base chain of others that drops what none of its rules accepts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DroppingChain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// The chains that every packet enters that no rule before has accepted.
    pub enters: BTreeSet<String>,
    /// The links from which its rules accept every packet, and to which too where it judges forwarded ones.
    pub opened: BTreeSet<String>,
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

/// Tables of ours begin so.
const OURS: &str = "sluice_";

/// The families whose chains packets to pods and to this host meet.
const FAMILIES: [(u8, &str); 3] = [(INET, "inet"), (2, "ip"), (10, "ip6")];

/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;

/// The errors of a kernel without nf_tables, or without such tables. Before 4.16 a family whose module is not loaded is one that it does not
/// support.
const ABSENT: [i32; 4] = [libc::EINVAL, libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENOENT];

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_CONTENT: u16 = 2;
/// `NFTA_IMMEDIATE_DATA`.
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_MATCH_NAME`, `NFTA_TARGET_NAME`.
const EXTENSION_NAME: u16 = 1;

/// The chains of others that drop, asked by one socket of the network namespace of the thread that asks first.
#[derive(Default)]
pub struct DroppingChains {
    socket: Option<Socket>,
}

impl DroppingChains {
    /// Returns the base chains of others at the hooks `input` and `forward` that drop what none of their rules accepts, sorted: by their policy
    /// or by a rule that drops or rejects everything.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn read(&mut self) -> Result<Vec<DroppingChain>, Error> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => match Socket::open(Bus::Netfilter) {
                Ok(socket) => socket,
                Err(error) if error.is_unsupported() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
        };
        let found = dropping_chains(&mut socket);
        // One that failed is not used again.
        self.socket = found.is_ok().then_some(socket);
        found
    }
}

fn dropping_chains(socket: &mut Socket) -> Result<Vec<DroppingChain>, Error> {
    let mut all = Vec::new();
    for of_family in FAMILIES {
        let failed = |fault: Fault| Error::new("list chains of tables", of_family.1, fault.into());
        let mut message = Messages::new();
        message.begin(message::GET_CHAIN, 0).header(&[of_family.0, 0, 0, 0]);
        let found = socket.dump(&mut message, |answer| base_chain(answer, of_family));
        for base in unless_absent(found).map_err(failed)? {
            let rules = unless_absent(rules(socket, &base)).map_err(failed)?;
            all.extend(base.dropping(rules));
        }
    }
    all.sort();
    Ok(all)
}

/// Nothing where the kernel has no nf_tables, or no such tables.
pub(super) fn unless_absent<T>(found: Result<Vec<T>, Fault>) -> Result<Vec<T>, Fault> {
    match found {
        Err(fault) if fault.errno().is_some_and(is_absent) => Ok(Vec::new()),
        found => found,
    }
}

/// A base chain of others.
struct BaseChain {
    family: (u8, &'static str),
    table: String,
    chain: String,
    hook: u32,
    drops_by_policy: bool,
}

/// A rule of it, as far as it matters here.
#[derive(Default)]
struct HostRule {
    passes: Option<Passing>,
    always: Option<Always>,
}

/// Fate of every packet that meets a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Always {
    Accepted,
    /// Dropped or rejected.
    Dropped,
    /// The chain's policy decides.
    Returned,
    /// That chain is asked, and then the next rule, or the policy of this one.
    Enters {
        chain: String,
        comes_back: bool,
    },
}

impl BaseChain {
    /// Follows a packet that no condition holds for through the rules in their order.
    fn dropping(self, rules: Vec<HostRule>) -> Option<DroppingChain> {
        let (mut from, mut to, mut enters) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut drops = self.drops_by_policy;
        for rule in rules {
            match rule.passes {
                Some(Passing::From(link)) => drop(from.insert(link.to_string())),
                Some(Passing::To(link)) => drop(to.insert(link.to_string())),
                _ => {}
            }
            match rule.always {
                None => {}
                Some(Always::Enters { chain, comes_back }) => {
                    enters.insert(chain);
                    if !comes_back {
                        break;
                    }
                }
                Some(Always::Accepted) => return None,
                Some(Always::Dropped) => {
                    drops = true;
                    break;
                }
                Some(Always::Returned) => break,
            }
        }
        from.retain(|link| self.hook == INPUT || to.contains(link));
        let (table, chain, family) = (self.table, self.chain, self.family.1);
        drops.then_some(DroppingChain { family, table, chain, enters, opened: from })
    }
}

fn base_chain(answer: &Answer<'_>, family: (u8, &'static str)) -> Option<BaseChain> {
    let [its, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let hook = attributes.get(chain::HOOK)?.attributes().get(chain::HOOK_NUMBER)?.u32_be()?;
    let drops_by_policy = attributes.get(chain::POLICY)?.u32_be()? == data::DROP as u32;
    let table = attributes.get(TABLE)?.text()?.to_owned();
    let concerns = its == family.0 && [INPUT, FORWARD].contains(&hook) && !table.starts_with(OURS);
    let chain = attributes.get(chain::NAME)?.text()?.to_owned();
    concerns.then_some(BaseChain { family, table, chain, hook, drops_by_policy })
}

/// Returns the rules of a chain in their order.
fn rules(socket: &mut Socket, of: &BaseChain) -> Result<Vec<HostRule>, Fault> {
    let mut message = Messages::new();
    message.begin(message::GET_RULE, 0).header(&[of.family.0, 0, 0, 0]);
    message.text(TABLE, &of.table).text(rule::CHAIN, &of.chain);
    socket.dump(&mut message, |answer| {
        let [its, ..] = *answer.header::<HEADER>()?;
        let rule = answer.attributes(HEADER);
        let is_of_chain = rule.get(TABLE)?.text()? == of.table && rule.get(rule::CHAIN)?.text()? == of.chain;
        let found = HostRule { passes: passages::passing(&rule), always: always(&rule) };
        (its == of.family.0 && is_of_chain).then_some(found)
    })
}

/// Returns what a rule does with every packet; `None` if it asks something, or does nothing with it.
fn always(of_rule: &Attributes<'_>) -> Option<Always> {
    let mut always = None;
    for item in of_rule.get(rule::EXPRESSIONS)?.attributes() {
        let item = item.attributes();
        let content = item.get(EXPRESSION_CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        match item.get(EXPRESSION_NAME)?.text()? {
            "counter" | "log" => {}
            "match" if content.get(EXTENSION_NAME)?.text()? == "comment" => {}
            "target" if ["DROP", "REJECT"].contains(&content.get(EXTENSION_NAME)?.text()?) => {
                always = Some(Always::Dropped);
            }
            "target" => {}
            "reject" => always = Some(Always::Dropped),
            "immediate" => {
                let verdict = content.get(IMMEDIATE_DATA)?.attributes().get(data::VERDICT)?.attributes();
                let chain = || Some(verdict.get(data::CHAIN)?.text()?.to_owned());
                always = match verdict.get(data::CODE)?.u32_be()? as i32 {
                    data::DROP => Some(Always::Dropped),
                    data::ACCEPT => Some(Always::Accepted),
                    data::RETURN => Some(Always::Returned),
                    data::JUMP => Some(Always::Enters { chain: chain()?, comes_back: true }),
                    data::GOTO => Some(Always::Enters { chain: chain()?, comes_back: false }),
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
    always
}

const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GET_TABLE: u16 = (SUBSYSTEM as u16) << 8 | 1;
const DELETE_TABLE: u16 = (SUBSYSTEM as u16) << 8 | 2;
/// The attribute of a table with its name.
const NAME: u16 = 1;

/// Removes those of the tables that exist, in the network namespace of the socket; returns them.
///
/// # Errors
/// The kernel refuses.
pub fn remove<'a>(socket: &mut Socket, tables: &[Table<'a>]) -> Result<Vec<Table<'a>>, Error> {
    let mut removed = Vec::new();
    for table in tables {
        if !exists(socket, *table)? {
            continue;
        }
        let mut messages = Messages::new();
        messages.begin(BATCH_BEGIN, 0).header(&[0, 0, 0, SUBSYSTEM]);
        about(&mut messages, DELETE_TABLE, *table);
        messages.begin(BATCH_END, 0).header(&[0, 0, 0, SUBSYSTEM]);
        match transaction(socket, &mut messages) {
            Ok(()) => removed.push(*table),
            // Somebody else was faster.
            Err(fault) if fault.errno() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(fault) => return Err(Error::new("remove table", table.name, fault.into())),
        }
    }
    Ok(removed)
}

/// Returns whether one of these tables exists in the network namespace of the socket. What the kernel does not say does not.
pub fn has_any(socket: &mut Socket, tables: &[Table<'_>]) -> bool {
    tables.iter().any(|table| exists(socket, *table).unwrap_or(false))
}

/// Returns whether there is a table of the family `inet` with this name. Makes nothing and needs nothing of the kernel: one without
/// nf_tables or netfilter sockets has none.
///
/// # Errors
/// The kernel refuses to say.
pub fn has_inet_table(name: &str) -> Result<bool, Error> {
    has_table(INET, name)
}

/// The same for a family by its number.
///
/// # Errors
/// As [`has_inet_table`].
pub(super) fn has_table(family: u8, name: &str) -> Result<bool, Error> {
    let mut message = Messages::new();
    message.begin(GET_TABLE, 0).header(&[family, 0, 0, 0]).text(NAME, name);
    match Socket::open(Bus::Netfilter) {
        Ok(mut socket) => is_there(&mut socket, message, name),
        Err(error) if error.is_unsupported() => Ok(false),
        Err(error) => Err(error),
    }
}

fn exists(socket: &mut Socket, table: Table<'_>) -> Result<bool, Error> {
    let mut message = Messages::new();
    about(&mut message, GET_TABLE, table);
    is_there(socket, message, table.name)
}

fn is_there(socket: &mut Socket, mut message: Messages, name: &str) -> Result<bool, Error> {
    match socket.request(&mut message, |_| Some(())) {
        Ok(_) => Ok(true),
        Err(Fault::Refused(refusal)) if is_absent(refusal.errno) => Ok(false),
        Err(fault) => Err(Error::new("look for table", name, Cause::from(fault))),
    }
}

/// The table is not there, or the kernel knows no tables.
pub(super) fn is_absent(errno: i32) -> bool {
    ABSENT.contains(&errno)
}

fn about(messages: &mut Messages, kind: u16, table: Table<'_>) {
    let family = match table.family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    messages.begin(kind, 0).header(&[family, 0, 0, 0]).text(NAME, table.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_does_not_support_has_no_tables() {
        for errno in [libc::ENOENT, libc::EINVAL, libc::EOPNOTSUPP, libc::EAFNOSUPPORT] {
            assert!(is_absent(errno), "{errno}");
        }
        assert!(!is_absent(libc::EPERM) && !is_absent(libc::EBUSY));
    }

    fn passing(passing: Passing) -> HostRule {
        HostRule { passes: Some(passing), always: None }
    }

    fn always(always: Always) -> HostRule {
        HostRule { passes: None, always: Some(always) }
    }

    fn enters(chain: &str, comes_back: bool) -> HostRule {
        always(Always::Enters { chain: chain.into(), comes_back })
    }

    /// The chains that a chain `FORWARD` enters and the links that it opens, if it drops.
    fn dropping(drops_by_policy: bool, rules: Vec<HostRule>) -> Option<(Vec<String>, Vec<String>)> {
        let (family, table, chain) = ((2, "ip"), "filter".to_owned(), "FORWARD".to_owned());
        let chain = BaseChain { family, table, chain, hook: FORWARD, drops_by_policy }.dropping(rules)?;
        Some((chain.enters.into_iter().collect(), chain.opened.into_iter().collect()))
    }

    #[test]
    fn the_first_rule_without_a_condition_decides_and_what_stands_behind_it_does_not_count() {
        let links = || [Passing::From("kube-bridge".into()), Passing::To("kube-bridge".into())].map(passing);
        let none = || Some((Vec::new(), Vec::new()));
        let asks = || HostRule::default();
        assert_eq!(dropping(false, vec![asks(), always(Always::Dropped), always(Always::Accepted)]), none());
        assert_eq!(dropping(true, vec![asks(), always(Always::Accepted), always(Always::Dropped)]), None);
        assert_eq!(dropping(false, vec![always(Always::Returned), always(Always::Dropped)]), None);
        let opened = || Some((Vec::new(), vec!["kube-bridge".to_owned()]));
        let [from, to] = links();
        assert_eq!(dropping(false, vec![from, to, always(Always::Dropped)]), opened());
        let [from, to] = links();
        assert_eq!(dropping(true, vec![from, always(Always::Dropped), to]), none(), "answers do not pass");
        let entered = || Some((vec!["KUBE-ROUTER-FORWARD".to_owned()], Vec::new()));
        assert_eq!(dropping(true, vec![enters("KUBE-ROUTER-FORWARD", true)]), entered());
        assert_eq!(dropping(true, vec![always(Always::Dropped), enters("KUBE-ROUTER-FORWARD", true)]), none());
        let elsewhere = dropping(true, vec![enters("OTHERS", false), enters("KUBE-ROUTER-FORWARD", true)]);
        assert_eq!(elsewhere, Some((vec!["OTHERS".to_owned()], Vec::new())));
    }
}
