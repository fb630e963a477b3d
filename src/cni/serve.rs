//! The agent's side: calls of the plugin become attachments in the World, and an answer when the pod's rules are in force.
//!
//! Each call waits in a task of its own, so that none holds up another; their number is bounded where connections are accepted
//! (`observe::local`). A caller that goes away ends its wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::message::{Message, PATH};
use super::metrics::Metrics;
use crate::firewall::starting_pod::StartingPod;
use crate::model::{Attachment, AttachmentChange, PodLink};
use crate::observe::health::{Health, Pulse};
use crate::observe::local::{self, Answer, Answerers, LOOK, Name, Question};
use crate::pod_tunnels::places::{Announced, KnownPod};
use crate::source_guard::driver::{Call as GuardCall, StartingPort};

/// Where calls lead.
#[derive(Clone)]
pub struct Calls {
    /// To the World.
    pub changes: mpsc::Sender<AttachmentChange>,
    /// To the firewall.
    pub starting: mpsc::Sender<StartingPod>,
    /// To the source guard; `None` where it does not run.
    pub guard: Option<mpsc::Sender<GuardCall>>,
    /// To the tunnels in pods; `None` where there are none.
    pub pods: Option<mpsc::Sender<Announced>>,
    pub metrics: Metrics,
}

/// Receives whether a pod may start: until then what is missing.
type Outcome = watch::Receiver<Result<(), String>>;

/// Connections at a time. A node starts fewer pods at once; more wait to be accepted.
const CONNECTIONS: usize = 256;

/// Interval at which a socket that cannot be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Tells that the socket is in a folder of the container's own. Only another container, with the host's folder mounted, mends that.
pub fn tell_hidden(socket: &Path, health: &Health) {
    let path = socket.display();
    warn!(%path, "CNI socket is in a folder of the container's own, where no plugin of the host finds it, and no pod starts; mount the host's folder there");
    let folder = health.register("folder of the CNI socket", Duration::MAX, Instant::now());
    folder.ready(true);
    folder.trouble(Some(format!(
        "{path} is in a folder of the container's own, where no plugin of the host finds it; no pod starts on this node until the host's folder is mounted there"
    )));
}

/// Opens the socket and answers for as long as it is polled. While it cannot be opened no pod starts on this node: that is trouble.
pub async fn run(socket: PathBuf, calls: Calls, pulse: Pulse) {
    let (ask, mut questions) = mpsc::channel::<Question>(CONNECTIONS);
    let answering = async {
        while let Some(Question { about, mut answer, .. }) = questions.recv().await {
            let calls = calls.clone();
            tokio::spawn(async move {
                let answered = tokio::select! {
                    answered = calls.answer(&about) => answered,
                    () = answer.closed() => return,
                };
                if let Some(answered) = answered {
                    // The caller may have gone away.
                    let _ = answer.send(answered);
                }
            });
        }
    };
    let listening = async {
        loop {
            let (listener, name) = opened(&socket, &calls.metrics, &pulse).await;
            let answerers = Answerers::from([(PATH, ask.clone())]);
            tokio::select! {
                () = local::serve(listener, answerers, CONNECTIONS) => return,
                () = name.lost() => {}
            }
            let path = socket.display();
            warn!(%path, "CNI socket is gone from its path; opening it again");
            calls.metrics.open.set(0);
            while name.is_taken() {
                let who =
                    format!("another program listens on {path}; this agent answers no pod that starts on this node");
                pulse.trouble(Some(who));
                tokio::time::sleep(LOOK).await;
            }
        }
    };
    tokio::join!(listening, answering);
}

async fn opened(socket: &Path, metrics: &Metrics, pulse: &Pulse) -> (UnixListener, Name) {
    let mut has_failed = false;
    loop {
        match local::bind_named(socket) {
            Ok(opened) => {
                if has_failed {
                    info!(path = %socket.display(), "CNI socket opened; pods can start");
                }
                metrics.open.set(1);
                pulse.trouble(None);
                pulse.ready(true);
                return opened;
            }
            Err(error) => {
                let path = socket.display();
                if !std::mem::replace(&mut has_failed, true) {
                    warn!(%path, %error, "Opening the CNI socket failed; retrying; no pod starts on this node meanwhile");
                }
                pulse.trouble(Some(format!("cannot listen on {path}: {error}; no pod starts on this node meanwhile")));
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Calls {
    /// Returns whether those who are told of pods have ended, as they do with the agent.
    fn are_ending(&self) -> bool {
        let guard_ends = self.guard.as_ref().is_some_and(mpsc::Sender::is_closed);
        self.changes.is_closed() || self.starting.is_closed() || guard_ends
    }

    /// Returns the answer; `None` where the agent ends before there is one: the plugin asks again, and what this agent cannot do its successor can.
    async fn answer(&self, about: &BTreeMap<String, String>) -> Option<Answer> {
        let message = match Message::read(about) {
            Ok(message) => message,
            Err(why) => return Some(Err(why)),
        };
        let (attachment, guarded, runs, wait) = match message {
            Message::Add { attachment, link, namespace, wait } => {
                if let Some((pods, place)) = self.pods.as_ref().zip(namespace) {
                    // A pod's start does not wait for it: the runtime tells the same.
                    let Attachment { pod: name, uid, addresses, .. } = &attachment;
                    let pod = KnownPod { name: name.clone(), uid: *uid };
                    let _ = pods.try_send(Announced { pod, addresses: addresses.to_vec(), place });
                }
                self.change(AttachmentChange::Add(attachment.clone())).await?;
                let guarded = self.guard_port(&attachment, link).await;
                (attachment, guarded, false, wait)
            }
            Message::Check { attachment, wait } => (attachment, None, true, wait),
            Message::Delete(id) => {
                self.tell_guard(GuardCall::Delete(id.clone())).await;
                return self.change(AttachmentChange::Delete(id)).await.map(|()| Ok(String::new()));
            }
            Message::Retain { network, ids } => {
                self.tell_guard(GuardCall::Retain { network: network.clone(), ids: ids.clone() }).await;
                return self.change(AttachmentChange::Retain { network, ids }).await.map(|()| Ok(String::new()));
            }
        };
        let begun = Instant::now();
        let pod = attachment.pod.clone();
        let (outcome, mut told) = watch::channel(Err("the firewall does not run".to_owned()));
        let Attachment { pod: name, uid, addresses, .. } = attachment;
        let mut guarded = guarded;
        let starts = async {
            let sent = self.starting.send(StartingPod { name, uid, addresses, runs, outcome }).await;
            let is_guarded = match &mut guarded {
                Some(guarded) => guarded.wait_for(Result::is_ok).await.is_ok(),
                None => true,
            };
            is_guarded && sent.is_ok() && told.wait_for(Result::is_ok).await.is_ok()
        };
        let starts = timeout(wait, starts).await;
        let is_over = starts.is_err();
        let starts = starts == Ok(true);
        let took = begun.elapsed();
        self.metrics.waited.observe(took.as_secs_f64());
        debug!(%pod, starts, took_us = took.as_micros() as u64, "Pod waited for its network policies");
        if starts {
            return Some(Ok(String::new()));
        }
        // Who has waited for the whole time is refused, whoever ends meanwhile.
        if !is_over && self.are_ending() {
            return None;
        }
        self.metrics.refused.inc();
        let unguarded = guarded.and_then(|guarded| guarded.borrow().clone().err());
        let why = told.borrow().clone().err().or(unguarded).unwrap_or_default();
        Some(Err(format!("after {} ms {why}", took.as_millis())))
    }

    /// Has the pod's port guarded where there is a source guard and the plugins told the port.
    async fn guard_port(&self, attachment: &Attachment, link: Option<PodLink>) -> Option<Outcome> {
        let (guard, PodLink { of_host, address }) = self.guard.as_ref().zip(link)?;
        let (outcome, told) = watch::channel(Err("the source guard does not run".to_owned()));
        let Attachment { id, network, addresses, .. } = attachment.clone();
        let port = StartingPort { id, network, links: of_host, link_address: address, addresses, outcome };
        // One that is gone never says yes.
        let _ = guard.send(GuardCall::Add(port)).await;
        Some(told)
    }

    async fn tell_guard(&self, call: GuardCall) {
        if let Some(guard) = &self.guard {
            let _ = guard.send(call).await;
        }
    }

    /// Passes a change on; `None` where the agent is about to end.
    async fn change(&self, change: AttachmentChange) -> Option<()> {
        self.changes.send(change).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::{AttachmentId, LinkAddress, ObjectName, PodUid};
    use crate::observe::metrics::Registry;

    struct Agent {
        calls: Calls,
        changes: mpsc::Receiver<AttachmentChange>,
        starting: mpsc::Receiver<StartingPod>,
        registry: Registry,
    }

    fn agent() -> Agent {
        let (changes, to_world) = mpsc::channel(4);
        let (starting, to_firewall) = mpsc::channel(4);
        let registry = Registry::new("test", "test");
        let metrics = Metrics::register(&registry).expect("the names are free");
        Agent {
            calls: Calls { changes, starting, guard: None, pods: None, metrics },
            changes: to_world,
            starting: to_firewall,
            registry,
        }
    }

    fn attachment() -> Attachment {
        Attachment {
            id: AttachmentId { container: "c1".into(), interface: "eth0".into() },
            network: "mynet".into(),
            pod: ObjectName::new("shop", "web"),
            uid: PodUid::from_number(7),
            addresses: ["10.244.1.7".parse().expect("an address")].into(),
        }
    }

    fn add() -> BTreeMap<String, String> {
        add_with(None)
    }

    fn add_with(link: Option<PodLink>) -> BTreeMap<String, String> {
        Message::Add { attachment: attachment(), link, namespace: None, wait: Duration::from_secs(2) }.words()
    }

    #[test]
    fn a_socket_where_no_plugin_finds_it_is_trouble_that_names_it_and_opening_it_mends_nothing() {
        let health = Health::default();
        tell_hidden(Path::new("/run/sluice/cni.sock"), &health);
        let opened = health.register("CNI socket", Duration::MAX, Instant::now());
        opened.ready(true);
        opened.trouble(None);
        let [reason] = &health.unready(Instant::now())[..] else { panic!("one reason") };
        assert_eq!(reason.component, "folder of the CNI socket");
        assert!(
            reason.text.starts_with("/run/sluice/cni.sock is in a folder of the container's own"),
            "{}",
            reason.text
        );
        assert!(health.stuck(Instant::now()).is_empty(), "the kubelet would kill it for nothing");
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_opened_is_trouble_until_it_can_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let in_the_way = directory.path().join("run");
        std::fs::write(&in_the_way, "a file").expect("writable");
        let (health, Agent { calls, registry, .. }) = (Health::default(), agent());
        let pulse = health.register("CNI socket", Duration::MAX, Instant::now());
        let socket = in_the_way.join("cni.sock");
        let running = tokio::spawn(run(socket.clone(), calls, pulse));
        let has_trouble = || health.unready(Instant::now()).iter().any(|reason| reason.text.contains("no pod starts"));
        while !has_trouble() {
            tokio::task::yield_now().await;
        }
        assert!(registry.text().contains("sluice_cni_socket_open 0"));
        std::fs::remove_file(&in_the_way).expect("it is there");
        while !health.unready(Instant::now()).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(registry.text().contains("\nsluice_cni_socket_open 1\n") && socket.exists());
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_whose_name_somebody_removes_is_opened_again_and_one_of_another_program_is_trouble() {
        let directory = tempfile::tempdir().expect("a directory");
        let (health, Agent { calls, registry, .. }) = (Health::default(), agent());
        let pulse = health.register("CNI socket", Duration::MAX, Instant::now());
        let socket = directory.path().join("cni.sock");
        let running = tokio::spawn(run(socket.clone(), calls, pulse));
        let is_open = || registry.text().contains("\nsluice_cni_socket_open 1\n");
        tokio::time::sleep(LOOK).await;
        assert!(is_open() && socket.exists());
        fs::remove_file(&socket).expect("it is there");
        tokio::time::sleep(LOOK * 3).await;
        assert!(is_open() && socket.exists(), "--cleanup-config ran beside it, say");
        fs::remove_file(&socket).expect("it is there");
        let other = std::os::unix::net::UnixListener::bind(&socket).expect("the name is free");
        tokio::time::sleep(LOOK * 3).await;
        let reasons = health.unready(Instant::now());
        assert!(!is_open() && reasons.iter().any(|one| one.text.contains("another program")), "{reasons:?}");
        drop(other);
        tokio::time::sleep(LOOK * 3).await;
        assert!(is_open() && health.unready(Instant::now()).is_empty());
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_announced_and_starts_when_the_firewall_says_so() {
        let Agent { calls, mut changes, mut starting, registry } = agent();
        let answer = tokio::spawn(async move { calls.answer(&add()).await });
        assert_eq!(changes.recv().await, Some(AttachmentChange::Add(attachment())));
        let pod = starting.recv().await.expect("the firewall is asked");
        assert_eq!((&pod.name, pod.uid), (&attachment().pod, attachment().uid));
        assert_eq!(pod.addresses, attachment().addresses);
        drop(pod.outcome.send_replace(Err("its chain is missing".to_owned())));
        drop(pod.outcome.send_replace(Ok(())));
        drop(pod);
        assert_eq!(answer.await.expect("it ends"), Some(Ok(String::new())));
        assert!(registry.text().contains("sluice_cni_refused_total 0"));
    }

    /// The runtime's next try, or the plugin's, meets its successor.
    #[tokio::test]
    async fn an_agent_that_ends_refuses_nothing_in_place_of_its_successor() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("cni.sock");
        let Agent { calls, mut changes, starting, .. } = agent();
        let pulse = Health::default().register("CNI socket", Duration::MAX, Instant::now());
        let running = tokio::spawn(run(socket.clone(), calls, pulse));
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let asked = async |words: BTreeMap<String, String>| {
            crate::ask::post(&socket, PATH, &words, None).await.expect("somebody listens").0.as_u16()
        };
        let heard = tokio::spawn(async move { changes.recv().await });
        drop(starting);
        assert_eq!(asked(add()).await, 503, "the firewall has ended");
        assert!(heard.await.expect("it ends").is_some());
        let end = Message::Delete(attachment().id);
        assert_eq!(asked(end.words()).await, 503, "nobody hears of pods any more");
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_pods_namespace_is_goes_to_its_tunnels_and_holds_up_no_start() {
        let Agent { mut calls, mut starting, changes: _changes, .. } = agent();
        let (pods, mut to_pods) = mpsc::channel(1);
        calls.pods = Some(pods);
        let mut words = add();
        words.insert("netns".to_owned(), "/var/run/netns/cni-1".to_owned());
        for _ in 0..2 {
            let (caller, words) = (calls.clone(), words.clone());
            let answer = tokio::spawn(async move { caller.answer(&words).await });
            drop(starting.recv().await.expect("the firewall is asked").outcome.send_replace(Ok(())));
            assert_eq!(answer.await.expect("it ends"), Some(Ok(String::new())), "also where nobody reads");
        }
        let announced = to_pods.recv().await.expect("it was told");
        let Attachment { pod: name, uid, addresses, .. } = attachment();
        let pod = KnownPod { name, uid };
        let place = "/var/run/netns/cni-1".into();
        assert_eq!(announced, Announced { pod, addresses: addresses.into(), place });
        assert!(to_pods.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_starts_when_its_port_is_guarded_too_and_the_guard_hears_of_its_end() {
        let Agent { mut calls, changes: _changes, mut starting, .. } = agent();
        let (guard, mut to_guard) = mpsc::channel(4);
        calls.guard = Some(guard);
        let link = PodLink { of_host: ["veth1".into()].into(), address: LinkAddress([2, 0, 0, 0, 0, 1]) };
        let words = add_with(Some(link.clone()));
        let caller = calls.clone();
        let answer = tokio::spawn(async move { caller.answer(&words).await });
        let Some(GuardCall::Add(port)) = to_guard.recv().await else { panic!("the guard is asked") };
        assert_eq!((&port.id, &port.links, port.link_address), (&attachment().id, &link.of_host, link.address));
        assert_eq!(port.addresses, attachment().addresses);
        let pod = starting.recv().await.expect("the firewall is asked");
        drop(pod.outcome.send_replace(Ok(())));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!answer.is_finished(), "the policies alone are in force");
        drop(port.outcome.send_replace(Ok(())));
        assert_eq!(answer.await.expect("it ends"), Some(Ok(String::new())));
        let end = Message::Delete(attachment().id);
        calls.answer(&end.words()).await.expect("the agent hears it").expect("it is right");
        assert!(matches!(to_guard.recv().await, Some(GuardCall::Delete(id)) if id == attachment().id));

        let caller = calls.clone();
        let answer = tokio::spawn(async move { caller.answer(&add_with(Some(link))).await });
        let Some(GuardCall::Add(port)) = to_guard.recv().await else { panic!("the guard is asked") };
        drop(starting.recv().await.expect("the firewall is asked").outcome.send_replace(Ok(())));
        drop(port.outcome.send_replace(Err("the kernel refuses".to_owned())));
        let refused = answer.await.expect("it ends").expect("there is an answer").expect_err("the port is not guarded");
        assert!(refused.ends_with("the kernel refuses"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_in_force_in_time_is_put_off_with_what_was_missing_last() {
        let Agent { calls, changes: _changes, mut starting, registry } = agent();
        let answer = tokio::spawn(async move { calls.answer(&add()).await });
        let pod = starting.recv().await.expect("the firewall is asked");
        drop(pod.outcome.send_replace(Err("its chain is missing".to_owned())));
        let refused = answer.await.expect("it ends").expect("there is an answer").expect_err("nobody says yes");
        assert!(refused.starts_with("after ") && refused.ends_with(" ms its chain is missing"), "{refused}");
        assert!(registry.text().contains("sluice_cni_refused_total 1"));
        assert!(pod.outcome.is_closed(), "nobody waits any more");
    }

    #[tokio::test]
    async fn what_ends_is_withdrawn_and_what_makes_no_sense_is_refused() {
        let Agent { calls, mut changes, .. } = agent();
        let id = attachment().id;
        assert_eq!(calls.answer(&Message::Delete(id.clone()).words()).await, Some(Ok(String::new())));
        assert_eq!(changes.recv().await, Some(AttachmentChange::Delete(id.clone())));
        let retain = Message::Retain { network: "mynet".into(), ids: [id.clone()].into() };
        assert_eq!(calls.answer(&retain.words()).await, Some(Ok(String::new())));
        let network = "mynet".into();
        assert_eq!(changes.recv().await, Some(AttachmentChange::Retain { network, ids: [id].into() }));
        assert!(calls.answer(&BTreeMap::new()).await.is_some_and(|answer| answer.is_err()));
    }
}
