//! The loop with an invented subsystem: for each Namespace a post, and on it a sign.
//!
//! Posts are told of when others change them, signs are not. A sign needs its post.

mod failures;
mod looked_at;
mod meanwhile;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::*;
use crate::kernel::monitor::Changes;
use crate::model::{EventClock, World};
use crate::observe::health::Health;
use crate::observe::local::AnswerFormat;
use crate::observe::metrics::Registry;
use crate::reconcile::{Account, Failure, Found, Glance, Growth, Phase, Sorted, Step, Target};
use crate::subsystem::kinds;

/// Objects of a kernel in memory, with the log of all steps.
type Happening = Box<dyn FnOnce()>;

#[derive(Default)]
struct Yard {
    posts: BTreeSet<Key>,
    signs: BTreeSet<Key>,
    /// The steps, in their order.
    acts: Vec<String>,
    /// Number of full reads of each kind.
    reads: BTreeMap<&'static str, usize>,
    /// How often it was asked to remove what earlier runs left elsewhere.
    abandoned_removed: u32,
    /// An earlier run with another packet filter left something.
    has_abandoned: bool,
    /// Parts done of the next removal, and the turn of each of all that were done.
    abandoned_parts: u32,
    parts_at: Vec<u32>,
    turns: u32,
    /// So many tries to remove it fail.
    abandoned_stays: u32,
    /// This kind cannot be changed.
    failing: Option<&'static str>,
    /// Time for which each glance sleeps.
    glance_sleeps: Duration,
    /// Commands of others, where they are counted.
    commands: Option<OthersCommands>,
    /// Looks after commands see nothing.
    is_blind: bool,
    /// An event for when the loop comes to this part of its turn.
    comes_meanwhile: Option<(&'static str, Happening)>,
}

type Shared = Rc<RefCell<Yard>>;

/// Of each removal of what earlier runs left.
const PARTS: u32 = 3;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key(String);

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of objects in a yard.
pub trait Kernel {
    type Posts: Target<Key = Key, Value = ()>;
    type Signs: Target<Key = Key, Value = ()>;
}

kinds! {
    /// Last seen state of the yard.
    pub struct Mirrors {
        posts: Posts after Ours,
        signs: Signs,
    }
    with {}
}

impl Kernel for Shared {
    type Posts = Kind;
    type Signs = Kind;
}

/// One kind in the yard, by its name.
pub struct Kind(Shared, &'static str);

impl Kind {
    fn objects<R>(&self, with: impl FnOnce(&mut BTreeSet<Key>) -> R) -> R {
        let mut yard = self.0.borrow_mut();
        with(if self.1 == "posts" { &mut yard.posts } else { &mut yard.signs })
    }
}

impl Target for Kind {
    type Key = Key;
    type Value = ();
    type Error = String;

    fn name(&self) -> &'static str {
        self.1
    }

    fn read(&mut self) -> Result<BTreeMap<Key, ()>, String> {
        *self.0.borrow_mut().reads.entry(self.1).or_default() += 1;
        Ok(self.objects(|objects| objects.iter().map(|key| (key.clone(), ())).collect()))
    }

    /// Sees that the number of signs has changed.
    fn glance(&mut self, seen: &impl Sorted<Key, ()>) -> Glance<Key> {
        std::thread::sleep(self.0.borrow().glance_sleeps);
        let is_alike = self.1 == "posts" || self.objects(|objects| objects.len()) == seen.count();
        if is_alike { Glance::Alike } else { Glance::Somewhere }
    }

    /// Sees which signs have come or gone.
    fn scan(&mut self, seen: &impl Sorted<Key, ()>) -> Result<Glance<Key>, String> {
        if self.1 == "posts" {
            return Ok(Glance::Alike);
        }
        let seen: BTreeSet<Key> = seen.entries().map(|(key, ())| key.clone()).collect();
        let differing: Vec<Key> = self.objects(|objects| objects.symmetric_difference(&seen).cloned().collect());
        Ok(if differing.is_empty() { Glance::Alike } else { Glance::These(differing) })
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Key, ()>]) -> Vec<Failure<String>> {
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let has_post = self.0.borrow().posts.contains(step.key);
            let needs = self.1 == "signs" && phase == Phase::Grow && !has_post;
            if self.0.borrow().failing == Some(self.1) || needs {
                failures.push(Failure { step: index, error: format!("{} of {} refused", self.1, step.key) });
                continue;
            }
            let verb = if phase == Phase::Grow { '+' } else { '-' };
            self.0.borrow_mut().acts.push(format!("{verb}{} {}", self.1, step.key));
            self.objects(|objects| match step.want {
                Some(()) => objects.insert(step.key.clone()),
                None => objects.remove(step.key),
            });
        }
        failures
    }
}

/// The subsystem: wants a post and a sign for each Namespace.
struct Signposts {
    mirrors: Mirrors<Shared>,
    wanted: BTreeMap<Key, ()>,
    audit_period: Duration,
    news: watch::Receiver<u32>,
    heard: u32,
}

impl Signposts {
    fn comes_to(&self, part: &str) {
        let due = self.mirrors.kernel.borrow_mut().comes_meanwhile.take_if(|(its, _)| *its == part);
        if let Some((_, happens)) = due {
            happens();
        }
    }
}

impl Subsystem for Signposts {
    type Mirrors = Mirrors<Shared>;
    type News = u32;
    type Round = ();

    const COUNTED_LOOKS: usize = 1;

    fn mirrors(&mut self) -> &mut Mirrors<Shared> {
        &mut self.mirrors
    }

    fn audit_period(&self) -> Duration {
        self.audit_period
    }

    async fn next(&mut self) -> u32 {
        if self.news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.news.borrow_and_update()
    }

    async fn hear(&mut self, news: u32, _at: Moment, _context: &Context<'_>) {
        self.heard = news;
    }

    fn deadline(&self) -> Option<Instant> {
        self.mirrors.reflections().into_iter().filter_map(|kind| kind.retry_at()).min()
    }

    async fn take_world(&mut self, world: &World, _at: Moment) -> Authority {
        self.comes_to("taking");
        let names = world.cluster.namespaces.iter().map(|(name, _)| (Key(name.to_string()), ()));
        let older = std::mem::replace(&mut self.wanted, names.collect());
        for key in older.into_keys().chain(self.wanted.keys().cloned()) {
            self.mirrors.posts.mark(key.clone());
            self.mirrors.signs.mark(key);
        }
        world.authority.proxy
    }

    async fn calculate(&mut self, _at: Moment) {
        self.comes_to("calculating");
    }

    fn round(&mut self, authority: Authority, at: Moment) {
        self.comes_to("programming");
        if authority == Authority::Nothing {
            return;
        }
        let Mirrors { posts, signs, .. } = &mut self.mirrors;
        posts.grow(&self.wanted, Growth::Full, at);
        signs.grow(&self.wanted, Growth::Full, at);
        if authority == Authority::Complete {
            signs.shrink(&self.wanted, at);
            posts.shrink(&self.wanted, at);
        }
    }

    fn has_abandoned(&mut self) -> bool {
        self.mirrors.kernel.borrow().has_abandoned
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        let mut yard = self.mirrors.kernel.borrow_mut();
        yard.abandoned_parts = (yard.abandoned_parts + 1) % PARTS;
        let turn = yard.turns;
        yard.parts_at.push(turn);
        if yard.abandoned_parts > 0 {
            return None;
        }
        yard.abandoned_removed += 1;
        Some(if yard.abandoned_removed <= yard.abandoned_stays {
            vec!["a fence in use".to_owned()]
        } else {
            Vec::new()
        })
    }

    fn count(&mut self, (): (), _steps: u64, _times: &Times) {}

    fn glance(&mut self, counted_rest: bool, at: Moment) -> Vec<Found> {
        if counted_rest { Vec::new() } else { self.mirrors.glance_at_all(at) }
    }

    fn others_commands(&mut self, _now: Instant) -> OthersCommands {
        self.mirrors.kernel.borrow().commands.unwrap_or(OthersCommands::NotCounted)
    }

    fn look_after_commands(&mut self, _begins: bool, at: Moment) -> LookedAt {
        let missed = self.mirrors.kernel.borrow().is_blind;
        let found = if missed { Vec::new() } else { self.mirrors.scan_all(at) };
        LookedAt { found, finished: true, missed }
    }

    fn troubles(&mut self, _account: &mut Account, _standing: &Standing) -> Vec<String> {
        Vec::new()
    }

    fn log_first_sync(&mut self, _sync: &FirstSync) {}

    fn publish(&mut self, standing: &Standing) -> bool {
        self.comes_to("telling");
        self.mirrors.kernel.borrow_mut().turns += 1;
        standing.synced
    }
}

/// A yard and the channels of the loops that work on it.
struct Scene {
    yard: Shared,
    world: watch::Sender<World>,
    changes: watch::Sender<Changes>,
    news: watch::Sender<u32>,
    stop: watch::Sender<bool>,
    health: Health,
    audit_period: Duration,
    ask: RefCell<mpsc::Sender<Question>>,
}

/// For what takes no time.
const BOUND: Duration = Duration::from_secs(10);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

impl Scene {
    fn new() -> Scene {
        Scene {
            yard: Shared::default(),
            world: watch::channel(World::empty()).0,
            changes: watch::channel(Changes::default()).0,
            news: watch::channel(0).0,
            stop: watch::channel(false).0,
            health: Health::default(),
            audit_period: NEVER,
            ask: RefCell::new(mpsc::channel(1).0),
        }
    }

    fn subsystem(&self) -> Signposts {
        let kind = |name| Kind(self.yard.clone(), name);
        let targets = Targets { kernel: self.yard.clone(), posts: kind("posts"), signs: kind("signs") };
        let (wanted, news) = (BTreeMap::new(), self.news.subscribe());
        Signposts { mirrors: Mirrors::of(targets), wanted, audit_period: self.audit_period, news, heard: 0 }
    }

    fn inputs(&self) -> Inputs {
        let (ask, audits) = mpsc::channel(1);
        self.ask.replace(ask);
        Inputs {
            world: self.world.subscribe(),
            clock: Arc::new(EventClock::new(Instant::now())),
            disturbances: self.changes.subscribe(),
            pulse: self.health.register("signposts", NEVER, Instant::now()),
            account: Account::register(&Registry::new("test", "test"), "test").expect("names are registered once"),
            audits,
        }
    }

    /// The answer to a question of a user.
    async fn asked(&self, words: &[(&str, &str)]) -> Result<Value, String> {
        let about = words.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (answer, answered) = oneshot::channel();
        let question = Question { path: "/audit", about, form: AnswerFormat::Json, answer };
        let ask = self.ask.borrow().clone();
        ask.send(question).await.expect("the loop runs");
        answered.await.expect("it is answered").map(|text| serde_json::from_str(&text).expect("JSON"))
    }

    /// The differences, as `KIND OBJECT STATE`.
    async fn differing(&self) -> String {
        let answer = self.asked(&[]).await.expect("something is known");
        let kinds = answer["kinds"].as_array().expect("a list").iter();
        let of_kind = |kind: &Value| {
            let differences = kind["differences"].as_array().expect("a list").iter();
            let words = |it: &Value| {
                [&kind["kind"], &it["object"], &it["state"]].map(|word| word.as_str().expect("a word")).join(" ")
            };
            differences.map(words).collect::<Vec<_>>()
        };
        kinds.flat_map(of_kind).collect::<Vec<_>>().join(", ")
    }

    /// Runs a loop for as long as the test does. Returns the subsystem.
    fn run(&self, test: impl AsyncFnOnce(&Scene)) -> Signposts {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let task = tokio::task::spawn_local(run(self.subsystem(), self.inputs(), self.stop.subscribe()));
            test(self).await;
            // Not again where the test has done so: a second time would hide that the first one was missed.
            self.stop.send_if_modified(|stop| !std::mem::replace(stop, true));
            let ended = tokio::time::timeout(BOUND, task).await.expect("the loop ends when it is told to");
            ended.expect("without a panic")
        })
    }

    /// Publishes a cluster of these Namespaces.
    fn publish(&self, authority: Authority, names: &[&str]) {
        self.world.send_replace(cluster(authority, names));
    }

    async fn until(&self, what: &str, holds: impl Fn(&Yard) -> bool) {
        for _ in 0..4000 {
            if holds(&self.yard.borrow()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}; acts {:?}", self.yard.borrow().acts);
    }

    async fn until_ready(&self) {
        for _ in 0..4000 {
            if self.health.unready(Instant::now()).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never ready: {:?}", self.health.unready(Instant::now()));
    }

    fn take_acts(&self) -> String {
        std::mem::take(&mut self.yard.borrow_mut().acts).join(", ")
    }
}

/// A cluster of these Namespaces.
fn cluster(authority: Authority, names: &[&str]) -> World {
    let mut world = World::empty();
    world.authority.proxy = authority;
    for name in names {
        world.cluster.namespaces.insert((*name).into(), Default::default());
    }
    world
}

impl Yard {
    fn has(&self, posts: &[&str], signs: &[&str]) -> bool {
        let are =
            |held: &BTreeSet<Key>, names: &[&str]| held.iter().map(|key| key.0.as_str()).eq(names.iter().copied());
        are(&self.posts, posts) && are(&self.signs, signs)
    }
}

#[test]
fn each_world_reaches_the_kernel_growing_forward_and_shrinking_backward() {
    Scene::new().run(async |scene| {
        scene.publish(Authority::Partial, &["a"]);
        scene.until("all of a", |yard| yard.has(&["a"], &["a"])).await;
        scene.publish(Authority::Partial, &["b"]);
        scene.until("b beside a", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        assert_eq!(scene.take_acts(), "+posts a, +signs a, +posts b, +signs b");
        scene.publish(Authority::Complete, &["b"]);
        scene.until("b alone", |yard| yard.has(&["b"], &["b"])).await;
        scene.until("what earlier runs left is removed", |yard| yard.abandoned_removed == 1).await;
        assert_eq!(scene.take_acts(), "-signs a, -posts a");
    });
}

#[test]
fn of_changes_that_come_faster_than_they_can_be_done_the_newest_is_done() {
    Scene::new().run(async |scene| {
        scene.publish(Authority::Complete, &["a"]);
        scene.until("all of a", |yard| yard.has(&["a"], &["a"])).await;
        scene.take_acts();
        let names: Vec<String> = (0..200).map(|number| format!("passing-{number}")).collect();
        names.iter().for_each(|name| scene.publish(Authority::Complete, &["a", name]));
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until("a and b", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        assert_eq!(scene.take_acts(), "+posts b, +signs b");
    });
}

#[test]
fn nothing_is_done_before_anything_is_known() {
    Scene::new().run(async |scene| {
        scene.yard.borrow_mut().signs.insert(Key("a".to_owned()));
        scene.publish(Authority::Nothing, &["b"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(scene.yard.borrow().has(&[], &["a"]));
        assert!(!scene.health.unready(Instant::now()).is_empty());
    });
}

#[test]
fn news_of_its_own_wake_a_subsystem() {
    let subsystem = Scene::new().run(async |scene| {
        scene.publish(Authority::Complete, &[]);
        scene.until_ready().await;
        scene.news.send_replace(7);
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    assert_eq!(subsystem.heard, 7);
}
