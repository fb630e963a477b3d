//! Starts the pods' side of direct server return, and joins it with the World: which pods have to answer for which addresses goes in, and what
//! cannot be set up comes out as problems of their Services.
//!
//! It runs where the service proxy runs, which sends packets through tunnels. As long as no Service has the annotation it sleeps: the
//! container runtime is not connected to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use compact_str::format_compact;
use tokio::sync::{mpsc, watch};

use super::subsystems::{Common, Running};
use crate::config::{Config, ProxyConfig};
use crate::container_runtime;
use crate::model::{
    Authority, Cause, Change, ObjectName, Pod, ServiceProblem, ServiceProblems, Table, World, put_problems,
};
use crate::net::PerFamily;
use crate::pod_tunnels::driver::{self, Wanted};
use crate::pod_tunnels::machine::Standing;
use crate::pod_tunnels::metrics::Metrics;
use crate::pod_tunnels::places::{Announced, KnownPod, KnownPods};
use crate::proxy::dsr::local_pods::LocalPods;

/// The component of its health and notes.
const NAME: &str = "direct server return";

/// The part of the configuration that the pods' side needs.
pub struct Settings {
    proxy: Arc<ProxyConfig>,
    families: PerFamily<bool>,
    sockets: Vec<PathBuf>,
}

/// Returns the settings where tunnels end in pods of this node.
pub fn settings(config: &Config) -> Option<Settings> {
    let proxy = config.proxy.as_ref().filter(|proxy| uses_tunnels(proxy))?;
    let sockets = container_runtime::sockets(config.runtime_endpoint.as_ref());
    Some(Settings { proxy: Arc::new(proxy.clone()), families: config.families, sockets })
}

/// Returns whether the service proxy sends packets through tunnels: it does not yet.
fn uses_tunnels(_proxy: &ProxyConfig) -> bool {
    false
}

impl Common {
    /// Starts the pods' side where there are settings for it. `announced`: pods that start, as the CNI plugin tells.
    ///
    /// # Errors
    /// A metric cannot be registered, or there can be no thread.
    pub fn start_pod_tunnels(
        &self,
        settings: Option<Settings>,
        announced: mpsc::Receiver<Announced>,
        problems: watch::Sender<ServiceProblems>,
    ) -> anyhow::Result<Option<Running>> {
        let Some(Settings { proxy, families, sockets }) = settings else { return Ok(None) };
        let (wanted_out, wanted) = watch::channel(Arc::default());
        let (standing, standing_in) = watch::channel(Arc::default());
        let metrics = Metrics::register(&self.registry)?;
        let (pulse, note) = (self.pulse(NAME), self.health.note(NAME));
        let inputs = driver::Inputs { sockets, wanted, announced, standing, pulse, note, metrics };
        let thread = driver::spawn(inputs, self.stop.clone())?;
        let joined = Joined { pods: LocalPods::new(proxy, families), known: NodePods::default() };
        tokio::spawn(follow(joined, self.world.clone(), wanted_out, standing_in, problems));
        Ok(Some(Running { name: "tunnels in pods", thread }))
    }
}

/// Keeps both sides up to date until there are no more Worlds.
async fn follow(
    mut joined: Joined,
    mut world: watch::Receiver<World>,
    wanted: watch::Sender<Arc<Wanted>>,
    mut standing: watch::Receiver<Arc<Standing>>,
    problems: watch::Sender<ServiceProblems>,
) {
    let mut is_told = true;
    loop {
        let newest = world.borrow_and_update().clone();
        // No value is looked at while it is replaced.
        let newer = joined.wanted(&newest, &wanted.borrow());
        if let Some(newer) = newer {
            wanted.send_replace(Arc::new(newer));
        }
        let found = joined.problems(&standing.borrow_and_update());
        problems.send_if_modified(|told| {
            let differs = found.changes_since(told).next().is_some();
            *told = found;
            differs
        });
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            changed = standing.changed(), if is_told => is_told = changed.is_ok(),
        }
    }
}

/// The pods of this node, as the World knows them.
struct Joined {
    pods: LocalPods,
    known: NodePods,
}

impl Joined {
    /// Returns what is wanted now, where it differs from what was.
    fn wanted(&mut self, world: &World, former: &Wanted) -> Option<Wanted> {
        if world.authority.proxy == Authority::Nothing {
            return None;
        }
        let complete = world.authority.proxy == Authority::Complete;
        let differs = self.pods.follow(world);
        let tunnels = if differs { self.pods.all() } else { former.tunnels.clone() };
        let pods = self.known.of(world, tunnels.keys());
        let wanted = Wanted { tunnels, pods, complete };
        (wanted != *former).then_some(wanted)
    }

    /// Returns what cannot be set up, as problems of the Services concerned.
    fn problems(&self, standing: &Standing) -> ServiceProblems {
        let mut found: BTreeMap<ObjectName, Vec<ServiceProblem>> = BTreeMap::new();
        for one in &standing.left_out {
            for (service, addresses, created) in self.pods.of_pod(one.pod) {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let text = format!(
                    "pod {} does not answer for {} (direct server return): {}",
                    one.pod,
                    addresses.join(", "),
                    one.reason
                );
                let problem = ServiceProblem::new(Cause::PodTunnel, &format_compact!("pod {}", one.pod), text);
                found.entry(service.clone()).or_default().push(problem.of(created));
            }
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
    fn of<'a>(&mut self, world: &World, mut addresses: impl Iterator<Item = &'a IpAddr>) -> KnownPods {
        let Some(first) = addresses.next() else {
            *self = NodePods::default();
            return KnownPods::new();
        };
        let seen = std::mem::replace(&mut self.seen, world.cluster.pods.clone());
        for change in world.cluster.pods.changes_since(&seen) {
            let (name, old, new) = match change {
                Change::Added(name, new) => (name, None, Some(new)),
                Change::Updated(name, old, new) => (name, Some(old), Some(new)),
                Change::Removed(name, old) => (name, Some(old), None),
            };
            if let Some(pod) = old.filter(|pod| is_here(pod, world)) {
                self.remove(name, pod);
            }
            if let Some(pod) = new.filter(|pod| is_here(pod, world)) {
                let one = KnownPod { name: name.clone(), uid: pod.uid };
                for address in pod.addresses.iter() {
                    self.all.entry(*address).or_default().insert(one.clone());
                }
            }
        }
        let known = |address: &IpAddr| Some((*address, self.all.get(address)?.clone()));
        std::iter::once(first).chain(addresses).filter_map(known).collect()
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

#[cfg(test)]
mod tests;
