use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::sync::oneshot;

use super::super::bridges;
use super::super::flows::{Flows, Log};
use super::super::given::{object, pod, policy};
use super::super::host_endpoints::HostEndpoints;
use super::super::plan::Plan;
use super::serve::RefusedPackets;
use super::*;
use crate::config::{Config, Environment, FirewallConfig, Request, request};
use crate::kernel::conntrack::{ConnectionFilter, TrackedConnection};
use crate::kernel::nflog::OpenError;
use crate::model::{Host, World};
use crate::observe::local::{Answer, AnswerFormat, Question};

/// The packets that the kernel logs, whether somebody has its group, and how many sockets were opened and closed.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    packets: VecDeque<Logged>,
    open: usize,
    opened: usize,
    closed: usize,
    is_taken: bool,
}

struct OpenLog(Kernel);

impl Flows for Kernel {
    fn connections(
        &self,
        _: Family,
        _: Option<u32>,
        _: ConnectionFilter<'_>,
    ) -> Result<Vec<TrackedConnection>, crate::kernel::Error> {
        Ok(Vec::new())
    }

    fn mark(&self, _: &[TrackedConnection], _: bool) -> Result<usize, crate::kernel::Error> {
        Ok(0)
    }

    fn open_log(&self) -> Result<Box<dyn Log>, OpenError> {
        let mut state = self.0.lock().unwrap();
        if state.is_taken {
            return Err(OpenError::Taken(100));
        }
        state.open += 1;
        state.opened += 1;
        Ok(Box::new(OpenLog(self.clone())))
    }
}

impl Log for OpenLog {
    fn receive(&mut self, most: usize, each: &mut dyn FnMut(Logged)) -> Result<(), String> {
        let mut state = self.0.0.lock().unwrap();
        let count = most.min(state.packets.len());
        state.packets.drain(..count).for_each(each);
        Ok(())
    }

    fn lost(&self) -> u64 {
        0
    }

    fn release(&mut self) -> Result<(), String> {
        self.0.0.lock().unwrap().open -= 1;
        Ok(())
    }

    fn acquire(&mut self) -> Result<(), OpenError> {
        let mut state = self.0.0.lock().unwrap();
        if state.is_taken {
            return Err(OpenError::Taken(100));
        }
        state.open += 1;
        Ok(())
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().closed += 1;
    }
}

fn tcp(source: &str, destination: &str, port: u16) -> Logged {
    Logged {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        transport: Transport::Ports { protocol: 6, source: 40000, destination: port },
        input: Some("veth1".into()),
        output: None,
        prefix: "".into(),
    }
}

struct Fixture {
    world: World,
    plan: Plan,
    config: FirewallConfig,
    endpoints: HostEndpoints,
    bridges: bridges::ClosedBridges,
    kernel: Kernel,
    packets: RefusedPackets,
}

impl Fixture {
    fn new() -> Fixture {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.pods.insert(object("shop/web"), pod("10.244.1.7 fd00::7", "app=web", ""));
        world.cluster.pods.insert(object("shop/db"), pod("10.244.1.8 fd00::8", "app=db", ""));
        world.cluster.policies.insert(object("shop/deny"), policy("app=web", Some(&[]), None));
        let words = ["sluice", "--run-router=false", "--hostname-override=node1"].map(std::ffi::OsString::from);
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let config = Config::from_flags(&flags, verbosity, &Environment::default()).expect("the flags are sound");
        let mut plan = Plan::new();
        plan.update(&world);
        let bridges = bridges::closed(plan.rules(), &world);
        Fixture {
            world,
            plan,
            config: config.firewall.expect("the firewall runs"),
            endpoints: HostEndpoints::default(),
            bridges,
            kernel: Kernel::default(),
            packets: RefusedPackets::default(),
        }
    }

    fn log(&self, packet: Logged) {
        self.kernel.0.lock().unwrap().packets.push_back(packet);
    }

    fn is_open(&self) -> bool {
        self.kernel.0.lock().unwrap().open == 1
    }

    fn asked(&mut self, since: Option<u64>, now: Instant) -> Answer {
        let about: BTreeMap<_, _> = since.map(|number| ("since".to_owned(), number.to_string())).into_iter().collect();
        let (answer, _) = oneshot::channel();
        let question = Question { path: "/policy/drops", about, form: AnswerFormat::Json, answer };
        let known = Known {
            rules: self.plan.rules(),
            world: &self.world,
            config: &self.config,
            closed: &[],
            bridges: &self.bridges,
            claims: self.plan.claims(),
            host_endpoints: &self.endpoints,
        };
        self.packets.answer(known, &self.kernel, &question, now)
    }

    fn got(&mut self, since: Option<u64>, now: Instant) -> Value {
        serde_json::from_str(&self.asked(since, now).unwrap()).unwrap()
    }
}

#[test]
fn a_refused_packet_has_the_names_of_its_pods_and_the_reason() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    let first = fixture.got(None, now);
    assert_eq!((&first["next"], first["packets"].as_array().unwrap().len()), (&json!(0), 0));
    fixture.log(tcp("10.244.1.8", "10.244.1.7", 80));
    fixture.log(tcp("2001:db8::1", "fd00::7", 443));
    fixture.log(tcp("10.244.1.7", "10.244.1.8", 80));
    let got = fixture.got(Some(0), now);
    let texts: Vec<&str> =
        got["packets"].as_array().unwrap().iter().map(|packet| packet["text"].as_str().unwrap()).collect();
    let behind_clock = |text: &str| text.split_once(' ').unwrap().1.to_owned();
    let denied = "ingress denied: shop/web is isolated by shop/deny, and nothing allows it";
    assert_eq!(
        texts.iter().map(|text| behind_clock(text)).collect::<Vec<_>>(),
        [
            format!("shop/db (10.244.1.8) to shop/web (10.244.1.7), tcp 40000 to 80 (veth1 to this node): {denied}"),
            format!("2001:db8::1 to shop/web (fd00::7), tcp 40000 to 443 (veth1 to this node): {denied}"),
            "shop/web (10.244.1.7) to shop/db (10.244.1.8), tcp 40000 to 80 (veth1 to this node): refused by rules that have changed since, or because it belongs to no connection".to_owned(),
        ]
    );
    let packet = &got["packets"][0];
    assert_eq!(
        (&packet["from"]["pod"], &packet["to"]["pod"], &packet["refusedFor"]),
        (&json!("shop/db"), &json!("shop/web"), &json!("shop/web"))
    );
}

#[test]
fn several_that_ask_share_the_packets_and_the_group_goes_back_when_nobody_asks() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    assert!(fixture.packets.deadline().is_none() && !fixture.is_open());
    fixture.got(None, now);
    assert!(fixture.is_open());
    for port in 1..=3 {
        fixture.log(tcp("10.244.1.8", "10.244.1.7", port));
    }
    let [one, other] = [0, 1].map(|since| fixture.got(Some(since), now)["packets"].as_array().unwrap().len());
    assert_eq!((one, other), (3, 2));
    fixture.packets.release_idle(now + Duration::from_secs(4));
    assert!(fixture.is_open());
    fixture.packets.release_idle(now + Duration::from_secs(5));
    assert!(!fixture.is_open() && fixture.packets.deadline().is_none());
    assert_eq!(fixture.got(Some(3), now)["next"], json!(3), "numbers go on");
    assert_eq!(fixture.got(Some(99), now)["packets"], json!([]), "a number of an earlier run");
}

/// The kernel lets changes of rules wait while it closes a socket of netfilter.
#[test]
fn the_socket_stays_when_nobody_asks_and_reads_again_unless_another_program_does() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    let sockets = |fixture: &Fixture| {
        let state = fixture.kernel.0.lock().unwrap();
        (state.opened, state.closed)
    };
    for round in 0..3 {
        let now = now + Duration::from_secs(60) * round;
        fixture.got(None, now);
        assert!(fixture.is_open());
        fixture.packets.release_idle(now + Duration::from_secs(5));
        assert!(!fixture.is_open() && fixture.packets.deadline().is_none());
    }
    assert_eq!(sockets(&fixture), (1, 0));
    fixture.kernel.0.lock().unwrap().is_taken = true;
    assert!(fixture.asked(None, now).is_err_and(|said| said.contains("another program reads NFLOG group 100")));
    fixture.kernel.0.lock().unwrap().is_taken = false;
    fixture.log(tcp("10.244.1.8", "10.244.1.7", 80));
    assert_eq!(fixture.got(Some(0), now)["packets"].as_array().unwrap().len(), 1);
    assert_eq!(sockets(&fixture), (1, 0));
}

#[test]
fn more_packets_than_are_kept_are_counted_as_missed() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    fixture.got(None, now);
    for _ in 0..2 {
        for port in 1..=600 {
            fixture.log(tcp("10.244.1.8", "10.244.1.7", port));
        }
        fixture.got(None, now);
    }
    let got = fixture.got(Some(100), now);
    assert_eq!((&got["missed"], got["packets"].as_array().unwrap().len()), (&json!(100), MOST));
}

#[test]
fn the_limit_of_a_rule_is_said_from_the_tenth_packet_in_a_minute_on() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    fixture.got(None, now);
    for port in 1..=11 {
        fixture.log(tcp("10.244.1.8", "10.244.1.7", port));
    }
    fixture.log(tcp("fd00::8", "fd00::7", 1));
    let got = fixture.got(Some(0), now);
    let limited: Vec<bool> =
        got["packets"].as_array().unwrap().iter().map(|packet| packet["limitReached"].as_bool().unwrap()).collect();
    let expected: Vec<bool> = (1..=12).map(|number| number == 10 || number == 11).collect();
    assert_eq!(limited, expected, "each family has a rule of its own");
    fixture.log(tcp("10.244.1.8", "10.244.1.7", 1));
    assert_eq!(fixture.got(Some(12), now + MINUTE)["packets"][0]["limitReached"], json!(false));
}

#[test]
fn rules_that_logged_nothing_for_a_minute_are_forgotten() {
    let (mut limits, begin) = (Limits::default(), Instant::now());
    let packet = |number: usize| {
        let logged = Logged { prefix: format!("other-{number}").into(), ..tcp("10.244.1.8", "10.244.1.7", 80) };
        let party = |address| Party { address, standing: explain::Standing::Nobody };
        let (from, to) = (party(logged.source), party(logged.destination));
        RefusedPacket { at: Duration::ZERO, logged, from, to, refusal: None, limited: false }
    };
    for number in 0..100 {
        limits.note(&packet(number), begin);
    }
    limits.note(&packet(100), begin + MINUTE);
    assert_eq!(limits.times.len(), 1);
}

#[test]
fn the_limit_of_nftables_is_that_of_all_pods_with_the_same_policies() {
    let (mut fixture, now) = (Fixture::new(), Instant::now());
    fixture.world.cluster.pods.insert(object("shop/web-2"), pod("10.244.1.9 fd00::9", "app=web", ""));
    fixture.plan.update(&fixture.world);
    fixture.got(None, now);
    let named = |packet: Logged, name: &str| Logged { prefix: name.into(), ..packet };
    for port in 1..=9 {
        fixture.log(named(tcp("10.244.1.8", "10.244.1.7", port), "in_shop_deny_a"));
    }
    fixture.log(named(tcp("10.244.1.8", "10.244.1.7", 80), "in_shop_deny_b"));
    fixture.log(named(tcp("fd00::8", "fd00::9", 80), "in_shop_deny_a"));
    let got = fixture.got(Some(0), now);
    let limited: Vec<bool> =
        got["packets"].as_array().unwrap().iter().map(|packet| packet["limitReached"].as_bool().unwrap()).collect();
    assert_eq!(limited, [[false; 10].as_slice(), &[true]].concat(), "the tenth of one rule is another pod's, by IPv6");
}

#[test]
fn a_log_that_another_program_reads_is_one_sentence() {
    let mut fixture = Fixture::new();
    fixture.kernel.0.lock().unwrap().is_taken = true;
    let refused = fixture.asked(None, Instant::now());
    assert_eq!(
        refused,
        Err("refused packets cannot be read: another program reads NFLOG group 100; only one can".to_owned())
    );
    assert!(fixture.packets.deadline().is_none());
}
