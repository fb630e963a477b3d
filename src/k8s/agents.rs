//! The agents of all nodes, as their health ports answer through the API server.
//!
//! Kubernetes: "Access Services Running on Clusters", section *Manually constructing apiserver proxy URLs*. Whoever asks needs the right to `list`
//! Pods and Nodes and to `get` `pods/proxy`. The agents themselves do not have the last one, which reaches every port of every pod.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http::header::ACCEPT;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use super::client::{ApiClient, chain};

/// An answer of the agent of a node, or why there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Ready; notes of what somebody should see to.
    Ready(Vec<String>),
    /// Why it is not ready, and notes.
    NotReady(Vec<String>),
    /// Why it did not answer, as a sentence without its end.
    Silent(String),
}

/// The agents of a node by their pods (`NAMESPACE/NAME`); empty where there is none.
pub type Agents = BTreeMap<String, Answer>;

/// A pod of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
struct AgentPod {
    namespace: String,
    name: String,
    /// Empty until it is scheduled.
    node: String,
    /// That of its probes.
    health_port: u16,
}

/// Port of `/readyz` where no probe names one.
const HEALTH_PORT: u16 = 20244;
/// Time limit for one answer: the API server takes some seconds to find that a node does not answer.
const PATIENCE: Duration = Duration::from_secs(40);
/// Number of agents that are asked at a time.
const AT_A_TIME: usize = 32;
/// Largest size in bytes of a list, and of an agent's answer.
const LIST_BYTES: usize = 1 << 28;
const ANSWER_BYTES: usize = 1 << 20;
const NAMES_ALONE: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Asks the agents of all nodes with Linux, which are the pods that a label selector names. Returns them by their nodes.
///
/// # Errors
/// Nodes or Pods cannot be listed, or no agent may be asked; a sentence.
pub async fn ask(client: &ApiClient, selector: &str) -> Result<BTreeMap<String, Agents>, String> {
    let nodes = list(client, "/api/v1/nodes").await?;
    let pods = list(client, &format!("/api/v1/pods?labelSelector={}", escaped(selector))).await?;
    let pods: Vec<AgentPod> = items(&pods).filter_map(agent_pod).filter(|pod| !pod.node.is_empty()).collect();
    let answers = stream::iter(pods).map(|pod| async { (readyz(client, &pod).await, pod) });
    let answers: Vec<_> = answers.buffer_unordered(AT_A_TIME).collect().await;
    if let Some(sentence) = refusal_of_all(&answers) {
        return Err(sentence);
    }
    let mut by_node: BTreeMap<String, Agents> =
        items(&nodes).filter_map(node_with_linux).map(|name| (name, Agents::new())).collect();
    for (answer, pod) in answers {
        let name = format!("{}/{}", pod.namespace, pod.name);
        by_node
            .entry(pod.node)
            .or_default()
            .insert(name, answer.map_or_else(Answer::Silent, |(status, text)| answer_of(status, &text)));
    }
    Ok(by_node)
}

/// The status and the text of an answer, or why there is none.
type Told = Result<(StatusCode, String), String>;

async fn readyz(client: &ApiClient, pod: &AgentPod) -> Told {
    let AgentPod { namespace, name, health_port, .. } = pod;
    get(client, &format!("/api/v1/namespaces/{namespace}/pods/{name}:{health_port}/proxy/readyz"), ANSWER_BYTES).await
}

async fn list(client: &ApiClient, path: &str) -> Result<Value, String> {
    let (status, text) = get(client, path, LIST_BYTES).await.map_err(|why| format!("{path}: {why}"))?;
    match serde_json::from_str(&text) {
        Ok(list) if status.is_success() => Ok(list),
        _ => Err(format!("{path}: {}", refusal(status, &text))),
    }
}

async fn get(client: &ApiClient, path: &str, most: usize) -> Told {
    // Of Nodes nothing but names and labels is needed; who does not know this form gives them whole.
    let form = if path.ends_with("/nodes") { NAMES_ALONE } else { "*/*" };
    let request =
        http::Request::get(path).header(ACCEPT, form).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = client.current().await.send(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        let body: Bytes =
            Limited::new(response.into_body(), most).collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

/// Returns the sentence of a server that lets nobody be asked; `None` where there is an agent that may be.
fn refusal_of_all(answers: &[(Told, AgentPod)]) -> Option<String> {
    let refused = |answer: &Told| match answer {
        Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), text)) => Some(refusal(*status, text)),
        _ => None,
    };
    let mut sentences = answers.iter().map(|(answer, _)| refused(answer));
    let first = sentences.next()??;
    sentences.all(|sentence| sentence.is_some()).then_some(first)
}

/// Returns the answer of an agent, or of the API server in its place.
fn answer_of(status: StatusCode, text: &str) -> Answer {
    // What the server's proxy says where the connection fails.
    let is_of_server = is_status(text) || text.to_ascii_lowercase().starts_with("error trying to reach service");
    let mut lines = text.lines().map(str::to_owned);
    match status {
        StatusCode::OK if lines.next().as_deref() == Some("OK") => Answer::Ready(lines.collect()),
        StatusCode::SERVICE_UNAVAILABLE if !is_of_server => Answer::NotReady(text.lines().map(str::to_owned).collect()),
        _ => Answer::Silent(refusal(status, text)),
    }
}

fn is_status(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| word(&value, "/kind") == "Status")
}

/// The message of a refusal, as a sentence without its end.
fn refusal(status: StatusCode, text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let message = match word(&value, "/message") {
        "" => text.lines().next().unwrap_or_default(),
        message => message,
    };
    format!("{message} ({})", status.as_u16()).trim_start().to_owned()
}

fn node_with_linux(node: &Value) -> Option<String> {
    let system = word(node, "/metadata/labels/kubernetes.io~1os");
    let name = word(node, "/metadata/name");
    (!name.is_empty() && ["", "linux"].contains(&system)).then(|| name.to_owned())
}

fn agent_pod(pod: &Value) -> Option<AgentPod> {
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let probes = containers
        .iter()
        .flat_map(|container| ["/readinessProbe", "/livenessProbe"].map(|probe| container.pointer(probe)));
    let port = probes.flatten().find_map(|probe| u16::try_from(probe.pointer("/httpGet/port")?.as_u64()?).ok());
    let of = |pointer| word(pod, pointer).to_owned();
    let pod = AgentPod {
        namespace: of("/metadata/namespace"),
        name: of("/metadata/name"),
        node: of("/spec/nodeName"),
        health_port: port.unwrap_or(HEALTH_PORT),
    };
    (!pod.name.is_empty()).then_some(pod)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.pointer("/items").and_then(Value::as_array).into_iter().flatten()
}

fn word<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The value of a query parameter (RFC 3986, section 2.1).
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::Full;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::super::client::{Access, client};
    use super::*;

    type Pages = BTreeMap<&'static str, (u16, String)>;

    /// An API server with these answers by path and query, and 404 for all others.
    async fn server(pages: Pages) -> ApiClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let master = format!("http://{}", listener.local_addr().expect("it has one"));
        let pages = Arc::new(pages);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let pages = pages.clone();
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
                    let (status, text) =
                        pages.get(path.as_str()).cloned().unwrap_or((404, "404 page not found".to_owned()));
                    async move { http::Response::builder().status(status).body(Full::new(Bytes::from(text))) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), answer));
            }
        });
        let access = Access { kubeconfig: None, master: Some(master.parse().expect("an address")) };
        client(&access).await.expect("the address is sound")
    }

    fn nodes(names: &[&str]) -> (u16, String) {
        let linux =
            names.iter().map(|name| json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}));
        let other = json!({"metadata": {"name": "desk", "labels": {"kubernetes.io/os": "windows"}}});
        (200, json!({"items": linux.chain([other]).collect::<Vec<_>>()}).to_string())
    }

    fn pods(of: &[(&str, &str, Value)]) -> (u16, String) {
        let pod = |(name, node, probes): &(&str, &str, Value)| json!({"metadata": {"namespace": "net", "name": name}, "spec": {"nodeName": node, "containers": [probes]}});
        (200, json!({"items": of.iter().map(pod).collect::<Vec<_>>()}).to_string())
    }

    const PODS: &str = "/api/v1/pods?labelSelector=k8s-app%3Dkube-router";
    const REFUSED: &str = r#"{"kind":"Status","message":"pods \"a\" is forbidden: no get of pods/proxy","code":403}"#;

    #[tokio::test]
    async fn each_node_has_the_answer_of_its_agent_or_the_reason_why_there_is_none() {
        let own_port = json!({"readinessProbe": {"httpGet": {"port": 9}}});
        let all =
            [("a", "node-1", json!({})), ("b", "node-2", own_port), ("c", "node-3", json!({})), ("d", "", json!({}))];
        let pages = Pages::from([
            ("/api/v1/nodes", nodes(&["node-1", "node-2", "node-3", "node-4"])),
            (PODS, pods(&all)),
            ("/api/v1/namespaces/net/pods/a:20244/proxy/readyz", (200, "OK\nAPI server: slow\n".to_owned())),
            ("/api/v1/namespaces/net/pods/b:9/proxy/readyz", (503, "router: no route\nfirewall: no set\n".to_owned())),
            (
                "/api/v1/namespaces/net/pods/c:20244/proxy/readyz",
                (503, "error trying to reach service: dial tcp 192.0.2.3:20244: refused".to_owned()),
            ),
        ]);
        let found = ask(&server(pages).await, "k8s-app=kube-router").await.expect("it may ask");
        let agent = |pod: &str, answer| Agents::from([(format!("net/{pod}"), answer)]);
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect();
        let silent = "error trying to reach service: dial tcp 192.0.2.3:20244: refused (503)".to_owned();
        let expected = [
            ("node-1", agent("a", Answer::Ready(lines(&["API server: slow"])))),
            ("node-2", agent("b", Answer::NotReady(lines(&["router: no route", "firewall: no set"])))),
            ("node-3", agent("c", Answer::Silent(silent))),
            ("node-4", Agents::new()),
        ];
        assert_eq!(found, expected.map(|(node, agents)| (node.to_owned(), agents)).into());
    }

    #[tokio::test]
    async fn a_missing_right_is_one_sentence_and_one_refused_pod_is_its_own() {
        let refused = || (403, REFUSED.to_owned());
        let all = [("a", "node-1", json!({})), ("b", "node-2", json!({}))];
        let mut pages = Pages::from([
            ("/api/v1/nodes", nodes(&["node-1", "node-2"])),
            (PODS, pods(&all)),
            ("/api/v1/namespaces/net/pods/a:20244/proxy/readyz", refused()),
            ("/api/v1/namespaces/net/pods/b:20244/proxy/readyz", refused()),
        ]);
        let sentence = ask(&server(pages.clone()).await, "k8s-app=kube-router").await.expect_err("nobody may be asked");
        assert_eq!(sentence, "pods \"a\" is forbidden: no get of pods/proxy (403)");
        pages.insert("/api/v1/namespaces/net/pods/b:20244/proxy/readyz", (200, "OK\n".to_owned()));
        let found = ask(&server(pages.clone()).await, "k8s-app=kube-router").await.expect("one may be asked");
        assert!(matches!(&found["node-1"]["net/a"], Answer::Silent(why) if why.ends_with("(403)")), "{found:?}");
        assert_eq!(found["node-2"]["net/b"], Answer::Ready(Vec::new()));
        pages.insert("/api/v1/nodes", refused());
        let sentence = ask(&server(pages).await, "k8s-app=kube-router").await.expect_err("Nodes may not be listed");
        assert!(sentence.starts_with("/api/v1/nodes: pods"), "{sentence}");
    }

    #[test]
    fn what_another_program_answers_on_the_port_is_no_state_of_an_agent() {
        for (status, text) in [(404, "404 page not found"), (200, "ok"), (503, REFUSED), (200, "")] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(matches!(answer_of(status, text), Answer::Silent(_)), "{status} {text}");
        }
    }
}
