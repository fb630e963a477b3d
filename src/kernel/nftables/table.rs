//! One table of ours as a kind of kernel objects.
//!
//! Ours: the table of the family `inet`, `bridge` or `arp` with this name, and everything in it. A step is a change of one object in it; all steps
//! that come together and have an effect on packets are one transaction, which the kernel performs whole or not at all. Where one that comes before or behind it (`plan`) is
//! refused, what was done until then is done, and the rest is not.
//!
//! Where the kernel knows owners (since 5.12) that leave their tables behind (`persist`, since 6.9), the table belongs to the socket of
//! this process: nobody else changes it, and `nft flush ruleset` passes over it. It stays when the process ends, and the
//! next process claims it. Where the kernel does not, what others do to the table is seen by its notifications.
//!
//! Limits and surprises:
//! - The socket stays open: closing one waits for the kernel to free what was removed, with everybody's transactions held up.
//! - A set or the place of a base chain cannot be changed. If one shall be, or is not ours in form, the whole table is deleted and
//!   made anew in one transaction: no packet finds it missing. Its counters begin at zero then.
//! - New sets are filled before the transaction in which rules first use them, in portions, so that one of several hundred
//!   thousand elements does not hold up everybody's for long.
//! - What is new may come in a transaction before that which leads there, and what goes in one behind: a packet that is under way would meet it half made
//!   (`plan`). A table that is made anew as a whole cannot do so: for as long as the kernel takes to commit it, its sets with intervals count as empty.

mod growing;
mod reading;
mod renaming;
mod standing;

use std::collections::{BTreeMap, BTreeSet};

use self::standing::{Standing, is_lost};

use rustix::io::Errno;

use super::batch::Batch;
use super::foreign::has_table;
use super::listener::{transact, transaction};
use super::notified::Notified;
use super::object::{Content, Name, Object, SetSpec};
use super::plan::{InTurn, Plan, Unreached, places};
use super::read::{Reader, Sets};
use super::unreached::unreached;
use super::wire::table::{FLAG_OWNER, FLAG_PERSIST};
use super::wire::{ARP, BRIDGE, INET, TableId};
use crate::kernel::netlink::{Bus, Fault, Refusal, Socket};
use crate::kernel::{Cause, Error, RULES};
use crate::reconcile::{Failure, Glance, Phase, Sorted, Step, Target};

/// The contents of one table of ours.
#[derive(Debug)]
pub struct OwnTable {
    pub(super) socket: Socket,
    id: TableId<'static>,
    /// The name of the kind of kernel objects.
    kind: &'static str,
    /// Whether this kernel lets a table belong to a process and outlive it.
    knows_owners: bool,
    standing: Standing,
    /// The content of the table was read since that is its standing, by which it can be changed.
    is_read: bool,
    /// Since it was read a transaction was not answered: what the next one makes may be there.
    is_in_doubt: bool,
    /// The changes by others, where they can change the table.
    notified: Option<Notified>,
    /// The sets that exist, as far as is known, with the form of those that are ours in form.
    sets: BTreeMap<Name, Option<SetSpec>>,
    /// The chains and counters that exist.
    others: BTreeSet<Object>,
    /// Those of them that no packet comes to, as far as is known.
    unreached: Unreached,
    refused: BTreeMap<Object, Error>,
    /// The last change was done: the next one may give chains other names. One that failed is tried again without that.
    may_rename: bool,
    /// Sets of which the kernel refused one of several elements: the next transaction finds out which.
    one_by_one: BTreeSet<Name>,
}

/// The family of a table of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableFamily {
    /// IPv4 and IPv6 of this host.
    Inet,
    /// Frames that ports of bridges receive.
    Bridge,
    /// The ARP messages of this host.
    Arp,
}

/// The place of a transaction among those of one change.
enum Turn {
    Early,
    Main,
    Late,
}

/// Why a change came to its end.
struct Undone {
    /// The places of the steps that were not done; `None` for all.
    steps: Option<Vec<usize>>,
    error: Error,
}

impl From<Error> for Undone {
    fn from(error: Error) -> Undone {
        Undone { steps: None, error }
    }
}

/// As long as others change something, a table is read again this often.
const TRIES: usize = 10;

/// The objects that exist, with their contents.
type Contents = BTreeMap<Object, Content>;

impl TableFamily {
    fn table(self, name: &'static str) -> TableId<'static> {
        let family = match self {
            TableFamily::Inet => INET,
            TableFamily::Bridge => BRIDGE,
            TableFamily::Arp => ARP,
        };
        TableId { family, name }
    }
}

impl OwnTable {
    /// Opens the sockets in the network namespace of the calling thread, where they stay. Does not touch the table.
    ///
    /// # Errors
    /// A socket cannot be opened, or the kernel does not tell whether it knows owners of tables.
    pub fn open(name: &'static str) -> Result<OwnTable, Error> {
        OwnTable::of(name.into(), RULES)
    }

    /// Like [`open`](OwnTable::open), for this kind of kernel objects.
    ///
    /// # Errors
    /// As [`open`](OwnTable::open).
    pub fn open_as(name: &'static str, kind: &'static str) -> Result<OwnTable, Error> {
        OwnTable::of(name.into(), kind)
    }

    /// Like [`open`](OwnTable::open), for the table of the family `bridge` with this name, and for this kind of kernel objects. Whether the kernel has such tables,
    /// [`probe_bridge`](super::probe::probe_bridge) tells.
    ///
    /// # Errors
    /// As [`open`](OwnTable::open).
    pub fn open_bridge(name: &'static str, kind: &'static str) -> Result<OwnTable, Error> {
        OwnTable::of(TableFamily::Bridge.table(name), kind)
    }

    /// The same for the family `arp` ([`probe_arp`](super::probe::probe_arp)).
    ///
    /// # Errors
    /// As [`open`](OwnTable::open).
    pub fn open_arp(name: &'static str, kind: &'static str) -> Result<OwnTable, Error> {
        OwnTable::of(TableFamily::Arp.table(name), kind)
    }

    /// Opens the table of this family only if it exists. A kernel without nf_tables has none.
    ///
    /// # Errors
    /// As [`open`](OwnTable::open), or the kernel does not tell whether the table exists.
    pub fn open_existing(
        family: TableFamily,
        name: &'static str,
        kind: &'static str,
    ) -> Result<Option<OwnTable>, Error> {
        let id = family.table(name);
        if has_table(id.family, name)? { OwnTable::of(id, kind).map(Some) } else { Ok(None) }
    }

    fn of(id: TableId<'static>, kind: &'static str) -> Result<OwnTable, Error> {
        let mut socket = Socket::open(Bus::Netfilter)?;
        let knows_owners = knows_owners(&mut socket, id)?;
        let notified = if knows_owners { None } else { Some(Notified::listen(id)?) };
        Ok(OwnTable {
            socket,
            id,
            kind,
            knows_owners,
            standing: Standing::Unknown,
            is_read: false,
            is_in_doubt: false,
            notified,
            sets: BTreeMap::new(),
            others: BTreeSet::new(),
            unreached: Unreached::new(),
            refused: BTreeMap::new(),
            may_rename: true,
            one_by_one: BTreeSet::new(),
        })
    }

    /// The objects that the kernel refused in the last transaction, if it refused that and named them. Without them the rest may be
    /// taken. Of several elements it names the set; the same transaction names the element when it is performed again. Where it has no memory
    /// for sets that are filled before they are used, the largest of them is at fault.
    pub fn take_refused(&mut self) -> BTreeMap<Object, Error> {
        std::mem::take(&mut self.refused)
    }

    /// Returns whether nobody else can change the table.
    pub fn is_owned(&self) -> bool {
        self.standing == Standing::Ours
    }

    fn reader(&mut self) -> Reader<'_> {
        Reader { socket: &mut self.socket, table: self.id }
    }

    fn error(&self, operation: &'static str, fault: Fault) -> Error {
        error(operation, self.id.name, fault)
    }

    /// Performs a transaction. Remembers the objects at fault: none where all is refused, whatever it is.
    fn commit(&mut self, mut batch: Batch<'_>) -> Result<(), Error> {
        batch.close();
        let result = transact(&mut self.socket, &mut batch.messages, !self.is_in_doubt);
        // A listener has room for what some transactions do, not for any number of them.
        self.notified.iter_mut().for_each(Notified::hear);
        let refusals = match result {
            Ok(refusals) => batch.at_fault(refusals),
            Err(fault) => {
                // Whether it was done is not known.
                self.unreached.clear();
                self.is_in_doubt = true;
                return Err(self.unanswered(fault));
            }
        };
        let is_of_all = |refusal: &&Refusal| {
            matches!(refusal.errno, libc::EPERM | libc::ENOMEM | libc::ENOBUFS)
                || batch.about(refusal.message).is_none()
        };
        if let Some(refusal) = refusals.iter().find(is_of_all) {
            self.refused.clear();
            return Err(self.error("change table", Fault::Refused(refusal.clone())));
        }
        self.one_by_one.extend(refusals.iter().filter_map(|refusal| batch.elements_of(refusal.message)).cloned());
        let mut first = None;
        for refusal in refusals {
            let Some(object) = batch.about(refusal.message) else { continue };
            let error = Error::new("change", object.to_string(), refusal.into());
            first.get_or_insert_with(|| error.clone());
            self.refused.entry(object.clone()).or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }

    /// The error of a transaction without an answer: more refusals than the socket holds come where another process has the table.
    fn unanswered(&mut self, fault: Fault) -> Error {
        let port = self.socket.port();
        match self.reader().header() {
            Ok(header) if fault == Fault::Lost && Standing::of(header, port) == Standing::Elsewhere => {
                self.error("change table", Fault::System(Errno::PERM))
            }
            _ => self.error("change table", fault),
        }
    }

    fn remember(&mut self, contents: &Contents, sets: &Sets) {
        self.sets.clone_from(&sets.named);
        self.unreached = unreached(contents);
        let is_other = |object: &&Object| matches!(object, Object::Chain(_) | Object::Counter(_));
        self.others = contents
            .keys()
            .take_while(|object| !matches!(object, Object::Element(..)))
            .filter(is_other)
            .cloned()
            .collect();
    }

    /// Performs the steps in as few transactions as is good: everything that changes something for packets in one. The first that fails ends it.
    fn perform(&mut self, steps: &[Step<'_, Object, Content>]) -> Result<(), Undone> {
        self.check_read()?;
        let mut plan = Plan::of(steps, &self.sets)?;
        if plan.needs_all_anew || self.standing == Standing::Free && self.knows_owners {
            return Ok(self.make_anew(steps)?);
        }
        if self.is_empty_after(&plan) {
            return Ok(self.remove()?);
        }
        self.rename_chains(&mut plan);
        let InTurn { leftovers, early, mut main, mut late } = plan.in_turn(&self.unreached);
        if let Some(leftovers) = leftovers
            && !self.takes(&leftovers)
        {
            late.as_mut().unwrap_or(&mut main).take_back(leftovers);
        }
        let sizes = Plan::sizes(&early);
        let turns = early.into_iter().map(|plan| (Turn::Early, plan));
        let turns = turns.chain([(Turn::Main, main)]).chain(late.map(|plan| (Turn::Late, plan)));
        let mut turns = turns.collect::<Vec<_>>().into_iter();
        while let Some((turn, plan)) = turns.next() {
            if let Err(error) = self.take(&plan) {
                if matches!(turn, Turn::Early) {
                    self.blame_largest(&plan, &sizes, &error);
                }
                let undone: Vec<Plan<'_>> = [plan].into_iter().chain(turns.map(|(_, plan)| plan)).collect();
                return Err(Undone { steps: Some(places(steps, &undone)), error });
            }
            match turn {
                Turn::Early => self.unreached.extend(plan.made()),
                // It leads to anything that is desired.
                Turn::Main if !plan.is_empty() => self.unreached.clear(),
                Turn::Main | Turn::Late => {}
            }
        }
        Ok(())
    }

    /// Performs one transaction.
    fn take(&mut self, plan: &Plan<'_>) -> Result<(), Error> {
        let mut batch = self.begin();
        plan.write(&mut batch)?;
        if !batch.is_empty() {
            self.commit(batch)?;
            self.has_table();
        }
        plan.note(&mut self.sets, &mut self.others);
        Ok(())
    }

    /// Performs a transaction that nothing depends on; returns whether that was done.
    fn takes(&mut self, plan: &Plan<'_>) -> bool {
        let one_by_one = self.one_by_one.clone();
        let is_done = self.take(plan).is_ok();
        if !is_done {
            self.refused.clear();
            self.one_by_one = one_by_one;
        }
        is_done
    }

    fn is_empty_after(&self, plan: &Plan<'_>) -> bool {
        let (made, gone) = plan.balance();
        made == 0 && gone == self.sets.len() + self.others.len()
    }

    fn remove(&mut self) -> Result<(), Error> {
        if self.standing != Standing::Absent {
            let mut batch = Batch::new(self.id, None);
            batch.delete_table();
            self.commit(batch)?;
        }
        self.standing = Standing::Absent;
        self.sets.clear();
        self.others.clear();
        self.unreached.clear();
        Ok(())
    }

    /// Deletes the table and makes it with what it shall contain, in one transaction. Rules that are not understood and stay are
    /// written as they were read; nothing is done while another object stays that is not understood.
    fn make_anew(&mut self, steps: &[Step<'_, Object, Content>]) -> Result<(), Error> {
        let (mut contents, _, generation) = self.read_all().map_err(|fault| self.error("list table", fault))?;
        for step in steps {
            match step.want {
                Some(want) => drop(contents.insert(step.key.clone(), want.clone())),
                None => drop(contents.remove(step.key)),
            }
        }
        if let Some((object, _)) = contents.iter().find(|(object, content)| is_lost(object, content)) {
            let cause = Cause::Malformed("it is not understood, and may not go while the table is made anew");
            return Err(Error::new("keep", object.to_string(), cause));
        }
        if contents.is_empty() {
            return self.remove();
        }
        let plan = Plan::of_all(&contents);
        let mut batch = Batch::new(self.id, generation);
        batch.one_by_one.clone_from(&self.one_by_one);
        if self.standing != Standing::Absent {
            batch.delete_table();
        }
        batch.make_table(self.flags());
        plan.write(&mut batch)?;
        self.commit(batch)?;
        self.has_table();
        self.sets.clear();
        self.others.clear();
        self.unreached.clear();
        plan.note(&mut self.sets, &mut self.others);
        Ok(())
    }
}

fn error(operation: &'static str, table: &str, fault: Fault) -> Error {
    let text = match fault.errno() {
        Some(libc::EPERM) => Some("another process owns the table, or this one lacks CAP_NET_ADMIN"),
        Some(libc::ERESTART) => Some("others changed nf_tables at the same moment"),
        _ => None,
    };
    let cause = match (Cause::from(fault), text) {
        (Cause::Errno(errno, None), Some(text)) => Cause::Errno(errno, Some(text.into())),
        (cause, _) => cause,
    };
    Error::new(operation, table, cause)
}

/// Returns whether a table can belong to a process and outlive it: makes one, and removes it in the same transaction.
///
/// # Errors
/// The kernel refuses for another reason than that it does not know these flags: the table would be left open to others as long as
/// this process lives.
fn knows_owners(socket: &mut Socket, id: TableId<'_>) -> Result<bool, Error> {
    let trial = format!("{}_trial", id.name);
    let mut batch = Batch::new(TableId { name: &trial, ..id }, None);
    batch.make_new_table(FLAG_OWNER | FLAG_PERSIST);
    batch.delete_table();
    batch.close();
    match transaction(socket, &mut batch.messages) {
        Ok(()) => Ok(true),
        // Before 5.12 it is EINVAL.
        Err(fault) if matches!(fault.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(fault) => Err(error("try whether the kernel knows owners, with table", &trial, fault)),
    }
}

impl Target for OwnTable {
    type Key = Object;
    type Value = Content;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.kind
    }

    fn read(&mut self) -> Result<Contents, Error> {
        for _ in 0..TRIES {
            self.look().map_err(|fault| self.error("look for table", fault))?;
            self.is_read = false;
            // What others did until now is read, whatever it was.
            self.notified.iter_mut().for_each(|notified| drop(notified.take()));
            let (contents, sets, generation) = match self.standing {
                Standing::Absent => Default::default(),
                _ => self.read_all().map_err(|fault| self.error("list table", fault))?,
            };
            self.remember(&contents, &sets);
            self.is_in_doubt = false;
            if self.claim(&contents, generation)? {
                return Ok(contents);
            }
        }
        Err(self.error("list table", Fault::Unsteady))
    }

    /// Neither claims the table nor hears what others did to it.
    fn view(&mut self) -> Result<Contents, Error> {
        match self.reader().header().map_err(|fault| self.error("look for table", fault))? {
            None => Ok(Contents::new()),
            Some(_) => Ok(self.read_all().map_err(|fault| self.error("list table", fault))?.0),
        }
    }

    fn read_some(&mut self, keys: &[Object]) -> Result<Contents, Error> {
        for _ in 0..TRIES {
            let before = self.generation().map_err(|fault| self.error("list table", fault))?;
            let found = self.read_keys(keys).map_err(|fault| self.error("list table", fault))?;
            if before == self.generation().map_err(|fault| self.error("list table", fault))? {
                return Ok(found);
            }
        }
        Err(self.error("list table", Fault::Unsteady))
    }

    fn glance(&mut self, seen: &impl Sorted<Object, Content>) -> Glance<Object> {
        // As soon as its owner is gone, who changed it until then, it may be claimed; and one that others can change tells
        // nobody.
        if !self.is_read || self.standing == Standing::Free && self.knows_owners {
            return Glance::Somewhere;
        }
        match self.suspects(seen) {
            Ok(Some(suspects)) if suspects.is_empty() => Glance::Alike,
            Ok(Some(suspects)) => Glance::These(suspects),
            Ok(None) | Err(_) => Glance::Somewhere,
        }
    }

    fn grown(have: &Content, want: &Content) -> Content {
        have.grown(want)
    }

    /// Nobody changes what is ours, and of what is not the kernel tells every change, or it is read.
    fn sees_all_at_a_glance(&self) -> bool {
        true
    }

    /// All steps that change something for packets are one transaction, so all of them fail together, but for an element that is refused where objects
    /// only grow.
    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
        match phase {
            Phase::Grow => self.grow(steps),
            Phase::Shrink | Phase::Whole => self.transact(steps),
        }
    }
}
