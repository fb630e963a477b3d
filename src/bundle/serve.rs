//! Answers what goes into a report of a problem.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use super::{CLUSTER, CONFIG, HOST, LOG, METRICS, PAGE, PREFLIGHT, PageHead};
use crate::k8s::{Kind, render};
use crate::model::{Authority, UnreadPolicies, World};
use crate::observe::local::{Answer, Question};
use crate::observe::metrics::Registry;
use crate::observe::recent::Recent;

/// All paths that are answered here.
pub const PATHS: [&str; 6] = [CONFIG, HOST, LOG, METRICS, PREFLIGHT, CLUSTER];

/// A World of which nobody has asked for a page for so long is given up.
const KEPT: Duration = Duration::from_secs(30);
/// So many Worlds are kept, so that a bundle does not end one that is being made.
const MOST_KEPT: usize = 2;

/// Sources of the answers.
#[derive(Clone)]
pub struct Sources {
    /// The configuration as it is meant.
    pub config: Arc<str>,
    pub registry: Registry,
    pub recent: Recent,
    pub world: watch::Receiver<World>,
    /// The kinds of objects that are read, all of each.
    pub kinds: Vec<Kind>,
    /// Looks at this host; it takes seconds where the API server is away.
    pub preflight: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Answers until nobody can ask any more.
pub async fn run(sources: Sources, mut questions: mpsc::Receiver<Question>) {
    let mut kept: Vec<(World, Instant)> = Vec::new();
    loop {
        let question = tokio::select! {
            question = questions.recv() => question,
            () = tokio::time::sleep(KEPT), if !kept.is_empty() => {
                kept.retain(|(_, asked)| asked.elapsed() < KEPT);
                continue;
            }
        };
        kept.retain(|(_, asked)| asked.elapsed() < KEPT);
        let Some(Question { path, about, answer, .. }) = question else { return };
        let answered = match path {
            CLUSTER => {
                let (page, world) = cluster(&sources, &about, &kept).await;
                if let Some(world) = world {
                    kept.retain(|(other, _)| other.number != world.number);
                    // The one that was asked for last stays.
                    kept.drain(..(kept.len() + 1).saturating_sub(MOST_KEPT));
                    kept.push((world, Instant::now()));
                }
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
async fn cluster(
    sources: &Sources,
    about: &BTreeMap<String, String>,
    kept: &[(World, Instant)],
) -> (Answer, Option<World>) {
    let number = |key: &str| about.get(key).and_then(|text| text.parse::<u64>().ok());
    let world = match number("world") {
        None => sources.world.borrow().clone(),
        Some(asked) => match kept.iter().find(|(world, _)| world.number == asked) {
            Some((world, _)) => world.clone(),
            None => {
                let why = format!(
                    "this World is not kept any more, because nobody asked about it for {} s or others asked about newer ones; ask again from the first page",
                    KEPT.as_secs()
                );
                return (Err(why), None);
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
        kinds: known(&world, &sources.kinds).map(|kind| kind.name().to_owned()).collect(),
        complete: is_complete(&world, &sources.kinds),
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

/// Returns the kinds of which something is known: ClusterNetworkPolicies may never have been listed, and nobody waits for them.
fn known<'a>(world: &World, kinds: &'a [Kind]) -> impl Iterator<Item = &'a Kind> {
    let lacks_policies = world.unread == UnreadPolicies::Any;
    kinds.iter().filter(move |kind| !(lacks_policies && **kind == Kind::ClusterNetworkPolicy))
}

/// Returns whether everything of these kinds is known: of each subsystem that one of them is read for. One that runs and knows nothing yet is not one
/// that does not run.
fn is_complete(world: &World, kinds: &[Kind]) -> bool {
    let subsystem = |kind: &Kind| match kind {
        Kind::Service | Kind::EndpointSlice => Some(world.authority.proxy),
        Kind::Pod | Kind::Namespace | Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => {
            Some(world.authority.firewall)
        }
        Kind::Node => Some(world.authority.router),
        // Several need them, and they make none.
        Kind::ServiceCidr => None,
    };
    let mut needed = kinds.iter().filter_map(subsystem);
    world.unread == UnreadPolicies::None && needed.all(|authority| authority == Authority::Complete)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::model::{Namespace, Node};
    use crate::observe::local::AnswerFormat;

    fn world(number: u64, namespaces: usize) -> World {
        let mut world = World { number, ..World::empty() };
        (world.authority.firewall, world.authority.router) = (Authority::Complete, Authority::Complete);
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

    #[tokio::test]
    async fn two_bundles_at_a_time_have_pages_of_a_world_each() {
        let program = program(world(7, 2500));
        let (first, _) = program.page("Namespace", 0, None).await.expect("the first page");
        program.world.send_replace(world(8, 2500));
        let (second, _) = program.page("Namespace", 0, None).await.expect("the first page of another bundle");
        assert_eq!((first.world, second.world), (7, 8));
        for _ in 0..2 {
            for number in [7, 8] {
                let next = program.page("Namespace", first.next.expect("there are more"), Some(number)).await;
                assert_eq!(next.map(|(head, _)| head.world), Ok(number));
            }
        }
        program.world.send_replace(world(9, 1));
        program.page("Namespace", 0, None).await.expect("a third one");
        assert!(program.page("Namespace", 0, Some(7)).await.is_err(), "it was asked for longest ago");
        assert!(program.page("Namespace", 0, Some(8)).await.is_ok());
    }

    #[test]
    fn a_cluster_of_which_a_subsystem_that_runs_does_not_know_all_is_not_complete() {
        let kinds = [Kind::Service, Kind::Node, Kind::NetworkPolicy, Kind::ClusterNetworkPolicy, Kind::ServiceCidr];
        let told = |change: &dyn Fn(&mut World), kinds: &[Kind]| {
            let mut world = world(7, 1);
            world.authority.proxy = Authority::Complete;
            change(&mut world);
            (is_complete(&world, kinds), known(&world, kinds).count())
        };
        assert_eq!(told(&|_| {}, &kinds), (true, 5));
        for less in [Authority::Nothing, Authority::Remembered, Authority::Partial] {
            assert_eq!(told(&|world| world.authority.firewall = less, &kinds), (false, 5), "{less:?}");
            assert_eq!(told(&|world| world.authority.proxy = less, &kinds), (false, 5), "{less:?}");
            assert_eq!(told(&|world| world.authority.router = less, &kinds), (false, 5), "{less:?}");
            // Who does not run needs to know nothing.
            assert_eq!(told(&|world| world.authority.firewall = less, &[Kind::Service, Kind::Node]), (true, 2));
        }
        assert_eq!(told(&|world| world.unread = UnreadPolicies::Any, &kinds), (false, 4));
        let named = UnreadPolicies::Named(Arc::new(["guard".into()].into()));
        assert_eq!(told(&|world| world.unread = named.clone(), &kinds), (false, 5));
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
        let why = program.page("Node", 0, Some(7)).await.expect_err("it is not kept");
        assert!(why.contains("nobody asked about it for 30 s"), "{why}");
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
