//! The membership of a listener in one group, which can be given up for a while.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::Listener;
use super::option;

/// One group of a listener. Keeps the socket open as long as it lives.
#[derive(Debug)]
pub struct Group {
    socket: OwnedFd,
    number: i32,
}

impl Group {
    /// The group with this number, for this listener, which does not join it yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn of(listener: &Listener, number: i32) -> Result<Group, Errno> {
        Ok(Group { socket: fcntl_dupfd_cloexec(listener.as_fd(), 0)?, number })
    }

    /// From now on the listener hears what the group is told. Nothing happens where it does already.
    ///
    /// # Errors
    /// The kernel has no such group, or no memory.
    pub fn join(&self) -> Result<(), Errno> {
        option::set(self.socket.as_fd(), option::ADD_MEMBERSHIP, self.number)
    }

    /// From now on it does not.
    ///
    /// # Errors
    /// The kernel has no such group.
    pub fn leave(&self) -> Result<(), Errno> {
        option::set(self.socket.as_fd(), option::DROP_MEMBERSHIP, self.number)
    }
}
