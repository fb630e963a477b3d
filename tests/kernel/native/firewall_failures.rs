//! Network policies while the kernel or its programs refuse changes: nothing opens, the rest is enforced, and
//! all is well again when the cause is gone.
//!
//! The programs that refuse stand in front of the host's own, in a mount namespace of the test.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sluice::kernel::iptables::Flavour;
use sluice::model::{NetworkPolicy, ObjectName, Ports, Selector};
use sluice::net::{Family, Protocol};
use sluice::reconcile::Moment;
use sluice::subsystem::Kinds;

use super::firewall::{Machine, app, block, from_app, ingress, put_pod, rule, with_each_flavour};
use crate::namespace::{run, shell};

/// While this file exists, scripts for `iptables-restore` that hold its words are refused.
const REFUSED: &str = "/run/refused-words";

/// Puts programs in front of those that restore rules, which refuse what [`refuse`] says.
fn guard_programs() {
    let front = "/run/front";
    fs::create_dir_all(front).unwrap();
    for (flavour, multi) in [("legacy", "xtables-legacy-multi"), ("nft", "xtables-nft-multi")] {
        for program in ["iptables", "ip6tables"] {
            let path = format!("{front}/{program}-{flavour}-restore");
            let script = format!(
                "#!/bin/sh\ncat > /run/script.$$\nif [ -e {REFUSED} ] && grep -q -f {REFUSED} /run/script.$$; then\n\
                 echo 'line 3: RULE_APPEND failed (No such file or directory)' >&2; exit 1; fi\n\
                 exec {multi} {program}-restore \"$@\" < /run/script.$$\n"
            );
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    run("mount -t overlay front -o lowerdir=/run/front:/usr/sbin /usr/sbin");
}

fn refuse(words: &str) {
    fs::write(REFUSED, words).unwrap();
}

fn refuse_nothing() {
    fs::remove_file(REFUSED).unwrap();
}

fn accepts_db(app_name: &str) -> NetworkPolicy {
    ingress(app(app_name), &[rule(from_app("db"), Ports::Any)])
}

/// Web accepts the database and nobody else.
fn assert_web_is_guarded(machine: &Machine, told: &str) {
    machine.assert_paths(told, &[(("db", "web"), true), (("outside", "web"), false)]);
}

/// Rounds until this much time has passed, as the machine sees it.
fn rounds_for(machine: &mut Machine, seconds: u64) -> Vec<String> {
    let begun = Instant::now();
    let mut now = begun;
    let mut refused = Vec::new();
    while now < begun + Duration::from_secs(seconds) {
        let round = machine.round(Moment { now, jitter: 0 });
        refused.extend(round.refused.into_iter().map(|refusal| refusal.piece.to_string()));
        let next = machine.enforcer.iptables().retry_at().unwrap_or(begun + Duration::from_secs(seconds));
        now = next.max(now + Duration::from_millis(1));
    }
    refused
}

#[test]
fn a_policy_that_the_kernel_refuses_holds_up_no_other_and_opens_nothing() {
    with_each_flavour(false, |machine, _| {
        guard_programs();
        refuse("shop/bad ingress 0");
        machine.put_policy("good", accepts_db("web"));
        machine.put_policy("bad", accepts_db("plain"));
        machine.take_in();
        let refused = rounds_for(machine, 2);
        assert_eq!(refused.len(), 2, "once for each family: {refused:?}");
        assert!(machine.enforcer.iptables().is_settled(), "the rest is as wanted");
        assert_eq!(machine.enforcer.iptables().refusals().all().len(), 2);
        assert_web_is_guarded(machine, "the other policy is in force");
        let paths = [(("db", "plain"), false), (("outside", "plain"), false), (("outside", "db"), true)];
        machine.assert_paths("what only the refused policy allows is closed, and its pod stays isolated", &paths);

        machine.put_policy("good", ingress(app("web"), &[]));
        machine.take_in();
        machine.round(Moment { now: Instant::now(), jitter: 0 });
        machine.assert_paths("changes of others go on", &[(("db", "web"), false)]);

        refuse_nothing();
        rounds_for(machine, 60);
        assert!(machine.enforcer.iptables().refusals().all().is_empty());
        machine.check_paths("when the kernel takes it");
    });
}

#[test]
fn a_refused_chain_does_not_let_packets_meet_some_of_the_old_rules_and_some_of_the_new() {
    with_each_flavour(false, |machine, _| {
        guard_programs();
        machine.put_policy("moves", accepts_db("web"));
        machine.put_policy("stays", ingress(app("web"), &[]));
        machine.settle();
        let everybody = block("0.0.0.0/0", &[]);
        machine.put_policy("moves", ingress(app("plain"), &[rule(everybody, Ports::Any)]));
        machine.put_policy("bad", accepts_db("db"));
        refuse("shop/bad ingress 0");
        let paths = (("node", "web"), ("outside", "web"));
        let (allowed, refused) = machine.places.clone().while_streaming(Family::V4, paths, || {
            machine.take_in();
            rounds_for(machine, 1);
        });
        assert!(allowed.passed > 0 && refused.tried > 0 && refused.passed == 0, "{allowed:?} {refused:?}");
        let open = [(("outside", "plain"), true), (("outside", "web"), false), (("outside", "db"), false)];
        let paths: Vec<_> = open.map(|(path, open)| ((Family::V4, path.0, path.1, Protocol::Tcp, 80), open)).into();
        for (way, open) in paths {
            assert_eq!(machine.places.wrong(&[way], &[Some(open)]), [], "the rest is in force");
        }
        assert!(!machine.saved().contains("-TRIAL"), "nothing is left of trials");
    });
}

#[test]
fn a_kernel_that_cannot_copy_refused_packets_refuses_them_all_the_same() {
    with_each_flavour(false, |machine, _| {
        guard_programs();
        refuse("NFLOG");
        machine.put_policy("good", accepts_db("web"));
        machine.take_in();
        rounds_for(machine, 2);
        assert!(!machine.enforcer.iptables().refusals().all().is_empty());
        machine.check_paths("without copies");
        assert!(!machine.saved().contains("NFLOG"));
    });
}

#[test]
fn while_rules_cannot_be_written_nothing_opens_and_what_stands_stays() {
    with_each_flavour(false, |machine, _| {
        guard_programs();
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        refuse("COMMIT");
        let before = machine.saved();
        machine.world.cluster.policies.remove(&ObjectName::new("shop", "good"));
        machine.put_policy("all", ingress(Selector::everything(), &[]));
        machine.take_in();
        let refused = rounds_for(machine, 2);
        assert!(refused.is_empty(), "it is the program that fails: {refused:?}");
        assert_eq!(rules_of(&machine.saved()), rules_of(&before));
        machine.assert_paths("nothing opens", &[(("outside", "web"), false)]);
        let troubles: Vec<String> = machine
            .enforcer
            .iptables()
            .reflections()
            .iter()
            .filter_map(|family| Some(family.trouble()?.error.clone()))
            .collect();
        assert_eq!(troubles.len(), 1, "{troubles:?}");
        refuse_nothing();
        rounds_for(machine, 60);
        machine.check_paths("when rules can be written again");
    });
}

#[test]
fn while_the_program_that_writes_rules_is_missing_nothing_opens_and_what_stands_stays() {
    with_each_flavour(false, |machine, _| {
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        let before = machine.saved();
        // A device without a number, in an upper layer, hides what lies below.
        fs::create_dir_all("/run/front").unwrap();
        for program in
            ["iptables", "ip6tables"].iter().flat_map(|tool| ["legacy", "nft"].map(|it| format!("{tool}-{it}")))
        {
            run(&format!("mknod /run/front/{program}-restore c 0 0"));
        }
        run("mount -t overlay front -o lowerdir=/run/front:/usr/sbin /usr/sbin");
        machine.world.cluster.policies.remove(&ObjectName::new("shop", "good"));
        machine.put_policy("all", ingress(Selector::everything(), &[]));
        machine.take_in();
        rounds_for(machine, 2);
        assert_eq!(rules_of(&machine.saved()), rules_of(&before));
        assert_web_is_guarded(machine, "what stands stays");
        let trouble = machine.enforcer.iptables().reflections().iter().find_map(|family| family.trouble().cloned());
        assert!(trouble.as_ref().is_some_and(|trouble| trouble.error.contains("not installed")), "{trouble:?}");
        run("umount /usr/sbin");
        rounds_for(machine, 60);
        machine.check_paths("when the program is there again");
    });
}

fn rules_of(saved: &str) -> Vec<&str> {
    saved.lines().filter(|line| line.starts_with("-A ")).collect()
}

#[test]
fn while_another_program_holds_the_lock_what_stands_stays() {
    with_each_flavour(false, |machine, flavour| {
        if flavour != Flavour::Legacy {
            return;
        }
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        let mut holder = Command::new("flock")
            .args(["/run/xtables.lock", "sh", "-c", "echo held; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock is there");
        let mut said = [0; 5];
        std::io::Read::read_exact(holder.stdout.as_mut().expect("a pipe"), &mut said).unwrap();
        machine.put_policy("all", ingress(Selector::everything(), &[]));
        machine.take_in();
        let round = machine.round(super::moment());
        assert!(round.refused.is_empty());
        let trouble = machine.enforcer.iptables().reflections().iter().find_map(|family| family.trouble().cloned());
        assert!(trouble.is_some_and(|trouble| trouble.error.contains("lock")));
        assert_web_is_guarded(machine, "what stands stays");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        rounds_for(machine, 10);
        machine.check_paths("when the lock is free");
    });
}

#[test]
fn a_set_of_70000_addresses_is_complete_and_a_label_costs_one_of_them() {
    with_each_flavour(false, |machine, _| {
        for number in 0..70_000_u32 {
            let address = std::net::Ipv4Addr::from(0x0a80_0000 + number).to_string();
            put_pod(&mut machine.world, &format!("far-{number}"), &[&address], &[("app", "db")]);
        }
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        let count = shell("ipset list -t | grep -A8 KUBE-SRC | grep 'Number of entries: 70001' | wc -l");
        assert_eq!(count.trim(), "1", "{}", shell("ipset list -t"));
        put_pod(&mut machine.world, "far-7", &["10.128.0.7"], &[("app", "other")]);
        assert_eq!(machine.settle(), 1);
        assert_web_is_guarded(machine, "with the whole set");
    });
}
