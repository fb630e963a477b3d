//! Addresses in memory at work: it stands between the source of the cluster and the World, and puts addresses into the Services that come by.
//!
//! A Service is passed on at once; where an address follows from it that it does not have yet, or another one for others, they are told
//! again, all together. Only the first one waits until the directory has been read for the allocator too, so that a restart takes no
//! address away in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Decided, decided};
use crate::config::LoadBalancerConfig;
use crate::k8s::manifests::balanced::Balanced;
use crate::k8s::parse::address_pools::POOLS;
use crate::k8s::{Event, Message, Object, Warning};
use crate::load_balancer::metrics::Metrics;
use crate::load_balancer::notice::Matter;
use crate::load_balancer::pools::Pools;
use crate::model::{AddressPools, ObjectName, Service, ServiceType};
use crate::observe::health::{Note, Pulse};

/// The allocator of addresses in memory, and what it works with.
pub struct Driver {
    pub config: LoadBalancerConfig,
    /// The Services and pools of the directory.
    pub read: watch::Receiver<Option<Balanced>>,
    /// From the source.
    pub messages: mpsc::Receiver<Message>,
    /// To the World.
    pub out: mpsc::Sender<Message>,
    pub pulse: Pulse,
    /// Receives the pools that are not in force as written.
    pub note: Note,
    pub metrics: Metrics,
}

/// The longest silence of the loop.
const BEAT: Duration = Duration::from_secs(30);

/// The other side is gone: there is nobody to work for.
struct Closed;

impl Driver {
    /// Runs until the source or the World is gone.
    pub async fn run(self) {
        let known = BTreeMap::new();
        let pools = AddressPools::default();
        let mut work = Work { driver: self, known, decided: None, pools, notes: Vec::new(), together: false };
        work.driver.metrics.leads.set(1);
        while let Ok(()) = work.turn().await {}
    }
}

struct Work {
    driver: Driver,
    /// Services of type LoadBalancer as the source told them.
    known: BTreeMap<ObjectName, (Arc<Service>, Vec<Warning>)>,
    decided: Option<Decided>,
    /// The pools in force.
    pools: AddressPools,
    /// Pools that are not in force as written, each with the reason.
    notes: Vec<String>,
    /// The source is telling objects that belong together.
    together: bool,
}

impl Work {
    async fn turn(&mut self) -> Result<(), Closed> {
        self.driver.pulse.beat(Instant::now());
        tokio::select! {
            message = self.driver.messages.recv() => self.pass_on(message.ok_or(Closed)?).await,
            changed = self.driver.read.changed() => {
                changed.map_err(|_| Closed)?;
                self.decide().await
            }
            () = sleep(BEAT) => Ok(()),
        }
    }

    async fn pass_on(&mut self, Message { seen, event }: Message) -> Result<(), Closed> {
        let event = match event {
            Event::Object(Object::Service(name, service), warnings) => {
                let service = self.balanced(&name, service, &warnings).await?;
                Event::Object(Object::Service(name, service), warnings)
            }
            Event::Together(together) => {
                self.together = together;
                event
            }
            event => event,
        };
        self.tell(seen, event).await
    }

    /// Notes a Service and returns it with its addresses.
    async fn balanced(
        &mut self,
        name: &ObjectName,
        service: Option<Arc<Service>>,
        warnings: &[Warning],
    ) -> Result<Option<Arc<Service>>, Closed> {
        let service = match service {
            Some(service) if service.kind == ServiceType::LoadBalancer => service,
            other => {
                self.known.remove(name);
                return Ok(other);
            }
        };
        while self.decided.is_none() {
            self.driver.read.changed().await.map_err(|_| Closed)?;
            self.decide().await?;
        }
        let with = self.decided.as_ref().map(|decided| decided.with_addresses(name, &service));
        self.known.insert(name.clone(), (service, warnings.to_vec()));
        Ok(with)
    }

    /// Decides anew, and tells those Services again whose addresses are others now.
    async fn decide(&mut self) -> Result<(), Closed> {
        let Some(Balanced { services, pools, reserved }) = self.driver.read.borrow_and_update().clone() else {
            return Ok(());
        };
        let mut notes: Vec<String> = pools.unreadable.iter().map(|(name, why)| format!("pool {name}: {why}")).collect();
        let (pools, is_unknown) = pools.or_last_good(&self.pools);
        let (in_force, mistakes) = Pools::new(&self.driver.config.ranges, &pools, &reserved);
        notes.extend(mistakes);
        // Everything is decided anew at each change, which is no reason to say again what is known.
        let new: Vec<&String> = notes.iter().filter(|note| !self.notes.contains(note)).collect();
        for note in &new {
            warn!(configmap = POOLS, reason = note, "Address pool is not in force as written");
        }
        if is_unknown && !new.is_empty() {
            warn!(configmap = POOLS, "Address pool has no earlier good version; no address is given or taken away");
        }
        self.notes = notes;
        self.driver.note.set(self.notes.clone());
        let now = match is_unknown {
            true if self.decided.is_some() => return Ok(()),
            true => Decided::default(),
            false => {
                self.pools = pools;
                decided(&self.driver.config, &services, in_force, Instant::now())
            }
        };
        let before = self.decided.replace(now).unwrap_or_default();
        self.report(&before);
        self.driver.pulse.ready(true);
        self.tell_changed(&before).await
    }

    async fn tell_changed(&mut self, before: &Decided) -> Result<(), Closed> {
        let Some(now) = &self.decided else { return Ok(()) };
        let mut changed = Vec::new();
        for (name, (service, warnings)) in &self.known {
            let with = now.with_addresses(name, service);
            if with != before.with_addresses(name, service) {
                changed.push(Event::Object(Object::Service(name.clone(), Some(with)), warnings.clone()));
            }
        }
        // An address that goes from one to the other has one owner at a time.
        let is_group = !self.together && changed.len() > 1;
        let seen = Instant::now();
        if is_group {
            self.tell(seen, Event::Together(true)).await?;
        }
        for event in changed {
            self.tell(seen, event).await?;
        }
        if is_group {
            self.tell(seen, Event::Together(false)).await?;
        }
        Ok(())
    }

    /// Tells what is new, in log and metrics.
    fn report(&self, before: &Decided) {
        let Some(now) = &self.decided else { return };
        let new: BTreeSet<&(ObjectName, Matter)> = now.matters.difference(&before.matters).collect();
        for (service, matter) in new {
            if matter.is_warning() {
                warn!(%service, reason = %matter, "{}", matter.headline());
            } else {
                info!(%service, address = %matter, "Load balancer address given in memory");
            }
        }
        self.driver.metrics.set_pools(&now.pools);
        self.driver.metrics.wanting.set(i64::try_from(now.wanting).unwrap_or(i64::MAX));
    }

    async fn tell(&self, seen: Instant, event: Event) -> Result<(), Closed> {
        self.driver.out.send(Message { seen, event }).await.map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests;
