//! Elements of a set of addresses.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use sluice::kernel::Name;
use sluice::kernel::ipset::{ElementKey, Elements, Entry, Ipset, SetKind, SetName, SetSpec};
use sluice::net::Family;
use sluice::reconcile::{Phase, Step, Target};
use tempfile::TempDir;

use crate::namespace::{self, run};
use crate::race::{Way, fed, race, timed};

const SET: &str = "bench";
const MANY: u32 = 50_000;
const FEW: u32 = 10;
const SPEC: SetSpec = SetSpec { kind: SetKind::HashIp, family: Family::V4, max_elements: 65_536, timeout: true };

pub fn many() -> Result<(), String> {
    namespace::in_new(|| {
        let given = Given::new(MANY);
        let steps = given.steps();
        let (mut alone, mut together) = (open(), open());
        let mut ways = [
            Way::new("kernel::ipset, one element per message, waiting for each", || {
                let took = timed(|| {
                    for step in &steps {
                        assert!(alone.apply(Phase::Grow, std::slice::from_ref(step)).is_empty(), "the kernel takes it");
                    }
                });
                check(MANY);
                took
            }),
            Way::new("ipset restore", || {
                let took = fed("ipset", &["restore"], &given.restore);
                check(MANY);
                took
            }),
            Way::new("kernel::ipset, packed", || {
                let took = timed(|| assert!(together.apply(Phase::Grow, &steps).is_empty(), "the kernel takes them"));
                check(MANY);
                took
            }),
        ];
        race(&format!("{MANY} elements of a set"), 10, &mut ways, empty);
    });
    Ok(())
}

pub fn ten() -> Result<(), String> {
    namespace::in_new(|| {
        let given = Given::new(FEW);
        let steps = given.steps();
        let mut elements = open();
        let mut ways = [
            Way::new("a process for each (ipset add)", || {
                let took = timed(|| {
                    for index in 0..FEW {
                        run(&format!("ipset add {SET} {}", address(index)));
                    }
                });
                check(FEW);
                took
            }),
            Way::new("one process (ipset restore)", || {
                let took = fed("ipset", &["restore"], &given.restore);
                check(FEW);
                took
            }),
            Way::new("kernel::ipset, one message", || {
                let took = timed(|| assert!(elements.apply(Phase::Grow, &steps).is_empty(), "the kernel takes them"));
                check(FEW);
                took
            }),
        ];
        race(&format!("{FEW} elements of a set"), 20, &mut ways, empty);
    });
    Ok(())
}

/// Elements to add, in the form that each way takes. The set exists and is empty.
struct Given {
    keys: Vec<ElementKey>,
    restore: PathBuf,
    _directory: TempDir,
}

impl Given {
    fn new(count: u32) -> Given {
        let set = SetName(SET.into());
        Ipset::open().expect("a socket").create(&set, SPEC).expect("a set");
        let key = |index| ElementKey { set: set.clone(), entry: Entry::Ip(address(index).into()) };
        let directory = tempfile::tempdir().expect("a directory");
        let restore = directory.path().join("restore");
        let lines: String = (0..count).map(|index| format!("add {SET} {}\n", address(index))).collect();
        std::fs::write(&restore, lines).expect("a file");
        Given { keys: (0..count).map(key).collect(), restore, _directory: directory }
    }

    fn steps(&self) -> Vec<Step<'_, ElementKey, ()>> {
        self.keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect()
    }
}

fn open() -> Elements {
    Elements::open(vec![Name::Exact(SET.into())]).expect("sockets")
}

fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 1)) + index)
}

fn check(count: u32) {
    let shown = run(&format!("ipset list {SET} -terse"));
    assert!(shown.contains(&format!("Number of entries: {count}\n")), "{shown}");
}

fn empty() {
    run(&format!("ipset flush {SET}"));
}
