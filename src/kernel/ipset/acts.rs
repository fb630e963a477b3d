//! Operations on sets.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use super::fault::{BUSY, HASH_FULL, LAST_OF_SYSTEM, REFERENCED, error};
use super::wire::{self, command, outer};
use super::{Entry, SetKind, SetName, SetSpec};
use crate::kernel::netlink::{Bus, Fault, Messages, Refusal, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// The sets of one network namespace: that in which it was opened.
#[derive(Debug)]
pub struct Ipset {
    socket: Socket,
    revisions: BTreeMap<(SetKind, Family), u8>,
}

/// The elements that one message carries, each with the step that it belongs to.
type Pack<'a> = (&'a SetName, Vec<(usize, Entry)>);

/// Most elements in one message; more gain nothing.
const MOST_IN_PACK: usize = 1500;
/// The revisions of Debian 12's ipset 7.17. An `ipset` that does not know the revision of a set cannot
/// list any set, so newer ones that the kernel may have are not used.
const HIGHEST_REVISIONS: [(SetKind, u8); 4] =
    [(SetKind::HashIp, 6), (SetKind::HashIpPort, 7), (SetKind::HashNet, 7), (SetKind::HashIpPortNet, 8)];
/// nf_tables releases the sets of a deleted rule some milliseconds after the rule is gone.
const RELEASE_TRIES: u32 = 10;
const RELEASE_PAUSE: Duration = Duration::from_millis(20);

/// Returns the name of the set that the kernel has under this number, which is how rules name it; `None` if there is none, or the
/// kernel is older than 4.20. `socket` is one of netfilter.
pub fn name_of(socket: &mut Socket, number: u16) -> Option<SetName> {
    let mut message = Messages::new();
    wire::begin(&mut message, command::BY_NUMBER, "").u16_be(Messages::network_order(outer::NUMBER), number);
    socket.request(&mut message, wire::set_name).ok()?.into_iter().next()
}

impl Ipset {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> Result<Ipset, Error> {
        Ok(Ipset { socket: Socket::open(Bus::Netfilter)?, revisions: BTreeMap::new() })
    }

    /// Its socket, for what else its user asks of netfilter: closing one takes the kernel tens of milliseconds.
    pub(in crate::kernel) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The names of all sets.
    ///
    /// # Errors
    /// The kernel does not list its sets, for example because it has no ipset.
    pub fn names(&mut self) -> Result<BTreeSet<SetName>, Error> {
        let mut message = listing("", wire::ONLY_NAMES);
        let names = self.socket.dump(&mut message, wire::set_name).map_err(|fault| error("list sets", "", fault))?;
        Ok(names.into_iter().collect())
    }

    /// All sets that pass, without their elements.
    ///
    /// # Errors
    /// The kernel does not list its sets, or the description of one is malformed.
    pub fn specs(&mut self, pass: impl Fn(&SetName) -> bool) -> Result<BTreeMap<SetName, SetSpec>, Error> {
        let mut message = listing("", wire::ONLY_HEADERS);
        let found = self.socket.dump(&mut message, |answer| {
            let name = wire::set_name(answer).filter(|name| pass(name))?;
            Some((name, wire::set_spec(answer)?))
        });
        Ok(found.map_err(|fault| error("list sets", "", fault))?.into_iter().collect())
    }

    /// Returns the number of elements in a set; `None` where the kernel does not report it, or has no such set.
    pub(super) fn count(&mut self, set: &SetName) -> Option<usize> {
        let mut message = listing(&set.0, wire::ONLY_HEADERS);
        self.socket.dump(&mut message, wire::count).ok()?.first().copied()
    }

    /// The elements of a set, sorted; none where the set does not exist.
    ///
    /// # Errors
    /// The kernel does not list the set, or an element is malformed.
    pub fn entries(&mut self, set: &SetName) -> Result<Vec<Entry>, Error> {
        let mut message = listing(&set.0, 0);
        match self.socket.dump(&mut message, |answer| Some(wire::entries(answer))) {
            Ok(found) => Ok(whole(found.concat())),
            Err(fault) if fault.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(fault) => Err(error("list elements", &set.0, fault)),
        }
    }

    /// Returns which of these elements exist; one that the set could never hold does not. Not for prefixes: an address
    /// in a larger prefix counts as there.
    pub(super) fn test(&mut self, set: &SetName, entries: &[Entry]) -> Result<Vec<bool>, Error> {
        let mut messages = Messages::new();
        for entry in entries {
            wire::begin(&mut messages, command::TEST, &set.0);
            wire::element(&mut messages, entry, 0);
        }
        let refusals = self.socket.batch(&mut messages).map_err(|fault| error("test elements", &set.0, fault))?;
        let mut exist = vec![true; entries.len()];
        for refusal in refusals {
            if refusal.errno <= LAST_OF_SYSTEM && refusal.errno != libc::ENOENT {
                return Err(error("test elements", &set.0, Fault::Refused(refusal)));
            }
            if let Some(exists) = exist.get_mut(refusal.message) {
                *exists = false;
            }
        }
        Ok(exist)
    }

    /// Creates a set. One that exists and is the same is fine; one that differs fails with "exists".
    ///
    /// # Errors
    /// The kernel refuses the set, or has another one of this name.
    pub fn create(&mut self, name: &SetName, spec: SetSpec) -> Result<(), Error> {
        let revision = self.revision(spec.kind, spec.family)?;
        let mut message = Messages::new();
        wire::create(&mut message, name, spec, revision);
        self.act("create set", name, &mut message)
    }

    /// Swaps the names of two sets of one type, atomically for every packet.
    ///
    /// # Errors
    /// One of the sets does not exist, or their types differ.
    pub fn swap(&mut self, one: &SetName, other: &SetName) -> Result<(), Error> {
        let mut message = Messages::new();
        wire::begin(&mut message, command::SWAP, &one.0).text(outer::OTHER_SET, &other.0);
        self.act("swap set", one, &mut message)
    }

    /// Deletes a set with its elements; a missing one is fine. Retries for a moment while the set is in use.
    ///
    /// # Errors
    /// The kernel refuses, for example because the set is in use.
    pub fn destroy(&mut self, name: &SetName) -> Result<(), Error> {
        let mut message = Messages::new();
        wire::begin(&mut message, command::DESTROY, &name.0);
        for _ in 0..RELEASE_TRIES {
            match self.act("destroy set", name, &mut message) {
                Err(error) if error.is_absent() => return Ok(()),
                Err(Error { cause: Cause::Ipset(BUSY | REFERENCED, _), .. }) => thread::sleep(RELEASE_PAUSE),
                result => return result,
            }
        }
        self.act("destroy set", name, &mut message)
    }

    /// Adds elements; those that are there already are fine. Returns the steps that failed.
    pub(super) fn add(&mut self, entries: &BTreeMap<&SetName, Vec<(usize, Entry)>>) -> BTreeMap<usize, Fault> {
        self.change(command::ADD, entries)
    }

    /// Deletes elements; missing ones, and those of missing sets, are fine. Returns the steps that failed.
    pub(super) fn delete(&mut self, entries: &BTreeMap<&SetName, Vec<(usize, Entry)>>) -> BTreeMap<usize, Fault> {
        let mut failed = self.change(command::DELETE, entries);
        failed.retain(|_, fault| fault.errno() != Some(libc::ENOENT));
        failed
    }

    /// Sends packs of elements. The kernel stops at the first bad element of a pack and reports which it was;
    /// those behind it are sent again without it.
    fn change(&mut self, command: u16, entries: &BTreeMap<&SetName, Vec<(usize, Entry)>>) -> BTreeMap<usize, Fault> {
        let mut failed = BTreeMap::new();
        let mut packs: Vec<Pack<'_>> = entries.iter().flat_map(|(set, entries)| packs(set, entries)).collect();
        let mut messages = Messages::new();
        while !packs.is_empty() {
            messages.clear();
            for (set, entries) in &packs {
                pack(&mut messages, command, set, entries);
            }
            let refusals = match self.socket.batch(&mut messages) {
                Ok(refusals) => refusals,
                Err(fault) => {
                    let steps = packs.iter().flat_map(|(_, entries)| entries);
                    failed.extend(steps.map(|(step, _)| (*step, fault.clone())));
                    break;
                }
            };
            packs = refusals
                .into_iter()
                .filter_map(|refusal| {
                    let (set, entries) = packs.get_mut(refusal.message)?;
                    let rest = after_refusal(std::mem::take(entries), refusal, &mut failed);
                    (!rest.is_empty()).then_some((*set, rest))
                })
                .collect();
        }
        failed
    }

    /// The highest revision of a type that both the kernel and we know.
    fn revision(&mut self, kind: SetKind, family: Family) -> Result<u8, Error> {
        if let Some(revision) = self.revisions.get(&(kind, family)) {
            return Ok(*revision);
        }
        let mut message = Messages::new();
        wire::ask_type(&mut message, kind, family);
        let found = self
            .socket
            .request(&mut message, wire::highest_revision)
            .map_err(|fault| error("look up set type", &format!("{kind:?} {family}"), fault))?;
        let kernels = found.into_iter().max().unwrap_or(0);
        let ours = HIGHEST_REVISIONS.iter().find(|(known, _)| *known == kind).map_or(0, |(_, revision)| *revision);
        self.revisions.insert((kind, family), kernels.min(ours));
        Ok(kernels.min(ours))
    }

    fn act(&mut self, operation: &'static str, name: &SetName, message: &mut Messages) -> Result<(), Error> {
        let refusals = self.socket.batch(message).map_err(|fault| error(operation, &name.0, fault))?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) => Err(error(operation, &name.0, Fault::Refused(refusal))),
        }
    }
}

fn listing(set: &str, flags: u32) -> Messages {
    let mut message = Messages::new();
    wire::begin(&mut message, command::LIST, set);
    if flags != 0 {
        message.u32_be(Messages::network_order(outer::FLAGS), flags);
    }
    message
}

/// Cuts the elements of a set into packs. A prefix of length 0 becomes its halves.
fn packs<'a>(set: &'a SetName, entries: &[(usize, Entry)]) -> Vec<Pack<'a>> {
    let parts: Vec<(usize, Entry)> =
        entries.iter().flat_map(|(step, entry)| entry.parts().map(|part| (*step, part))).collect();
    parts
        .chunks(MOST_IN_PACK.min(usize::from(u16::MAX) / wire::LARGEST_ELEMENT))
        .map(|pack| (set, pack.to_vec()))
        .collect()
}

fn pack(messages: &mut Messages, command: u16, set: &SetName, entries: &[(usize, Entry)]) {
    // Without a line number the kernel would not say which element is at fault.
    wire::begin(messages, command, &set.0).u32(outer::LINE, 0).nest(outer::ELEMENTS);
    for ((_, entry), line) in entries.iter().zip(1..) {
        wire::element(messages, entry, line);
    }
    messages.end();
}

/// Records which steps a refusal fails; returns the elements still to be sent.
fn after_refusal(
    mut entries: Vec<(usize, Entry)>,
    refusal: Refusal,
    failed: &mut BTreeMap<usize, Fault>,
) -> Vec<(usize, Entry)> {
    let line = wire::line_at_fault(&refusal.request).and_then(|line| usize::try_from(line).ok());
    // Line 1 is the first element; line 0, or none, means that the set itself was refused.
    let at_fault = line.and_then(|line| line.checked_sub(1)).filter(|index| *index < entries.len());
    let (before, behind) = match at_fault {
        // A full set accepts none of those that follow.
        Some(index) if refusal.errno == HASH_FULL => (index, Vec::new()),
        Some(index) => (index, entries.split_off(index + 1)),
        None => (0, Vec::new()),
    };
    let fault = Fault::Refused(Refusal { request: Vec::new(), ..refusal });
    failed.extend(entries.into_iter().skip(before).map(|(step, _)| (step, fault.clone())));
    behind
}

/// Merges the two halves of a prefix of length 0, as [`Entry::Net`] requires.
fn whole(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_unstable();
    entries.dedup();
    for everything in Entry::everything() {
        if everything.parts().all(|half| entries.binary_search(&half).is_ok()) {
            entries.retain(|entry| everything.parts().all(|half| half != *entry));
            let place = entries.partition_point(|entry| *entry < everything);
            entries.insert(place, everything);
        }
    }
    entries
}
