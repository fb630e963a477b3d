//! Listeners and large changes of our own: the kernel describes none of these, and nothing of others is lost.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice::kernel::monitor::{Monitor, Watched, start};
use sluice::kernel::netlink::Fault;
use sluice::kernel::nftables::listener::RuleListener;
use sluice::kernel::nftables::{Content, Fields, Key, Kind, Object, OwnTable};
use sluice::net::Family;
use sluice::reconcile::{Mirror, Reflection};

use super::nftables::{Contents, mirror, name, set, settle};
use crate::namespace::{in_new, run, shell};

/// So many elements are a large change, also for an emulated processor.
const LARGE: u32 = 6000;

/// A set of so many addresses.
fn addresses(count: u32) -> Contents {
    let spec = set(Fields::Address(Family::V4), Kind::Set, false);
    let pods = (0..count).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)));
    let elements = pods.map(|pod| (Object::Element(name("pods"), Key::Address(pod)), Content::Element));
    elements.chain([(Object::Set(name("pods")), spec)]).collect()
}

/// How many messages have arrived.
fn heard(listener: &mut RuleListener) -> Result<usize, Fault> {
    let mut count = 0;
    listener.receive(|_| count += 1)?;
    Ok(count)
}

#[test]
fn a_large_change_of_ours_is_not_described_to_us_and_a_small_one_and_those_of_others_are() {
    in_new(|| {
        let mut listener = RuleListener::open().expect("a socket");
        let mut ours = mirror();
        settle(&mut ours, &addresses(10));
        assert!(heard(&mut listener).expect("nothing is lost") > 10);
        settle(&mut ours, &addresses(LARGE));
        assert_eq!(heard(&mut listener), Ok(0));
        run("nft add table ip others");
        assert!(heard(&mut listener).expect("nothing is lost") > 0);
        settle(&mut ours, &Contents::new());
        settle(&mut ours, &addresses(LARGE));
        heard(&mut listener).expect("nothing is lost");
        let many = u64::from(LARGE);
        assert_eq!(ours.steps_done(), 10 + 1 + (many - 10) + 2 * (many + 1));
    });
}

#[test]
fn a_listener_in_another_network_namespace_stays() {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
    const NEW_GENERATION: u16 = 10 << 8 | 15;
    const CHANGES: usize = 40;
    in_new(|| {
        let mut ours = mirror();
        thread::scope(|scope| {
            let beside = scope.spawn(|| {
                in_new(|| {
                    let mut listener = RuleListener::open().expect("a socket");
                    let is_over = AtomicBool::new(false);
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            while !is_over.load(Ordering::SeqCst) {
                                settle(&mut ours, &addresses(LARGE));
                                settle(&mut ours, &Contents::new());
                            }
                        });
                        (0..CHANGES).for_each(|number| drop(run(&format!("nft add table ip others{number}"))));
                        is_over.store(true, Ordering::SeqCst);
                    });
                    let mut changes = 0;
                    let heard = listener.receive(|answer| changes += usize::from(answer.kind == NEW_GENERATION));
                    assert_eq!((heard, changes), (Ok(()), CHANGES));
                });
            });
            beside.join().expect("it stays");
        });
    });
}

#[test]
fn a_change_of_others_beside_a_large_one_of_ours_is_told_whenever_it_comes() {
    in_new(|| {
        let mut ours = mirror();
        let mut monitor = Monitor::open(Watched::default()).expect("a monitor");
        let mut told = monitor.hear().rules;
        for round in 0..12_u64 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(round * 6));
                    run(&format!("nft add table ip others{round}"));
                });
                settle(&mut ours, &addresses(LARGE));
            });
            let now = monitor.hear().rules;
            assert!(now > told, "round {round}");
            told = now;
            settle(&mut ours, &Contents::new());
            assert_eq!(monitor.hear().rules, told, "what we do ourselves is not told");
        }
    });
}

#[test]
fn a_large_change_of_others_that_is_under_way_when_ours_begins_is_told() {
    in_new(|| {
        run("nft add table ip others");
        run("nft add set ip others many { type ipv4_addr; }");
        let numbers = (0..20_000_u32).map(|number| Ipv4Addr::from_bits(0x0b00_0000 + number).to_string());
        let many = numbers.collect::<Vec<_>>().join(",");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = format!("flush set ip others many\nadd element ip others many {{ {many} }}\n");
        std::fs::write(file.path(), text).expect("it can be written");
        let mut ours = mirror();
        let mut monitor = Monitor::open(Watched::default()).expect("a monitor");
        let mut told = monitor.hear().rules;
        for round in 0..6 {
            thread::scope(|scope| {
                let others = scope.spawn(|| shell(&format!("nft -f {}", file.path().display())));
                while !others.is_finished() {
                    settle(&mut ours, &addresses(LARGE));
                    settle(&mut ours, &Contents::new());
                }
            });
            let now = monitor.hear().rules;
            assert!(now > told, "round {round}");
            told = now;
        }
    });
}

/// Makes large changes, each with one change of others at another moment of it, until this many of those were missed.
fn until_missed(ours: &mut Mirror<OwnTable>, count: usize, mut made: impl FnMut() -> bool) {
    const PARTS: u32 = 20;
    let begun = Instant::now();
    settle(ours, &addresses(LARGE));
    let took = begun.elapsed();
    settle(ours, &Contents::new());
    let mut missed = 0;
    for round in 0..15 * PARTS {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(took * (round % PARTS) / PARTS);
                run(&format!("nft add table ip others{round}"));
            });
            settle(ours, &addresses(LARGE));
        });
        missed += usize::from(made());
        settle(ours, &Contents::new());
        if missed == count {
            return;
        }
    }
    panic!("only {missed} times a change of others fell into one of ours");
}

#[test]
fn who_waits_for_notifications_is_woken_where_some_were_missed() {
    in_new(|| {
        let mut ours = mirror();
        let mut listener = RuleListener::open().expect("a socket");
        until_missed(&mut ours, 3, || {
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut waits = [PollFd::from_borrowed_fd(listener.missed(), PollFlags::IN)];
            let is_woken = poll(&mut waits, Some(&at_once)).expect("it can be asked") == 1;
            let is_lost = heard(&mut listener) == Err(Fault::Lost);
            assert_eq!(is_woken, is_lost);
            assert!(heard(&mut listener).is_ok(), "it is told once");
            is_lost
        });
    });
}

#[test]
fn the_monitor_tells_of_what_was_missed_before_it_looks_up_by_itself() {
    /// It looks up every four seconds.
    const SOON: Duration = Duration::from_secs(3);
    in_new(|| {
        let mut ours = mirror();
        // It misses what the monitor misses.
        let mut listener = RuleListener::open().expect("a socket");
        let changes = start(Watched::default()).expect("a monitor");
        let mut told = 0;
        until_missed(&mut ours, 3, || {
            let begun = Instant::now();
            while changes.borrow().rules == told {
                assert!(begun.elapsed() < SOON);
                thread::sleep(Duration::from_millis(10));
            }
            told = changes.borrow().rules;
            heard(&mut listener) == Err(Fault::Lost)
        });
    });
}
