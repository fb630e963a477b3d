//! Answers `sluice status` on the local socket.

use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::figures::{figures, metrics};
use super::{COMPLETE, Component, Known, Neighbour, Note, Status, Warnings};
use crate::model::{Authority, World};
use crate::observe::health::Health;
use crate::observe::local::{Answer, Question};
use crate::observe::metrics::{Registry, Series};
use crate::observe::recent::Recent;

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
    /// The subsystems that run, by their names in health.
    pub subsystems: Vec<Subsystem>,
}

/// A subsystem that runs.
#[derive(Clone, Copy, Debug)]
pub struct Subsystem {
    pub name: &'static str,
    /// Its authority in a World.
    pub authority: fn(&World) -> Authority,
}

/// Sources of what changes while the program runs.
#[derive(Clone)]
pub struct Sources {
    pub health: Health,
    pub registry: Registry,
    pub world: watch::Receiver<World>,
    /// Since when objects of the cluster cannot be read.
    pub unread_since: watch::Receiver<Option<Instant>>,
    pub recent: Recent,
}

/// A gauge with a series for each neighbour.
const NEIGHBOURS: &str = "kube_router_bgp_peer_info";

/// Answers until nobody can ask any more. The answer is always JSON.
pub async fn run(facts: Facts, sources: Sources, mut questions: mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        let (facts, sources) = (facts.clone(), sources.clone());
        let work = tokio::task::spawn_blocking(move || answer(&facts, &sources, Instant::now()));
        match work.await {
            // Who asked may have gone away.
            Ok(answer) => drop(question.answer.send(answer)),
            Err(error) => warn!(%error, "Answering for the status failed"),
        }
    }
}

fn answer(facts: &Facts, sources: &Sources, now: Instant) -> Answer {
    let Sources { health, registry, world, unread_since, recent } = sources;
    let series = registry.series(&metrics());
    let components = health.components_at(now).into_iter().map(|state| Component {
        figures: figures(state.name, &series),
        component: state.name.to_owned(),
        reasons: state.reasons,
        synced_seconds: state.synced.map(|since| since.as_secs()),
    });
    let known = {
        let world = world.borrow();
        facts.subsystems.iter().map(|subsystem| known(subsystem, &world)).collect()
    };
    let unread_since = *unread_since.borrow();
    let warnings = recent.warnings();
    let notes = health.notes().into_iter();
    let status = Status {
        node: facts.node.clone(),
        version: facts.version.clone(),
        up_seconds: now.saturating_duration_since(facts.started).as_secs(),
        packet_filter: facts.packet_filter.clone(),
        cluster: facts.cluster.clone(),
        known,
        unread_seconds: unread_since.map(|since| now.saturating_duration_since(since).as_secs()),
        ready: health.unready(now).is_empty(),
        components: components.collect(),
        neighbours: neighbours(&series),
        notes: notes.map(|note| Note { component: note.component.to_owned(), text: note.text }).collect(),
        warnings: Warnings {
            count: warnings.count,
            latest: warnings.latest.iter().map(|line| line.to_string()).collect(),
        },
    };
    serde_json::to_string_pretty(&status).map(|text| text + "\n").map_err(|error| error.to_string())
}

fn known(subsystem: &Subsystem, world: &World) -> Known {
    let cluster = match (subsystem.authority)(world) {
        Authority::Complete => COMPLETE,
        Authority::Partial => "partial",
        Authority::Remembered => "remembered",
        Authority::Nothing => "nothing",
    };
    Known { component: subsystem.name.to_owned(), cluster: cluster.to_owned() }
}

/// The neighbours of these series, by address.
fn neighbours(series: &[Series]) -> Vec<Neighbour> {
    let of = |series: &Series| {
        let label = |name: &str| series.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.clone());
        let asn = label("asn")?.parse().ok()?;
        Some(Neighbour { address: label("address")?, asn, kind: label("type")?, state: label("state")? })
    };
    let mut all: Vec<Neighbour> = series.iter().filter(|series| series.family == NEIGHBOURS).filter_map(of).collect();
    // Those behind an interface, whose names are no addresses, come last.
    let order = |of: &Neighbour| (of.address.parse::<IpAddr>().map_err(|_| of.address.clone()), of.asn);
    all.sort_by_cached_key(order);
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{IntGauge, IntGaugeVec, Opts};

    use super::*;

    #[test]
    fn the_answer_has_what_health_and_metrics_say() {
        let (health, registry, now) = (Health::default(), Registry::new("0.1.0", "rust"), Instant::now());
        let gauge = IntGauge::new("kube_router_controller_ipvs_services", "Services").expect("a valid name");
        gauge.set(12);
        registry.register(Box::new(gauge)).expect("its name is free");
        let options = Opts::new("kube_router_bgp_peer_info", "Neighbours");
        let peers = IntGaugeVec::new(options, &["address", "asn", "state", "type"]).expect("a valid name");
        for (address, state) in
            [("fe80::1%eth1", "idle"), ("2001:db8::3", "active"), ("192.0.2.10", "idle"), ("192.0.2.2", "established")]
        {
            peers.with_label_values(&[address, "64512", state, "external"]).set(1);
        }
        registry.register(Box::new(peers)).expect("its name is free");
        let proxy = health.register("service proxy", Duration::from_secs(9), now);
        health.register("main thread", Duration::from_secs(9), now).ready(true);
        health.note("API server").set(vec!["Service not read".to_owned()]);
        let facts = Facts {
            node: "node-1".to_owned(),
            version: "0.1.0".to_owned(),
            packet_filter: "nftables".to_owned(),
            cluster: "the API server".to_owned(),
            started: now,
            subsystems: vec![Subsystem { name: "service proxy", authority: |world| world.authority.proxy }],
        };
        let (world_out, world) = watch::channel(World::empty());
        let (unread, unread_since) = watch::channel(None);
        let sources = Sources { health: health.clone(), registry, world, unread_since, recent: Recent::default() };
        let asked = |now| {
            let text = answer(&facts, &sources, now).expect("there is an answer");
            Status::parse(&text).expect("its own form")
        };
        let status = asked(now + Duration::from_secs(5));
        assert_eq!((status.ready, status.up_seconds), (false, 5));
        assert_eq!(status.components[0].reasons, ["has not finished its first round"]);
        assert_eq!(status.components[0].figures[0].to_string(), "IPVS services 12");
        assert_eq!(status.notes[0].text, "Service not read");
        assert_eq!((status.known[0].cluster.as_str(), status.unread_seconds), ("nothing", None));
        assert_eq!(status.components[0].synced_seconds, None);
        let states: Vec<(&str, &str)> =
            status.neighbours.iter().map(|it| (it.address.as_str(), it.state.as_str())).collect();
        let expected =
            [("192.0.2.2", "established"), ("192.0.2.10", "idle"), ("2001:db8::3", "active"), ("fe80::1%eth1", "idle")];
        assert_eq!(states, expected);
        proxy.ready(true);
        proxy.synced(now);
        world_out.send_modify(|world| world.authority.proxy = Authority::Complete);
        unread.send_replace(Some(now));
        let status = asked(now + Duration::from_secs(7));
        assert_eq!((status.ready, status.components[0].synced_seconds), (true, Some(7)));
        assert_eq!((status.known[0].cluster.as_str(), status.unread_seconds), ("complete", Some(7)));
    }
}
