//! Failures on the wire, and their meaning for steps.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::kernel::{Cause, Error};
use crate::reconcile::Failure;

/// A message that the kernel refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Index into the messages that were sent.
    pub message: usize,
    /// The kernel's error number, positive. Above 4095 it is the family's own (ipset).
    pub errno: i32,
    /// The text of the extended acknowledgement, where the kernel gave one.
    pub text: Option<String>,
    /// The part of the request that the kernel sent back, behind its message header. Empty for almost everything;
    /// ipset writes the number of the element at fault into it.
    pub request: Vec<u8>,
}

/// Why an operation failed, or ended in an unknown state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The kernel refused, and nothing was done.
    Refused(Refusal),
    /// The answer did not come or was dropped. The request may have been performed or not.
    Lost,
    /// A dump was disturbed by changes every time it was tried.
    Unsteady,
    /// A dump has more objects than are read.
    TooMany(usize),
    /// The socket failed: nothing was sent, or the answer could not be received.
    System(Errno),
    /// The kernel's answer could not be understood.
    Malformed(&'static str),
}

impl Fault {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Fault::Refused(refusal) => Some(refusal.errno),
            Fault::System(errno) => Some(errno.raw_os_error()),
            Fault::Lost | Fault::Unsteady | Fault::TooMany(_) | Fault::Malformed(_) => None,
        }
    }

    /// Returns whether the kernel has no such object.
    pub(super) fn is_absent(&self) -> bool {
        self.errno() == Some(Errno::NOENT.raw_os_error())
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Cause {
        match u16::try_from(refusal.errno) {
            Ok(number @ 1..4096) => Cause::Errno(Errno::from_raw_os_error(i32::from(number)), refusal.text),
            _ => Cause::Ipset(refusal.errno, "error of a subsystem"),
        }
    }
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Cause {
        match fault {
            Fault::Refused(refusal) => refusal.into(),
            Fault::Lost => Cause::Timeout,
            Fault::Unsteady => {
                Cause::Errno(Errno::AGAIN, Some("the list changed while it was read, every time".into()))
            }
            Fault::TooMany(most) => Cause::Errno(Errno::TOOBIG, Some(format!("more than {most}"))),
            Fault::System(errno) => Cause::Errno(errno, None),
            Fault::Malformed(text) => Cause::Malformed(text),
        }
    }
}

/// Turns the result of a batch into the steps that failed. `owners` maps each message to its step; a step
/// fails when one of its messages is refused, and reports the first. When the batch as a whole ended in an
/// unknown state, every step fails.
pub fn failed_steps(
    result: Result<Vec<Refusal>, Fault>,
    owners: &[usize],
    error: impl Fn(usize, Cause) -> Error,
) -> Vec<Failure<Error>> {
    let mut failed: BTreeMap<usize, Cause> = BTreeMap::new();
    match result {
        Ok(refusals) => {
            for refusal in refusals {
                if let Some(step) = owners.get(refusal.message) {
                    failed.entry(*step).or_insert_with(|| refusal.into());
                }
            }
        }
        Err(fault) => {
            for step in owners {
                failed.entry(*step).or_insert_with(|| fault.clone().into());
            }
        }
    }
    failed.into_iter().map(|(step, cause)| Failure { step, error: error(step, cause) }).collect()
}

/// Receives until nothing is left. That notifications were lost is said at the end.
///
/// # Errors
/// Notifications were lost, or the socket failed.
pub(super) fn until_empty(mut receive_one: impl FnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let mut result = Ok(());
    loop {
        match receive_one() {
            Ok(true) => {}
            Ok(false) => return result,
            Err(Fault::Lost) => result = Err(Fault::Lost),
            Err(fault) => return Err(fault),
        }
    }
}
