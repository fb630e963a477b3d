//! The API as the allocator of load balancer addresses reads and writes it: the Lease and the statuses of Services. Services
//! and pools are followed in `follow.rs`; its Events go the way of all others (`events`).
//!
//! Kubernetes: `coordination.k8s.io/v1` Lease, core/v1 Service (`status`). Verbs are those of kube-router's own rules of RBAC: `get`,
//! `create` and `update` of Leases, `get` of Services and `update` of their status.
//!
//! Each write names the resourceVersion that it is for, and for how long the API server is to work on it (`timeout`).

pub mod follow;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, PostParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::client::{ApiClient, chain};
use super::parse::balanced_service::{GIVER, GIVER_BESIDE_OTHERS, VIP, balanced_service};
use crate::model::{BalancedService, ObjectName};

/// The API as the allocator uses it.
#[derive(Clone)]
pub struct Api {
    client: ApiClient,
    /// The agent's own namespace, where the Lease is.
    namespace: String,
    patience: Duration,
}

/// Why a request has no answer that helps.
#[derive(Clone, PartialEq, Eq, thiserror::Error, Debug)]
pub enum Failure {
    /// The object is another version by now (409).
    #[error("it has changed meanwhile (409)")]
    Conflict,
    /// The API server says that there is no such object. A 404 of anything in between, or of a server without such objects, is [`Failure::Refused`].
    #[error("it does not exist (404)")]
    NotFound,
    /// The right is missing (403).
    #[error("the right is missing (403): {0}")]
    Forbidden(String),
    /// Refused for another reason, without effect.
    #[error("{0}")]
    Refused(String),
    /// No answer, or an error of the server: it may have had an effect.
    #[error("{0}")]
    Unknown(String),
}

/// The outcome of writing a status.
#[derive(Clone, PartialEq, Debug)]
pub enum Status {
    Written(BalancedService),
    /// Nothing was written, because the Service is another version by now.
    Newer(BalancedService),
}

/// The addresses that a status is to have.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    pub all: &'a [IpAddr],
    /// Those of them that the allocator gives; the others are another one's, and stay.
    pub given: &'a [IpAddr],
}

/// The Lease that elects who gives addresses; kube-router's.
pub const LEASE: &str = "kube-router-lballoc";
/// For so long the API server works on a write.
pub const WRITE_SECONDS: u64 = 3;
/// The time limit for an answer, which comes after that.
const PATIENCE: Duration = Duration::from_secs(4);
/// For so long after the last moment at which it may be begun a write may still leave for the API server.
const LATEST: Duration = Duration::from_secs(1);
/// The rules of RBAC that are needed.
pub const RULES: &str = "apiGroups [\"\"], resources [services], verbs [get, list, watch]; resources [services/status], verbs [update]; \
                         resources [events], verbs [create]; resources [configmaps], resourceNames [kube-router-lb-pools], \
                         verbs [get, list, watch]; apiGroups [coordination.k8s.io], resources [leases], verbs [get, create, update]";

impl Api {
    pub fn new(client: ApiClient, namespace: String) -> Api {
        Api { client, namespace, patience: PATIENCE }
    }

    /// Returns the Lease; `None` where there is none.
    ///
    /// # Errors
    /// Refused, or no answer.
    pub async fn lease(&self) -> Result<Option<Value>, Failure> {
        match self.send(self.leases().get(LEASE, &GetParams::default())).await {
            Ok(lease) => Ok(Some(lease)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Writes the Lease in place of the one that was read, or creates it, and returns it as it is now. An empty holder gives it up.
    ///
    /// # Errors
    /// Changed meanwhile, refused, or no answer.
    pub async fn put_lease(&self, read: Option<&Value>, holder: &str, valid: Duration) -> Result<Value, Failure> {
        let lease = renewed(read, holder, valid, Timestamp::now());
        match read {
            Some(_) => {
                let replace = bounded(self.leases().replace(LEASE, &PostParams::default(), bytes(&lease)));
                // One that was deleted meanwhile is as good as changed.
                self.send(replace)
                    .await
                    .map_err(|failure| if failure == Failure::NotFound { Failure::Conflict } else { failure })
            }
            None => self.send(bounded(self.leases().create(&PostParams::default(), bytes(&lease)))).await,
        }
    }

    /// Writes the addresses into the status of a Service, if it still has this version. `until`: no write is begun later.
    ///
    /// # Errors
    /// Changed meanwhile, gone, refused, or no answer.
    pub async fn put_status(
        &self,
        name: &ObjectName,
        version: &str,
        addresses: Addresses<'_>,
        until: Instant,
    ) -> Result<Status, Failure> {
        let services = Request::new(format!("/api/v1/namespaces/{}/services", name.namespace));
        // The whole object goes back, so that nothing of it is lost that is not known here.
        let mut object = match self.send(services.get(&name.name, &GetParams::default())).await {
            Ok(object) => object,
            // Nothing was to be written yet.
            Err(Failure::Unknown(reason)) => return Err(Failure::Refused(reason)),
            Err(failure) => return Err(failure),
        };
        if object.pointer("/metadata/resourceVersion").and_then(Value::as_str) != Some(version) {
            return parsed(object).map(Status::Newer);
        }
        let is_alone = set_addresses(&mut object, addresses);
        let manager = if is_alone { GIVER } else { GIVER_BESIDE_OTHERS };
        let as_manager = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
        let now = Instant::now();
        if now >= until {
            return Err(Failure::Refused("the Lease is about to end".to_owned()));
        }
        let put = services.replace_subresource("status", &name.name, &as_manager, bytes(&object));
        let patience = self.patience.min((until + LATEST).saturating_duration_since(now));
        parsed(self.send_within(patience, bounded(put)).await?).map(Status::Written)
    }

    fn leases(&self) -> Request {
        Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace))
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, Failure> {
        self.send_within(self.patience, request).await
    }

    async fn send_within(
        &self,
        patience: Duration,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, Failure> {
        let request = request.map_err(|error| Failure::Refused(chain(&error)))?;
        let answer = async { self.client.current().await.request::<Value>(request).await };
        match timeout(patience, answer).await {
            Err(_) => Err(Failure::Unknown("no answer in time".to_owned())),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(failure(&status)),
            Ok(Err(error)) => Err(Failure::Unknown(chain(&error))),
        }
    }
}

fn failure(status: &kube::core::Status) -> Failure {
    let names_an_object = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    match status.code {
        403 => Failure::Forbidden(status.message.clone()),
        404 if status.reason == "NotFound" && names_an_object => Failure::NotFound,
        404 => Failure::Refused(format!("not found (404), and not by the API server: {}", status.message)),
        409 => Failure::Conflict,
        500.. => Failure::Unknown(status.message.clone()),
        _ => Failure::Refused(status.message.clone()),
    }
}

fn bytes(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}

/// The same request, which the API server gives up after [`WRITE_SECONDS`].
fn bounded(
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
    let mut request = request?;
    let uri = request.uri().to_string();
    let separator = match uri.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some(_) => "&",
    };
    if let Ok(uri) = format!("{uri}{separator}timeout={WRITE_SECONDS}s").parse() {
        *request.uri_mut() = uri;
    }
    Ok(request)
}

/// Puts the addresses into the status of a Service. Entries that name one of them stay as they are, but that nodes serve what is given, and so do those without an
/// address: hostnames are others'. Returns whether all that is there then is given.
fn set_addresses(service: &mut Value, Addresses { all, given }: Addresses<'_>) -> bool {
    let before = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned().unwrap_or_default();
    let address_of = |entry: &Value| entry.get("ip").and_then(Value::as_str).and_then(|ip| ip.parse::<IpAddr>().ok());
    let mut ingress: Vec<Value> = Vec::new();
    for address in all {
        let known = before.iter().find(|entry| address_of(entry) == Some(*address));
        let mut entry = known.cloned().unwrap_or_else(|| json!({"ip": address.to_string()}));
        if let Some(mode) = entry.get_mut("ipMode").filter(|_| given.contains(address)) {
            *mode = json!(VIP);
        }
        ingress.push(entry);
    }
    ingress.extend(before.into_iter().filter(|entry| address_of(entry).is_none()));
    let is_alone = ingress.len() == all.len() && all.iter().all(|address| given.contains(address));
    let balancer = if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
    let status = service.as_object_mut().map(|object| object.entry("status").or_insert_with(|| json!({})));
    if let Some(status) = status.and_then(Value::as_object_mut) {
        status.insert("loadBalancer".to_owned(), balancer);
    }
    is_alone
}

fn parsed(object: Value) -> Result<BalancedService, Failure> {
    let object = serde_json::from_value(object).map_err(|error| Failure::Unknown(error.to_string()))?;
    Ok(balanced_service(&object).1)
}

/// The Lease with this holder, as client-go writes it.
fn renewed(read: Option<&Value>, holder: &str, valid: Duration, now: Timestamp) -> Value {
    let mut lease = read.cloned().unwrap_or_else(
        || json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}}),
    );
    let now = format!("{now:.6}");
    let before = |field: &str| lease.get("spec").and_then(|spec| spec.get(field)).cloned().unwrap_or_default();
    let is_same = before("holderIdentity").as_str() == Some(holder);
    let transitions = before("leaseTransitions").as_i64().unwrap_or(0);
    let acquired = if is_same { before("acquireTime") } else { json!(now) };
    let transitions = if is_same || holder.is_empty() || read.is_none() { transitions } else { transitions + 1 };
    // Who finds it given up need not wait.
    let seconds = if holder.is_empty() { 1 } else { valid.as_secs() };
    let spec = json!({
        "holderIdentity": holder, "leaseDurationSeconds": seconds, "acquireTime": acquired, "renewTime": now,
        "leaseTransitions": transitions,
    });
    if let Some(lease) = lease.as_object_mut() {
        lease.insert("spec".to_owned(), spec);
    }
    lease
}

/// A Service, shared.
pub type Shared = (ObjectName, Arc<BalancedService>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_written_as_others_read_it() {
        let now = Timestamp::from_second(60).expect("a time");
        let created = renewed(None, "a", Duration::from_secs(15), now);
        assert_eq!(created["spec"]["renewTime"], "1970-01-01T00:01:00.000000Z");
        assert_eq!(
            (&created["spec"]["leaseTransitions"], &created["spec"]["leaseDurationSeconds"]),
            (&json!(0), &json!(15))
        );
        let later = Timestamp::from_second(120).expect("a time");
        let renewed_later = renewed(Some(&created), "a", Duration::from_secs(15), later);
        assert_eq!(renewed_later["spec"]["acquireTime"], created["spec"]["acquireTime"]);
        let mut marked = renewed_later.clone();
        marked["metadata"]["labels"] = json!({"kept": "yes"});
        let others = renewed(Some(&marked), "b", Duration::from_secs(15), later);
        assert_eq!(
            (&others["spec"]["leaseTransitions"], &others["metadata"]["labels"]["kept"]),
            (&json!(1), &json!("yes"))
        );
        let given_up = renewed(Some(&others), "", Duration::from_secs(15), later);
        assert_eq!(
            (&given_up["spec"]["holderIdentity"], &given_up["spec"]["leaseTransitions"]),
            (&json!(""), &json!(1))
        );
    }

    #[test]
    fn entries_of_others_stay_in_the_status_as_they_are() {
        let cloud = json!({"hostname": "lb.example.net"});
        let proxy = json!({"ip": "198.51.100.1", "ipMode": "Proxy"});
        let mut service = json!({"status": {"loadBalancer": {"ingress": [cloud, {"ip": "203.0.113.1"}, proxy]}}});
        let addresses = ["203.0.113.2", "198.51.100.1"].map(|text| text.parse().expect("an address"));
        let of_pool = &addresses[..1];
        assert!(!set_addresses(&mut service, Addresses { all: &addresses, given: of_pool }));
        assert_eq!(service["status"]["loadBalancer"]["ingress"], json!([{"ip": "203.0.113.2"}, proxy, cloud]));
        let mut given = service.clone();
        assert!(!set_addresses(&mut given, Addresses { all: &addresses, given: &addresses }), "there is a hostname");
        let served = json!({"ip": "198.51.100.1", "ipMode": "VIP"});
        assert_eq!(given["status"]["loadBalancer"]["ingress"], json!([{"ip": "203.0.113.2"}, served, cloud]));
        let nothing = Addresses { all: &[], given: &[] };
        assert!(!set_addresses(&mut service, nothing));
        assert_eq!(service["status"]["loadBalancer"]["ingress"], json!([cloud]), "never an empty status over them");
        let mut bare = json!({});
        assert!(set_addresses(&mut bare, nothing));
        assert_eq!(bare["status"]["loadBalancer"], json!({}));
    }

    #[test]
    fn only_the_api_server_itself_says_that_an_object_does_not_exist() {
        let read = |status: Value| failure(&serde_json::from_value(status).expect("a Status"));
        let named = json!({"name": "web", "kind": "services"});
        let missing = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "m", "details": named});
        assert_eq!(read(missing), Failure::NotFound);
        for other in [
            json!({"code": 404, "message": "404 page not found"}),
            json!({"code": 404, "reason": "Failed to parse error data", "message": "default backend"}),
            json!({"code": 404, "reason": "NotFound", "message": "the server could not find the requested resource", "details": {}}),
        ] {
            assert!(matches!(read(other.clone()), Failure::Refused(_)), "{other}");
        }
    }

    #[test]
    fn the_api_server_is_told_when_to_give_up_a_write() {
        for (uri, bounded_uri) in [("/a", "/a?timeout=3s"), ("/a?", "/a?timeout=3s"), ("/a?b=c", "/a?b=c&timeout=3s")] {
            let request = http::Request::put(uri).body(Vec::new()).expect("a request");
            assert_eq!(bounded(Ok(request)).expect("a request").uri(), bounded_uri);
        }
    }
}
