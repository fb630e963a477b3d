//! UDP ports at which packets inside GUE arrive, over generic netlink.
//!
//! Kernel: the family `fou` (include/uapi/linux/fou.h), which is a module. A kernel without it has no such ports.

use std::collections::{BTreeMap, BTreeSet};

use super::ReceivePort;
use crate::kernel::Error;
use crate::kernel::netlink::{Answer, Fault, GenericSocket, Messages, failed_steps};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The receiving ports of some numbers in one network namespace.
pub struct ReceivePorts {
    socket: GenericSocket,
    ours: BTreeSet<u16>,
}

const ADD: u8 = 1;
const DELETE: u8 = 2;
const GET: u8 = 3;
const VERSION: u8 = 1;
/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;

const PORT: u16 = 1;
const FAMILY: u16 = 2;
const TYPE: u16 = 4;
/// `FOU_ENCAP_GUE`.
const GUE: u8 = 2;

impl ReceivePorts {
    /// Opens a socket in the network namespace of the calling thread. `ours`: their numbers.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(ours: BTreeSet<u16>) -> Result<ReceivePorts, Error> {
        Ok(ReceivePorts { socket: GenericSocket::open("fou")?, ours })
    }

    /// Counts these as ours, too; returns whether one of them did not.
    pub fn own(&mut self, ports: &BTreeSet<u16>) -> bool {
        let before = self.ours.len();
        self.ours.extend(ports);
        self.ours.len() > before
    }

    fn all(&mut self) -> Result<Vec<ReceivePort>, Error> {
        let wrong = |fault: Fault| Error::new("list receive ports of tunnels", "", fault.into());
        if !self.socket.exists().map_err(wrong)? {
            return Ok(Vec::new());
        }
        let mut message = Messages::new();
        message.begin_generic(GET, VERSION, 0);
        self.socket.dump(&mut message, receive_port).map_err(wrong)
    }
}

impl Target for ReceivePorts {
    type Key = ReceivePort;
    type Value = ();
    type Error = Error;

    fn name(&self) -> &'static str {
        "receive ports of tunnels"
    }

    fn read(&mut self) -> Result<BTreeMap<ReceivePort, ()>, Error> {
        let listed = self.all()?.into_iter();
        Ok(listed.filter(|found| self.ours.contains(&found.port)).map(|found| (found, ())).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, ReceivePort, ()>]) -> Vec<Failure<Error>> {
        let mut messages = Messages::new();
        let mut owners = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            // ip fou add|del port PORT gue
            let command = if step.want.is_some() { ADD } else { DELETE };
            messages
                .begin_generic(command, VERSION, 0)
                .u16_be(PORT, step.key.port)
                .u8(FAMILY, step.key.family.number());
            if step.want.is_some() {
                messages.u8(TYPE, GUE);
            }
            owners.push(index);
        }
        failed_steps(self.socket.batch(&mut messages), &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            let operation =
                if step.want.is_some() { "add receive port of tunnels" } else { "delete receive port of tunnels" };
            Error::new(operation, step.key.to_string(), cause)
        })
    }
}

/// The receiving port that an answer describes; `None` where packets inside are not GUE.
fn receive_port(answer: &Answer<'_>) -> Option<ReceivePort> {
    let attributes = answer.attributes(HEADER);
    if attributes.get(TYPE)?.u8()? != GUE {
        return None;
    }
    let family = match i32::from(attributes.get(FAMILY)?.u8()?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    Some(ReceivePort { family, port: attributes.get(PORT)?.u16_be()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = receive_port(&Answer { kind: 16, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }
}
