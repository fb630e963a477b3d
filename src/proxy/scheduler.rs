//! The IPVS scheduler of a Service, by annotation: which backend gets a new connection.
//!
//! Kubernetes: `kube-router.io/service.scheduler` and `kube-router.io/service.schedflags`, parsed by
//! `k8s::annotations`. Kernel: the scheduler's name and three flag bits of the virtual service; the kernel itself loads
//! the module `ip_vs_<name>`.
//!
//! Two schedulers do not go well with destinations of weight 0, by which connections are drained:
//! - `sh` and `mh` keep such a destination in their tables and refuse the clients that hash to it, unless the fall-back
//!   flag is set; so we set it for as long as something drains. Other clients keep their destinations meanwhile.
//! - `dh` does the same and has no such flag. All traffic of one service address hashes to one destination,
//!   so draining it would refuse everybody: with `dh` a destination goes at once.

use crate::kernel::ipvs::{Destination, flags};
use crate::model::{ProxyAnnotations, Scheduler};
use crate::net::Protocol;

/// Returns the scheduler's flag bits for these destinations.
pub fn scheduler_flags(annotations: &ProxyAnnotations, destinations: impl Iterator<Item = Destination>) -> u32 {
    let wanted = annotations.scheduler_flags;
    let bits =
        [(wanted.flag_1, flags::SCHEDULER_1), (wanted.flag_2, flags::SCHEDULER_2), (wanted.flag_3, flags::SCHEDULER_3)];
    let asked: u32 = bits.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
    asked | draining_flags(annotations.scheduler.name(), destinations)
}

/// Returns the flag bits that a scheduler needs so that destinations of weight 0 do not refuse new connections.
pub fn draining_flags(scheduler: &str, mut destinations: impl Iterator<Item = Destination>) -> u32 {
    let drains = destinations.any(|destination| destination.weight == 0);
    let refuses = [Scheduler::Sh, Scheduler::Mh].iter().any(|one| one.name() == scheduler);
    if drains && refuses { flags::SCHEDULER_1 } else { 0 }
}

/// Returns whether a destination may have weight 0: it must not affect new connections. A terminating endpoint keeps its
/// connections and flows that way for as long as its slice says that it serves, whatever the protocol.
pub fn allows_weight_zero(scheduler: Scheduler) -> bool {
    scheduler != Scheduler::Dh
}

/// Returns whether a destination that is no endpoint any more may keep its connections with weight 0: these must end. Only
/// TCP has an end of connection; a UDP or SCTP client that keeps its port would keep a deleted destination.
pub fn can_drain(scheduler: Scheduler, protocol: Protocol) -> bool {
    allows_weight_zero(scheduler) && protocol == Protocol::Tcp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ipvs::Forwarding;
    use crate::model::SchedulerFlags;

    fn destinations(weights: &[u32]) -> impl Iterator<Item = Destination> {
        let at = |i: usize| format!("10.244.1.{i}:80").parse().expect("a socket address");
        weights.iter().enumerate().map(move |(i, weight)| Destination {
            address: at(i),
            weight: *weight,
            forwarding: Forwarding::Nat,
        })
    }

    #[test]
    fn flags_of_the_annotation_become_bits() {
        let both = SchedulerFlags { flag_1: true, flag_2: true, flag_3: false };
        let annotations =
            ProxyAnnotations { scheduler: Scheduler::Mh, scheduler_flags: both, ..ProxyAnnotations::default() };
        assert_eq!(scheduler_flags(&annotations, destinations(&[1])), 0x18);
    }

    #[test]
    fn hashing_falls_back_while_something_drains() {
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let annotations = ProxyAnnotations { scheduler, ..ProxyAnnotations::default() };
            assert_eq!(scheduler_flags(&annotations, destinations(&[1, 1])), 0);
            assert_eq!(scheduler_flags(&annotations, destinations(&[1, 0])), flags::SCHEDULER_1);
        }
    }
}
