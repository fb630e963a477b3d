//! The agents of all nodes, as their health ports answer through the API server.
//!
//! Kubernetes: "Access Services Running on Clusters", section *Manually constructing apiserver proxy URLs*. Whoever asks needs the right to `list`
//! Pods and Nodes and to `get` `pods/proxy`. The agents themselves do not have the last one, which reaches every port of every pod.
//!
//! Anybody who may create Pods can give one the label of the agents. So only Pods of a DaemonSet in the network of their host are asked, which Pod Security
//! Standards refuse to tenants (*Baseline*, Host Namespaces), and what an agent says is bounded and without control characters.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Future, StreamExt, stream};
use http::StatusCode;
use http::header::ACCEPT;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

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
    /// The time for all agents was over before its turn came.
    NotAsked,
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
    health_port: u16,
}

/// Port of `/readyz` where neither a flag nor a probe names one.
const HEALTH_PORT: u16 = 20244;
const HEALTH_FLAG: &str = "--health-port";
/// Names of the agent's container beside others; without them it is the first one.
const AGENT_NAMES: [&str; 2] = ["kube-router", "sluice"];
/// Time limit for one answer: the API server takes some seconds to find that a node does not answer.
const PATIENCE: Duration = Duration::from_secs(40);
/// Time limit for the answers of all agents together.
const WHOLE: Duration = Duration::from_secs(120);
/// Number of agents that are asked at a time.
const AT_A_TIME: usize = 128;
/// Largest size in bytes of a list, and of an agent's answer.
const LIST_BYTES: usize = 1 << 28;
const ANSWER_BYTES: usize = 64 << 10;
/// Largest number of lines of an agent that are told, and of characters of one.
const LINES: usize = 100;
const LINE_CHARACTERS: usize = 2000;
const NAMES_ALONE: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Asks the agents of all nodes with Linux, which are the pods that a label selector names. Returns them by their nodes.
///
/// # Errors
/// Nodes or Pods cannot be listed, or no agent may be asked; a sentence.
pub async fn ask(client: &ApiClient, selector: &str) -> Result<BTreeMap<String, Agents>, String> {
    let nodes = list(client, "/api/v1/nodes").await?;
    let pods = list(client, &format!("/api/v1/pods?labelSelector={}", escaped(selector))).await?;
    let pods: Vec<AgentPod> = items(&pods).filter_map(agent_pod).filter(|pod| !pod.node.is_empty()).collect();
    let answers = answers(pods, |pod| async move { readyz(client, &pod).await }).await;
    if let Some(sentence) = refusal_of_all(&answers) {
        return Err(sentence);
    }
    let mut by_node: BTreeMap<String, Agents> =
        items(&nodes).filter_map(node_with_linux).map(|name| (name, Agents::new())).collect();
    for (told, pod) in answers {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let answer = match told {
            Some(Ok((status, text))) => answer_of(status, &text),
            Some(Err(why)) => Answer::Silent(line(&why)),
            None => Answer::NotAsked,
        };
        by_node.entry(pod.node).or_default().insert(name, answer);
    }
    Ok(by_node)
}

/// The status and the text of an answer, or why there is none.
type ReadyzAnswer = Result<(StatusCode, String), String>;

/// Asks some at a time, until the time for all is over. `None` for those whose turn did not come.
async fn answers<F, A>(pods: Vec<AgentPod>, asked: F) -> Vec<(Option<ReadyzAnswer>, AgentPod)>
where
    F: Fn(AgentPod) -> A,
    A: Future<Output = ReadyzAnswer>,
{
    let until = Instant::now() + WHOLE;
    let asked = &asked;
    let answers = stream::iter(pods).map(|pod| async move {
        if Instant::now() >= until {
            return (None, pod);
        }
        let late = || Err(format!("no answer within the {} s for all agents", WHOLE.as_secs()));
        (Some(timeout_at(until, asked(pod.clone())).await.unwrap_or_else(|_| late())), pod)
    });
    answers.buffer_unordered(AT_A_TIME).collect().await
}

async fn readyz(client: &ApiClient, pod: &AgentPod) -> ReadyzAnswer {
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

async fn get(client: &ApiClient, path: &str, most: usize) -> ReadyzAnswer {
    // Of Nodes nothing but names and labels is needed; who does not know this form gives them whole.
    let form = if path.ends_with("/nodes") { NAMES_ALONE } else { "*/*" };
    let request =
        http::Request::get(path).header(ACCEPT, form).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = client.current().await.send(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        let whole = Limited::new(response.into_body(), most).collect().await;
        let body: Bytes = whole
            .map_err(|error| match error.is::<LengthLimitError>() {
                true => format!("the answer is longer than {} KiB", most >> 10),
                false => error.to_string(),
            })?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

/// Returns the sentence of a server that lets nobody be asked; `None` where there is an agent that may be.
fn refusal_of_all(answers: &[(Option<ReadyzAnswer>, AgentPod)]) -> Option<String> {
    let refused = |answer: &Option<ReadyzAnswer>| match answer {
        Some(Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), text))) => Some(refusal(*status, text)),
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
    let mut told = text.lines();
    match status {
        StatusCode::OK if told.next() == Some("OK") => Answer::Ready(lines(told)),
        StatusCode::SERVICE_UNAVAILABLE if !is_of_server => Answer::NotReady(lines(text.lines())),
        _ => Answer::Silent(refusal(status, text)),
    }
}

/// The first lines of an agent, and how many it has beyond them.
fn lines<'a>(mut told: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut lines: Vec<String> = told.by_ref().take(LINES).map(line).collect();
    let more = told.count();
    lines.extend((more > 0).then(|| format!("lines that are not shown: {more}")));
    lines
}

/// A text of somebody else as one line that a terminal shows as it is: a newline would look like the line of another node.
fn line(text: &str) -> String {
    let mut line: String =
        text.chars().take(LINE_CHARACTERS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LINE_CHARACTERS).is_some() {
        line.push('…');
    }
    line
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
    format!("{} ({})", line(message), status.as_u16()).trim_start().to_owned()
}

fn node_with_linux(node: &Value) -> Option<String> {
    let system = word(node, "/metadata/labels/kubernetes.io~1os");
    let name = word(node, "/metadata/name");
    (!name.is_empty() && ["", "linux"].contains(&system)).then(|| name.to_owned())
}

/// Returns whether a Pod can be an agent that runs: of a DaemonSet, in the network of its host, and neither ending nor ended.
fn is_agent(pod: &Value) -> bool {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
        && owners.into_iter().flatten().any(|owner| word(owner, "/kind") == "DaemonSet")
        && pod.pointer("/metadata/deletionTimestamp").is_none_or(Value::is_null)
        && !["Failed", "Succeeded"].contains(&word(pod, "/status/phase"))
}

fn agent_pod(pod: &Value) -> Option<AgentPod> {
    if !is_agent(pod) {
        return None;
    }
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let is_named = |container: &&Value| AGENT_NAMES.contains(&word(container, "/name"));
    let port = containers.iter().find(is_named).or(containers.first()).and_then(health_port);
    let of = |pointer| word(pod, pointer).to_owned();
    let pod = AgentPod {
        namespace: of("/metadata/namespace"),
        name: of("/metadata/name"),
        node: of("/spec/nodeName"),
        health_port: port.unwrap_or(HEALTH_PORT),
    };
    (!pod.name.is_empty()).then_some(pod)
}

/// Returns the port of `/readyz` that a container names: by its flag, or by a probe, which may name it as a port of the container.
fn health_port(container: &Value) -> Option<u16> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let list = |field: &str| container.pointer(field).and_then(Value::as_array).into_iter().flatten();
    let words: Vec<&str> = list("/command").chain(list("/args")).filter_map(Value::as_str).collect();
    let behind = words.iter().position(|word| *word == HEALTH_FLAG).and_then(|at| words.get(at + 1).copied());
    let typed = words.iter().find_map(|word| word.strip_prefix(HEALTH_FLAG)?.strip_prefix('=')).or(behind);
    let named = |name: &str| {
        let is_it = |port: &&Value| word(port, "/name") == name;
        list("/ports").find(is_it).and_then(|port| number(port.pointer("/containerPort")?))
    };
    let of_probe = |probe: &str| {
        let port = container.pointer(probe)?.pointer("/httpGet/port")?;
        number(port).or_else(|| named(port.as_str()?))
    };
    let typed = typed.and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    typed.or_else(|| ["/readinessProbe", "/livenessProbe"].into_iter().find_map(of_probe))
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
        let pods = of.iter().map(|(name, node, probes)| pod(name, node, probes));
        (200, json!({"items": pods.collect::<Vec<_>>()}).to_string())
    }

    fn pod(name: &str, node: &str, probes: &Value) -> Value {
        json!({
            "metadata": {"namespace": "net", "name": name, "ownerReferences": [{"kind": "DaemonSet", "name": "kube-router"}]},
            "spec": {"nodeName": node, "hostNetwork": true, "containers": [probes]},
            "status": {"phase": "Running"},
        })
    }

    const PODS: &str = "/api/v1/pods?labelSelector=k8s-app%3Dkube-router";
    const REFUSED: &str = r#"{"kind":"Status","message":"pods \"a\" is forbidden: no get of pods/proxy","code":403}"#;

    #[test]
    fn the_port_is_that_of_the_agents_container_by_its_flag_or_its_probes() {
        let beside = json!({"name": "exporter", "readinessProbe": {"httpGet": {"port": 9100}}});
        let agent = |part: Value| {
            let mut agent = json!({"name": "kube-router", "ports": [{"name": "health", "containerPort": 20300}]});
            agent.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
            agent
        };
        let by_number = agent(json!({"livenessProbe": {"httpGet": {"port": 20301}}}));
        let by_name = agent(json!({"readinessProbe": {"httpGet": {"port": "health"}}}));
        let by_flag = agent(json!({"args": ["--run-router", "--health-port=30244"], "readinessProbe": {"exec": {}}}));
        let in_two_words = agent(json!({"command": ["kube-router", "--health-port", "30245"]}));
        let off = agent(json!({"args": ["--health-port=0"]}));
        for (container, expected) in [
            (by_number, 20301),
            (by_name, 20300),
            (by_flag, 30244),
            (in_two_words, 30245),
            (off, HEALTH_PORT),
            (agent(json!({"readinessProbe": {"httpGet": {"port": "unknown"}}})), HEALTH_PORT),
        ] {
            let mut pod = pod("a", "node-1", &json!({}));
            pod["spec"]["containers"] = json!([beside.clone(), container]);
            assert_eq!(agent_pod(&pod).map(|pod| pod.health_port), Some(expected), "{pod}");
        }
    }

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

    #[tokio::test]
    async fn pods_of_tenants_with_the_label_and_pods_that_end_or_ended_are_not_asked() {
        let changed = |name: &str, pointer: &str, value: Value| {
            let mut pod = pod(name, "node-1", &json!({}));
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            pod.pointer_mut(parent).expect("it is there")[key] = value;
            pod
        };
        let all = [
            changed("agent", "/metadata/deletionTimestamp", Value::Null),
            changed("own-network", "/spec/hostNetwork", json!(false)),
            changed("no-word-of-network", "/spec/hostNetwork", Value::Null),
            changed("bare", "/metadata/ownerReferences", json!([])),
            changed("deployed", "/metadata/ownerReferences", json!([{"kind": "ReplicaSet", "name": "kube-router"}])),
            changed("ending", "/metadata/deletionTimestamp", json!("2026-11-20T05:04:18Z")),
            changed("evicted", "/status/phase", json!("Failed")),
            changed("done", "/status/phase", json!("Succeeded")),
        ];
        let pages = Pages::from([
            ("/api/v1/nodes", nodes(&["node-1"])),
            (PODS, (200, json!({"items": all}).to_string())),
            ("/api/v1/namespaces/net/pods/agent:20244/proxy/readyz", (200, "OK\n".to_owned())),
        ]);
        let found = ask(&server(pages).await, "k8s-app=kube-router").await.expect("it may ask");
        let agents = Agents::from([("net/agent".to_owned(), Answer::Ready(Vec::new()))]);
        assert_eq!(found, [("node-1".to_owned(), agents)].into());
    }

    #[tokio::test]
    async fn what_an_agent_says_is_bounded_and_commands_nothing_to_a_terminal() {
        let forged = r#"{"message":"gone\nnode-9: ready \u001b[2J"}"#.to_owned();
        let many = format!("OK\n{}", "a note\n".repeat(LINES + 7));
        let all = ["a", "b", "c", "d", "e"].map(|name| (name, "node-1", json!({})));
        let pages = Pages::from([
            ("/api/v1/nodes", nodes(&["node-1"])),
            (PODS, pods(&all)),
            (
                "/api/v1/namespaces/net/pods/a:20244/proxy/readyz",
                (503, "router: \u{1b}]0;x\u{7}\u{9b}2J\rok\nproxy: né\n".to_owned()),
            ),
            ("/api/v1/namespaces/net/pods/b:20244/proxy/readyz", (500, forged)),
            ("/api/v1/namespaces/net/pods/c:20244/proxy/readyz", (200, many)),
            ("/api/v1/namespaces/net/pods/d:20244/proxy/readyz", (200, format!("OK\n{}", "x".repeat(64 << 10)))),
            ("/api/v1/namespaces/net/pods/e:20244/proxy/readyz", (200, format!("OK\n{}", "é".repeat(20_000)))),
        ]);
        let found = ask(&server(pages).await, "k8s-app=kube-router").await.expect("it may ask");
        let of = |pod: &str| found["node-1"][&format!("net/{pod}")].clone();
        let router = "router: \u{fffd}]0;x\u{fffd}\u{fffd}2J\u{fffd}ok".to_owned();
        assert_eq!(of("a"), Answer::NotReady(vec![router, "proxy: né".to_owned()]));
        assert_eq!(of("b"), Answer::Silent("gone\u{fffd}node-9: ready \u{fffd}[2J (500)".to_owned()));
        let mut notes = vec!["a note".to_owned(); LINES];
        notes.push("lines that are not shown: 7".to_owned());
        assert_eq!(of("c"), Answer::Ready(notes));
        assert_eq!(of("d"), Answer::Silent("the answer is longer than 64 KiB".to_owned()));
        assert_eq!(of("e"), Answer::Ready(vec![format!("{}…", "é".repeat(LINE_CHARACTERS))]));
    }

    #[tokio::test(start_paused = true)]
    async fn agents_whose_turn_comes_after_the_time_for_all_are_not_asked() {
        let pods = (0..500).map(|number| AgentPod {
            namespace: "net".to_owned(),
            name: format!("agent-{number}"),
            node: format!("node-{number}"),
            health_port: HEALTH_PORT,
        });
        // Two rounds are over when the time is, and the third one is under way.
        let slow = |_| async {
            tokio::time::sleep(WHOLE * 2 / 5).await;
            Ok((StatusCode::OK, "OK\n".to_owned()))
        };
        let told = answers(pods.collect(), slow).await;
        let count = |is: fn(&Option<ReadyzAnswer>) -> bool| told.iter().filter(|(told, _)| is(told)).count();
        assert_eq!(count(|told| matches!(told, Some(Ok(_)))), 256);
        assert_eq!(count(|told| matches!(told, Some(Err(why)) if why.contains("120 s for all"))), 128);
        assert_eq!(count(Option::is_none), 116);
    }

    #[test]
    fn what_another_program_answers_on_the_port_is_no_state_of_an_agent() {
        for (status, text) in [(404, "404 page not found"), (200, "ok"), (503, REFUSED), (200, "")] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(matches!(answer_of(status, text), Answer::Silent(_)), "{status} {text}");
        }
    }
}
