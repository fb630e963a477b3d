//! Pods that should end tunnels and cannot be set up, for long enough to be left out of virtual services.
//!
//! A sandbox that is made anew, and a container runtime that starts again, bring their pods back within seconds. Leaving an endpoint out ends no connection of others, but where it
//! is the only one the Service is served with NAT, which ends all of them: so a short failure does nothing. What is set up is used at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::ObjectName;
use crate::proxy::dsr::Untunnelled;

/// Time for which a pod is tried before connections stay away from it.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The pods that cannot be set up, with the Services that ask for them, and since when.
#[derive(Default)]
pub struct Lacking(BTreeMap<(ObjectName, IpAddr), Instant>);

impl Lacking {
    /// Follows the pods that cannot be set up now.
    pub fn follow(&mut self, found: BTreeSet<(ObjectName, IpAddr)>, now: Instant) {
        self.0.retain(|one, _| found.contains(one));
        for one in found {
            self.0.entry(one).or_insert(now);
        }
    }

    /// Returns those that have been tried for long enough.
    pub fn lasting(&self, now: Instant) -> Untunnelled {
        let mut lasting = Untunnelled::new();
        for ((service, pod), _) in self.0.iter().filter(|(_, since)| **since + PATIENCE <= now) {
            lasting.entry(service.clone()).or_default().insert(*pod);
        }
        lasting
    }

    /// Returns when the next of them has been tried for long enough.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|since| *since + PATIENCE).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_left_out_when_it_has_failed_for_long_enough_and_is_back_at_once() {
        let (mut lacking, start) = (Lacking::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let pod = |last: u8| (ObjectName::new("shop", "web"), IpAddr::from([10, 244, 1, last]));
        lacking.follow([pod(5)].into(), start);
        lacking.follow([pod(5), pod(6)].into(), after(3));
        assert_eq!((lacking.lasting(after(4)), lacking.deadline(after(4))), (Untunnelled::new(), Some(after(5))));
        let five = |lacking: &Lacking, now| lacking.lasting(now).into_values().flatten().collect::<Vec<_>>();
        assert_eq!((five(&lacking, after(5)), lacking.deadline(after(5))), (vec![pod(5).1], Some(after(8))));
        assert_eq!((five(&lacking, after(8)).len(), lacking.deadline(after(8))), (2, None));
        lacking.follow([pod(6)].into(), after(9));
        assert_eq!(five(&lacking, after(9)), [pod(6).1]);
        lacking.follow([pod(5), pod(6)].into(), after(10));
        assert_eq!(five(&lacking, after(14)), [pod(6).1], "it begins anew");
    }
}
