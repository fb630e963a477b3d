//! Services and pods: which tunnels are wanted of them.

use super::*;

#[test]
fn nothing_is_wanted_without_the_annotation_and_of_pods_that_are_not_known() {
    let (mut joined, nothing) = (joined(), Wanted::default());
    assert_eq!(joined.wanted(&World::empty(), &nothing), None, "nothing is known");
    let wanted = joined.wanted(&world(false), &nothing).expect("now the cluster is");
    assert_eq!(wanted, Wanted { complete: true, policies_known: true, ..Wanted::default() });
    let mut world = world(true);
    assert_eq!(joined.wanted(&world, &wanted), None, "nobody knows whose address it is");
    let strangers = joined.problems(&Standing::default());
    assert!(strangers.get(&web()).expect("it is named")[0].text.ends_with(owners::STRANGER));
    // Of the pods only those that end tunnels are told, also where two have the address for a moment.
    for (name, pod) in [("a", pod("10.244.1.5", 1)), ("b", pod("10.244.1.6", 2)), ("c", pod("10.244.1.5", 3))] {
        world.cluster.pods.insert(ObjectName::new("shop", name), pod);
    }
    let known = |wanted: &Wanted| -> Vec<String> {
        let pods = wanted.pods.get(&at("10.244.1.5")).into_iter().flatten();
        pods.map(|pod| format!("{} {:?}", pod.name.name, pod.uid.map(PodUid::number))).collect()
    };
    let wanted = joined.wanted(&world, &wanted).expect("pods are known");
    assert_eq!(wanted.tunnels, [(at("10.244.1.5"), [at("203.0.113.7")].into())].into());
    assert_eq!(joined.wanted(&world, &wanted), None);
    assert!(joined.problems(&Standing::default()).is_empty());
    assert_eq!((known(&wanted), wanted.pods.len()), (vec!["a Some(1)".to_owned(), "c Some(3)".to_owned()], 1));
    world.cluster.pods.insert(ObjectName::new("shop", "a"), Pod { finished: true, ..pod("10.244.1.5", 1) });
    world.cluster.pods.insert(ObjectName::new("shop", "c"), pod("10.244.1.5", 4));
    let wanted = joined.wanted(&world, &wanted).expect("another pod");
    assert_eq!(known(&wanted), ["c Some(4)"]);
    world.cluster.services.remove(&web());
    world.authority.proxy = Authority::Partial;
    assert_eq!(joined.wanted(&world, &wanted), Some(Wanted { policies_known: true, ..Wanted::default() }));
}

fn tunnels(world: &World) -> Vec<String> {
    let mut joined = joined();
    let wanted = joined.wanted(world, &Wanted::default()).unwrap_or_default();
    let words = |(pod, addresses): (&IpAddr, &BTreeSet<IpAddr>)| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{pod}: {}", addresses.join(" "))
    };
    wanted.tunnels.iter().map(words).collect()
}

/// The kernel may be newer than the file: the last run has taken the tunnel out of the pod, which a policy closes since.
#[test]
fn a_remembered_cluster_makes_no_tunnel_that_a_newer_run_removed() {
    let rank = |proxy, firewall| {
        let mut world = with_pod();
        (world.authority.proxy, world.authority.firewall) = (proxy, firewall);
        tunnels(&world)
    };
    for (proxy, firewall) in [
        (Authority::Remembered, Authority::Remembered),
        (Authority::Remembered, Authority::Complete),
        (Authority::Complete, Authority::Remembered),
    ] {
        assert_eq!(rank(proxy, firewall), [""; 0], "{proxy:?} {firewall:?}");
    }
    assert_eq!(rank(Authority::Partial, Authority::Partial), ["10.244.1.5: 203.0.113.7"]);
}

#[test]
fn a_service_puts_its_addresses_into_pods_of_its_own_namespace_alone() {
    let mut world = with_pod();
    let slices = world.cluster.endpoints.get(&web()).expect("it has some").clone();
    let other = ObjectName::new("other", "web");
    world.cluster.services.insert(other.clone(), Service { external_ips: vec![at("203.0.113.8")], ..service(true) });
    world.cluster.endpoints.insert(other.clone(), (*slices).clone());
    assert_eq!(tunnels(&world), ["10.244.1.5: 203.0.113.7"]);
    let mut joined = joined();
    joined.wanted(&world, &Wanted::default());
    let problems = joined.problems(&Standing::default());
    assert_eq!(problems.get(&other).map(|all| all.len()), Some(1), "it is told");
    assert!(problems.get(&web()).is_none());
    // While a pod of each namespace has the address, nobody knows whose it is.
    world.cluster.pods.insert(ObjectName::new("other", "b"), pod("10.244.1.5", 2));
    assert_eq!(tunnels(&world), [""; 0]);
    world.cluster.pods.remove(&ObjectName::new("shop", "a"));
    assert_eq!(tunnels(&world), ["10.244.1.5: 203.0.113.8"]);
}

#[test]
fn a_service_puts_no_address_into_its_pods_whose_ports_an_older_one_has() {
    let mut world = with_pod();
    let older = |port| {
        let ports = [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port, node_port: None }].into();
        Service { created: 1, ports, cluster_ips: vec![at("10.96.0.2")], ..service(false) }
    };
    let name = ObjectName::new("other", "older");
    world.cluster.services.insert(name.clone(), older(80));
    assert_eq!(tunnels(&world), [""; 0]);
    world.cluster.services.insert(name.clone(), older(81));
    assert_eq!(tunnels(&world), ["10.244.1.5: 203.0.113.7"], "another port");
    world.cluster.services.insert(name.clone(), Service { created: 9, ..older(80) });
    assert_eq!(tunnels(&world), ["10.244.1.5: 203.0.113.7"], "a younger one has nothing of it");
    let own = Service { cluster_ips: vec![at("203.0.113.7")], ..older(80) };
    world.cluster.services.insert(name.clone(), own);
    assert_eq!(tunnels(&world), [""; 0], "its cluster IP");
    world.cluster.services.insert(name, older(80));
    let given = vec![LoadBalancerAddress { address: at("203.0.113.7"), through_balancer: false }];
    let balanced = Service { load_balancer: given, external_ips: Vec::new(), ..service(true) };
    world.cluster.services.insert(web(), balanced);
    assert_eq!(tunnels(&world), ["10.244.1.5: 203.0.113.7"], "a load balancer has given it to the younger one");
}
