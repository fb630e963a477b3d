//! To whom the table belongs, and how it becomes ours.
//!
//! What is known of a table that does not belong to us holds as long as nobody changes it, so it is claimed only in the state in
//! which it was read, and nothing is done to one that was not read since its owner went.

use rustix::io::Errno;

use super::{Contents, OwnTable};
use crate::kernel::netlink::Fault;
use crate::kernel::nftables::batch::Batch;
use crate::kernel::nftables::object::{Content, Key, Object};
use crate::kernel::nftables::plan::Plan;
use crate::kernel::nftables::read::Header;
use crate::kernel::nftables::wire::table::{FLAG_OWNER, FLAG_PERSIST};
use crate::kernel::{Cause, Error};

/// The table's state towards this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Not looked at yet.
    Unknown,
    Absent,
    /// It belongs to nobody, and cannot.
    Free,
    /// It belonged to a process that is gone, and can be claimed.
    Orphan,
    /// Another process has it.
    Elsewhere,
    /// It belongs to our socket.
    Ours,
}

impl Standing {
    /// Returns the standing of the table to the socket with this port, by its header.
    pub fn of(header: Option<Header>, port: u32) -> Standing {
        match header {
            None => Standing::Absent,
            Some(Header { owner: Some(owner), .. }) if owner == port => Standing::Ours,
            Some(Header { flags, owner }) if flags & FLAG_OWNER != 0 || owner.is_some() => Standing::Elsewhere,
            Some(Header { flags, .. }) if flags & FLAG_PERSIST != 0 => Standing::Orphan,
            Some(_) => Standing::Free,
        }
    }
}

impl OwnTable {
    /// Looks at the table if it is not ours already. Where that is not as it was, nothing is known of what is in it.
    pub(super) fn look(&mut self) -> Result<(), Fault> {
        if self.standing == Standing::Ours {
            return Ok(());
        }
        let found = Standing::of(self.reader().header()?, self.socket.port());
        if found != self.standing {
            self.standing = found;
            self.is_read = false;
        }
        Ok(())
    }

    /// Sees that the table is as it was read, as far as that can be seen.
    pub(super) fn check_read(&mut self) -> Result<(), Error> {
        self.look().map_err(|fault| self.error("look for table", fault))?;
        if self.standing == Standing::Elsewhere {
            return Err(self.error("change table", Fault::System(Errno::PERM)));
        }
        if !self.is_read {
            let cause = Cause::Malformed("it changed hands, so it is read again first");
            return Err(Error::new("change table", self.id.name, cause));
        }
        Ok(())
    }

    /// Makes the table ours after it was read, where that is possible without a change of what is in it. Returns `false` where
    /// others changed something since this generation.
    pub(super) fn claim(&mut self, contents: &Contents, generation: Option<u32>) -> Result<bool, Error> {
        let mut batch = Batch::new(self.id, generation);
        let then = match self.standing {
            Standing::Unknown | Standing::Elsewhere => return Ok(true),
            Standing::Absent | Standing::Ours => self.standing,
            // A table without anything was left behind between two transactions.
            Standing::Free | Standing::Orphan if contents.is_empty() => {
                batch.delete_table();
                Standing::Absent
            }
            Standing::Orphan => {
                batch.make_table(self.flags());
                Standing::Ours
            }
            // It cannot be made anew without a change. That is done with the first change that is allowed.
            Standing::Free if self.knows_owners && foreign(contents).is_some() => Standing::Free,
            // Made by somebody who did not say that it shall outlive him, so the kernel lets nobody claim it.
            Standing::Free if self.knows_owners => {
                batch.delete_table();
                batch.make_table(self.flags());
                Plan::of_all(contents).write(&mut batch)?;
                Standing::Ours
            }
            // The flags are none, which wakes a table that somebody put to sleep.
            Standing::Free => {
                batch.make_table(0);
                Standing::Free
            }
        };
        if !batch.is_empty() {
            match self.commit(batch) {
                Err(error) if matches!(error.cause, Cause::Errno(Errno::RESTART, _)) => return Ok(false),
                result => result?,
            }
        }
        self.standing = then;
        self.is_read = true;
        Ok(true)
    }

    pub(super) fn flags(&self) -> u32 {
        if self.knows_owners { FLAG_OWNER | FLAG_PERSIST } else { 0 }
    }

    /// Starts a transaction, which makes the table where it does not exist.
    pub(super) fn begin(&self) -> Batch<'static> {
        let mut batch = Batch::new(self.id, None);
        batch.one_by_one.clone_from(&self.one_by_one);
        if self.standing == Standing::Absent {
            batch.make_new_table(self.flags());
        }
        batch
    }

    pub(super) fn has_table(&mut self) {
        self.standing = if self.knows_owners { Standing::Ours } else { Standing::Free };
    }
}

/// The first object that is not understood.
pub(super) fn foreign(contents: &Contents) -> Option<&Object> {
    let is_foreign = |(object, content): &(&Object, &Content)| match content {
        Content::Foreign => true,
        Content::Chain(chain) => chain.rules.iter().any(|rule| rule.is_foreign()),
        _ => is_lost(object, content),
    };
    contents.iter().find(is_foreign).map(|(object, _)| object)
}

/// Returns whether an object cannot be written as it was read. A rule can.
pub(super) fn is_lost(object: &Object, content: &Content) -> bool {
    *content == Content::Foreign || matches!(object, Object::Element(_, Key::Foreign(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_our_own_socket_is_ours_also_where_the_answer_to_its_making_was_lost() {
        let owned = |owner| Some(Header { flags: FLAG_OWNER | FLAG_PERSIST, owner });
        assert_eq!(Standing::of(owned(Some(7)), 7), Standing::Ours);
        assert_eq!(Standing::of(owned(Some(8)), 7), Standing::Elsewhere);
        assert_eq!(Standing::of(owned(None), 7), Standing::Elsewhere);
        assert_eq!(Standing::of(Some(Header { flags: FLAG_PERSIST, owner: None }), 7), Standing::Orphan);
        assert_eq!(Standing::of(Some(Header { flags: 0, owner: None }), 7), Standing::Free);
        assert_eq!(Standing::of(None, 7), Standing::Absent);
    }
}
