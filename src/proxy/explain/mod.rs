//! Desired state of Services for users who ask (`sluice svc`), what the kernel has of it, and why each endpoint is in or out.
//!
//! A calculation from the plan that is being enforced. Who asks ([`serve`]) adds what it has read of the kernel; [`text`] and [`json`]
//! are the forms of the answer.
//!
//! Whether an endpoint is in is what the plan says of the virtual service; only the reason for being out is found here, so an answer
//! never contradicts what is enforced.

mod endpoints;
mod json;
mod places;
pub mod serve;
mod text;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use compact_str::CompactString;

use crate::kernel::ipvs::{Connections, Observed, ServiceKey, Stats, Virtual};
use crate::model::{Authority, Cause, MOST_OF_A_SERVICE, ObjectName, Service, ServiceProblems, Shared};
use crate::net::PerFamily;

use super::apply::{Beside, Refused};
use super::clients::Clients;
use super::external_ip::Reason;
use super::plan::Plan;

pub use self::endpoints::Standing as EndpointStanding;
pub use self::json::json;
pub use self::text::text;

/// Most Services that are answered one by one for an address.
const MOST_SERVICES: usize = 50;
/// Most addresses with ports that are named, and read of the kernel, for one answer about some Services.
const MOST_PLACES: usize = 256;
/// Most endpoints that are named of one virtual service.
const MOST_ENDPOINTS: usize = 250;

/// The subject of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    All,
    Service(ObjectName),
    Address(IpAddr, Option<u16>),
}

/// The answer: one line for each Service, or all about some.
#[derive(Debug)]
pub struct Explanation {
    /// How far the cluster that this follows from is known.
    pub authority: Authority,
    /// Why it may be old, a sentence each.
    pub notes: Vec<String>,
    pub services: Vec<ServiceState>,
    /// The number of Services that are not answered, because they are too many.
    pub left_off: usize,
    /// The packets of clients outside of source ranges that this node has dropped, of all Services together, or why they cannot be read; `None` where
    /// none of these Services has source ranges.
    pub outside: Option<Result<PerFamily<u64>, String>>,
}

/// One Service.
#[derive(Debug)]
pub struct ServiceState {
    pub name: ObjectName,
    pub service: Arc<Service>,
    pub places: Vec<Place>,
    /// The number of places that are not named.
    pub places_left_off: usize,
    /// Endpoints in the slices, whatever their condition; an address in several slices counts each time.
    pub endpoints: usize,
    pub health_check: Option<HealthCheckState>,
    /// Reasons why it is not served as its object asks, wherever they were found: a sentence each.
    pub problems: Vec<String>,
}

/// The health check port of a Service.
#[derive(Debug)]
pub struct HealthCheckState {
    pub port: u16,
    /// The Service that has the port in its place.
    pub lost_to: Option<ObjectName>,
    pub local_endpoints: usize,
    /// It answers 503 because the Service is not in place in the kernel.
    pub is_pending: bool,
}

/// One address with one port of a Service.
#[derive(Debug)]
pub struct Place {
    pub key: ServiceKey,
    pub role: Role,
    /// The name of the Service's port; may be empty.
    pub port_name: CompactString,
    pub standing: Standing,
}

/// The field that an address comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// Whether an address is served by this node.
#[derive(Debug)]
pub enum Standing {
    Served(Box<Served>),
    /// Not allowed.
    Refused(Reason),
    /// Another Service claims it, and comes first.
    LostTo(ObjectName),
    /// The traffic policy is Local, and no endpoint on this node is usable.
    NoLocalEndpoint,
    /// As before, and it stays open for a moment until routers have been told.
    Closing,
    /// `ipMode: Proxy`: traffic must pass the load balancer.
    ThroughBalancer,
    /// The annotation `kube-router.io/service.skiplbips`.
    Skipped,
    /// The family is not enabled on this node.
    FamilyOff,
    /// This node speaks BGP or BFD there.
    SpeakerPort,
}

/// A virtual service of a Service.
#[derive(Debug)]
pub struct Served {
    pub desired: Virtual,
    pub clients: Clients,
    pub endpoints: Vec<EndpointState>,
    /// The number of endpoints that are not named.
    pub left_off: usize,
    /// The number of the Service's endpoints of this family that have no port of this name and protocol.
    pub without_port: usize,
    pub kernel: KernelState,
    /// State of the kernel beside it, as last seen.
    pub beside: Beside,
}

/// The kernel's state of a virtual service.
#[derive(Debug)]
pub enum KernelState {
    /// Not read, for the reason given.
    Unread(String),
    Missing,
    /// As desired, or not.
    Present {
        is_desired: bool,
        observed: Option<Observed>,
    },
}

/// An endpoint of a Service, or a destination that is none any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointState {
    pub address: SocketAddr,
    pub node: Option<Shared<str>>,
    pub standing: EndpointStanding,
    /// The state of the kernel's destination, where it has one that was read.
    pub traffic: Option<(Connections, Stats)>,
}

/// Why there is no answer, as a sentence without its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unanswerable {
    Unreadable(String),
    NothingKnown,
    NoService(ObjectName),
    NobodyAt(IpAddr, Option<u16>),
}

impl Question {
    /// Parses `NAMESPACE/NAME`, `ADDRESS` or `ADDRESS:PORT`; nothing asks for all Services.
    ///
    /// # Errors
    /// The text is none of these.
    pub fn parse(text: &str) -> Result<Question, Unanswerable> {
        if text.is_empty() {
            return Ok(Question::All);
        }
        if let Some((namespace, name)) =
            text.split_once('/').filter(|(one, other)| !one.is_empty() && !other.is_empty())
        {
            return Ok(Question::Service(ObjectName::new(namespace, name)));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse().map(|address| Question::Address(address, None));
        let with_port = |_| text.parse().map(|at: SocketAddr| Question::Address(at.ip(), Some(at.port())));
        address.or_else(with_port).map_err(|_| Unanswerable::Unreadable(text.to_owned()))
    }

    /// Returns whether a virtual service of a Service that is asked for belongs into the answer.
    fn is_about(&self, key: &ServiceKey) -> bool {
        match (self, *key) {
            (Question::All | Question::Service(_), _) => true,
            (Question::Address(wanted, number), ServiceKey::Address { address, port, .. }) => {
                address == *wanted && number.is_none_or(|number| number == port)
            }
            (Question::Address(..), ServiceKey::Mark { .. }) => false,
        }
    }
}

/// Returns the answer without what only the kernel knows. For all Services nothing is said of single endpoints.
///
/// # Errors
/// Why there is none.
pub fn explanation(plan: &Plan, question: &Question, notes: Vec<String>) -> Result<Explanation, Unanswerable> {
    let (cluster, authority) = (&plan.world().cluster, plan.world().authority.proxy);
    if authority == Authority::Nothing {
        return Err(Unanswerable::NothingKnown);
    }
    let state = |name: &ObjectName, service: &Arc<Service>, room: usize| {
        let (places, places_left_off) = places::places(plan, (name, service), question, room);
        let slices = cluster.endpoints.get(name);
        ServiceState {
            name: name.clone(),
            service: service.clone(),
            places,
            places_left_off,
            endpoints: slices.map_or(0, |its| its.slices.values().map(|it| it.endpoints.len()).sum()),
            health_check: places::health_check(plan, name, service),
            problems: Vec::new(),
        }
    };
    let mut left_off = 0;
    let services = match question {
        Question::All => cluster.services.iter().map(|(name, service)| state(name, service, usize::MAX)).collect(),
        Question::Service(name) => {
            let service = cluster.services.get(name).ok_or_else(|| Unanswerable::NoService(name.clone()))?;
            vec![state(name, service, MOST_PLACES)]
        }
        Question::Address(address, port) => {
            let asking =
                cluster.services.iter().filter(|(_, service)| places::asks_for(plan, service, *address, *port));
            let asking: Vec<(&ObjectName, &Arc<Service>)> = asking.collect();
            left_off = asking.len().saturating_sub(MOST_SERVICES);
            let (mut found, mut room) = (Vec::new(), MOST_PLACES);
            for (name, service) in asking.into_iter().take(MOST_SERVICES) {
                let state = state(name, service, room);
                room = room.saturating_sub(state.places.len());
                found.push(state);
            }
            if found.is_empty() {
                return Err(Unanswerable::NobodyAt(*address, *port));
            }
            found
        }
    };
    Ok(Explanation { authority, notes, services, left_off, outside: None })
}

impl Served {
    /// Notes what the kernel refuses, before what it has is noted: an endpoint that is left out is no difference. One scheduler in place of another is.
    pub fn leave_out(&mut self, refused: &Refused) {
        let left = self.desired.destinations.iter().filter(|it| !refused.destinations.contains(&it.address));
        self.desired.destinations = left.collect();
        for state in self.endpoints.iter_mut().filter(|state| refused.destinations.contains(&state.address)) {
            state.standing = EndpointStanding::RefusedByKernel;
        }
    }

    /// Notes what was read of the kernel: `None` where the virtual service does not exist.
    pub fn observe(&mut self, observed: Option<Observed>) {
        self.kernel = match observed {
            None => KernelState::Missing,
            Some(observed) => {
                endpoints::observe(&mut self.endpoints, &observed);
                let is_desired = observed.without_counters() == self.desired;
                KernelState::Present { is_desired, observed: Some(observed) }
            }
        };
    }

    /// Notes what was last seen of the kernel.
    pub fn compare(&mut self, seen: Option<&Virtual>) {
        self.kernel = match seen {
            None => KernelState::Missing,
            Some(seen) => KernelState::Present { is_desired: *seen == self.desired, observed: None },
        };
    }
}

impl ServiceState {
    /// Returns whether some clients are kept from its load balancer addresses.
    pub fn has_source_ranges(&self) -> bool {
        let is_closed =
            |place: &Place| matches!(&place.standing, Standing::Served(served) if served.clients.sources.is_some());
        self.places.iter().any(is_closed)
    }

    /// Adds what parts of the program have found wrong with the Service. What an address says itself is not repeated.
    pub fn note_problems<'a>(&mut self, found: impl Iterator<Item = &'a ServiceProblems>) {
        let of_service = found.filter_map(|table| table.get(&self.name));
        let problems = of_service.flat_map(|problems| problems.iter().take(MOST_OF_A_SERVICE));
        let is_said = |cause| matches!(cause, Cause::Refused | Cause::Conflict | Cause::NodeConflict);
        let problems = problems.filter(|problem| !is_said(problem.cause));
        self.problems.extend(problems.map(ToString::to_string));
    }
}

impl Explanation {
    /// Returns the virtual services of all Services.
    pub fn served_mut(&mut self) -> impl Iterator<Item = (ServiceKey, &mut Served)> {
        self.services.iter_mut().flat_map(|service| &mut service.places).filter_map(|place| match &mut place.standing {
            Standing::Served(served) => Some((place.key, &mut **served)),
            _ => None,
        })
    }
}

impl ServiceState {
    /// Returns the number of endpoints that take new connections at any address of the Service.
    pub fn serving(&self) -> usize {
        let served = self.places.iter().filter_map(|place| match &place.standing {
            Standing::Served(served) => Some(served),
            _ => None,
        });
        let destinations = served.flat_map(|served| served.desired.destinations.iter());
        let mut serving: Vec<IpAddr> =
            destinations.filter(|destination| destination.weight > 0).map(|it| it.address.ip()).collect();
        serving.sort_unstable();
        serving.dedup();
        serving.len()
    }
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::ClusterIp => "cluster IP",
            Role::ExternalIp => "external IP",
            Role::LoadBalancer => "load balancer",
            Role::NodePort => "node port",
        }
    }
}

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswerable::Unreadable(text) => {
                write!(f, "{text:?} must be NAMESPACE/NAME, an address, or ADDRESS:PORT ([ADDRESS]:PORT for IPv6)")
            }
            Unanswerable::NothingKnown => f.write_str("nothing is known of the cluster yet"),
            Unanswerable::NoService(name) => write!(
                f,
                "no Service {name} with a cluster IP is known here; headless and ExternalName Services, and those of another proxy, are not served"
            ),
            Unanswerable::NobodyAt(address, None) => write!(f, "no Service asks for the address {address}"),
            Unanswerable::NobodyAt(address, Some(port)) => {
                write!(f, "no Service asks for {} with this port", SocketAddr::new(*address, *port))
            }
        }
    }
}

#[cfg(test)]
mod tests;
