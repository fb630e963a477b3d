//! Which structure the World's tables should have: what a change of one endpoint costs at 10,000 Services
//! with 10 endpoints each, and what a whole copy weighs.
//!
//! `cargo bench --bench world` prints a table for `docs/benchmarks.md`. A change is: publish a view of all
//! rows, change one row, and find out in the consumer which row it was. `imbl` is a dependency of this
//! comparison only.

#![expect(unsafe_code, reason = "an allocator that counts bytes cannot be written without")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement may end with a crash")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Instant;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use sluice::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ObjectName, Shared, Table};
use sluice::net::{Family, Protocol};

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
const CHANGES: usize = 20_000;

fn name(index: usize) -> ObjectName {
    ObjectName::new(&format!("namespace-{}", index % 50), &format!("service-{index:05}"))
}

fn endpoints(index: usize, version: usize, nodes: &[Shared<str>]) -> Endpoints {
    let endpoint = |number: usize| Endpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + ((index * ENDPOINTS + number + version) % 65_000) as u32)),
        node: Some(nodes[(index + number) % nodes.len()].clone()),
        conditions: Conditions::READY,
        hints: None,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
    };
    Endpoints { slices: [(format!("service-{index:05}-abcde").into(), Arc::new(slice))].into() }
}

/// One way to hold the rows: what publishing, changing one row and finding it again costs.
trait Way {
    const NAME: &'static str;
    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>);
    /// Publishes, changes one row, and counts the rows that the consumer finds changed.
    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize;
}

#[derive(Default)]
struct Ours(Table<ObjectName, Endpoints>);

impl Way for Ours {
    const NAME: &'static str = "sorted blocks (model::Table)";

    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>) {
        self.0.insert_shared(key, value);
    }

    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize {
        let published = self.0.clone();
        self.0.insert_shared(key, value);
        self.0.changes_since(&published).count()
    }
}

#[derive(Default)]
struct Imbl(OrdMap<ObjectName, Arc<Endpoints>>);

impl Way for Imbl {
    const NAME: &'static str = "imbl::OrdMap";

    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>) {
        self.0.insert(key, value);
    }

    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize {
        let published = self.0.clone();
        self.0.insert(key, value);
        published.diff(&self.0).filter(|item| matches!(item, DiffItem::Update { .. })).count()
    }
}

#[derive(Default)]
struct Copied(BTreeMap<ObjectName, Arc<Endpoints>>);

impl Way for Copied {
    const NAME: &'static str = "BTreeMap, copied and compared whole";

    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>) {
        self.0.insert(key, value);
    }

    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize {
        let published = self.0.clone();
        self.0.insert(key, value);
        published.iter().zip(&self.0).filter(|(old, new)| !Arc::ptr_eq(old.1, new.1)).count()
    }
}

/// No view at all: the consumer reads the rows named in a log, in the one map that there is.
#[derive(Default)]
struct Logged {
    rows: HashMap<ObjectName, Arc<Endpoints>>,
    log: VecDeque<(u64, ObjectName)>,
    version: u64,
}

impl Way for Logged {
    const NAME: &'static str = "HashMap with a log of dirty keys";

    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>) {
        self.rows.insert(key, value);
    }

    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize {
        let consumed = self.version;
        self.version += 1;
        self.rows.insert(key.clone(), value);
        self.log.push_back((self.version, key));
        if self.log.len() > 1024 {
            self.log.pop_front();
        }
        let dirty = self.log.iter().rev().take_while(|(version, _)| *version > consumed);
        dirty.filter(|(_, key)| self.rows.contains_key(key)).count()
    }
}

type Shard = HashMap<ObjectName, Arc<Endpoints>>;

/// An array of maps by hash, each shared until it changes.
struct Sharded(Vec<Arc<Shard>>);

impl Default for Sharded {
    fn default() -> Sharded {
        Sharded((0..256).map(|_| Arc::default()).collect())
    }
}

impl Sharded {
    fn shard(&mut self, key: &ObjectName) -> &mut Shard {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let count = self.0.len() as u64;
        Arc::make_mut(&mut self.0[(hash % count) as usize])
    }
}

impl Way for Sharded {
    const NAME: &'static str = "256 shards by hash";

    fn insert(&mut self, key: ObjectName, value: Arc<Endpoints>) {
        self.shard(&key).insert(key, value);
    }

    fn change(&mut self, key: ObjectName, value: Arc<Endpoints>) -> usize {
        let published = self.0.clone();
        self.shard(&key).insert(key, value);
        let differing = published.iter().zip(&self.0).filter(|(old, new)| !Arc::ptr_eq(old, new));
        differing.map(|(old, new)| new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).count()).sum()
    }
}

fn measure<W: Way + Default>() {
    let nodes: Vec<Shared<str>> = (0..500).map(|index| format!("node-{index:03}").as_str().into()).collect();
    let values: Vec<Arc<Endpoints>> = (0..SERVICES).map(|index| Arc::new(endpoints(index, 0, &nodes))).collect();
    let before = LIVE.load(Ordering::Relaxed);
    let began = Instant::now();
    let mut way = W::default();
    for (index, value) in values.iter().enumerate() {
        // In an order that is neither sorted nor random twice.
        way.insert(name(index * 7919 % SERVICES), value.clone());
    }
    let filled = began.elapsed();
    let weight = LIVE.load(Ordering::Relaxed) - before;
    let mut times: Vec<u64> = Vec::with_capacity(CHANGES);
    for round in 0..CHANGES {
        let index = round * 6007 % SERVICES;
        let (key, value) = (name(index), Arc::new(endpoints(index, round + 1, &nodes)));
        let began = Instant::now();
        let found = black_box(way.change(key, value));
        times.push(began.elapsed().as_nanos() as u64);
        assert_eq!(found, 1, "{}", W::NAME);
    }
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 1000] as f64 / 1000.0;
    println!(
        "| {} | {:.1} | {:.1} | {:.1} | {:.2} |",
        W::NAME,
        at(500),
        at(990),
        filled.as_micros() as f64 / SERVICES as f64,
        weight as f64 / f64::from(1 << 20)
    );
}

fn main() {
    let nodes: Vec<Shared<str>> = (0..500).map(|index| format!("node-{index:03}").as_str().into()).collect();
    let before = LIVE.load(Ordering::Relaxed);
    let values: Vec<Arc<Endpoints>> = (0..SERVICES).map(|index| Arc::new(endpoints(index, 0, &nodes))).collect();
    let weight = (LIVE.load(Ordering::Relaxed) - before) as f64 / f64::from(1 << 20);
    drop(values);
    println!(
        "{SERVICES} Services x {ENDPOINTS} endpoints; the rows themselves weigh {weight:.2} MiB in every structure"
    );
    println!("| structure | change p50, us | p99, us | filling, us a row | its own weight, MiB |");
    println!("|---|---|---|---|---|");
    measure::<Ours>();
    measure::<Imbl>();
    measure::<Sharded>();
    measure::<Logged>();
    measure::<Copied>();
}
