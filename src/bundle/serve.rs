//! Answers what goes into a report of a problem.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use super::{CLUSTER, CONFIG, HOST, LOG, METRICS, PAGE, PREFLIGHT, PageHead};
use crate::k8s::{Kind, render};
use crate::model::{Authority, World};
use crate::observe::local::{Answer, Question};
use crate::observe::metrics::Registry;
use crate::observe::recent::Recent;

/// All paths that are answered here.
pub const PATHS: [&str; 6] = [CONFIG, HOST, LOG, METRICS, PREFLIGHT, CLUSTER];

/// A World of which nobody has asked for a page for so long is given up.
const KEPT: Duration = Duration::from_secs(30);

/// Sources of the answers.
#[derive(Clone)]
pub struct Sources {
    /// The configuration as it is meant.
    pub config: Arc<str>,
    pub registry: Registry,
    pub recent: Recent,
    pub world: watch::Receiver<World>,
    /// The kinds of objects that are read.
    pub kinds: Vec<Kind>,
    /// Looks at this host; it takes seconds where the API server is away.
    pub preflight: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Answers until nobody can ask any more.
pub async fn run(sources: Sources, mut questions: mpsc::Receiver<Question>) {
    let mut kept: Option<(World, Instant)> = None;
    loop {
        let question = tokio::select! {
            question = questions.recv() => question,
            () = tokio::time::sleep(KEPT), if kept.is_some() => {
                kept = kept.filter(|(_, asked)| asked.elapsed() < KEPT);
                continue;
            }
        };
        let Some(Question { path, about, answer, .. }) = question else { return };
        let answered = match path {
            CLUSTER => {
                let (page, world) = cluster(&sources, &about, kept.take().map(|(world, _)| world)).await;
                kept = world.map(|world| (world, Instant::now()));
                page
            }
            // It takes long, and others are answered meanwhile.
            PREFLIGHT => {
                let look = sources.preflight.clone();
                tokio::task::spawn_blocking(move || drop(answer.send(Ok(look()))));
                continue;
            }
            _ => {
                let sources = sources.clone();
                on_a_thread(move || text(&sources, path)).await
            }
        };
        // Who asked may have gone away.
        let _ = answer.send(answered);
    }
}

/// Runs what takes long beside the event loop.
async fn on_a_thread(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        warn!(%error, "Answering for a bundle failed");
        Err("the answer broke off".to_owned())
    })
}

fn text(sources: &Sources, path: &str) -> Answer {
    match path {
        CONFIG => Ok(format!("{}\n", sources.config)),
        HOST => {
            let world = sources.world.borrow().clone();
            Ok(format!("World {}, {:#?}\n{:#?}\n", world.number, world.authority, world.host))
        }
        LOG => Ok(sources.recent.text()),
        METRICS => Ok(sources.registry.text()),
        _ => Err("this program does not know the question".to_owned()),
    }
}

/// A page of the cluster, and the World that it is of.
async fn cluster(sources: &Sources, about: &BTreeMap<String, String>, kept: Option<World>) -> (Answer, Option<World>) {
    let number = |key: &str| about.get(key).and_then(|text| text.parse::<u64>().ok());
    let world = match number("world") {
        None => sources.world.borrow().clone(),
        Some(asked) => match kept {
            Some(world) if world.number == asked => world,
            other => {
                return (
                    Err("another World is asked about meanwhile; ask again from the first page".to_owned()),
                    other,
                );
            }
        },
    };
    let Some(kind) = about.get("kind").and_then(|name| Kind::from_name(name)) else {
        return (Err("the question names no kind of objects".to_owned()), Some(world));
    };
    let all = [world.authority.proxy, world.authority.firewall, world.authority.router];
    if all.iter().all(|authority| *authority == Authority::Nothing) {
        return (Err("nothing is known of the cluster yet".to_owned()), None);
    }
    let from = number("from").and_then(|from| usize::try_from(from).ok()).unwrap_or_default();
    let head = PageHead {
        world: world.number,
        node: world.host.node_name.to_string(),
        kinds: sources.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        complete: all.iter().all(|authority| matches!(authority, Authority::Complete | Authority::Nothing)),
        next: None,
    };
    let (of, kept) = (world.cluster.clone(), world);
    let answer = on_a_thread(move || {
        let page = render::page(&of, kind, from, PAGE);
        let head = serde_json::to_string(&PageHead { next: page.next, ..head }).map_err(|error| error.to_string())?;
        Ok(format!("{head}\n{}", page.text))
    });
    (answer.await, Some(kept))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::model::{Namespace, Node};
    use crate::observe::local::AnswerFormat;

    fn world(number: u64, namespaces: usize) -> World {
        let mut world = World { number, ..World::empty() };
        world.authority.firewall = Authority::Complete;
        for index in 0..namespaces {
            let labels = [("text", "x".repeat(1000))].into_iter().collect();
            world.cluster.namespaces.insert(format!("n{index:05}").into(), Namespace { labels, isolated: false });
        }
        world
    }

    struct Program {
        ask: mpsc::Sender<Question>,
        world: watch::Sender<World>,
    }

    fn program(first: World) -> Program {
        let ((ask, questions), (world_out, world)) = (mpsc::channel(1), watch::channel(first));
        let sources = Sources {
            config: "Config { .. }".into(),
            registry: Registry::new("0.1.0", "rust"),
            recent: Recent::default(),
            world,
            kinds: vec![Kind::Node, Kind::Namespace],
            preflight: Arc::new(|| "all is there\n".to_owned()),
        };
        tokio::spawn(run(sources, questions));
        Program { ask, world: world_out }
    }

    impl Program {
        async fn ask(&self, path: &'static str, about: &[(&str, String)]) -> Answer {
            let (answer, answered) = oneshot::channel();
            let about = about.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            let question = Question { path, about, form: AnswerFormat::Text, answer };
            self.ask.send(question).await.expect("it listens");
            answered.await.expect("it answers")
        }

        /// The head of a page and the number of objects in it.
        async fn page(&self, kind: &str, from: usize, world: Option<u64>) -> Result<(PageHead, usize), String> {
            let mut about = vec![("kind", kind.to_owned()), ("from", from.to_string())];
            about.extend(world.map(|world| ("world", world.to_string())));
            let text = self.ask(CLUSTER, &about).await?;
            let (head, objects) = text.split_once('\n').expect("a head");
            Ok((serde_json::from_str(head).expect("its own form"), objects.lines().count()))
        }
    }

    #[tokio::test]
    async fn pages_are_of_the_world_of_the_first_one_however_it_changes_meanwhile() {
        let program = program(world(7, 2500));
        let (head, first) = program.page("Namespace", 0, None).await.expect("the first page");
        assert_eq!((head.world, head.complete, head.kinds.len()), (7, true, 2));
        program.world.send_replace(world(8, 1));
        let (mut count, mut next, mut pages) = (first, head.next, 1);
        while let Some(from) = next {
            assert_eq!(from, count);
            let (head, objects) = program.page("Namespace", from, Some(7)).await.expect("of the same World");
            (count, next, pages) = (count + objects, head.next, pages + 1);
        }
        assert_eq!((count, pages), (2500, 3));
        let (head, nodes) = program.page("Node", 0, Some(7)).await.expect("another kind");
        assert_eq!((head.next, nodes), (None, 0));
        assert!(program.page("Namespace", 0, Some(6)).await.is_err(), "nobody has that World any more");
        let (head, count) = program.page("Namespace", 0, None).await.expect("who begins anew gets the newest");
        assert_eq!((head.world, count), (8, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_world_that_nobody_asks_about_any_more_is_given_up() {
        let mut first = world(7, 1);
        let node = Arc::new(Node::default());
        first.cluster.nodes.insert_shared("node-1".into(), node.clone());
        let program = program(first);
        program.page("Node", 0, None).await.expect("the first page");
        program.world.send_replace(world(8, 1));
        assert_eq!(Arc::strong_count(&node), 2, "it is kept for the next page");
        tokio::time::sleep(KEPT * 3).await;
        assert_eq!(Arc::strong_count(&node), 1);
    }

    #[tokio::test]
    async fn a_program_that_knows_nothing_says_so_and_answers_what_it_has() {
        let program = program(World::empty());
        assert_eq!(program.page("Node", 0, None).await, Err("nothing is known of the cluster yet".to_owned()));
        assert_eq!(program.page("Secret", 0, None).await, Err("the question names no kind of objects".to_owned()));
        assert_eq!(program.ask(PREFLIGHT, &[]).await.as_deref(), Ok("all is there\n"));
        assert_eq!(program.ask(CONFIG, &[]).await.as_deref(), Ok("Config { .. }\n"));
        let metrics = program.ask(METRICS, &[]).await.expect("metrics");
        assert!(metrics.contains("kube_router_build_info"), "{metrics}");
    }
}
