//! Questions to the API server before a start: which rights the credentials have, and what it says of this node and of the ranges of Services.
//!
//! Kubernetes: `authorization.k8s.io/v1` SelfSubjectAccessReview, which everybody who is authenticated may create (`system:basic-user`): it is
//! answered and stored nowhere, so that nothing is changed.

use std::net::IpAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::client::{ApiClient, chain};
use super::parse::node::{NodeObject, node};
use super::{Kind, Wanted};
use crate::model::Node;

/// A right by RBAC.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Right {
    pub verb: &'static str,
    /// Empty for core.
    pub group: String,
    /// With its subresource behind a slash: `nodes/status`.
    pub resource: String,
    /// Empty for all namespaces.
    pub namespace: String,
    /// Empty for all names.
    pub name: String,
}

/// The server's answer about a right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    Yes,
    No,
    /// Why it did not say.
    NotSaid(Unknown),
}

/// Why an object is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// There is none of this name.
    Absent,
    /// The credentials are not accepted (401).
    Refused(String),
    /// They may not read it (403).
    Forbidden(String),
    /// The server does not answer.
    Unreachable(String),
}

/// The API server as it is asked before a start: who asks waits for a person, or for an init container.
pub struct Questions {
    client: ApiClient,
    /// When nothing is asked any more.
    until: Instant,
    patience: Duration,
}

/// Time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// From the server's memory: every agent of a cluster asks for it.
const NODES: &str = "/api/v1/nodes?resourceVersion=0&includeObject=None";
/// Media type of lists for people.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

impl Questions {
    /// `all`: the time for all of them together, which begins now.
    pub fn new(client: ApiClient, all: Duration) -> Questions {
        Questions { client, until: Instant::now() + all, patience: PATIENCE }
    }
}

impl Right {
    pub fn new(verb: &'static str, group: &str, resource: &str) -> Right {
        let (group, resource) = (group.to_owned(), resource.to_owned());
        Right { verb, group, resource, namespace: String::new(), name: String::new() }
    }

    /// The same right in one namespace alone.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Right {
        Right { namespace: namespace.to_owned(), ..self }
    }

    /// The same right on the object of this name alone.
    #[must_use]
    pub fn named(self, name: &str) -> Right {
        Right { name: name.to_owned(), ..self }
    }

    /// Returns the rights by which objects are followed: `list` and `watch`.
    pub fn to_follow(wanted: &Wanted) -> [Right; 2] {
        let (group, resource) = resource(wanted.kind());
        let name = match wanted {
            Wanted::Node(name) => name.to_string(),
            _ => String::new(),
        };
        ["list", "watch"].map(|verb| Right { name: name.clone(), ..Right::new(verb, group, resource) })
    }

    fn review(&self) -> Value {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "verb": self.verb, "group": self.group, "resource": resource, "subresource": subresource,
                "namespace": self.namespace, "name": self.name,
            }},
        })
    }
}

/// Returns the group and the resource of a kind, from its API path.
fn resource(kind: Kind) -> (&'static str, &'static str) {
    let (above, resource) = kind.path().rsplit_once('/').unwrap_or_default();
    let group = above.strip_prefix("/apis/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    (group, resource)
}

/// Returns the version of the server: `v1.36.1`.
///
/// # Errors
/// It does not say.
pub async fn version(asked: &Questions) -> Result<String, Unknown> {
    let answer: Value = send(asked, Method::GET, "/version", Vec::new()).await?;
    Ok(text(&answer, "/gitVersion").to_owned())
}

/// Returns the Node of this name.
///
/// # Errors
/// There is none, or it cannot be read.
pub async fn node_named(asked: &Questions, name: &str) -> Result<Node, Unknown> {
    let object: NodeObject = send(asked, Method::GET, &format!("/api/v1/nodes/{name}"), Vec::new()).await?;
    node(&object).1.ok_or(Unknown::Absent)
}

/// Returns one address of each Node, its first InternalIP, from the list that people get (`kubectl get nodes -o wide`), which is short.
///
/// # Errors
/// They cannot be read.
pub async fn node_addresses(asked: &Questions) -> Result<Vec<IpAddr>, Unknown> {
    let table: Value = send_as(asked, Method::GET, NODES, TABLE, Vec::new()).await?;
    let cells = column(&table, "Internal-IP");
    let cells = cells.ok_or_else(|| Unknown::Unreachable("its list of Nodes has no column Internal-IP".to_owned()))?;
    Ok(cells.filter_map(|cell| cell.as_str()?.parse().ok()).collect())
}

/// Returns the cells of a column of a Table (`meta.k8s.io/v1`); `None` where it has no such column.
fn column<'a>(table: &'a Value, name: &str) -> Option<impl Iterator<Item = &'a Value>> {
    let list = |pointer: &str| table.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let column = list("/columnDefinitions").iter().position(|column| text(column, "/name") == name)?;
    Some(list("/rows").iter().filter_map(move |row| row.pointer("/cells")?.get(column)))
}

/// Returns the cluster IPs of the API server's own Service.
///
/// # Errors
/// It cannot be read.
pub async fn own_cluster_ips(asked: &Questions) -> Result<Vec<IpAddr>, Unknown> {
    let path = "/api/v1/namespaces/default/services/kubernetes";
    let service: Value = send(asked, Method::GET, path, Vec::new()).await?;
    let one = service.pointer("/spec/clusterIP");
    let all = service.pointer("/spec/clusterIPs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<IpAddr> = all.iter().chain(one).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    found.dedup();
    Ok(found)
}

/// Returns the ranges of cluster IPs that the cluster names (ServiceCIDR objects).
///
/// # Errors
/// The server has no such objects, or they cannot be read.
pub async fn service_ranges(asked: &Questions) -> Result<Vec<IpNet>, Unknown> {
    let list: Value = send(asked, Method::GET, Kind::ServiceCidr.path(), Vec::new()).await?;
    let items = list.pointer("/items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ranges = items.iter().filter_map(|item| item.pointer("/spec/cidrs")?.as_array()).flatten();
    Ok(ranges.filter_map(|range| range.as_str()?.parse().ok()).collect())
}

/// Returns whether the server has objects of this kind, in any version that is read; true also where it does not say.
pub async fn has(asked: &Questions, kind: Kind) -> bool {
    for path in [Some(kind.path()), kind.earlier().map(|(_, path)| path)].into_iter().flatten() {
        let (version, resource) = path.rsplit_once('/').unwrap_or_default();
        let served: Result<Value, Unknown> = send(asked, Method::GET, version, Vec::new()).await;
        let served = match served {
            Ok(served) => served,
            Err(Unknown::Absent) => continue,
            Err(_) => return true,
        };
        let resources = served.pointer("/resources").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if resources.iter().any(|one| text(one, "/name") == resource) {
            return true;
        }
    }
    false
}

/// Asks for the rights, one after the other; of those that are left when the time is over the server has not said anything.
pub async fn review(asked: &Questions, rights: &[Right]) -> Vec<Allowed> {
    let mut answers = Vec::with_capacity(rights.len());
    for right in rights {
        let body = right.review().to_string().into_bytes();
        let answer: Result<Value, Unknown> = send(asked, Method::POST, REVIEWS, body).await;
        answers.push(match answer {
            Ok(review) => match review.pointer("/status/allowed").and_then(Value::as_bool) {
                Some(true) => Allowed::Yes,
                Some(false) => Allowed::No,
                None => Allowed::NotSaid(Unknown::Unreachable("the answer makes no sense".to_owned())),
            },
            Err(unknown) => Allowed::NotSaid(unknown),
        });
    }
    answers
}

impl Unknown {
    /// Returns the reason, as a sentence without its end.
    pub fn reason(&self) -> String {
        match self {
            Unknown::Absent => "there is none".to_owned(),
            Unknown::Refused(reason) | Unknown::Forbidden(reason) | Unknown::Unreachable(reason) => reason.clone(),
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

async fn send<T: DeserializeOwned>(asked: &Questions, method: Method, path: &str, body: Vec<u8>) -> Result<T, Unknown> {
    send_as(asked, method, path, "application/json", body).await
}

/// Sends a request for an answer of this media type.
async fn send_as<T: DeserializeOwned>(
    asked: &Questions,
    method: Method,
    path: &str,
    accept: &str,
    body: Vec<u8>,
) -> Result<T, Unknown> {
    let request = http::Request::builder().method(method).uri(path).header("accept", accept);
    let request = request.header("content-type", "application/json").body(body);
    let request = request.map_err(|error| Unknown::Unreachable(error.to_string()))?;
    let Questions { client, until, patience } = asked;
    let now = Instant::now();
    if now >= *until {
        return Err(Unknown::Unreachable("it took too long to answer other questions".to_owned()));
    }
    let client = client.current().await;
    match timeout_at((*until).min(now + *patience), client.request::<T>(request)).await {
        Err(_) => Err(Unknown::Unreachable(format!("no answer within {} s", now.elapsed().as_secs()))),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match StatusCode::from_u16(status.code) {
            Ok(StatusCode::NOT_FOUND) => Unknown::Absent,
            Ok(StatusCode::UNAUTHORIZED) => Unknown::Refused(said(&status)),
            Ok(StatusCode::FORBIDDEN) => Unknown::Forbidden(said(&status)),
            _ => Unknown::Unreachable(said(&status)),
        }),
        Ok(Err(error)) => Err(Unknown::Unreachable(chain(&error))),
    }
}

fn said(status: &kube::core::Status) -> String {
    format!("{} ({})", status.message, status.code)
}

#[cfg(test)]
mod tests {
    use super::super::client::{Access, client};
    use super::*;

    #[test]
    fn rights_are_those_of_the_paths_that_are_followed() {
        let follow = |wanted: Wanted| Right::to_follow(&wanted).map(|right| (right.group, right.resource, right.name));
        let of = |group: &str, resource: &str, name: &str| {
            [(); 2].map(|()| (group.to_owned(), resource.to_owned(), name.to_owned()))
        };
        assert_eq!(follow(Wanted::Pods), of("", "pods", ""));
        assert_eq!(follow(Wanted::EndpointSlices), of("discovery.k8s.io", "endpointslices", ""));
        assert_eq!(follow(Wanted::Node("node-1".into())), of("", "nodes", "node-1"));
        assert_eq!(
            follow(Wanted::ClusterNetworkPolicies),
            of("policy.networking.k8s.io", "clusternetworkpolicies", "")
        );
    }

    #[tokio::test]
    async fn a_server_that_stops_answering_is_not_waited_for_at_each_question() {
        // It takes connections and says nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let master = format!("http://{}", listener.local_addr().expect("it has one"));
        let access = Access { kubeconfig: None, master: Some(master.parse().expect("an address")) };
        let client = client(&access).await.expect("the address is sound");
        let [patience, all] = [50, 120].map(Duration::from_millis);
        let begun = Instant::now();
        let asked = Questions { client, until: begun + all, patience };
        let rights = vec![Right::new("get", "", "nodes"); 100];
        let answers = review(&asked, &rights).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(answers.len(), 100);
        assert!(answers.iter().all(|answer| matches!(answer, Allowed::NotSaid(_))), "{answers:?}");
        assert!(
            matches!(answers.last(), Some(Allowed::NotSaid(Unknown::Unreachable(why))) if why.contains("too long")),
            "{answers:?}"
        );
    }

    #[test]
    fn addresses_of_nodes_are_in_their_column_wherever_that_is() {
        let table = json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Internal-IP"}],
            "rows": [{"cells": ["node-1", "192.0.2.1"]}, {"cells": ["node-2", "<none>"]}, {"cells": ["node-3"]}],
        });
        let cells: Vec<&Value> = column(&table, "Internal-IP").expect("it has it").collect();
        assert_eq!(cells, ["192.0.2.1", "<none>"]);
        assert!(column(&table, "External-IP").is_none());
        assert!(column(&json!({"items": []}), "Internal-IP").is_none(), "a server that gives no Table");
    }

    #[test]
    fn a_review_names_the_subresource_apart() {
        let review = Right::new("patch", "", "nodes/status").review();
        let of = |field: &str| text(&review, &format!("/spec/resourceAttributes/{field}")).to_owned();
        assert_eq!([of("verb"), of("resource"), of("subresource")], ["patch", "nodes", "status"]);
    }
}
