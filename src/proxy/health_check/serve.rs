//! The listeners of health checks, on a thread of their own, so that a load balancer waits for nothing else that the program does.
//!
//! A listener is there only while a Service asks for its port. It stays while the port goes from one Service to another, and answers
//! for whoever has it now. A port that cannot be listened on is tried again, each second in the end; that is logged and noted in `/readyz`
//! when it begins, and is a problem of the Service for as long as it lasts, one however often it is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::StatusCode;
use ::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use compact_str::format_compact;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::HealthChecks;
use crate::model::{Cause, ObjectName, ServiceProblem, ServiceProblems, put_problems};
use crate::observe::health::{Health, Note};
use crate::observe::http::{self, Answer, Places, Site};
use crate::reconcile::Backoff;

/// Inputs of the listeners.
pub struct Inputs {
    pub wanted: watch::Receiver<HealthChecks>,
    /// Receives the ports that cannot be listened on.
    pub problems: watch::Sender<ServiceProblems>,
    pub health: Health,
    /// The component of `health` that has to turn for the proxy to count as healthy.
    pub component: &'static str,
}

/// Starts the thread.
///
/// # Errors
/// There is no thread, or no runtime for it.
pub fn spawn(inputs: Inputs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("health-checks".to_owned());
    thread.spawn(move || runtime.block_on(run(inputs))).map(drop)
}

/// Keeps the listeners as wanted until nobody says any more what is wanted.
pub async fn run(mut inputs: Inputs) {
    let mut listeners = Listeners {
        note: inputs.health.note("health checks"),
        places: BTreeMap::new(),
        known: HealthChecks::default(),
        tried_at: None,
        problems: inputs.problems,
        connections: Places::new(CONNECTIONS),
        answers: Answers { wanted: inputs.wanted.clone(), health: inputs.health, component: inputs.component },
    };
    loop {
        let wanted = inputs.wanted.borrow_and_update().clone();
        listeners.follow(wanted).await;
        tokio::select! {
            changed = inputs.wanted.changed() => if changed.is_err() { return },
            () = until(listeners.retry_at()) => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The listeners that are open, and those that are not although they are wanted.
struct Listeners {
    places: BTreeMap<(u16, IpAddr), Place>,
    /// The health checks desired last.
    known: HealthChecks,
    /// When ports in use were tried last.
    tried_at: Option<Instant>,
    answers: Answers,
    note: Note,
    problems: watch::Sender<ServiceProblems>,
    /// The places of connections on all listeners.
    connections: Places,
}

/// Connections at a time, on all health check ports together: anybody outside may open them, and their number is that of Services.
const CONNECTIONS: usize = 256;

enum Place {
    Open(JoinHandle<()>),
    Failed { backoff: Backoff, error: String },
}

/// The source of all answers.
#[derive(Clone)]
struct Answers {
    wanted: watch::Receiver<HealthChecks>,
    health: Health,
    component: &'static str,
}

impl Listeners {
    /// Opens and closes listeners, at the cost of what has changed, and tries again where it is time.
    async fn follow(&mut self, wanted: HealthChecks) {
        let mut is_new = self.follow_wanted(wanted).await;
        let now = Instant::now();
        let is_due = |place: &Place| matches!(place, Place::Failed { backoff, .. } if backoff.is_due(now));
        let due: Vec<(u16, IpAddr)> =
            self.places.iter().filter(|(_, place)| is_due(place)).map(|(key, _)| *key).collect();
        for place in due {
            self.tried_at = Some(now);
            is_new |= self.open(place);
        }
        // Sentences about thousands of ports that another program has for days are not made again with each try.
        if is_new {
            self.note.set(self.failures().take(NOTED).map(|(_, _, text)| text).collect());
            self.publish_problems();
        }
    }

    /// Opens and closes what has changed of what is wanted; returns whether anything has.
    async fn follow_wanted(&mut self, wanted: HealthChecks) -> bool {
        let known = std::mem::replace(&mut self.known, wanted);
        let mut ports: BTreeSet<u16> =
            self.known.checks.changes_since(&known.checks).map(|change| *change.key()).collect();
        if known.addresses != self.known.addresses {
            ports.extend(self.known.checks.iter().map(|(port, _)| *port));
        }
        let is_new = !ports.is_empty();
        let addresses: Vec<IpAddr> = known.addresses.union(&self.known.addresses).copied().collect();
        for port in ports {
            for address in &addresses {
                let place = (port, *address);
                let is_wanted = self.known.addresses.contains(address) && self.known.checks.get(&port).is_some();
                match (is_wanted, self.places.contains_key(&place)) {
                    (true, false) => {
                        self.open(place);
                    }
                    (false, true) => self.close(place).await,
                    _ => {}
                }
            }
        }
        is_new
    }

    /// Publishes the ports that cannot be listened on, one problem for all addresses of a port: it stays the same while some of them come free.
    fn publish_problems(&self) {
        let mut found: BTreeMap<ObjectName, ServiceProblem> = BTreeMap::new();
        for (service, port, _) in self.failures() {
            let subject = format_compact!("port {port}");
            let text = format!(
                "the health check node port {port} cannot be served on all addresses of a node, as where another program has it: \
                 load balancers get no answer there (/readyz of the node says why)"
            );
            found.entry(service).or_insert_with(|| ServiceProblem::new(Cause::HealthCheckPort, &subject, text));
        }
        self.problems.send_if_modified(|published| {
            let gone: Vec<ObjectName> =
                published.iter().map(|(name, _)| name).filter(|name| !found.contains_key(*name)).cloned().collect();
            let mut is_new = !gone.is_empty();
            for name in gone {
                put_problems(published, &name, Vec::new());
            }
            for (name, problem) in found {
                is_new |= put_problems(published, &name, vec![problem]);
            }
            is_new
        });
    }

    /// Listens at a place, or takes down why it cannot; returns whether that is another outcome than before.
    fn open(&mut self, (port, address): (u16, IpAddr)) -> bool {
        let service = self.known.checks.get(&port).map(|check| check.service.to_string()).unwrap_or_default();
        let (failed, former_error) = match self.places.remove(&(port, address)) {
            Some(Place::Failed { backoff, error }) => (backoff, error),
            _ => (Backoff::default(), String::new()),
        };
        let place = match http::listen(SocketAddr::new(address, port)) {
            Ok(listener) => {
                if failed.failures() > 0 {
                    info!(service, port, %address, "Health check node port is served");
                }
                let answers = self.answers.clone();
                let site = Site::Answer(Arc::new(move || answers.answer(port)));
                Place::Open(tokio::spawn(http::serve(listener, site, self.connections.clone())))
            }
            Err(error) => {
                let mut backoff = failed;
                if backoff.failures() == 0 {
                    warn!(service, port, %address, %error, "Health check node port cannot be served; retrying");
                }
                port_is_in_use(&mut backoff, port, Instant::now());
                Place::Failed { backoff, error: error.to_string() }
            }
        };
        let is_as_before = matches!(&place, Place::Failed { error, .. } if *error == former_error);
        self.places.insert((port, address), place);
        !is_as_before
    }

    /// Closes a listener and its connections; the port is free afterwards.
    async fn close(&mut self, place: (u16, IpAddr)) {
        if let Some(Place::Open(serving)) = self.places.remove(&place) {
            serving.abort();
            // That it was aborted is what was asked for.
            let _ = serving.await;
        }
    }

    fn retry_at(&self) -> Option<Instant> {
        let retry = |place: &Place| match place {
            Place::Open(_) => None,
            Place::Failed { backoff, .. } => backoff.retry_at(),
        };
        next_round(self.places.values().filter_map(retry), self.tried_at)
    }

    /// Returns the ports that are wanted and cannot be listened on, with their Services and a sentence.
    fn failures(&self) -> impl Iterator<Item = (ObjectName, u16, String)> {
        self.places.iter().filter_map(|((port, address), place)| {
            let Place::Failed { error, .. } = place else { return None };
            let check = self.known.checks.get(port)?;
            let text = format!(
                "the health check node port {port} of {} cannot be served at {address}: {error}",
                check.service
            );
            Some((check.service.clone(), *port, text))
        })
    }
}

/// Latest time of another try. Where kube-proxy ends, all its ports come free on all nodes at once, and a load balancer takes out a node that answers
/// nothing for some seconds; a try costs microseconds.
const RETRY: Duration = Duration::from_secs(1);

/// Shortest time between two rounds of tries, each of which looks at all places: of thousands of ports in use each has a time of its own.
const ROUND: Duration = Duration::from_millis(100);

/// Says when the first of these tries is due, at some distance from the round before.
pub(super) fn next_round(due: impl Iterator<Item = Instant>, tried_at: Option<Instant>) -> Option<Instant> {
    due.min().map(|first| tried_at.map_or(first, |at| first.max(at + ROUND)))
}

/// Says when a port that another program has is tried again.
pub(super) fn port_is_in_use(backoff: &mut Backoff, port: u16, now: Instant) {
    // Each node has its own ports in use.
    backoff.failed(now, u32::from(port));
    backoff.hasten(now + RETRY);
}

/// Most failures that are noted.
const NOTED: usize = 10;

impl Answers {
    /// Makes the answer at a port, as it is now.
    fn answer(&self, port: u16) -> Answer {
        let now = Instant::now();
        let is_healthy = !self.health.stuck(now).iter().any(|reason| reason.component == self.component);
        let check = {
            let wanted = self.wanted.borrow();
            wanted.checks.get(&port).map(|check| (check.clone(), wanted.pending.contains(&check.service)))
        };
        let Some((check, is_pending)) = check else {
            return Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers: Vec::new(), text: String::new() };
        };
        let is_healthy = is_healthy && !is_pending;
        let serves = is_healthy && check.local_endpoints > 0;
        Answer {
            status: if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            headers: vec![
                (CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
                (WEIGHT, HeaderValue::from(check.local_endpoints)),
            ],
            text: check.body(is_healthy),
        }
    }
}

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
