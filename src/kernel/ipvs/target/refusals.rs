//! Refusals of the kernel, and the parts of virtual services that it refuses because of what is in them, whatever else is well.

use std::net::SocketAddr;

use crate::kernel::ipvs::{SchedulerName, ServiceKey};
use crate::kernel::netlink::Refusal;

/// A part of a virtual service that this kernel does not take. Everything else of the virtual service it may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedPart {
    pub key: ServiceKey,
    pub part: Part,
}

/// A part of a virtual service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The kernel has no scheduler of this name.
    Scheduler(SchedulerName),
    /// A destination at this address: a broadcast address of this host, say (`ip_vs_new_dest`).
    Destination(SocketAddr),
}

/// Action of one message.
pub(super) enum Act {
    /// Adds or changes a service with this scheduler.
    Describe(SchedulerName),
    /// Deletes a service.
    Delete,
    /// Changes this destination of a service.
    Destination(SocketAddr),
}

/// Adds an explanation to a refusal that can be told apart: the kernel gives none. Returns the part of the virtual service that is refused
/// because of what is in it.
pub(super) fn explain(refusal: &mut Refusal, acts: &[Act]) -> Option<Part> {
    match acts.get(refusal.message) {
        Some(Act::Describe(scheduler)) if refusal.errno == libc::ENOENT => {
            refusal.text = Some(format!("the kernel has no scheduler {scheduler} (module ip_vs_{scheduler})"));
            Some(Part::Scheduler(*scheduler))
        }
        Some(Act::Destination(address)) => {
            refusal.text = Some(format!("destination {address}"));
            (refusal.errno == libc::EINVAL).then_some(Part::Destination(*address))
        }
        Some(Act::Describe(_) | Act::Delete) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_that_is_not_there_and_a_destination_that_makes_no_sense_are_refused_for_what_they_are() {
        let address: SocketAddr = "192.0.2.255:80".parse().expect("an address and a port");
        let acts = [Act::Describe("mh".into()), Act::Destination(address), Act::Delete];
        let part = |message, errno| explain(&mut Refusal { message, errno, text: None, request: Vec::new() }, &acts);
        assert_eq!(part(0, libc::ENOENT), Some(Part::Scheduler("mh".into())));
        assert_eq!(part(1, libc::EINVAL), Some(Part::Destination(address)));
        for (message, errno) in
            [(0, libc::ENOMEM), (1, libc::ENOENT), (1, libc::EEXIST), (2, libc::ENOENT), (3, libc::EINVAL)]
        {
            assert_eq!(part(message, errno), None, "{message} {errno}");
        }
    }
}
