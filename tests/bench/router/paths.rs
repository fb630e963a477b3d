//! BFD of the neighbours: one session of each with the daemon that is measured.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice::bfd::driver::{self, Handle, Report};
use sluice::bfd::{Key, MULTIHOP, Path, Request, Settings, State, Status, Wanted};

use crate::say;

/// As `scripts/labkit/bench_daemons.py` asks the daemon for.
const TIME: Duration = Duration::from_millis(300);

pub struct Paths {
    /// Sessions last as long as it does.
    _handle: Handle,
    failures: Arc<AtomicU64>,
}

impl Paths {
    /// Begins sessions from these addresses, and says `watched` when all are up.
    pub fn start(daemon: IpAddr, locals: impl Iterator<Item = IpAddr>, since: Instant) -> Paths {
        let wanted =
            Wanted { settings: Settings { multiplier: 3, send: TIME, receive: TIME }, port: MULTIHOP, hops: None };
        let key = |local| Key { remote: daemon, local, path: Path::Multihop };
        let requests: BTreeMap<Key, Request> =
            locals.map(|local| (key(local), Request { wanted, number: 1 })).collect();
        let (handle, mut reports) = driver::spawn().expect("a thread");
        let (failures, count) = (Arc::new(AtomicU64::new(0)), requests.len());
        let counted = failures.clone();
        handle.want(requests);
        std::thread::spawn(move || {
            let (mut told, mut is_said) = (BTreeMap::<Key, Status>::new(), false);
            while let Some(report) = reports.blocking_recv() {
                let Report::Changed(key, status) = report else { continue };
                told.insert(key, status);
                counted.store(told.values().map(|status| status.failures).sum(), Ordering::Relaxed);
                if !is_said && told.values().filter(|status| status.state == State::Up).count() == count {
                    is_said = true;
                    say("watched", since);
                }
            }
        });
        Paths { _handle: handle, failures }
    }

    /// How many paths have failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}
