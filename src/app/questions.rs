//! Who answers users of this host about the program as a whole: how the node stands, and what a report of a problem needs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::bundle::serve as bundle;
use crate::config::{Config, Source, VERSION};
use crate::k8s::Wanted;
use crate::model::World;
use crate::observe::local::{self, Answerers};
use crate::observe::recent::Recent;
use crate::preflight;
use crate::status::serve::{self as status, Facts, Sources, Subsystem};

use super::subsystems::{Common, FIREWALL, PROXY, ROUTER};
use super::wanted;

/// Connections at a time on the socket for users' questions.
const QUESTIONS: usize = 8;
/// Time that the API server has for what preflight asks of it in a bundle: the connection of whoever asks ends after 30 s, and this host is read before.
const ANSWERS: Duration = Duration::from_secs(15);

/// The answers that do not depend on what runs.
pub struct QuestionContext {
    facts: Facts,
    config: Arc<Config>,
    recent: Recent,
    /// Since when objects of the cluster cannot be read.
    unread_since: watch::Receiver<Option<Instant>>,
}

impl QuestionContext {
    pub fn new(
        config: &Config,
        started: Instant,
        recent: Recent,
        unread_since: watch::Receiver<Option<Instant>>,
    ) -> QuestionContext {
        QuestionContext { facts: facts(config, started), config: Arc::new(config.clone()), recent, unread_since }
    }

    /// Answers from now on.
    pub fn answer(self, common: &Common, answerers: &mut Answerers) {
        let QuestionContext { facts, config, recent, unread_since } = self;
        let (ask, questions) = mpsc::channel(1);
        answerers.extend(bundle::PATHS.map(|path| (path, ask.clone())));
        tokio::spawn(bundle::run(bundle_of(config, common, recent.clone()), questions));
        let (ask, questions) = mpsc::channel(1);
        answerers.insert(status::STATUS, ask);
        let sources = Sources {
            health: common.health.clone(),
            registry: common.registry.clone(),
            world: common.world.clone(),
            unread_since,
            recent,
        };
        tokio::spawn(status::run(facts, sources, questions));
    }
}

/// Returns what a bundle is made of.
fn bundle_of(config: Arc<Config>, common: &Common, recent: Recent) -> bundle::Sources {
    // This host's own Node is not all Nodes.
    let wanted = wanted(&config).into_iter().filter(|wanted| !matches!(wanted, Wanted::Node(_)));
    let mut kinds: Vec<_> = wanted.map(|wanted| wanted.kind()).collect();
    kinds.sort();
    kinds.dedup();
    bundle::Sources {
        config: config.told().into(),
        registry: common.registry.clone(),
        recent,
        world: common.world.clone(),
        kinds,
        preflight: Arc::new(move || preflight::report(&config, ANSWERS).json()),
    }
}

/// Returns what `sluice status` says of the configuration.
fn facts(config: &Config, started: Instant) -> Facts {
    let cluster = match &config.source {
        Source::Api { .. } => "the API server".to_owned(),
        Source::Manifests(directory) => format!("manifests in {}", directory.display()),
    };
    let subsystem = |name, runs: bool, authority: fn(&World) -> _| runs.then_some(Subsystem { name, authority });
    let subsystems = [
        subsystem(PROXY.health, config.proxy.is_some(), |world| world.authority.proxy),
        subsystem(FIREWALL.health, config.firewall.is_some(), |world| world.authority.firewall),
        subsystem(ROUTER.health, config.router.is_some(), |world| world.authority.router),
    ];
    Facts {
        node: config.node_name.clone(),
        version: VERSION.to_owned(),
        packet_filter: config.packet_filter().to_owned(),
        cluster,
        started,
        subsystems: subsystems.into_iter().flatten().collect(),
    }
}

/// Opens the socket for users' questions. Nothing listens that nobody could answer on.
pub fn answer_questions(socket: Option<&Path>, answerers: Answerers) {
    if let Some(path) = socket.filter(|_| !answerers.is_empty()) {
        tokio::spawn(local::run(path.to_owned(), answerers, QUESTIONS));
    }
}
