//! Network policies that close pods to tunnels, for all nodes or for some of them.

use super::*;

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
