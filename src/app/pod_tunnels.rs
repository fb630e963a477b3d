//! Starts the pods' side of direct server return, and joins it with the World: which pods have to answer for which addresses goes in, and what
//! cannot be set up comes out as problems of their Services.
//!
//! A Service puts its addresses into pods of its own namespace alone, whatever its slices say ([`owners`]): the API's Pod objects say which
//! those are, so a pod that is not known gets none.
//!
//! It runs where the service proxy sends packets through tunnels: with `--enable-direct-server-return`, where `--runtime-endpoint` says how pods are found, and there is such a socket. As long
//! as no Service has the annotation it sleeps: the container runtime is not connected to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use compact_str::format_compact;
use tokio::sync::{mpsc, watch};
use tracing::error;

use self::owners::{Allowed, Owners};
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

mod closed;
mod owners;

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
    let proxy = config.proxy.as_ref().filter(|proxy| proxy.tunnel_mode)?;
    let sockets = container_runtime::sockets(config.runtime_endpoint.as_ref());
    Some(Settings { proxy: Arc::new(proxy.clone()), families: config.families, sockets })
}

/// Has the service proxy send packets through tunnels where that is asked for and their other ends are looked after: with `--runtime-endpoint`, if there is a
/// socket: one that is not mounted would leave every Service with the annotation without pods. Not with the source guard, which drops
/// what a pod sends with a service address.
///
/// The endpoint alone asks for nothing: manifests that were written for kube-router have it, without what finding pods needs beside it, and the limits of
/// policies at tunnels are to be known by who turns them on.
pub fn with_tunnels(mut config: Config) -> Config {
    let is_possible = config.direct_server_return && !config.source_guard && config.proxy.is_some();
    let Some(path) = config.runtime_endpoint.clone().filter(|_| is_possible) else {
        return config;
    };
    let found = fs::metadata(&path).map(|found| found.file_type().is_socket());
    if !matches!(found, Ok(true)) {
        let why = found.map_or_else(|error| error.to_string(), |_| "it is no socket".to_owned());
        error!(
            socket = %path.display(), error = %why,
            "--runtime-endpoint cannot be used; Services with kube-router.io/service.dsr are served with NAT until the next start"
        );
        return config;
    }
    config.proxy.iter_mut().for_each(|proxy| proxy.tunnel_mode = true);
    config.firewall.iter_mut().for_each(|firewall| firewall.tunnel_mode = true);
    config
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
        let joined = Joined::new(LocalPods::new(proxy, families));
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

/// The pods of this node, as the World knows them, and the Services that may put addresses into them.
struct Joined {
    pods: LocalPods,
    known: NodePods,
    owners: Owners,
    allowed: Allowed,
    closed: closed::ClosedPods,
    complete: bool,
}

impl Joined {
    fn new(pods: LocalPods) -> Joined {
        let (known, owners, allowed, closed) = Default::default();
        Joined { pods, known, owners, allowed, closed, complete: false }
    }

    /// Returns what is wanted now, where it differs from what was.
    fn wanted(&mut self, world: &World, former: &Wanted) -> Option<Wanted> {
        // Over Services, and over pods.
        let authorities = [world.authority.proxy, world.authority.firewall];
        if authorities.contains(&Authority::Nothing) {
            return None;
        }
        self.complete = authorities == [Authority::Complete; 2];
        self.pods.follow(world);
        let asked: BTreeSet<IpAddr> = self.pods.services().flat_map(|(_, its)| its.keys().copied()).collect();
        let mut pods = self.known.of(world, asked.iter());
        self.owners.follow(&world.cluster.services, self.pods.ranges(), !asked.is_empty());
        self.allowed = owners::allowed(&self.pods, &pods, &self.owners, world);
        let mut tunnels = self.allowed.tunnels.clone();
        pods.retain(|address, _| tunnels.contains_key(address));
        self.closed.follow(world, &pods);
        let closed = tunnels.iter_mut().filter(|(pod, _)| self.closed.has(pod));
        closed.for_each(|(_, services)| services.clear());
        let wanted = Wanted { tunnels, pods, complete: self.complete };
        (wanted != *former).then_some(wanted)
    }

    /// Returns what cannot be set up, as problems of the Services concerned.
    fn problems(&self, standing: &Standing) -> ServiceProblems {
        let mut found: BTreeMap<ObjectName, Vec<ServiceProblem>> = BTreeMap::new();
        let mut tell = |pod: IpAddr, concerns: &dyn Fn(&ObjectName) -> bool, reason: &str| {
            for (service, addresses, created) in self.pods.of_pod(pod).filter(|(service, ..)| concerns(service)) {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let addresses = addresses.join(", ");
                let text = format!("pod {pod} does not answer for {addresses} (direct server return): {reason}");
                let problem = ServiceProblem::new(Cause::PodTunnel, &format_compact!("pod {pod}"), text);
                found.entry(service.clone()).or_default().push(problem.of(created));
            }
        };
        let strangers = &self.allowed.strangers;
        let is_asked = |service: &ObjectName, pod: IpAddr| !strangers.contains(&(service.clone(), pod));
        for one in &standing.left_out {
            tell(one.pod, &|service| is_asked(service, one.pod), &one.reason);
        }
        for (service, pod) in strangers.iter().filter(|_| self.complete) {
            tell(*pod, &|other| other == service, owners::STRANGER);
        }
        let is_left_out = |pod: &IpAddr| standing.left_out.iter().any(|one| one.pod == *pod);
        for pod in self.closed.pods().filter(|pod| !is_left_out(pod)) {
            tell(*pod, &|service| is_asked(service, *pod), closed::REASON);
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
