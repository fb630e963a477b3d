use std::time::Duration;

use super::*;
use crate::config::{Environment, Mistakes, Request, request};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, PodUid, ProxyAnnotations, Service,
    ServicePort, ServiceType,
};
use crate::net::{Family, Protocol};
use crate::pod_tunnels::machine::LeftOut;

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
    assert_eq!(wanted, Wanted { complete: true, ..Wanted::default() });
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
    assert_eq!(joined.wanted(&world, &wanted), Some(Wanted::default()));
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
    world.cluster.services.insert(name, Service { cluster_ips: vec![at("203.0.113.7")], ..older(80) });
    assert_eq!(tunnels(&world), [""; 0], "its cluster IP");
}

#[test]
fn a_pod_that_policies_close_to_tunnels_is_a_problem_of_its_service() {
    use crate::model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Selector};
    let mut world = with_pod();
    let host = |address: &str| HostAddress { address: at(address), link: "eth0".into(), global: true };
    let addresses = ["192.0.2.11", "10.244.1.254"].map(host).into_iter().collect();
    world.host = Arc::new(Host { addresses, ..(*world.host).clone() });
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
        ("10.244.1.254/32", &[][..], false),
    ] {
        let rule = PolicyRule { peers: block(cidr, except), ports: Ports::Any };
        assert_eq!(after(vec![rule]), expected, "{cidr} without {except:?}");
    }
    assert!(!after(vec![PolicyRule { peers: Peers::Any, ports: Ports::Any }]));
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
        pods.follow(&world, &[(v4, known.clone()), (v6, known)].into());
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
        "pod 10.244.1.5 does not answer for 203.0.113.7 (direct server return): no container runtime answers"
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
    let following = tokio::spawn(follow(joined(), world_in, wanted, standing_in, problems));
    world_out.send_replace(with_pod());
    wanted_in.changed().await.expect("it is told");
    assert_eq!(wanted_in.borrow().tunnels.len(), 1);
    let left_out = LeftOut { pod: at("10.244.1.5"), services: Default::default(), reason: "why".to_owned() };
    standing.send_replace(Arc::new(Standing { left_out: vec![left_out], ..Standing::default() }));
    problems_in.changed().await.expect("it is told");
    assert_eq!(problems_in.borrow_and_update().len(), 1);
    standing.send_replace(Arc::default());
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

#[test]
fn tunnels_are_used_where_they_are_asked_for_and_it_is_said_how_pods_are_found_and_no_guard_drops_their_answers() {
    let config = |words: &[&str]| {
        let words: Vec<std::ffi::OsString> = std::iter::once(&"sluice").chain(words).map(Into::into).collect();
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        with_tunnels(Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default()))
    };
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| format!("--runtime-endpoint=unix://{}", directory.path().join(name).display());
    let (endpoint, absent, file) = (&*at("runtime.sock"), &*at("absent.sock"), &*at("file"));
    let on = "--enable-direct-server-return";
    let _listener = std::os::unix::net::UnixListener::bind(directory.path().join("runtime.sock")).expect("a socket");
    fs::write(directory.path().join("file"), "").expect("writable");
    for (words, expected) in [
        (&[][..], false),
        (&[endpoint], false),
        (&[endpoint, on], true),
        (&[absent, on], false),
        (&[file, on], false),
        (&[endpoint, on, "--netpol-cni", "--netpol-source-guard"], false),
        (&[endpoint, on, "--run-service-proxy=false"], false),
    ] {
        let config = config(words);
        assert_eq!(settings(&config).is_some(), expected, "{words:?}");
        assert_eq!(config.proxy.is_some_and(|proxy| proxy.tunnel_mode), expected, "{words:?}");
        assert_eq!(config.firewall.is_some_and(|firewall| firewall.tunnel_mode), expected, "{words:?}");
    }
}
