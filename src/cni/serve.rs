//! The agent's side: calls of the plugin become attachments in the World, and an answer when the pod's rules are in force.
//!
//! Each call waits in a task of its own, so that none holds up another; their number is bounded where connections are accepted
//! (`observe::local`). A caller that goes away ends its wait.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;

use super::message::{Message, PATH};
use super::metrics::Metrics;
use crate::firewall::driver::StartingPod;
use crate::model::{Attachment, AttachmentChange};
use crate::observe::local::{self, Answer, Answerers, Question};

/// Where calls lead.
#[derive(Clone)]
pub struct Calls {
    /// To the World.
    pub changes: mpsc::Sender<AttachmentChange>,
    /// To the firewall.
    pub starting: mpsc::Sender<StartingPod>,
    pub metrics: Metrics,
}

/// Connections at a time. A node starts fewer pods at once; more wait to be accepted.
const CONNECTIONS: usize = 256;

/// Opens the socket and answers for as long as it is polled.
pub async fn run(socket: PathBuf, calls: Calls) {
    let (ask, mut questions) = mpsc::channel::<Question>(CONNECTIONS);
    let answering = async {
        while let Some(Question { about, mut answer, .. }) = questions.recv().await {
            let calls = calls.clone();
            tokio::spawn(async move {
                let answered = tokio::select! {
                    answered = calls.answer(&about) => answered,
                    () = answer.closed() => return,
                };
                // The caller may have gone away.
                let _ = answer.send(answered);
            });
        }
    };
    tokio::join!(local::run(socket, Answerers::from([(PATH, ask)]), CONNECTIONS), answering);
}

impl Calls {
    async fn answer(&self, about: &BTreeMap<String, String>) -> Answer {
        let message = Message::read(about)?;
        let (attachment, wait) = match message {
            Message::Add { attachment, wait } => {
                self.change(AttachmentChange::Add(attachment.clone())).await?;
                (attachment, wait)
            }
            Message::Check { attachment, wait } => (attachment, wait),
            Message::Delete(id) => return self.change(AttachmentChange::Delete(id)).await,
            Message::Retain(ids) => return self.change(AttachmentChange::Retain(ids)).await,
        };
        let begun = Instant::now();
        let pod = attachment.pod.clone();
        let (outcome, mut told) = watch::channel(Err("the firewall does not run".to_owned()));
        let Attachment { pod: name, addresses, .. } = attachment;
        let starts = async {
            let sent = self.starting.send(StartingPod { name, addresses, outcome }).await;
            sent.is_ok() && told.wait_for(Result::is_ok).await.is_ok()
        };
        let starts = timeout(wait, starts).await == Ok(true);
        let took = begun.elapsed();
        self.metrics.waited.observe(took.as_secs_f64());
        debug!(%pod, starts, took_us = took.as_micros() as u64, "Pod waited for its network policies");
        if starts {
            return Ok(String::new());
        }
        self.metrics.refused.inc();
        let why = told.borrow().clone().err().unwrap_or_default();
        Err(format!("after {} ms {why}", took.as_millis()))
    }

    async fn change(&self, change: AttachmentChange) -> Answer {
        let sent = self.changes.send(change).await;
        sent.map(|()| String::new()).map_err(|_| "the agent is about to end".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{AttachmentId, ObjectName};
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
        Agent { calls: Calls { changes, starting, metrics }, changes: to_world, starting: to_firewall, registry }
    }

    fn attachment() -> Attachment {
        Attachment {
            id: AttachmentId { container: "c1".into(), interface: "eth0".into() },
            pod: ObjectName::new("shop", "web"),
            addresses: ["10.244.1.7".parse().expect("an address")].into(),
        }
    }

    fn add() -> BTreeMap<String, String> {
        Message::Add { attachment: attachment(), wait: Duration::from_secs(2) }.words()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_announced_and_starts_when_the_firewall_says_so() {
        let Agent { calls, mut changes, mut starting, registry } = agent();
        let answer = tokio::spawn(async move { calls.answer(&add()).await });
        assert_eq!(changes.recv().await, Some(AttachmentChange::Add(attachment())));
        let pod = starting.recv().await.expect("the firewall is asked");
        assert_eq!((&pod.name, &pod.addresses), (&attachment().pod, &attachment().addresses));
        drop(pod.outcome.send_replace(Err("its chain is missing".to_owned())));
        drop(pod.outcome.send_replace(Ok(())));
        drop(pod);
        assert_eq!(answer.await.expect("it ends"), Ok(String::new()));
        assert!(registry.text().contains("sluice_cni_refused_total 0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_in_force_in_time_is_put_off_with_what_was_missing_last() {
        let Agent { calls, changes: _changes, mut starting, registry } = agent();
        let answer = tokio::spawn(async move { calls.answer(&add()).await });
        let pod = starting.recv().await.expect("the firewall is asked");
        drop(pod.outcome.send_replace(Err("its chain is missing".to_owned())));
        let refused = answer.await.expect("it ends").expect_err("nobody says yes");
        assert!(refused.starts_with("after ") && refused.ends_with(" ms its chain is missing"), "{refused}");
        assert!(registry.text().contains("sluice_cni_refused_total 1"));
        assert!(pod.outcome.is_closed(), "nobody waits any more");
    }

    #[tokio::test]
    async fn what_ends_is_withdrawn_and_what_makes_no_sense_is_refused() {
        let Agent { calls, mut changes, .. } = agent();
        let id = attachment().id;
        assert_eq!(calls.answer(&Message::Delete(id.clone()).words()).await, Ok(String::new()));
        assert_eq!(changes.recv().await, Some(AttachmentChange::Delete(id.clone())));
        assert_eq!(calls.answer(&Message::Retain([id.clone()].into()).words()).await, Ok(String::new()));
        assert_eq!(changes.recv().await, Some(AttachmentChange::Retain([id].into())));
        assert!(calls.answer(&BTreeMap::new()).await.is_err());
    }
}
