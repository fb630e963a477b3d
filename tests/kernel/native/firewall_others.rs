//! Other programs change the packet filter while policies are in force, and the agent ends and starts again meanwhile.
//!
//! The agent is the program itself; connections are opened all the time, in both families.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::agent::{Node, with_agent};
use super::firewall::{streaming, undisturbed};
use crate::namespace::{attempt, run, shell};

/// A path that no policy ever opens.
const CLOSED: (&str, &str) = ("plain", "web");
/// A table of another program that is made, deleted and made anew, as firewalld does where it is reloaded.
const RELOADED: &str = "table inet theirs { chain input { type filter hook input priority 10; policy accept; }; }
    delete table inet theirs
    table inet theirs { chain input { type filter hook input priority 10; policy accept; }; }";

/// Says so where this kernel has no owners of tables that outlive them.
fn has_no_owners(node: &Node) -> bool {
    let has_none = !node.is_owned();
    if has_none {
        println!("this kernel knows no owners that leave their tables behind");
    }
    has_none
}

#[test]
fn what_others_flush_delete_and_load_changes_nothing_in_our_tables() {
    with_agent(|node| {
        if has_no_owners(node) {
            return;
        }
        let before = node.tables();
        assert!(before.contains("sluice_policy") && before.contains("sluice_frames"), "{before}");
        undisturbed(&node.places, CLOSED, || {
            run("nft flush ruleset");
            shell(&format!("nft -f - <<'RULES'\n{RELOADED}\nRULES"));
            shell(&format!("nft -f - <<'RULES'\nflush ruleset\n{RELOADED}\nRULES"));
            for ours in ["inet sluice_policy", "bridge sluice_frames", "inet sluice_frames"] {
                for verb in ["delete", "flush"] {
                    // Where a table of ours is not there nobody misses it; where it is, nobody but we may.
                    let (done, _, said) = attempt(&format!("nft {verb} table {ours}"));
                    assert!(!done || !before.contains(&format!("table {ours} ")), "nft {verb} table {ours}: {said}");
                }
            }
        });
        assert_eq!(node.tables(), before);
        assert!(node.is_owned());
    });
}

#[test]
fn a_killed_agents_tables_stay_in_force_and_the_next_run_adopts_them() {
    with_agent(|node| {
        if has_no_owners(node) {
            return;
        }
        let before = node.tables();
        for _ in 0..3 {
            let places = node.places.clone();
            undisturbed(&places, CLOSED, || {
                node.kill();
                node.until("nobody owns the table", |node| !node.is_owned());
                assert_eq!(node.tables(), before, "nobody has them");
                // There is nothing else that it could judge by.
                std::thread::sleep(Duration::from_millis(200));
                node.start();
                assert!(node.is_owned());
                run("nft flush ruleset");
            });
            assert_eq!(node.tables(), before, "the next run made something anew");
        }
    });
}

/// firewalld, on a bus of its own, that lets everything pass.
struct Firewalld {
    bus: Child,
    daemon: Child,
}

impl Firewalld {
    /// Starts it in the namespace of the calling thread, and waits until it answers.
    fn start() -> Firewalld {
        std::fs::create_dir_all("/run/dbus").unwrap();
        std::fs::create_dir_all("/run/firewalld").unwrap();
        // Without a folder of services: nothing else is started for it.
        let kinds = ["method_call", "signal", "method_return", "error"];
        let allowed = |kind: &str| format!("<allow send_type='{kind}'/><allow receive_type='{kind}'/>");
        let policies: String = kinds.map(allowed).concat();
        let address = "unix:path=/run/dbus/system_bus_socket";
        let config = format!(
            "<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow user='*'/><allow own='*'/>{policies}</policy></busconfig>"
        );
        std::fs::write("/run/bus.conf", config).unwrap();
        std::fs::write("/run/firewalld/firewalld.conf", "DefaultZone=trusted\nFirewallBackend=nftables\n").unwrap();
        let start = |command: &str| {
            let mut words = command.split_whitespace();
            let mut program = Command::new(words.next().unwrap());
            program.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            program.spawn().unwrap_or_else(|error| panic!("start {command}: {error}"))
        };
        let bus = start("dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile");
        until("the bus is there", || std::fs::exists("/run/dbus/system_bus_socket").unwrap());
        let daemon = start("firewalld --nofork --nopid --system-config /run/firewalld --log-target console");
        until("firewalld answers", || attempt("firewall-cmd --state").0);
        Firewalld { bus, daemon }
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        for process in [&mut self.daemon, &mut self.bus] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

fn until(told: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waiting until {told}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// While it loads its rules firewalld itself drops what is new, so that nothing is promised of what policies allow.
#[test]
fn firewalld_starts_reloads_and_ends_and_policies_stay_in_force() {
    with_agent(|node| {
        if has_no_owners(node) {
            return;
        }
        let before = node.tables();
        let mut reloads = 0;
        let fared = streaming(&node.places, CLOSED, || {
            let firewalld = Firewalld::start();
            assert!(run("nft list tables").contains("table inet firewalld"));
            for command in ["--reload", "--complete-reload", "--reload"] {
                assert_eq!(run(&format!("firewall-cmd {command}")), "success\n");
                reloads += 1;
                assert_eq!(node.tables(), before, "after {command}");
            }
            drop(firewalld);
        });
        assert_eq!(reloads, 3);
        for (_, refused) in fared {
            assert!(refused.tried > 2 && refused.passed == 0, "never open: {refused:?}");
        }
        // What it leaves in the kernel lets everything pass: what is refused now policies refuse.
        let places = node.places.clone();
        undisturbed(&places, CLOSED, || node.kill());
        undisturbed(&places, CLOSED, || node.start());
        assert_eq!(node.tables(), before);
    });
}
