//! Answers `sluice status` on the local socket.

use std::time::Instant;

use tokio::sync::mpsc;
use tracing::warn;

use super::figures::{figures, metrics};
use super::{Component, Note, Status};
use crate::observe::health::Health;
use crate::observe::local::{Answer, Question};
use crate::observe::metrics::Registry;

/// The path of the question.
pub const STATUS: &str = "/status";

/// Facts that do not change while the program runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub node: String,
    pub version: String,
    pub packet_filter: String,
    /// Where objects of the cluster come from.
    pub cluster: String,
    pub started: Instant,
}

/// Answers until nobody can ask any more. The answer is always JSON.
pub async fn run(facts: Facts, health: Health, registry: Registry, mut questions: mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        let (facts, health, registry) = (facts.clone(), health.clone(), registry.clone());
        let work = tokio::task::spawn_blocking(move || answer(&facts, &health, &registry, Instant::now()));
        match work.await {
            // Who asked may have gone away.
            Ok(answer) => drop(question.answer.send(answer)),
            Err(error) => warn!(%error, "Answering for the status failed"),
        }
    }
}

fn answer(facts: &Facts, health: &Health, registry: &Registry, now: Instant) -> Answer {
    let series = registry.series(&metrics());
    let components = health.components_at(now).into_iter().map(|(name, reasons)| Component {
        component: name.to_owned(),
        reasons,
        figures: figures(name, &series),
    });
    let notes = health.notes().into_iter();
    let status = Status {
        node: facts.node.clone(),
        version: facts.version.clone(),
        up_seconds: now.saturating_duration_since(facts.started).as_secs(),
        packet_filter: facts.packet_filter.clone(),
        cluster: facts.cluster.clone(),
        ready: health.unready(now).is_empty(),
        components: components.collect(),
        notes: notes.map(|note| Note { component: note.component.to_owned(), text: note.text }).collect(),
    };
    serde_json::to_string_pretty(&status).map(|text| text + "\n").map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::IntGauge;

    use super::*;

    #[test]
    fn the_answer_has_what_health_and_metrics_say() {
        let (health, registry, now) = (Health::default(), Registry::new("0.1.0", "rust"), Instant::now());
        let gauge = IntGauge::new("kube_router_controller_ipvs_services", "Services").expect("a valid name");
        gauge.set(12);
        registry.register(Box::new(gauge)).expect("its name is free");
        let proxy = health.register("service proxy", Duration::from_secs(9), now);
        health.register("main thread", Duration::from_secs(9), now).ready(true);
        health.note("API server").set(vec!["Service not read".to_owned()]);
        let facts = Facts {
            node: "node-1".to_owned(),
            version: "0.1.0".to_owned(),
            packet_filter: "nftables".to_owned(),
            cluster: "the API server".to_owned(),
            started: now,
        };
        let asked = |now| {
            let text = answer(&facts, &health, &registry, now).expect("there is an answer");
            Status::parse(&text).expect("its own form")
        };
        let status = asked(now + Duration::from_secs(5));
        assert_eq!((status.ready, status.up_seconds), (false, 5));
        assert_eq!(status.components[0].reasons, ["has not finished its first round"]);
        assert_eq!(status.components[0].figures[0].to_string(), "IPVS services 12");
        assert_eq!(status.notes[0].text, "Service not read");
        proxy.ready(true);
        assert!(asked(now).ready);
    }
}
