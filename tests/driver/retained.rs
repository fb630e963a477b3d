//! Routes of neighbours that are not back yet: they stay when a speaker is replaced, and when a password comes late.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use sluice::bgp::driver::{Events, Handle, Setup as SpeakerSetup, spawn};
use sluice::bgp::rib::{Bounds, Rules};
use sluice::bgp::speaker::Order;
use sluice::kernel::link::{Link, LinkKind};
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_MAIN};
use sluice::model::{OnLink, Reflection};
use sluice::net::{ExternalPeer, Password, Secret};
use sluice::router::desired::Desired;
use sluice::router::names::PROTOCOL;

use super::*;

/// The speaker of another node, with its pod range.
struct Other {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
    _handle: Handle,
    _events: Events,
}

impl Other {
    async fn start(setup: &Setup, name: &str) -> Other {
        let (config, families) = setup.config();
        let mut world = setup.world.clone();
        world.host = Arc::new(Host { node_name: name.into(), ..(*world.host).clone() });
        let mut plan = RouterPlan::new(config, families);
        plan.update(&world);
        let desired: &Desired = plan.desired();
        let (wanted, policies) = (desired.speaker.as_ref().expect("its node is known"), desired.policies.clone());
        let rules = Rules {
            own: wanted.own,
            policies: policies.expect("its node is known"),
            addresses: wanted.addresses.clone(),
            sharing: 1,
            held: PerFamily::default(),
            bounds: Bounds::default(),
            seed: 1,
        };
        let pulse = Health::default().register("bgp", Duration::from_secs(60), Instant::now());
        let (stop, stopped) = watch::channel(false);
        let (handle, events, thread) =
            spawn(SpeakerSetup { rules, restarting: None, forwarding: true, pulse }, stopped).expect("a thread");
        let orders: Vec<Order> = desired.all_orders();
        handle.order(orders).await.expect("it lives");
        handle.listen(wanted.listen.clone()).await.expect("it lives");
        Other { stop, thread, _handle: handle, _events: events }
    }

    /// Ends as a process that is killed: without a word.
    fn end(self) {
        self.stop.send_replace(true);
        self.thread.join().expect("it ends when it is told to");
    }
}

fn on_loopback(setup: &mut Setup) {
    let on_link = vec![OnLink { link: "eth0".into(), prefix: "127.0.0.0/8".parse().expect("a prefix") }];
    setup.world.host = Arc::new(Host { on_link, ..(*setup.world.host).clone() });
}

fn has_route(seen: &Seen, range: &str) -> bool {
    let range: ipnet::IpNet = range.parse().expect("a range");
    seen.kernel.state().routes.keys().any(|key| key.destination == range)
}

#[test]
fn a_speaker_that_is_replaced_keeps_the_routes_of_a_node_that_is_not_back_yet_as_long_as_it_is_waited_for() {
    const PATIENCE: Duration = Duration::from_secs(12);
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.extend(["--bgp-graceful-restart", "--bgp-graceful-restart-time=12s"].map(str::to_owned));
    on_loopback(&mut setup);
    let own = setup.world.host.node_name.clone();
    let third = Node {
        addresses: vec![NodeAddress { kind: NodeAddressKind::Internal, address: [127, 0, 0, 3].into() }],
        pod_cidrs: vec!["10.244.3.0/24".parse().expect("a range")],
        ..Node::default()
    };
    setup.world.cluster.nodes.remove(&"node2".into());
    setup.world.cluster.nodes.insert("node3".into(), third.clone());
    let fourth = Node {
        addresses: vec![NodeAddress { kind: NodeAddressKind::Internal, address: [127, 0, 0, 4].into() }],
        pod_cidrs: vec!["10.244.4.0/24".parse().expect("a range")],
        ..Node::default()
    };
    setup.world.cluster.nodes.insert("node4".into(), fourth);
    let device = Link { kind: LinkKind::Other("ether".into()), up: true };
    let state = State { links: [(LinkName("eth0".into()), device)].into(), ..State::default() };
    setup.run(state, async |seen| {
        let (third, fourth) = (Other::start(&setup, "node3").await, Other::start(&setup, "node4").await);
        let both = |seen: &Seen| has_route(seen, "10.244.3.0/24") && has_route(seen, "10.244.4.0/24");
        seen.until("both are reached", both).await;
        third.end();
        let begun = Instant::now();
        seen.world.send_modify(|world| {
            let node = (**world.cluster.nodes.get(&own).expect("it is there")).clone();
            let mut routing = node.routing().clone();
            routing.reflection = Reflection::Server([0, 0, 0, 9].into());
            world.cluster.nodes.insert(own.clone(), Node { routing: Some(Box::new(routing)), ..node });
        });
        // Long enough for all that are connected to have said everything.
        while begun.elapsed() < PATIENCE - Duration::from_secs(2) {
            assert!(both(&seen), "after {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        seen.until("it does not come back", |seen| !has_route(seen, "10.244.3.0/24")).await;
        assert!(has_route(&seen, "10.244.4.0/24"), "it has said so again");
        fourth.end();
    });
}

#[test]
fn routes_of_a_router_stay_when_its_password_becomes_known_long_after_the_start_and_go_when_it_does_not_come() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.extend(["--bgp-graceful-restart", "--bgp-graceful-restart-time=6s"].map(str::to_owned));
    on_loopback(&mut setup);
    setup.world.cluster.nodes.remove(&"node2".into());
    let own = setup.world.host.node_name.clone();
    let put = |world: &mut World, password: Password| {
        let router = ExternalPeer { password, ..ExternalPeer::new([127, 0, 0, 9].into(), 65001) };
        let node = (**world.cluster.nodes.get(&own).expect("it is there")).clone();
        let routing = Routing { peers: vec![router], ..node.routing().clone() };
        world.cluster.nodes.insert(own.clone(), Node { routing: Some(Box::new(routing)), ..node });
    };
    // As a remembered cluster has it, which says no password.
    put(&mut setup.world, Password::Unknown);
    (setup.world.authority.proxy, setup.world.authority.router) = (Authority::Remembered, Authority::Remembered);
    let next_hop = NextHop { link: LinkName("eth0".into()), gateway: Some([127, 0, 0, 9].into()), on_link: false };
    let route = Route { kind: RouteKind::Unicast, protocol: PROTOCOL, source: None, next_hops: [next_hop].into() };
    let range = "198.51.100.0/24";
    let key = RouteKey::new(TABLE_MAIN, range.parse().expect("a range"));
    let state = State { routes: BTreeMap::from([(key, route.into())]), ..State::default() };
    setup.run(state, async |seen| {
        // The wait for neighbours is over, and the speaker, which waits 12 s for those that are missing, has said that it is complete.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!(has_route(&seen, range), "a remembered cluster takes nothing away");
        let known = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
        seen.world.send_modify(|world| {
            put(world, Password::Key(known));
            (world.authority.proxy, world.authority.router) = (Authority::Complete, Authority::Complete);
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            assert!(has_route(&seen, range), "after {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        seen.until("it does not come", |seen| !has_route(seen, range)).await;
    });
}

#[test]
fn after_a_restart_a_drain_is_told_and_its_delay_runs_once_neighbours_have_been_told_that_all_has_been_said() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(number, news)| (*number, news.word));
    // A route of the run before, and a neighbour that does not come back: nothing is announced for 3.5 s.
    let key = RouteKey::new(TABLE_MAIN, "10.244.2.0/24".parse().expect("a range"));
    let next_hop = NextHop { link: LinkName("eth0".into()), gateway: Some([127, 0, 0, 3].into()), on_link: false };
    let route = Route { kind: RouteKind::Unicast, protocol: PROTOCOL, source: None, next_hops: [next_hop].into() };
    let left = || State { routes: BTreeMap::from([(key.clone(), route.clone().into())]), ..State::default() };
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--bgp-graceful-restart".to_owned());
    setup.flags.push("--drain-delay=1s".to_owned());
    let own = setup.world.host.node_name.clone();
    let drain = |seen: &Seen| seen.world.send_modify(|world| label(world, &own, true));
    setup.run(left(), async |seen| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drain(&seen);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let answer = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!((word(&seen), answer["serviceAddresses"].as_str()), (None, Some("leaving")));
        seen.until("it is leaving", |seen| word(seen) == Some((0, "ServiceAddressesLeaving"))).await;
        seen.until("it has left", |seen| word(seen) == Some((1, "ServiceAddressesWithdrawn"))).await;
    });
    label(&mut setup.world, &own, true);
    setup.run(left(), async |seen| {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let answer = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!((word(&seen), answer["serviceAddresses"].as_str()), (None, Some("leaving")), "routers have them");
        seen.until("nothing is announced", |seen| word(seen) == Some((0, "ServiceAddressesWithdrawn"))).await;
    });
}

#[test]
fn a_withdrawal_is_told_when_a_router_that_does_not_come_back_has_lost_what_it_kept_of_the_run_before() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(number, news)| (*number, news.word));
    let mut setup = Setup::new(Backend::Nftables);
    let own = setup.world.host.node_name.clone();
    label(&mut setup.world, &own, true);
    // No route is left of the run before, so that the speaker waits for nobody.
    let told = |seen: &Seen| word(seen) == Some((0, "ServiceAddressesWithdrawn"));
    let usual = setup.flags.clone();
    // A router by its address, and one that is still looked for on its link.
    for router in [&["--peer-router-ips=127.0.0.3", "--peer-router-asns=65001"][..], &["--peer-router-interfaces=lo"]] {
        setup.flags = usual.iter().cloned().chain(router.iter().map(|&word| word.to_owned())).collect();
        let left = setup.left();
        setup.run(left, async |seen| {
            seen.until("nobody keeps anything without graceful restart", told).await;
        });
        setup.flags.extend(["--bgp-graceful-restart", "--bgp-graceful-restart-time=6s"].map(str::to_owned));
        // As after a reboot of the host.
        setup.run(State::default(), async |seen| {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let answer = seen.bgp("/bgp/peers", "").await.expect("an answer");
            let found = (word(&seen), answer["serviceAddresses"].as_str());
            assert_eq!(found, (None, Some("leaving")), "it may keep them: {router:?}");
            seen.until("it keeps them no longer", told).await;
        });
    }
}
