mod found_pods;

use super::*;
use crate::config::{Environment, Mistakes, Request, request};
use crate::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, LoadBalancerAddress,
    Node, NodeAddress, NodeAddressKind, Pod, PodUid, ProxyAnnotations, Service, ServicePort, ServiceType,
};
use crate::net::{Family, Protocol};
use crate::observe::health::Health;
use crate::pod_tunnels::machine::LeftOut;
use crate::pod_tunnels::places::KnownPod;

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn joined() -> Joined {
    let words: Vec<std::ffi::OsString> =
        ["sluice", "--strict-external-ip-validation=false"].iter().map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
    let proxy = Arc::new(config.proxy.expect("it runs"));
    Joined::new(LocalPods::new(proxy, PerFamily { v4: true, v6: false }))
}

fn service(dsr: bool) -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![at("10.96.0.1")],
        external_ips: vec![at("203.0.113.7")],
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: 7,
    }
}

fn pod(address: &str, uid: u32) -> Pod {
    Pod {
        uid: PodUid::from_number(uid),
        labels: Default::default(),
        addresses: vec![at(address)].into(),
        node: Some("node1".into()),
        host_network: false,
        finished: false,
        ports: Default::default(),
    }
}

/// The Service `web`, with one pod of this node.
fn world(dsr: bool) -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    (world.authority.proxy, world.authority.firewall) = (Authority::Complete, Authority::Complete);
    let endpoint =
        Endpoint { address: at("10.244.1.5"), node: Some("node1".into()), conditions: Conditions::READY, hints: None };
    let ports = [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let slice = EndpointSlice { family: Family::V4, ports, endpoints: [endpoint].into_iter().collect() };
    world.cluster.services.insert(web(), service(dsr));
    world.cluster.endpoints.insert(web(), Endpoints { slices: [("slice".into(), Arc::new(slice))].into() });
    world
}

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

/// The same with the annotation and the pod.
fn with_pod() -> World {
    let mut world = world(true);
    world.cluster.pods.insert(ObjectName::new("shop", "a"), pod("10.244.1.5", 1));
    world
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

#[test]
fn a_pod_that_policies_close_to_tunnels_is_a_problem_of_its_service() {
    use crate::model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    let mut world = with_pod();
    let host = |address: &str| HostAddress { address: at(address), link: "eth0".into(), global: true };
    let addresses = ["192.0.2.11", "10.244.1.254"].map(host).into_iter().collect();
    world.host = Arc::new(Host { addresses, ..(*world.host).clone() });
    world.cluster.nodes.insert("node1".into(), node("192.0.2.11"));
    let mut after = |rules: Vec<PolicyRule>| {
        let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some(rules.into()), egress: None };
        world.cluster.policies.insert(ObjectName::new("shop", "in"), policy);
        let mut joined = joined();
        let wanted = joined.wanted(&world, &Wanted::default()).expect("it is complete");
        let problems = joined.problems(&Standing::default());
        let is_told = problems.get(&web()).is_some_and(|all| all[0].text.ends_with(closed::REASON));
        let services = wanted.tunnels.get(&at("10.244.1.5")).expect("it is followed");
        assert_eq!(services.is_empty(), is_told, "it has no tunnel");
        is_told
    };
    let nodes =
        || Peers::Of([Peer::Block { cidr: "192.0.2.0/24".parse().expect("a range"), except: [].into() }].into());
    assert!(after(Vec::new()));
    assert!(after(vec![PolicyRule { peers: nodes(), ports: Ports::Of([].into()) }]), "a tunnel has no port");
    assert!(!after(vec![PolicyRule { peers: nodes(), ports: Ports::Any }]));
    let block = |cidr: &str, except: &[&str]| {
        let except = except.iter().map(|hole| hole.parse().expect("a range")).collect();
        Peers::Of([Peer::Block { cidr: cidr.parse().expect("a range"), except }].into())
    };
    for (cidr, except, expected) in [
        ("198.51.100.0/24", &[][..], true),
        ("192.0.0.0/8", &["192.0.2.0/24"][..], true),
        ("192.0.0.0/8", &["192.0.3.0/24"][..], false),
        // From the pods' gateway come this node's own tunnels alone.
        ("10.244.1.254/32", &[][..], true),
        ("10.244.1.0/24", &[][..], true),
    ] {
        let rule = PolicyRule { peers: block(cidr, except), ports: Ports::Any };
        assert_eq!(after(vec![rule]), expected, "{cidr} without {except:?}");
    }
    assert!(!after(vec![PolicyRule { peers: Peers::Any, ports: Ports::Any }]));
}

fn node(address: &str) -> Node {
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: at(address) }];
    Node { addresses, ..Node::default() }
}

#[test]
fn a_pod_that_lets_the_tunnels_of_some_nodes_in_answers_and_it_is_told_whose_are_kept_out() {
    use crate::model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    for (pod_address, [here, other], range) in [
        ("10.244.1.5", ["192.0.2.11", "192.0.2.12"], "192.0.2.11/32"),
        ("fd00:10:244:1::5", ["2001:db8:2::11", "2001:db8:2::12"], "2001:db8:2::11/128"),
    ] {
        let mut world = with_pod();
        let name = ObjectName::new("shop", "a");
        world.cluster.pods.insert(name.clone(), pod(pod_address, 1));
        world.cluster.nodes.insert("node1".into(), node(here));
        let peers = Peers::Of([Peer::Block { cidr: range.parse().expect("a range"), except: [].into() }].into());
        let rules = [PolicyRule { peers, ports: Ports::Any }].into();
        let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some(rules), egress: None };
        world.cluster.policies.insert(ObjectName::new("shop", "in"), policy);
        let known = [KnownPod { name, uid: PodUid::from_number(1) }].into_iter().collect::<BTreeSet<_>>();
        let pods = [(at(pod_address), known)].into();
        let mut closed = closed::ClosedPods::default();
        closed.follow(&world, &pods, true);
        assert_eq!(closed.open_in_part().collect::<Vec<_>>(), []);
        world.cluster.nodes.insert("node2".into(), node(other));
        assert!(closed.follow(&world, &pods, false), "another Node came");
        assert_eq!(closed.open_in_part().collect::<Vec<_>>(), [(at(pod_address), at(other))]);
        assert_eq!(closed.pods().count(), 0);
        let in_far = NetworkPolicy { pods: Selector::everything(), ingress: Some([].into()), egress: None };
        world.cluster.policies.insert(ObjectName::new("far", "in"), in_far);
        assert!(!closed.follow(&world, &pods, false), "it concerns no pod here");
        let mut joined = joined();
        joined.wanted(&world, &Wanted::default());
        if pod_address == "10.244.1.5" {
            let text = joined.problems(&Standing::default()).get(&web()).expect("it is told")[0].text.clone();
            assert!(text.ends_with("tunnels of the Node 192.0.2.12 are kept out"), "{text}");
        }
    }
}

#[test]
fn tunnels_come_from_the_address_that_a_node_is_routed_by_and_not_from_the_internal_ip_beside_it() {
    use crate::model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    for (pod_address, [internal, routed], [internal_range, routed_range]) in [
        ("10.244.1.5", ["192.0.2.11", "198.51.100.11"], ["192.0.2.0/24", "198.51.100.0/24"]),
        ("fd00:10:244:1::5", ["2001:db8:2::11", "2001:db8:1::11"], ["2001:db8:2::/64", "2001:db8:1::/64"]),
    ] {
        for (range, is_closed) in [(internal_range, true), (routed_range, false)] {
            let mut world = with_pod();
            let name = ObjectName::new("shop", "a");
            world.cluster.pods.insert(name.clone(), pod(pod_address, 1));
            let mut own = node(internal);
            let mut detected = PerFamily::default();
            *detected.of_mut(Family::from(at(routed))) = Some(at(routed));
            own.set_detected(detected);
            world.cluster.nodes.insert("node1".into(), own);
            let peers = Peers::Of([Peer::Block { cidr: range.parse().expect("a range"), except: [].into() }].into());
            let rules = [PolicyRule { peers, ports: Ports::Any }].into();
            let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some(rules), egress: None };
            world.cluster.policies.insert(ObjectName::new("shop", "in"), policy);
            let known = [KnownPod { name, uid: PodUid::from_number(1) }].into_iter().collect::<BTreeSet<_>>();
            let mut closed = closed::ClosedPods::default();
            closed.follow(&world, &[(at(pod_address), known)].into(), true);
            assert_eq!(closed.has(&at(pod_address)), is_closed, "{range}");
            assert_eq!(closed.open_in_part().collect::<Vec<_>>(), [], "{range}");
        }
    }
}

#[test]
fn a_pod_of_two_families_is_closed_in_the_one_whose_nodes_may_not_come_in() {
    use crate::model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    let (v4, v6, name) = (at("10.244.1.5"), at("fd00:10:244:1::5"), ObjectName::new("shop", "a"));
    for (range, nodes, closed) in [
        ("192.0.2.0/24", &["192.0.2.11", "2001:db8:2::11"][..], vec![v6]),
        ("2001:db8:2::/64", &["192.0.2.11", "2001:db8:2::11"], vec![v4]),
        ("2001:db8:3::/64", &["192.0.2.11", "2001:db8:2::11"], vec![v4, v6]),
        // Nodes of the other family are not known.
        ("2001:db8:3::/64", &["192.0.2.11"], vec![v4]),
        ("192.0.2.0/24", &[], vec![v6]),
    ] {
        let mut world = with_pod();
        world.cluster.pods.insert(name.clone(), Pod { addresses: vec![v4, v6].into(), ..pod("10.244.1.5", 1) });
        let host = |address: &&str| HostAddress { address: at(address), link: "eth0".into(), global: true };
        world.host = Arc::new(Host { addresses: nodes.iter().map(host).collect(), ..(*world.host).clone() });
        let peers = Peers::Of([Peer::Block { cidr: range.parse().expect("a range"), except: [].into() }].into());
        let rules = [PolicyRule { peers, ports: Ports::Any }].into();
        let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some(rules), egress: None };
        world.cluster.policies.insert(ObjectName::new("shop", "in"), policy);
        let known = [KnownPod { name: name.clone(), uid: PodUid::from_number(1) }].into_iter().collect::<BTreeSet<_>>();
        let mut pods = closed::ClosedPods::default();
        pods.follow(&world, &[(v4, known.clone()), (v6, known)].into(), true);
        assert_eq!(pods.pods().copied().collect::<Vec<_>>(), closed, "{range} of {nodes:?}");
    }
}

/// A tunnel does not show what such a rule is about.
#[test]
fn a_cluster_wide_rule_that_denies_closes_a_pod_to_tunnels_where_it_decides() {
    use crate::model::{
        Action, ClusterNetworkPolicy, ClusterRule, NetworkPolicy, Operator, Peers, PolicyRule, Ports, Requirement,
        Selector, Subject, Tier,
    };
    for (tier, is_isolated, (action, subject, expected)) in [
        (Tier::Admin, false, (Action::Deny, "app=a", true)),
        (Tier::Admin, false, (Action::Accept, "app=a", false)),
        (Tier::Admin, false, (Action::Deny, "app=b", false)),
        (Tier::Admin, true, (Action::Deny, "app=a", true)),
        (Tier::Baseline, false, (Action::Deny, "app=a", true)),
        (Tier::Baseline, true, (Action::Deny, "app=a", false)),
    ] {
        let mut world = with_pod();
        if is_isolated {
            let ingress = Some([PolicyRule { peers: Peers::Any, ports: Ports::Any }].into());
            let policy = NetworkPolicy { pods: Selector::everything(), ingress, egress: None };
            world.cluster.policies.insert(ObjectName::new("shop", "in"), policy);
        }
        let labelled = Pod { labels: [("app", "a")].into_iter().collect(), ..pod("10.244.1.5", 1) };
        world.cluster.pods.insert(ObjectName::new("shop", "a"), labelled);
        let (_, value) = subject.split_once('=').expect("a label");
        let pods: Selector =
            [Requirement { key: "app".into(), operator: Operator::In(Box::new([value.into()])) }].into_iter().collect();
        let rule = ClusterRule {
            name: "".into(),
            action,
            matches: PolicyRule { peers: Peers::Any, ports: Ports::Of([].into()) },
        };
        let policy = ClusterNetworkPolicy {
            tier,
            priority: 1,
            subject: Subject { namespaces: Selector::everything(), pods },
            ingress: [rule].into(),
            egress: [].into(),
        };
        world.cluster.cluster_policies.insert("guard".into(), policy);
        let wanted = joined().wanted(&world, &Wanted::default()).expect("it is complete");
        let services = wanted.tunnels.get(&at("10.244.1.5")).expect("it is followed");
        assert_eq!(services.is_empty(), expected, "{tier:?} {action:?} {subject}, isolated: {is_isolated}");
    }
}

#[test]
fn a_pod_that_cannot_be_set_up_is_a_problem_of_its_services() {
    let mut joined = joined();
    joined.wanted(&with_pod(), &Wanted::default());
    let left_out = |pod: &str| LeftOut {
        pod: at(pod),
        services: [at("203.0.113.7")].into(),
        reason: "no container runtime answers".to_owned(),
    };
    let standing = Standing { left_out: vec![left_out("10.244.1.5"), left_out("10.244.1.9")], ..Standing::default() };
    let problems = joined.problems(&standing);
    let problem = &problems.get(&web()).expect("it is named")[0];
    assert_eq!(
        problem.text,
        "pod 10.244.1.5 does not answer for 203.0.113.7 (direct server return), and what other nodes send it through tunnels is lost: no container runtime answers"
    );
    assert_eq!((problem.cause.reason(), &*problem.subject, problem.created), ("PodTunnelMissing", "pod 10.244.1.5", 7));
    assert!(joined.problems(&Standing::default()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_and_what_cannot_be_set_up_go_both_ways() {
    let (world_out, world_in) = watch::channel(World::empty());
    let (wanted, mut wanted_in) = watch::channel(Arc::default());
    let (standing, standing_in) = watch::channel(Arc::default());
    let (problems, mut problems_in) = watch::channel(ServiceProblems::default());
    let (tunnel_ends, mut ends) = watch::channel(Arc::<TunnelEnds>::default());
    let note = Health::default().note(PODS);
    let out = Out { wanted, problems, tunnel_ends, note };
    let following = tokio::spawn(follow(joined(), world_in, standing_in, out));
    world_out.send_replace(with_pod());
    wanted_in.changed().await.expect("it is told");
    assert_eq!(wanted_in.borrow().tunnels.len(), 1);
    let left_out = LeftOut { pod: at("10.244.1.5"), services: Default::default(), reason: "why".to_owned() };
    standing.send_replace(Arc::new(Standing { left_out: vec![left_out], ..Standing::default() }));
    problems_in.changed().await.expect("it is told");
    assert_eq!(problems_in.borrow_and_update().len(), 1);
    let (begun, it) = (Instant::now(), Untunnelled::from([(web(), [at("10.244.1.5")].into())]));
    let proven = |is: bool| Some(if is { Untunnelled::new() } else { it.clone() });
    ends.wait_for(|ends| ends.unproven == proven(false)).await.expect("it is told at once");
    ends.wait_for(|ends| ends.lacking == it).await.expect("it is told");
    assert_eq!(begun.elapsed().as_secs(), 5, "a short failure takes nobody out");
    let set_up = [(at("10.244.1.5"), [at("203.0.113.7")].into())].into();
    standing.send_replace(Arc::new(Standing { set_up, ..Standing::default() }));
    ends.wait_for(|ends| ends.lacking.is_empty() && ends.unproven == proven(true)).await.expect("it is told at once");
    assert_eq!(begun.elapsed().as_secs(), 5);
    problems_in.changed().await.expect("it is told");
    assert!(problems_in.borrow_and_update().is_empty());
    // The thread of the pods ends before the World does.
    drop(standing);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world_out.send_replace(world(false));
    wanted_in.changed().await.expect("it is told");
    drop(world_out);
    following.await.expect("it ends");
}

fn config_of(words: &[&str]) -> Config {
    let words: Vec<std::ffi::OsString> = std::iter::once(&"sluice").chain(words).map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    with_tunnels(Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default()))
}

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
