//! New endpoints behind tunnels, which wait until the firewall of this process has refused their addresses to the pods whose policies deny them.
//!
//! No rule sees an endpoint inside of a tunnel, so a pod is refused the whole address of a Service that has one endpoint which it may not reach
//! (`firewall/host_endpoints.rs`). That refusal has to be in the kernel before IPVS sends anything to the endpoint. The firewall tells the number of the World up to which that is so, and this
//! machine says which destinations have to wait for which number: each by itself, so a later change of the same Service holds up nothing of an earlier one, and nobody else
//! waits. What goes does not wait, and what the kernel has since an earlier run stays (`apply/unjudged.rs`).
//!
//! The wait has a bound: a firewall that fails must not keep Services from being served. What is used before its time is counted, and said in `/readyz` until it is judged.

pub mod driver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::ServiceKey;

use super::desired::Desired;
use super::endpoints::DRAINING;

/// Maximum wait for the firewall.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Destinations of which some wait, by the address, protocol and port of their virtual service.
pub type Waiting = BTreeMap<ServiceKey, HeldDestinations>;

/// The destinations of one port of which some wait.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HeldDestinations {
    pub waiting: BTreeSet<SocketAddr>,
    /// The others that the firewall judges.
    pub judged: BTreeSet<SocketAddr>,
}

/// Use that IPVS makes of a destination that has waited for long enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// New connections are sent to it from now on.
    Begins,
    /// They were all the time: an earlier run has judged it.
    GoesOn,
    /// It gets none, as desired.
    None,
}

/// The destinations of tunnels, and which of them the firewall has not judged.
#[derive(Default)]
pub struct Unjudged {
    /// All that the firewall judges: those that take new connections, and those that drain as their endpoint terminates and still serves; waiting or not.
    known: BTreeMap<ServiceKey, BTreeSet<SocketAddr>>,
    waiting: BTreeMap<ServiceKey, BTreeMap<SocketAddr, Wait>>,
    /// Those that are used before their time, with the number of the World that has to be judged.
    early: BTreeMap<ServiceKey, BTreeMap<SocketAddr, u64>>,
}

/// The desired state, and what it does not say of destinations.
pub struct DesiredTunnels<'a, MayServe> {
    pub desired: &'a Desired,
    /// Returns whether a destination is an endpoint that the Service may use: the firewall judges it, also where it takes no new connections.
    pub may_serve: MayServe,
}

/// Numbers of Worlds.
#[derive(Clone, Copy, Debug)]
pub struct Worlds {
    /// The one that is desired.
    pub number: u64,
    /// The newest that the firewall has judged.
    pub judged: u64,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    /// The World that has to be judged.
    number: u64,
    until: Instant,
}

impl Unjudged {
    /// Takes the destinations of virtual services that have changed with the World of this number, or since. A destination is new when the firewall is to judge it and did not have to before.
    pub fn follow(
        &mut self,
        DesiredTunnels { desired, may_serve }: DesiredTunnels<'_, impl Fn(&ServiceKey, SocketAddr) -> bool>,
        changed: &[ServiceKey],
        Worlds { number, judged }: Worlds,
        now: Instant,
    ) {
        let is_tunnelled = |port: &ServiceKey| desired.marks.contains_key(port);
        self.known.retain(|port, _| is_tunnelled(port));
        self.waiting.retain(|port, _| is_tunnelled(port));
        self.early.retain(|port, _| is_tunnelled(port));
        for port in changed.iter().filter_map(|key| desired.marked.get(key)) {
            let destinations = desired.virtual_of(port).into_iter().flat_map(|found| found.destinations.iter());
            let are_judged = destinations.filter(|it| it.weight != DRAINING || may_serve(port, it.address));
            let judged_ones: BTreeSet<SocketAddr> = are_judged.map(|destination| destination.address).collect();
            let before = self.known.insert(*port, judged_ones.clone()).unwrap_or_default();
            for gone in before.difference(&judged_ones) {
                remove(&mut self.waiting, port, gone);
                remove(&mut self.early, port, gone);
            }
            if number > judged {
                let wait = Wait { number, until: now + PATIENCE };
                let new = judged_ones.difference(&before).map(|new| (*new, wait));
                self.waiting.entry(*port).or_default().extend(new);
            }
        }
        self.waiting.retain(|_, its| !its.is_empty());
    }

    /// Lets go on what waits for the World of this number, or for one before it: the firewall has judged it.
    pub fn judged(&mut self, number: u64) {
        for its in self.waiting.values_mut() {
            its.retain(|_, wait| wait.number > number);
        }
        for its in self.early.values_mut() {
            its.retain(|_, waits_for| *waits_for > number);
        }
        self.waiting.retain(|_, its| !its.is_empty());
        self.early.retain(|_, its| !its.is_empty());
    }

    /// Lets go on what has waited for long enough. Returns the number of these destinations to which packets are sent from now on. One that gets none is as one that was never
    /// known: it waits anew when it is to have some.
    pub fn expire(&mut self, now: Instant, use_of: impl Fn(&ServiceKey, SocketAddr) -> Use) -> usize {
        let mut expired = 0;
        for (port, its) in &mut self.waiting {
            for (destination, wait) in its.extract_if(.., |_, wait| wait.until <= now) {
                match use_of(port, destination) {
                    Use::Begins => {
                        self.early.entry(*port).or_default().insert(destination, wait.number);
                        expired += 1;
                    }
                    Use::GoesOn => {}
                    Use::None => {
                        self.known.get_mut(port).map(|known| known.remove(&destination));
                    }
                }
            }
        }
        self.waiting.retain(|_, its| !its.is_empty());
        expired
    }

    /// Returns when the wait of a destination is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().flat_map(BTreeMap::values).map(|wait| wait.until).min()
    }

    /// Returns the destinations that have to wait.
    pub fn waiting(&self) -> Waiting {
        let held = |port: &ServiceKey, its: &BTreeMap<SocketAddr, Wait>| {
            let known = self.known.get(port).into_iter().flatten();
            let judged = known.filter(|destination| !its.contains_key(destination)).copied().collect();
            HeldDestinations { waiting: its.keys().copied().collect(), judged }
        };
        self.waiting.iter().map(|(port, its)| (*port, held(port, its))).collect()
    }

    /// Returns the number of destinations that are used before their time.
    pub fn early(&self) -> usize {
        self.early.values().map(BTreeMap::len).sum()
    }

    /// Returns whether anything waits for the firewall, or should have.
    pub fn is_any(&self) -> bool {
        !self.waiting.is_empty() || !self.early.is_empty()
    }
}

fn remove<T>(of: &mut BTreeMap<ServiceKey, BTreeMap<SocketAddr, T>>, port: &ServiceKey, destination: &SocketAddr) {
    if let Some(its) = of.get_mut(port) {
        its.remove(destination);
        if its.is_empty() {
            of.remove(port);
        }
    }
}

#[cfg(test)]
mod tests;
