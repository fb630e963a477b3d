//! Starts the pods' side of direct server return, and joins it with the World: which pods have to answer for which addresses goes in, and what
//! cannot be set up comes out as problems of their Services.
//!
//! A Service puts its addresses into pods of its own namespace alone, whatever its slices say ([`owners`]): the API's Pod objects say which
//! those are, so a pod that is not known gets none.
//!
//! It runs where the service proxy sends packets through tunnels: with `--enable-direct-server-return`. Pods are found by the container runtime, at `--runtime-endpoint` or in its usual places; all of it waits until there is such a
//! socket ([`awaited`]), but with `--netpol-cni`, by which the CNI plugin tells where pods are. As long as no Service has the annotation it sleeps: the container runtime is not connected to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::joined::Joined;
use self::lacking::Lacking;
use super::subsystems::{Common, Running};
use crate::config::{Config, ProxyConfig};
use crate::container_runtime;
use crate::model::{ObjectName, ServiceProblems, World};
use crate::net::PerFamily;
use crate::observe::health::Note;
use crate::pod_tunnels::driver::{self, Wanted};
use crate::pod_tunnels::machine::Standing;
use crate::pod_tunnels::metrics::Metrics;
use crate::pod_tunnels::places::Announced;
use crate::proxy::dsr::local_pods::LocalPods;
use crate::proxy::dsr::{TunnelEnds, Untunnelled};

pub mod awaited;
mod closed;
mod joined;
mod lacking;
mod owners;

/// The component of its health and notes.
const NAME: &str = "direct server return";
/// The component of the note that Pods, or what says which of them policies close, are not listed.
const PODS: &str = "pods for direct server return";
/// Time for which Pods may be unknown before that is said.
const LISTING: Duration = Duration::from_secs(10);
const UNLISTED: &str = "Pods are not listed, or with --run-firewall not all of Pods, Namespaces and NetworkPolicies, so none is set up for Services with kube-router.io/service.dsr, and what nodes \
     send to pods of this node through tunnels is lost: the agent's role needs the verbs list and watch for pods, and with --run-firewall for namespaces and networkpolicies";

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

/// Has the service proxy send packets through tunnels where that is asked for and answers arrive ([`Config::serves_through_tunnels`]). The firewall judges at tunnels wherever that is asked for: the service proxy may run in another process of the node.
///
/// `--runtime-endpoint` alone asks for nothing: manifests that were written for kube-router have it, without what finding pods needs beside it, and the limits of
/// policies at tunnels are to be known by who turns them on.
pub fn with_tunnels(mut config: Config) -> Config {
    if !config.serves_through_tunnels() {
        return config;
    }
    config.proxy.iter_mut().for_each(|proxy| proxy.tunnel_mode = true);
    config.firewall.iter_mut().for_each(|firewall| firewall.tunnel_mode = true);
    config
}

/// The pods that cannot be set up, for the cluster and for the service proxy.
pub struct PodTunnelsOut {
    pub problems: watch::Sender<ServiceProblems>,
    pub tunnel_ends: watch::Sender<Arc<TunnelEnds>>,
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
        out: PodTunnelsOut,
    ) -> anyhow::Result<Option<Running>> {
        let Some(Settings { proxy, families, sockets }) = settings else { return Ok(None) };
        let PodTunnelsOut { problems, tunnel_ends } = out;
        let (wanted_out, wanted) = watch::channel(Arc::default());
        let (standing, standing_in) = watch::channel(Arc::default());
        let metrics = Metrics::register(&self.registry)?;
        let (pulse, note) = (self.pulse(NAME), self.health.note(NAME));
        let inputs = driver::Inputs { sockets, wanted, announced, standing, pulse, note, metrics };
        let thread = driver::spawn(inputs, self.stop.clone())?;
        let joined = Joined::new(LocalPods::new(proxy, families));
        let out = Out { wanted: wanted_out, problems, tunnel_ends, note: self.health.note(PODS) };
        tokio::spawn(follow(joined, self.world.clone(), standing_in, out));
        Ok(Some(Running { name: "tunnels in pods", thread }))
    }
}

/// Everybody who is told how pods are to stand, and do.
struct Out {
    wanted: watch::Sender<Arc<Wanted>>,
    problems: watch::Sender<ServiceProblems>,
    /// Told which endpoints get nothing through tunnels.
    tunnel_ends: watch::Sender<Arc<TunnelEnds>>,
    /// Says that Pods are not listed.
    note: Note,
}

/// Keeps all sides up to date until there are no more Worlds.
async fn follow(
    mut joined: Joined,
    mut world: watch::Receiver<World>,
    mut standing: watch::Receiver<Arc<Standing>>,
    out: Out,
) {
    let Out { wanted, problems, tunnel_ends, note } = out;
    let (mut lacking, mut unlisted) = (Lacking::default(), Unlisted { note, since: None, is_said: false });
    let (mut is_told, mut is_new) = (true, true);
    loop {
        let newest = world.borrow_and_update().clone();
        // No value is looked at while it is replaced.
        let newer = joined.wanted(&newest, &wanted.borrow());
        if let Some(newer) = newer {
            wanted.send_replace(Arc::new(newer));
        }
        let now = Instant::now().into_std();
        if std::mem::take(&mut is_new) | joined.take_changed() {
            let newest = standing.borrow_and_update().clone();
            let found = joined.problems(&newest);
            problems.send_if_modified(|told| {
                let differs = found.changes_since(told).next().is_some();
                *told = found;
                differs
            });
            lacking.follow(joined.cannot_be_set_up(&newest), now);
        }
        let lasting = lacking.lasting(now);
        let unproven = joined.unproven(&wanted.borrow(), &standing.borrow());
        tunnel_ends.send_if_modified(|told| {
            tell_untunnelled(&told.lacking, &lasting);
            std::mem::replace(told, Arc::new(TunnelEnds { lacking: lasting, unproven })) != *told
        });
        unlisted.follow(joined.lacks_pods(), now);
        let again = lacking.deadline(now).into_iter().chain(unlisted.deadline()).min();
        tokio::select! {
            () = sleep_until(again.unwrap_or(now).into()), if again.is_some() => {}
            changed = world.changed() => if changed.is_err() { return },
            changed = standing.changed(), if is_told => (is_told, is_new) = (changed.is_ok(), true),
        }
    }
}

/// Says that Pods cannot be listed, where Services need them.
struct Unlisted {
    note: Note,
    since: Option<std::time::Instant>,
    is_said: bool,
}

impl Unlisted {
    /// Follows whether Pods are not known although Services need them. At a start they are listed within moments.
    fn follow(&mut self, lacks_pods: bool, now: std::time::Instant) {
        if !lacks_pods {
            self.since = None;
            if std::mem::take(&mut self.is_said) {
                info!("Pods are listed; they are set up for direct server return");
                self.note.set(Vec::new());
            }
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now >= since + LISTING && !std::mem::replace(&mut self.is_said, true) {
            warn!("{UNLISTED}");
            self.note.set(vec![UNLISTED.to_owned()]);
        }
    }

    fn deadline(&self) -> Option<std::time::Instant> {
        self.since.map(|since| since + LISTING).filter(|_| !self.is_said)
    }
}

/// Logs which endpoints get nothing through tunnels from now on, and which do again.
fn tell_untunnelled(former: &Untunnelled, newest: &Untunnelled) {
    let all = |of: &Untunnelled| -> BTreeSet<(ObjectName, IpAddr)> {
        of.iter().flat_map(|(service, pods)| pods.iter().map(|pod| (service.clone(), *pod))).collect()
    };
    let (former, newest) = (all(former), all(newest));
    for (service, pod) in newest.difference(&former) {
        warn!(%service, %pod, "Endpoint on this node gets no connections through tunnels: its pod cannot be set up for direct server return");
    }
    for (service, pod) in former.difference(&newest) {
        info!(%service, %pod, "Endpoint on this node may get connections through tunnels again");
    }
}

#[cfg(test)]
mod tests;
