//! Network policies in a table of nf_tables while the kernel refuses changes: nothing opens, the rest is enforced, and all is well again
//! when the cause is gone. `firewall_failures` is the same for iptables, whose programs refuse there.
//!
//! The kernel itself refuses: it gets a chain that jumps to one that does not exist, or a thread without `CAP_NET_ADMIN` asks.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use sluice::firewall::frames::FrameTable;
use sluice::firewall::nftables::apply::{Kernel, Mirrors, Refusing, Targets};
use sluice::firewall::nftables::linux::{self, Linux};
use sluice::firewall::nftables::lowering::Lowering;
use sluice::firewall::nftables::names::TABLE;
use sluice::firewall::plan::Plan;
use sluice::kernel::Error;
use sluice::kernel::nftables::{Content, Object, OwnTable, Rule, Verdict};
use sluice::kernel::sysctl::Settings;
use sluice::model::{Authority, NetworkPolicy, ObjectName, Ports, Selector, World};
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Failure, Moment, Phase, Step, Target};

use super::enforcer::Filter;
use super::firewall::{
    BOTH_FAMILIES, Machine, app, block, config, from_app, ingress, places, put_pod, rule, with, world,
};
use super::places::Places;
use crate::namespace::{in_new, own_run, shell};

fn with_table(test: impl Fn(&mut Machine) + Send + Sync) {
    with(Filter::Nftables, false, test);
}

fn accepts_db(app_name: &str) -> NetworkPolicy {
    ingress(app(app_name), &[rule(from_app("db"), Ports::Any)])
}

/// The table without what counts packets.
fn listed() -> String {
    let is_count = |line: &&str| line.trim_start().starts_with("packets ");
    Filter::Nftables.saved().lines().filter(|line| !is_count(line)).collect::<Vec<_>>().join("\n")
}

/// Rounds until this much time has passed, as the machine sees it.
fn rounds_for(machine: &mut Machine, seconds: u64) {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut now = begun;
    while now < end {
        machine.enforcer.round(Moment { now, jitter: 0 });
        now = machine.enforcer.retry_at().unwrap_or(end).max(now + Duration::from_millis(1));
    }
}

/// Does something in a thread that may change nothing of the network; programs that it starts may.
fn without_rights(act: impl FnOnce()) {
    let all = capabilities(None).expect("a thread may ask for its own");
    let effective = all.effective - CapabilitySet::NET_ADMIN;
    set_capabilities(None, CapabilitySets { effective, ..all }).expect("rights can be put aside");
    act();
    set_capabilities(None, all).expect("and taken up again");
}

#[test]
fn while_the_kernel_refuses_all_changes_of_the_table_nothing_opens_and_what_stands_stays() {
    with_table(|machine| {
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        let before = listed();
        assert!(before.contains("in_shop_good_"), "{before}");
        machine.world.cluster.policies.remove(&ObjectName::new("shop", "good"));
        machine.put_policy("all", ingress(Selector::everything(), &[]));
        machine.take_in();
        without_rights(|| rounds_for(machine, 2));
        assert_eq!(listed(), before);
        machine.assert_paths("what stands stays", &[(("db", "web"), true), (("outside", "web"), false)]);
        let troubles = machine.enforcer.troubles();
        assert!(troubles.iter().any(|error| error.contains("not permitted")), "{troubles:?}");
        rounds_for(machine, 60);
        machine.check_paths("when the kernel takes changes again");
    });
}

#[test]
fn changes_come_into_force_and_open_nothing_while_others_change_tables_all_the_time() {
    with_table(|machine| {
        let policies = [accepts_db("web"), ingress(app("web"), &[rule(block("10.244.1.0/24", &[]), Ports::Any)])];
        machine.put_policy("turns", policies[0].clone());
        machine.settle();
        let (done, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let paths = (("db", "web"), ("outside", "web"));
        let (allowed, refused) = std::thread::scope(|scope| {
            // In the network namespace of this thread.
            let others = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    shell("nft add table ip others '{ set one { type ipv4_addr; }; }'; nft delete table ip others");
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
            let streams = machine.places.clone().while_streaming(Family::V4, paths, || {
                // Others start programs for each of theirs, which takes its time on a busy machine.
                let until = Instant::now() + Duration::from_secs(60);
                let have_changed = || changes.load(Ordering::Relaxed) > 3 || Instant::now() > until;
                for turn in (0..).take_while(|turn| *turn < 30 || !have_changed()) {
                    machine.put_policy("turns", policies[turn % 2].clone());
                    machine.settle();
                }
            });
            done.store(true, Ordering::Relaxed);
            others.join().expect("it ends");
            assert!(changes.load(Ordering::Relaxed) > 3, "others change something meanwhile");
            streams
        });
        assert!(allowed.tried > 0 && allowed.passed == allowed.tried, "{allowed:?}");
        assert!(refused.tried > 0 && refused.passed == 0, "{refused:?}");
        machine.check_paths("after all of them");
    });
}

#[test]
fn a_set_of_70000_addresses_is_complete_and_a_label_costs_one_of_them() {
    with_table(|machine| {
        for number in 0..70_000_u32 {
            let address = std::net::Ipv4Addr::from(0x0a80_0000 + number).to_string();
            put_pod(&mut machine.world, &format!("far-{number}"), &[&address], &[("app", "db")]);
        }
        machine.put_policy("good", accepts_db("web"));
        machine.settle();
        let count = || shell(&format!("nft list table inet {TABLE} | tr , '\\n' | grep -c '10\\.12[89]\\.'"));
        assert_eq!(count().trim(), "70000");
        put_pod(&mut machine.world, "far-7", &["10.128.0.7"], &[("app", "other")]);
        assert_eq!(machine.settle(), 1);
        assert_eq!(count().trim(), "69999");
        machine.assert_paths("with the whole set", &[(("db", "web"), true), (("outside", "web"), false)]);
    });
}

/// The table of this kernel, to which chains with these words in their names are given with a jump to a chain that does not exist.
struct Spoilt {
    table: OwnTable,
    words: Rc<RefCell<Vec<&'static str>>>,
}

struct WithSpoilt(Linux);

impl Kernel for WithSpoilt {
    type Settings = Settings;
    type Frames = FrameTable;
    type Table = Spoilt;

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.0.remove_abandoned()
    }
}

impl Refusing for Spoilt {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        Refusing::take_refused(&mut self.table)
    }
}

impl Spoilt {
    fn spoil(&self, object: &Object, content: &Content) -> Option<Content> {
        let (Object::Chain(name), Content::Chain(chain)) = (object, content) else { return None };
        // What takes its place is taken.
        let is_closed = chain.rules.iter().any(|rule| format!("{rule:?}").contains("the kernel refuses"));
        let is_meant = self.words.borrow().iter().any(|word| name.as_str().contains(word)) && !is_closed;
        is_meant.then(|| {
            let mut chain = (**chain).clone();
            chain.rules.push(Rule::new([], Verdict::Jump("not_there".into())));
            Content::Chain(Arc::new(chain))
        })
    }
}

impl Target for Spoilt {
    type Key = Object;
    type Value = Content;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.table.name()
    }

    fn read(&mut self) -> Result<BTreeMap<Object, Content>, Error> {
        self.table.read()
    }

    fn read_some(&mut self, keys: &[Object]) -> Result<BTreeMap<Object, Content>, Error> {
        self.table.read_some(keys)
    }

    fn keys(&mut self) -> Result<BTreeSet<Object>, Error> {
        self.table.keys()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
        let spoilt: Vec<Option<Content>> =
            steps.iter().map(|step| step.want.and_then(|want| self.spoil(step.key, want))).collect();
        let changed = |(step, spoilt): (&Step<'_, Object, Content>, _)| -> (Object, Option<Content>, Option<Content>) {
            let spoilt: &Option<Content> = spoilt;
            (step.key.clone(), step.have.cloned(), spoilt.clone().or_else(|| step.want.cloned()))
        };
        let owned: Vec<_> = steps.iter().zip(&spoilt).map(changed).collect();
        let steps: Vec<_> =
            owned.iter().map(|(key, have, want)| Step { key, have: have.as_ref(), want: want.as_ref() }).collect();
        self.table.apply(phase, &steps)
    }
}

/// A firewall whose table the kernel refuses in part.
struct Refused {
    mirrors: Mirrors<WithSpoilt>,
    lowering: Lowering,
    plan: Plan,
    world: World,
    places: Places,
    words: Rc<RefCell<Vec<&'static str>>>,
}

impl Refused {
    fn new(words: &[&'static str]) -> Refused {
        let words = Rc::new(RefCell::new(words.to_vec()));
        let Targets { kernel, settings, frames, groups, table } = linux::open_for_cleanup().unwrap();
        let (kernel, table) = (WithSpoilt(kernel), Spoilt { table, words: words.clone() });
        let mirrors = Mirrors::new(Targets { kernel, settings, frames, groups, table });
        let lowering = Lowering::new(config(false), BOTH_FAMILIES);
        Refused { mirrors, lowering, plan: Plan::new(), world: world(), places: places(), words }
    }

    fn put(&mut self, name: &str, policy: NetworkPolicy) {
        self.world.cluster.policies.insert(ObjectName::new("shop", name), policy);
        let changed = self.plan.update(&self.world);
        self.mirrors.mark(&self.lowering.update(self.plan.rules(), &self.world, &changed));
    }

    fn round(&mut self, now: Instant) {
        self.mirrors.round(self.lowering.desired(), Authority::Complete, Moment { now, jitter: 0 });
    }

    fn assert_paths(&self, told: &str, paths: &[((&str, &str), bool)]) {
        for ((from, to), open) in paths {
            for family in Family::BOTH {
                let reaches = self.places.reaches(family, (from, to), Protocol::Tcp, 80);
                assert_eq!(reaches, *open, "{family} {from} to {to}, {told}: {}", Filter::Nftables.saved());
            }
        }
    }
}

#[test]
fn a_class_that_the_kernel_refuses_closes_its_own_pods_and_holds_up_no_other() {
    in_new(|| {
        own_run();
        let mut firewall = Refused::new(&["in_shop_bad_"]);
        let now = Instant::now();
        firewall.put("good", accepts_db("web"));
        firewall.put("bad", accepts_db("plain"));
        firewall.round(now);
        let refused: Vec<String> = firewall.mirrors.refused().objects().keys().map(ToString::to_string).collect();
        assert!(matches!(&*refused, [one] if one.contains("in_shop_bad_")), "{refused:?}");
        let web = [(("db", "web"), true), (("outside", "web"), false)];
        firewall.assert_paths("the other policy is in force", &web);
        let plain = [(("db", "plain"), false), (("outside", "plain"), false), (("outside", "db"), true)];
        firewall.assert_paths("its pods stay isolated, and allow nothing", &plain);

        firewall.put("good", ingress(app("web"), &[]));
        firewall.round(Instant::now());
        firewall.assert_paths("changes of others go on", &[(("db", "web"), false)]);

        firewall.words.borrow_mut().clear();
        firewall.round(now + Duration::from_secs(300));
        assert!(firewall.mirrors.refused().objects().is_empty(), "{:?}", firewall.mirrors.refused());
        firewall.assert_paths("when the kernel takes it", &[(("db", "plain"), true), (("outside", "plain"), false)]);
    });
}
