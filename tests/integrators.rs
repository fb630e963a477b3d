//! kube-router's users and its integrators change the name of the image and nothing else: what their DaemonSets give to the agent is accepted, and rights that they do not
//! give are done without. The renderings are those that real kubelets run (`tests/kubelets/integrators.py`).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

#[allow(dead_code, reason = "these tests need a part of it")]
#[path = "../src/k8s/watch/tests/api_server/mod.rs"]
mod api_server;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use sluice::app;
use sluice::config::{Config, Environment, Request, Source, request};
use sluice::k8s::access::Right;
use sluice::k8s::client::{Access, client};
use sluice::k8s::outage::Outages;
use sluice::k8s::{Event, Kind, Wanted, watch};
use sluice::observe::health::Health;
use sluice::observe::metrics::Registry;
use tokio::sync::mpsc::channel;
use tokio::task::JoinSet;
use tokio::time::timeout;

use api_server::{ApiServer, Faults};

/// What an integrator applies to the cluster and puts on its nodes.
struct Rendering {
    name: String,
    objects: Vec<Value>,
    /// Texts by their paths on the host.
    files: BTreeMap<String, String>,
}

impl Rendering {
    fn object(&self, kind: &str) -> &Value {
        self.objects.iter().find(|object| object["kind"] == kind).unwrap_or(&Value::Null)
    }

    fn agent(&self) -> &Value {
        &self.object("DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    }

    fn args(&self) -> Vec<&str> {
        list(&self.agent()["args"]).iter().map(|argument| argument.as_str().unwrap()).collect()
    }

    /// A variable of the agent's container, if it has a value or a source.
    fn variable(&self, name: &str) -> Option<&Value> {
        list(&self.agent()["env"]).iter().find(|variable| variable["name"] == name)
    }

    /// The meaning of the flags in the environment that the container gives.
    fn config(&self) -> Config {
        let words: Vec<OsString> = ["sluice"].into_iter().chain(self.args()).map(OsString::from).collect();
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("{}: {:?}", self.name, self.args()) };
        let text = |name: &str| self.variable(name).and_then(|it| it["value"].as_str()).map(str::to_owned);
        let environment = Environment {
            node_name: self.variable("NODE_NAME").map(|_| "node1".to_owned()),
            host_name: "a-host".to_owned(),
            cni_list: None,
            cni_file: text("KUBE_ROUTER_CNI_CONF_FILE").map(PathBuf::from),
            host_bin_path: text("HOST_BIN_PATH").map(PathBuf::from),
            pod_namespace: None,
            pod_name: self.variable("POD_NAME").map(|_| "kube-router-1".to_owned()),
        };
        Config::from_flags(&flags, verbosity, &environment).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether the role has the right; a role without names is about all.
    fn grants(&self, right: &Right) -> bool {
        let names = |rule: &Value, field: &str, word: &str| list(&rule[field]).iter().any(|it| it == word);
        list(&self.object("ClusterRole")["rules"]).iter().any(|rule| {
            names(rule, "apiGroups", &right.group)
                && names(rule, "resources", &right.resource)
                && names(rule, "verbs", right.verb)
        })
    }

    /// The kinds that the agent follows, and has no right to.
    fn lacking(&self) -> BTreeSet<Kind> {
        let lacks = |wanted: &Wanted| !Right::to_follow(wanted).iter().all(|right| self.grants(right));
        app::wanted(&self.config()).iter().filter(|wanted| lacks(wanted)).map(Wanted::kind).collect()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn renderings() -> Vec<Rendering> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubelets/integrators.py");
    let done = Command::new("python3").arg("-B").arg(script).output().expect("python3");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let made: BTreeMap<String, Value> = serde_json::from_slice(&done.stdout).unwrap();
    assert!(made.len() >= 17, "{:?}", made.keys());
    let texts = |value: &Value| -> BTreeMap<String, String> { serde_json::from_value(value.clone()).unwrap() };
    let of = |(name, made): (String, Value)| Rendering {
        name,
        objects: list(&made["objects"]).to_vec(),
        files: texts(&made["files"]),
    };
    made.into_iter().map(of).collect()
}

fn rendering(name: &str) -> Rendering {
    renderings().into_iter().find(|of| of.name == name).unwrap()
}

#[test]
fn every_integrators_flags_and_environment_are_accepted_and_mean_what_they_say() {
    for of in renderings() {
        let config = of.config();
        let is_on = |flag: &str| of.args().iter().any(|it| it.eq_ignore_ascii_case(&format!("--{flag}=true")));
        let on = [config.router.is_some(), config.firewall.is_some(), config.proxy.is_some()];
        assert_eq!(on, ["run-router", "run-firewall", "run-service-proxy"].map(is_on), "{}", of.name);
        assert_eq!(config.node_name, "node1", "{}", of.name);
        let file = of.args().iter().find_map(|it| it.strip_prefix("--kubeconfig=")).map(PathBuf::from);
        assert_eq!(config.source, Source::Api { kubeconfig: file, master: None }, "{}", of.name);
        if let Some(router) = &config.router {
            let name = if of.name == "kubeasz" { "10-kuberouter.conf" } else { "10-kuberouter.conflist" };
            let file = Path::new("/etc/cni/net.d").join(name);
            let gives_network = !of.args().contains(&"--enable-cni=false");
            assert_eq!(router.cni_file.as_deref(), gives_network.then_some(&*file), "{}", of.name);
        }
    }
}

#[test]
fn a_range_in_quotes_and_switches_in_capitals_are_understood() {
    let ranges = rendering("kops").config().proxy.unwrap().ranges;
    assert_eq!(ranges.cluster_ips, ["10.96.0.0/12".parse().unwrap()]);
    let kubespray = rendering("kubespray").config();
    assert!(kubespray.proxy.is_none() && kubespray.router.is_some() && kubespray.firewall.is_some());
}

/// The certificates are some, and the token is in no file yet: what is tested is that each form is understood.
#[tokio::test]
async fn every_integrators_kubeconfig_is_understood() {
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls");
    let account = tempfile::tempdir().unwrap();
    fs::write(account.path().join("token"), "a token").unwrap();
    fs::copy(tls.join("authority-a.crt"), account.path().join("ca.crt")).unwrap();
    let mut seen = 0;
    for of in renderings() {
        let copied = of.objects.iter().filter_map(|object| object["data"]["kubeconfig"].as_str());
        for text in of.files.get("/var/lib/kube-router/kubeconfig").map(String::as_str).into_iter().chain(copied) {
            let mut text =
                text.replace("/var/run/secrets/kubernetes.io/serviceaccount", &account.path().display().to_string());
            for (word, file) in
                [("%AUTHORITY%", "authority-a.crt"), ("%CERTIFICATE%", "client-a.crt"), ("%KEY%", "client-a.key")]
            {
                let bytes = serde_json::to_value(ByteString(fs::read(tls.join(file)).unwrap())).unwrap();
                text = text.replace(word, bytes.as_str().unwrap());
            }
            let path = account.path().join(&of.name);
            fs::write(&path, text).unwrap();
            let made = client(&Access { kubeconfig: Some(path), master: None }).await;
            assert!(made.is_ok(), "{}: {:?}", of.name, made.err());
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}

/// A change here is a change of what `docs/status.md` says of them.
#[test]
fn the_kinds_that_integrators_give_no_right_to_are_known() {
    for of in renderings() {
        let mut expected = BTreeSet::from([Kind::ServiceCidr]);
        if of.config().firewall.is_some() {
            expected.insert(Kind::ClusterNetworkPolicy);
        }
        if ["enix", "kubeasz"].contains(&&*of.name) {
            expected.insert(Kind::EndpointSlice);
        }
        assert_eq!(of.lacking(), expected, "{}", of.name);
        assert!(!of.grants(&Right::new("create", "", "events")), "{}", of.name);
        assert!(!of.grants(&Right::new("patch", "", "nodes/status")), "{}", of.name);
    }
}

/// The files of `daemonset/` that have an agent, with something for the words between percent signs.
fn ours() -> Vec<Rendering> {
    let words = [
        ("%APISERVER%", "https://192.0.2.9:6443"),
        ("%CLUSTERASN%", "64512"),
        ("%PEERIPS%", "192.0.2.1"),
        ("%PEERASNS%", "65001"),
    ];
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset")).unwrap();
    let of = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let text = words.iter().fold(text, |text, (word, value)| text.replace(word, value));
        let objects = text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
        Rendering { name: path.display().to_string(), objects, files: BTreeMap::new() }
    };
    let all = files.map(|entry| of(entry.unwrap().path())).filter(|of| !of.object("DaemonSet").is_null());
    let found: Vec<Rendering> = all.collect();
    assert!(found.len() >= 8, "there are manifests");
    found
}

#[test]
fn our_own_files_give_every_right_that_their_flags_need() {
    let mut kinds = BTreeSet::new();
    for of in ours() {
        assert_eq!(of.lacking(), BTreeSet::new(), "{}", of.name);
        assert!(of.grants(&Right::new("create", "", "events")), "{}", of.name);
        kinds.extend(app::wanted(&of.config()).iter().map(Wanted::kind));
    }
    assert!(kinds.contains(&Kind::ClusterNetworkPolicy) && kinds.contains(&Kind::EndpointSlice), "{kinds:?}");
}

/// All at a time, each at an API server that refuses what its role does not name.
#[tokio::test]
async fn kinds_without_a_right_keep_nobody_from_the_others_and_are_asked_for_ever_more_slowly() {
    let mut all = JoinSet::new();
    for of in renderings() {
        all.spawn(reads_what_it_may(of));
    }
    all.join_all().await;
}

async fn reads_what_it_may(of: Rendering) {
    let wanted = app::wanted(&of.config());
    let lacking = of.lacking();
    let kinds: BTreeSet<Kind> = wanted.iter().map(Wanted::kind).collect();
    let may: BTreeSet<Kind> = kinds.difference(&lacking).copied().collect();
    let server = ApiServer::start().await;
    // What a real one has whether or not it may be read; nobody has installed ClusterNetworkPolicies there.
    let resources = json!({"metadata": {"name": "v1"}, "resources": [{"name": "servicecidrs"}]});
    server.put("/apis/networking.k8s.io", resources);
    let may_read = Some(may.iter().map(|kind| kind.path().to_owned()).collect());
    server.set_faults(Faults { may_read, ..Faults::default() });

    let master = Some(format!("http://{}", server.address).parse().unwrap());
    let client = client(&Access { kubeconfig: None, master }).await.unwrap();
    let health = Health::default();
    let outages = Outages::register("API server", [], &Registry::new("1", "x"), &health).unwrap();
    let (out, mut messages) = channel(8);
    let follower = tokio::spawn(watch::run(client, wanted, outages, out));
    let (mut listed, mut withheld) = (BTreeSet::new(), BTreeSet::new());
    let read = async {
        while let Some(message) = messages.recv().await {
            match message.event {
                Event::Listed(kind) => drop(listed.insert(kind)),
                Event::Withheld(kind) => drop(withheld.insert(kind)),
                _ => {}
            }
        }
    };
    assert!(timeout(Duration::from_secs(5), read).await.is_err(), "{}: the followers have ended", of.name);
    follower.abort();

    assert_eq!(listed, may, "{}", of.name);
    let optional = lacking.iter().copied().filter(|kind| kind.may_be_absent()).collect::<BTreeSet<_>>();
    assert_eq!(withheld, optional, "{}: nobody waits for these", of.name);
    let notes = health.notes().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for kind in lacking {
        // One that nobody has installed is not missed.
        let is_missed = kind != Kind::ClusterNetworkPolicy;
        assert_eq!(notes.contains(kind.name()), is_missed, "{}: {kind:?} in {notes:?}", of.name);
    }
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    server.take_refused().into_iter().for_each(|path| *refused.entry(path).or_default() += 1);
    // After 0.2, 0.4, 0.8, 1.6 s and so on; after 10 s where the server is known to have it and nobody waits for it. That it has no version of a kind is asked for
    // once, and not by trying each.
    assert!(!refused.keys().any(|path| path.contains("v1alpha2")), "{}: {refused:?}", of.name);
    for (path, count) in refused {
        assert!(count <= if path.contains("servicecidrs") { 2 } else { 8 }, "{}: {count} of {path}", of.name);
    }
}
