//! Worlds that change by chance, and what a change costs in a large cluster.

use super::*;

/// Changes the World in one of the ways that concern pods of this node, or that do not.
fn change(world: &mut World, chance: &mut impl FnMut(u64) -> u64) {
    use crate::model::{Namespace, NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    let namespace = ["shop", "other"][usize::from(chance(4) == 0)];
    let name = ObjectName::new(namespace, ["a", "b", "c", "d"][chance(4) as usize]);
    let address = |number: u64| at(&format!("10.244.1.{}", 5 + number));
    let cluster = &mut world.cluster;
    match chance(10) {
        0 | 1 => {
            let external_ips = vec![at(&format!("203.0.113.{}", 7 + chance(3)))];
            let created = chance(9) as i64;
            cluster.services.insert(name, Service { external_ips, created, ..service(chance(3) > 0) });
        }
        2 => drop(cluster.services.remove(&name)),
        3 | 4 => {
            let node = Some(["node1", "node2"][usize::from(chance(5) == 0)].into());
            let endpoint = Endpoint { address: address(chance(4)), node, conditions: Conditions::READY, hints: None };
            let ports = [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
            let slice = EndpointSlice { family: Family::V4, ports, endpoints: [endpoint].into_iter().collect() };
            cluster.endpoints.insert(name, Endpoints { slices: [("slice".into(), Arc::new(slice))].into() });
        }
        5 | 6 => {
            let labels = if chance(2) == 0 { [("app", "a")].into_iter().collect() } else { Default::default() };
            let node = Some(["node1", "node2"][usize::from(chance(4) == 0)].into());
            let one = pod(&address(chance(4)).to_string(), chance(5) as u32 + 1);
            cluster.pods.insert(name, Pod { labels, node, finished: chance(8) == 0, ..one });
        }
        7 => drop(cluster.pods.remove(&name)),
        8 if chance(2) == 0 => drop(cluster.policies.remove(&name)),
        8 => {
            let cidr = ["192.0.2.1/32", "192.0.2.0/24"][chance(2) as usize].parse().expect("a range");
            let block = Peers::Of([Peer::Block { cidr, except: [].into() }].into());
            let rule = PolicyRule { peers: if chance(2) == 0 { Peers::Any } else { block }, ports: Ports::Any };
            let ingress = Some(if chance(2) == 0 { [].into() } else { [rule].into() });
            cluster.policies.insert(name, NetworkPolicy { pods: Selector::everything(), ingress, egress: None });
        }
        _ => {
            let isolated = chance(2) == 0;
            let number = chance(3);
            cluster.nodes.insert(format!("node{number}").as_str().into(), node(&format!("192.0.2.{number}")));
            cluster.namespaces.insert(namespace.into(), Namespace { isolated, ..Namespace::default() });
            let any = [
                Authority::Complete,
                Authority::Complete,
                Authority::Partial,
                Authority::Remembered,
                Authority::Nothing,
            ];
            world.authority.firewall = any[chance(5) as usize];
        }
    }
}

#[test]
fn after_any_history_pods_have_to_answer_as_the_newest_world_alone_says() {
    for seed in 0..60_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut chance = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut world, mut joined, mut wanted) = (with_pod(), joined(), Wanted::default());
        for step in 0..80 {
            change(&mut world, &mut chance);
            if let Some(newer) = joined.wanted(&world, &wanted) {
                assert_ne!(newer, wanted);
                wanted = newer;
            }
            if world.authority.firewall <= Authority::Remembered {
                continue;
            }
            let mut fresh = self::joined();
            let expected = fresh.wanted(&world, &Wanted::default()).unwrap_or_default();
            assert_eq!(wanted, expected, "seed {seed}, step {step}");
            let [found, expected] = [&joined, &fresh].map(|one| one.problems(&Standing::default()));
            assert!(found.changes_since(&expected).next().is_none(), "seed {seed}, step {step}: problems");
        }
    }
}

/// A World with very many other pods and Services, and how long it takes to take in a change that concerns nobody here, and all of it anew.
#[test]
fn a_change_that_concerns_no_pod_here_costs_little_however_large_the_cluster_is() {
    let mut world = with_pod();
    for number in 0..200_u32 {
        let name = ObjectName::new("shop", &format!("web-{number}"));
        let external_ips = vec![at(&format!("203.0.114.{number}"))];
        world.cluster.services.insert(name.clone(), Service { external_ips, ..service(true) });
        let slices = world.cluster.endpoints.get(&web()).expect("it has some").clone();
        world.cluster.endpoints.insert(name, (*slices).clone());
    }
    for number in 0..3000_u32 {
        let [high, low] = [number / 250, number % 250 + 1];
        let elsewhere = Pod { node: Some("node2".into()), ..pod(&format!("10.245.{high}.{low}"), number + 10) };
        world.cluster.pods.insert(ObjectName::new("far", &format!("pod-{number}")), elsewhere);
        let cluster_ips = vec![at(&format!("10.97.{high}.{low}"))];
        let others = Service { cluster_ips, external_ips: Vec::new(), ..service(false) };
        world.cluster.services.insert(ObjectName::new("far", &format!("web-{number}")), others);
    }
    let mut joined = joined();
    let wanted = joined.wanted(&world, &Wanted::default()).expect("it is complete");
    assert_eq!(wanted.tunnels.get(&at("10.244.1.5")).map(BTreeSet::len), Some(201));
    let mut fastest = |change: &mut dyn FnMut(&mut World, u32)| {
        let times = (0..20).map(|number| {
            change(&mut world, number);
            let begun = std::time::Instant::now();
            assert_eq!(joined.wanted(&world, &wanted), None, "it changes nothing");
            begun.elapsed()
        });
        times.min().expect("there are some")
    };
    let here = fastest(&mut |world, number| {
        let labels = [("number", number.to_string().as_str())].into_iter().collect();
        world.cluster.pods.insert(ObjectName::new("shop", "a"), Pod { labels, ..pod("10.244.1.5", 1) });
    });
    let elsewhere = fastest(&mut |world, number| {
        let far = Pod { node: Some("node2".into()), ..pod("10.245.0.1", 9000 + number) };
        world.cluster.pods.insert(ObjectName::new("far", "pod-0"), far);
        let (cluster_ips, external_ips) = (vec![at("10.97.0.1")], Vec::new());
        let other = Service { cluster_ips, external_ips, created: i64::from(number), ..service(false) };
        world.cluster.services.insert(ObjectName::new("far", "web-0"), other);
    });
    assert!(elsewhere * 5 < here, "{elsewhere:?} for a pod elsewhere, {here:?} for one here");
}
