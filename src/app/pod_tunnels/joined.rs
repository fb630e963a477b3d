//! Which pods of this node have to answer for which addresses, and which of them do not, at the cost of what changed.
//!
//! Worlds come many times a second, and most of them concern no pod here: what follows from Services with the annotation, their endpoints, the pods of this node and the policies is
//! calculated where one of these has changed. After any history the result is that of the newest World alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::format_compact;

use super::closed::{self, ClosedPods};
use super::owners::{self, Allowed, Owners};
use crate::model::{
    Authority, Cause, Change, MOST_OF_A_SERVICE, ObjectName, Pod, ServiceProblem, ServiceProblems, Table, World,
    put_problems,
};
use crate::pod_tunnels::driver::Wanted;
use crate::pod_tunnels::machine::Standing;
use crate::pod_tunnels::places::{KnownPod, KnownPods};
use crate::proxy::dsr::Untunnelled;
use crate::proxy::dsr::local_pods::{Asking, LocalPods};

/// The pods of this node, as the World knows them, and the Services that may put addresses into them.
pub struct Joined {
    pods: LocalPods,
    known: NodePods,
    owners: Owners,
    allowed: Allowed,
    /// The pods at the addresses that get any.
    followed: KnownPods,
    closed: ClosedPods,
    complete: bool,
    /// Something of which `allowed` is made is newer than that.
    is_stale: bool,
    /// The pods that cannot be set up may be others than at the last look, or differ.
    is_changed: bool,
    lacks_pods: bool,
}

impl Joined {
    pub fn new(pods: LocalPods) -> Joined {
        let (known, owners, allowed, followed, closed) = Default::default();
        let (complete, lacks_pods) = (false, false);
        Joined {
            pods,
            known,
            owners,
            allowed,
            followed,
            closed,
            complete,
            is_stale: true,
            is_changed: true,
            lacks_pods,
        }
    }

    /// Returns what is wanted now, where it differs from what was. A remembered cluster says nothing about pods: what it asks for and is not there was taken away by
    /// a newer run, because of a policy for example, and what is there stays as it is.
    pub fn wanted(&mut self, world: &World, former: &Wanted) -> Option<Wanted> {
        self.lacks_pods = false;
        // Over Services, and over pods.
        let authorities = [world.authority.proxy, world.authority.firewall];
        if world.authority.proxy <= Authority::Remembered || world.host.runtime_awaited {
            return None;
        }
        self.is_stale |= self.pods.follow(world);
        if world.authority.firewall <= Authority::Remembered {
            let is_listing = world.authority.firewall == Authority::Nothing;
            self.lacks_pods = is_listing && self.pods.services().next().is_some();
            return None;
        }
        let is_any = self.pods.services().any(|(_, its)| !its.is_empty());
        self.is_stale |= self.known.follow(world, is_any);
        let moved = self.owners.follow(&world.cluster.services, self.pods.ranges(), is_any);
        self.is_stale |= moved.iter().any(|service| self.pods.asks(service));
        let is_stale = std::mem::take(&mut self.is_stale);
        if is_stale {
            let asked: BTreeSet<IpAddr> = self.pods.services().flat_map(|(_, its)| its.keys().copied()).collect();
            let pods = self.known.at(&asked);
            self.allowed = owners::allowed(&self.pods, &pods, &self.owners, world);
            self.followed = pods;
            self.followed.retain(|address, _| self.allowed.tunnels.contains_key(address));
        }
        let complete = authorities == [Authority::Complete; 2];
        let closes = self.closed.follow(world, &self.followed, is_stale);
        let policies_known = world.authority.firewall == Authority::Complete;
        if !is_stale && !closes && complete == self.complete && policies_known == former.policies_known {
            return None;
        }
        (self.complete, self.is_changed) = (complete, true);
        let mut tunnels = self.allowed.tunnels.clone();
        let closed = tunnels.iter_mut().filter(|(pod, _)| self.closed.has(pod));
        closed.for_each(|(_, services)| services.clear());
        let wanted = Wanted { tunnels, pods: self.followed.clone(), complete, policies_known };
        (wanted != *former).then_some(wanted)
    }

    /// Returns whether what cannot be set up may be told of in another way than at the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Returns whether Services have the annotation while Pods are not known at all.
    pub fn lacks_pods(&self) -> bool {
        self.lacks_pods
    }

    /// Returns the Services that a pod has to answer for, as far as it is one of theirs.
    fn asking(&self, pod: IpAddr) -> impl Iterator<Item = Asking<'_>> {
        let is_its = move |service: &ObjectName| !self.allowed.strangers.contains(&(service.clone(), pod));
        self.pods.of_pod(pod).filter(move |(service, ..)| is_its(service))
    }

    /// Returns the pods that cannot be set up, each with the Services that ask for it.
    pub fn cannot_be_set_up(&self, standing: &Standing) -> BTreeSet<(ObjectName, IpAddr)> {
        let of_pod = |pod| self.asking(pod).map(move |(service, ..)| (service.clone(), pod));
        standing.left_out.iter().flat_map(|one| of_pod(one.pod)).collect()
    }

    /// Returns the pods that are to be set up and are not yet, each with the Services that ask for it; `None` while it is not known which are to be.
    pub fn unproven(&self, wanted: &Wanted, standing: &Standing) -> Option<Untunnelled> {
        if !self.complete {
            return None;
        }
        let mut found = Untunnelled::new();
        for (pod, addresses) in &wanted.tunnels {
            if standing.set_up.get(pod).is_some_and(|its| addresses.is_subset(its)) || addresses.is_empty() {
                continue;
            }
            for (service, ..) in self.asking(*pod) {
                found.entry(service.clone()).or_default().insert(*pod);
            }
        }
        Some(found)
    }

    /// Returns what cannot be set up, as problems of the Services concerned.
    pub fn problems(&self, standing: &Standing) -> ServiceProblems {
        let mut found: BTreeMap<ObjectName, Vec<ServiceProblem>> = BTreeMap::new();
        // Who may write slices decides how many there are: no more are made than are told.
        let mut tell = |pod: IpAddr, (service, addresses, created): Asking<'_>, text: &dyn Fn(&str) -> String| {
            let its = found.entry(service.clone()).or_default();
            if its.len() < MOST_OF_A_SERVICE {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let text = text(&addresses.join(", "));
                its.push(ServiceProblem::new(Cause::PodTunnel, &format_compact!("pod {pod}"), text).of(created));
            }
        };
        let silent = |pod: IpAddr, reason: &str, addresses: &str| {
            // Its own node leaves it out; the others know nothing of it.
            format!(
                "pod {pod} does not answer for {addresses} (direct server return), and what other nodes send it through tunnels is lost: {reason}"
            )
        };
        for one in &standing.left_out {
            self.asking(one.pod).for_each(|asking| tell(one.pod, asking, &|its| silent(one.pod, &one.reason, its)));
        }
        for (service, pod) in self.allowed.strangers.iter().filter(|_| self.complete) {
            if let Some(asking) = self.pods.of_service(service, *pod) {
                tell(*pod, asking, &|its| silent(*pod, owners::STRANGER, its));
            }
        }
        let left_out: BTreeSet<IpAddr> = standing.left_out.iter().map(|one| one.pod).collect();
        for pod in self.closed.pods().filter(|pod| !left_out.contains(pod)) {
            self.asking(*pod).for_each(|asking| tell(*pod, asking, &|its| silent(*pod, closed::REASON, its)));
        }
        for (pod, node) in self.closed.open_in_part().filter(|(pod, _)| !left_out.contains(pod)) {
            let text = |its: &str| {
                format!(
                    "pod {pod} answers for {its} (direct server return) only those clients whose node its ingress policies let in with packets that have no port: tunnels of the Node {node} are kept out"
                )
            };
            self.asking(pod).for_each(|asking| tell(pod, asking, &text));
        }
        let mut problems = ServiceProblems::default();
        for (service, its) in found {
            put_problems(&mut problems, &service, its);
        }
        problems
    }
}

/// The pods of this node by their addresses, followed while some are asked for.
#[derive(Default)]
struct NodePods {
    seen: Table<ObjectName, Pod>,
    all: KnownPods,
}

impl NodePods {
    /// Follows a newer World; returns whether any pod of this node has changed.
    fn follow(&mut self, world: &World, is_needed: bool) -> bool {
        if !is_needed {
            *self = NodePods::default();
            return false;
        }
        let mut is_changed = false;
        let seen = std::mem::replace(&mut self.seen, world.cluster.pods.clone());
        for change in world.cluster.pods.changes_since(&seen) {
            let (name, old, new) = match change {
                Change::Added(name, new) => (name, None, Some(new)),
                Change::Updated(name, old, new) => (name, Some(old), Some(new)),
                Change::Removed(name, old) => (name, Some(old), None),
            };
            if let Some(pod) = old.filter(|pod| is_here(pod, world)) {
                is_changed = true;
                self.remove(name, pod);
            }
            if let Some(pod) = new.filter(|pod| is_here(pod, world)) {
                is_changed = true;
                let one = KnownPod { name: name.clone(), uid: pod.uid };
                for address in pod.addresses.iter() {
                    self.all.entry(*address).or_default().insert(one.clone());
                }
            }
        }
        is_changed
    }

    /// Returns the pods at these addresses.
    fn at(&self, addresses: &BTreeSet<IpAddr>) -> KnownPods {
        addresses.iter().filter_map(|address| Some((*address, self.all.get(address)?.clone()))).collect()
    }

    fn remove(&mut self, name: &ObjectName, pod: &Pod) {
        for address in pod.addresses.iter() {
            let of = self.all.entry(*address).or_default();
            of.remove(&KnownPod { name: name.clone(), uid: pod.uid });
            if of.is_empty() {
                self.all.remove(address);
            }
        }
    }
}

/// Returns whether a pod has a network of its own on this node.
fn is_here(pod: &Pod, world: &World) -> bool {
    let here = pod.node.as_ref().is_some_and(|node| **node == *world.host.node_name);
    here && !pod.host_network && !pod.finished
}
