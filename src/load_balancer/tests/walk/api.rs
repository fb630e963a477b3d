//! The API server of the walks: Services, one Lease, and requests that are late or lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use compact_str::{CompactString, format_compact};

use crate::load_balancer::election::{Lease, TIMING, Unclaimed};
use crate::load_balancer::writes::{Outcome, Write};
use crate::model::{BalancedService, ObjectName};

/// The API server, its store and the requests on their way.
pub struct Api {
    pub now: Instant,
    pub version: u64,
    pub services: BTreeMap<ObjectName, BalancedService>,
    /// Every change of a Service; `None` for its end.
    pub log: Vec<(u64, ObjectName, Option<Arc<BalancedService>>)>,
    pub lease: Option<(u64, CompactString)>,
    pub requests: Vec<Request>,
    /// Writes of statuses that took effect.
    pub writes: usize,
    /// Nobody but allocators writes statuses.
    pub is_strict: bool,
}

/// A request that was sent.
pub struct Request {
    pub agent: usize,
    /// Of the agent's view that it came from.
    pub epoch: u64,
    pub body: Body,
    pub sent: Instant,
    /// When it takes effect; `None` for one that is lost.
    pub applies: Option<Instant>,
    /// When the answer is there; `None`: never.
    pub answers: Option<Instant>,
    pub result: Option<Answer>,
}

pub enum Body {
    ReadLease,
    ClaimLease(Option<CompactString>, CompactString),
    Status(Write),
}

pub enum Answer {
    Lease(Option<Lease>),
    Claimed(Result<CompactString, Unclaimed>),
    Status(Outcome),
}

impl Api {
    pub fn put(&mut self, name: ObjectName, mut service: BalancedService) {
        self.version += 1;
        service.version = format_compact!("{}", self.version);
        // Of a status that somebody else has written the API server remembers who.
        service.is_given_here &= self.services.get(&name).is_some_and(|known| known.status == service.status);
        self.log.push((self.version, name.clone(), Some(Arc::new(service.clone()))));
        self.services.insert(name, service);
    }

    pub fn delete(&mut self, name: &ObjectName) {
        self.version += 1;
        self.services.remove(name);
        self.log.push((self.version, name.clone(), None));
    }

    pub fn lease(&self) -> Option<Lease> {
        let (version, holder) = self.lease.as_ref()?;
        Some(Lease { version: format_compact!("{version}"), holder: holder.clone(), valid: TIMING.valid })
    }

    /// Answers a request when it takes effect.
    pub fn answer(&mut self, body: &Body, is_refused: bool) -> Answer {
        match body {
            Body::ReadLease => Answer::Lease(self.lease()),
            Body::ClaimLease(version, holder) => {
                if self.lease().map(|lease| lease.version) != *version {
                    return Answer::Claimed(Err(Unclaimed::Conflict));
                }
                self.version += 1;
                self.lease = Some((self.version, holder.clone()));
                Answer::Claimed(Ok(format_compact!("{}", self.version)))
            }
            Body::Status(_) if is_refused => Answer::Status(Outcome::Refused),
            Body::Status(write) => Answer::Status(self.write(write)),
        }
    }

    pub fn write(&mut self, write: &Write) -> Outcome {
        let Some(service) = self.services.get(&write.service).cloned() else { return Outcome::Refused };
        if service.version != write.version {
            return Outcome::Newer(Arc::new(service));
        }
        let is_same = service.status == write.addresses && service.not_served.is_empty();
        assert!(!is_same, "a write that changes nothing");
        for address in write.addresses.iter().filter(|address| self.is_strict && !service.status.contains(address)) {
            for (other, it) in
                self.services.iter().filter(|(other, it)| **other != write.service && it.status.contains(address))
            {
                // Who shares an address may be changed by its user while another one is on the way there; that is repaired behind it.
                let may_share = other.namespace == write.service.namespace && service.sharing_key.is_some();
                assert!(may_share, "{address} of {other}, {it:?}, is given to {}, {service:?}", write.service);
            }
        }
        self.writes += 1;
        let not_served = service.not_served.iter().filter(|address| !write.given.contains(address)).copied().collect();
        self.put(write.service.clone(), BalancedService { status: write.addresses.clone(), not_served, ..service });
        let written = self.services.get_mut(&write.service).expect("it was put");
        written.is_given_here = write.given == write.addresses;
        let written = Arc::new(written.clone());
        self.log.pop();
        self.log.push((self.version, write.service.clone(), Some(written.clone())));
        Outcome::Written(written)
    }
}
