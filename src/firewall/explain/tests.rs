use std::sync::Arc;

use serde_json::json;

use super::super::bridges;
use super::super::given::{labels, object, pod, pods, pods_in, policy, rule};
use super::super::plan::Plan;
use super::super::verdict::Decision;
use super::*;
use crate::model::{
    Action, Cause, ClusterNetworkPolicy, ClusterRule, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints,
    Host, HostAddress, HostLink, LoadBalancerAddress, Namespace, Node, NodeAddress, NodeAddressKind, OnLink, Peer,
    PolicyProblems, Selector, Service, ServicePort, ServiceProblem, Subject, Tier,
};

fn world() -> World {
    let mut world = World::empty();
    let own = HostAddress { address: [192, 0, 2, 11].into(), link: "eth0".into(), global: true };
    world.host = Arc::new(Host { node_name: "node1".into(), addresses: vec![own], ..Host::default() });
    let cluster = &mut world.cluster;
    cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: true });
    cluster.pods.insert(object("shop/web"), pod("10.244.1.7 fd00:10:244:1::7", "app=web", ""));
    cluster.pods.insert(object("shop/db"), pod("10.244.1.8", "app=db", ""));
    let mut far = pod("10.244.2.9 fd00:10:244:2::9", "app=far", "");
    far.node = Some("node2".into());
    cluster.pods.insert(object("shop/far"), far);
    let mut done = pod("10.244.1.8", "", "");
    done.finished = true;
    cluster.pods.insert(object("shop/done"), done);
    let allows = [rule(&[pods("app=nobody")], &[]), rule(&[pods("app=web")], &["tcp/5432"])];
    cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
    cluster.policies.insert(object("shop/out"), policy("app=db", None, Some(&[])));
    world
}

fn asked(from: &str, to: &str) -> Result<Explanation, Unanswerable> {
    asked_in(&world(), from, to)
}

fn asked_in(world: &World, from: &str, to: &str) -> Result<Explanation, Unanswerable> {
    with_known(world, |known| explanation(known, &Question::parse(from, to).unwrap()))
}

fn with_known<R>(world: &World, ask: impl FnOnce(Known<'_>) -> R) -> R {
    let mut plan = Plan::new();
    plan.update(world);
    let ranges = |text: &str| vec![text.parse().unwrap()];
    let config = FirewallConfig {
        backend: crate::config::Backend::default(),
        sync_period: std::time::Duration::from_secs(300),
        default_deny: true,
        flush_established: false,
        ranges: ServiceRanges {
            strict: true,
            cluster_ips: ranges("10.96.0.0/12"),
            external_ips: ranges("203.0.113.128/25"),
            load_balancer_ips: ranges("203.0.113.128/25"),
        },
        knows_services: true,
        tunnel_mode: false,
        service_node_port_range: 30000..=32767,
    };
    let closed = ranges("10.244.1.0/24");
    let bridges = bridges::closed(plan.rules(), world);
    let mut host_endpoints = HostEndpoints::default();
    host_endpoints.update(world, &config);
    let known = Known {
        rules: plan.rules(),
        world,
        config: &config,
        closed: &closed,
        bridges: &bridges,
        claims: plan.claims(),
        host_endpoints: &host_endpoints,
    };
    ask(known)
}

fn check(from: &str, to: &str, expected: &str) {
    assert_eq!(text(&asked(from, to).unwrap()), expected);
}

#[test]
fn the_rule_that_allows_is_named() {
    check(
        "shop/web",
        "shop/db:5432",
        "shop/web (10.244.1.7) to shop/db (10.244.1.8), tcp 5432: allowed\n\
         \x20 egress: allowed: no policy isolates shop/web for egress\n\
         \x20 ingress: allowed by shop/db, rule 1 (spec.ingress[1])\n",
    );
}

#[test]
fn everything_that_isolates_is_named_where_nothing_allows() {
    check(
        "shop/db",
        "shop/db:80",
        "shop/db (10.244.1.8) to shop/db (10.244.1.8), tcp 80: allowed\n\
         \x20 egress: allowed: a pod always reaches itself\n\
         \x20 ingress: allowed: a pod always reaches itself\n",
    );
    check(
        "203.0.113.1",
        "shop/db:80/udp",
        "203.0.113.1 to shop/db (10.244.1.8), udp 80: denied\n\
         \x20 egress: not concerned: no pod of the cluster has this address\n\
         \x20 ingress: denied: shop/db is isolated by shop/db, the annotation of namespace shop, and nothing allows it\n",
    );
}

#[test]
fn the_rule_of_a_tier_that_decides_is_named() {
    let of = |tier, action: Action| {
        let all = ClusterRule { name: "all".into(), action, matches: rule(&[pods_in("", "")], &[]) };
        let none = ClusterRule { name: "".into(), action, matches: rule(&[pods_in("", "app=nobody")], &[]) };
        let subject = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
        ClusterNetworkPolicy { tier, priority: 7, subject, ingress: [none, all].into(), egress: [].into() }
    };
    let mut world = world();
    world.cluster.cluster_policies.insert("guard".into(), of(Tier::Admin, Action::Deny));
    let told = |world: &World, to| {
        let explanation = asked_in(world, "shop/web", to).unwrap();
        let found = &super::json(&explanation)["answers"][0]["ingress"];
        (text(&explanation).lines().last().unwrap_or_default().trim().to_owned(), found["decision"].clone())
    };
    let rule = "by ClusterNetworkPolicy guard (Admin tier, priority 7), rule 1 \"all\" (spec.ingress[1])";
    assert_eq!(told(&world, "shop/db:5432"), (format!("ingress: denied {rule}"), json!("deniedByClusterPolicy")));
    world.cluster.cluster_policies.insert("guard".into(), of(Tier::Admin, Action::Accept));
    assert_eq!(told(&world, "shop/db:80"), (format!("ingress: allowed {rule}"), json!("allowedByClusterPolicy")));
    // Pods that NetworkPolicies isolate are none of the Baseline tier's.
    world.cluster.cluster_policies.insert("guard".into(), of(Tier::Baseline, Action::Deny));
    assert_eq!(told(&world, "shop/db:5432").1, json!("allowed"));
    world.cluster.policies = Default::default();
    world.cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: false });
    let rule = rule.replace("Admin", "Baseline");
    assert_eq!(told(&world, "shop/db:5432"), (format!("ingress: denied {rule}"), json!("deniedByClusterPolicy")));
}

#[test]
fn what_is_not_understood_of_the_policies_of_a_pod_is_part_of_the_answer() {
    let mut world = world();
    for (name, priority) in [("guard", 1), ("other", 2)] {
        let pods = if name == "guard" { "app=web" } else { "app=nobody" };
        let Peer::Pods { pods, .. } = pods_in("", pods) else { panic!("pods") };
        let subject = Subject { namespaces: Selector::everything(), pods };
        let nothing = ClusterRule { name: "".into(), action: Action::Accept, matches: rule(&[], &[]) };
        let of =
            ClusterNetworkPolicy { tier: Tier::Admin, priority, subject, ingress: [].into(), egress: [nothing].into() };
        world.cluster.cluster_policies.insert(name.into(), of);
    }
    for name in ["guard", "other", "shop/db", "shop/nothing"] {
        let name = name
            .split_once('/')
            .map_or(ObjectName::new("", name), |(namespace, name)| ObjectName::new(namespace, name));
        let text = format!("spec of {}: is odd", name.name);
        world.policy_problems.insert(name, vec![ServiceProblem::new(Cause::Policy, &text.clone(), text)]);
    }
    let told = |from: &str, to: &str| {
        with_known(&world, |known| {
            let explanation = explanation(known, &Question::parse(from, to).unwrap()).unwrap();
            odd_policies(known, &PolicyProblems::default(), &explanation)
        })
    };
    let (guard, db) =
        ("ClusterNetworkPolicy guard: spec of guard: is odd", "NetworkPolicy shop/db: spec of db: is odd");
    assert_eq!(told("shop/web", "shop/db:80"), [guard, db]);
    assert_eq!(told("shop/web", "203.0.113.1:80"), [guard]);
    assert_eq!(told("203.0.113.1", "shop/db:80"), [db]);
}

#[test]
fn both_families_are_answered_and_other_nodes_decide_for_themselves() {
    check(
        "shop/far",
        "shop/web:80",
        "shop/far (10.244.2.9) to shop/web (10.244.1.7), tcp 80: denied\n\
         \x20 egress: not decided here: shop/far runs on node2\n\
         \x20 ingress: denied: shop/web is isolated by the annotation of namespace shop, and nothing allows it\n\
         shop/far (fd00:10:244:2::9) to shop/web (fd00:10:244:1::7), tcp 80: denied\n\
         \x20 egress: not decided here: shop/far runs on node2\n\
         \x20 ingress: denied: shop/web is isolated by the annotation of namespace shop, and nothing allows it\n",
    );
}

#[test]
fn an_address_is_told_by_the_pod_that_has_it() {
    check(
        "192.0.2.11",
        "10.244.1.8:80/sctp",
        "this node (192.0.2.11) to shop/db (10.244.1.8), sctp 80: allowed\n\
         \x20 egress: not concerned: this node itself\n\
         \x20 ingress: allowed: a node always reaches its own pods\n",
    );
}

#[test]
fn what_flags_add_is_part_of_the_answer() {
    check(
        "shop/db",
        "192.0.2.11:30080",
        "shop/db (10.244.1.8) to this node (192.0.2.11), tcp 30080: allowed\n\
         \x20 egress: allowed: a pod always reaches the node ports of its own node\n\
         \x20 ingress: not concerned: this node itself\n",
    );
    check(
        "shop/db",
        "192.0.2.11:80",
        "shop/db (10.244.1.8) to this node (192.0.2.11), tcp 80: denied\n\
         \x20 egress: denied: shop/db is isolated by shop/out, and nothing allows it\n\
         \x20 ingress: not concerned: this node itself\n",
    );
    let unknown = asked("10.244.1.99", "203.0.113.1:80").unwrap();
    assert!(text(&unknown).contains("tcp 80: denied\n  egress: denied: no pod of this node is known"), "{unknown:?}");
    let unknown = asked("shop/far", "10.244.1.99:80").unwrap();
    assert!(
        !unknown.answers[0].verdict.passes() && unknown.answers[0].verdict.ingress == Decision::Closed,
        "{unknown:?}"
    );
    assert!(asked("192.0.2.11", "10.244.1.99:80").unwrap().answers[0].verdict.passes(), "the node itself is never cut");
    for address in ["10.96.0.10", "203.0.113.200"] {
        let told = asked("shop/db", &format!("{address}:53/udp")).unwrap_err().to_string();
        assert!(told.starts_with(&format!("no Service with the port 53/udp at {address} is known here")), "{told}");
    }
}

#[test]
fn what_is_closed_on_bridges_is_said_with_their_names_and_only_where_they_are() {
    let with_bridges = |names: &[&str]| {
        let mut world = world();
        let mut host = (*world.host).clone();
        let on = |name: &&str| OnLink { prefix: "10.244.1.0/24".parse().unwrap(), link: (*name).into() };
        host.on_link = names.iter().map(on).collect();
        host.links = names.iter().map(|name| HostLink { name: (*name).into(), mtu: 1500, bridge: true }).collect();
        world.host = Arc::new(host);
        world
    };
    for (from, to) in [("fe80::7", "[fe80::8]:80"), ("shop/far", "224.0.0.251:5353/udp")] {
        assert!(
            asked_in(&with_bridges(&[]), from, to).unwrap().answers[0].verdict.passes(),
            "each pod has a link of its own"
        );
        let answers = asked_in(&with_bridges(&["kube-bridge", "cni0"]), from, to).unwrap();
        assert!(text(&answers).contains("denied on cni0, kube-bridge, not judged on other links"), "{answers:?}");
        assert_eq!(super::json(&answers)["answers"][0]["bridges"], json!(["cni0", "kube-bridge"]));
    }
    let everybody = asked_in(&with_bridges(&["cni0"]), "shop/web", "10.244.1.255:5353/udp").unwrap();
    assert!(text(&everybody).contains("denied on cni0"), "{everybody:?}");
}

/// The Service shop/api with these endpoints, each with its node's name, and a cluster IP of each family.
fn with_service(endpoints: &[(&str, Option<&str>, bool)]) -> World {
    let mut world = world();
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    let cluster_ips = vec![[10, 96, 0, 1].into(), "fd00:10:96::1".parse().unwrap()];
    let api = Service {
        external_ips: vec![[203, 0, 113, 200].into()],
        ..Service::new(cluster_ips, vec![port("https", Protocol::Tcp, 443, Some(30443))])
    };
    let not_ready = Conditions { ready: false, serving: false, terminating: false };
    let slice = |family| {
        let of_family = endpoints.iter().map(|(address, node, ready)| Endpoint {
            address: address.parse().unwrap(),
            node: node.map(Into::into),
            conditions: if *ready { Conditions::READY } else { not_ready },
            hints: None,
        });
        let of_family = of_family.filter(|one| Family::from(one.address) == family).collect();
        let ports = [EndpointPort { name: "https".into(), protocol: Protocol::Tcp, port: 6443 }].into();
        Arc::new(EndpointSlice { family, ports, endpoints: of_family })
    };
    let slices = [("v4".into(), slice(Family::V4)), ("v6".into(), slice(Family::V6))].into();
    world.cluster.services.insert(object("shop/api"), api);
    world.cluster.endpoints.insert(object("shop/api"), Endpoints { slices });
    world
}

#[test]
fn a_service_is_answered_for_each_endpoint_at_all_its_addresses() {
    let world = with_service(&[("10.244.1.7", Some("node1"), true), ("10.244.2.9", Some("node2"), false)]);
    for to in ["10.96.0.1:443", "203.0.113.200:443", "192.0.2.11:30443"] {
        let answer = text(&asked_in(&world, "shop/web", to).unwrap());
        let (first, rest) = answer.split_once('\n').unwrap();
        let at = to.replace(':', ", tcp ");
        assert_eq!(first, format!("Service shop/api at {at}: allowed to its 2 endpoints"));
        assert_eq!(
            rest,
            "shop/web (10.244.1.7) to shop/web (10.244.1.7), tcp 6443: allowed\n\
             \x20 egress: allowed: a pod always reaches itself\n\
             \x20 ingress: allowed: a pod always reaches itself\n\
             \x20 endpoint: on this node\n\
             shop/web (10.244.1.7) to shop/far (10.244.2.9), tcp 6443: allowed\n\
             \x20 egress: allowed: no policy isolates shop/web for egress\n\
             \x20 ingress: not decided here: shop/far runs on node2\n\
             \x20 endpoint: on node node2, not ready\n"
        );
    }
}

#[test]
fn an_address_of_a_load_balancer_leads_to_its_service_and_not_to_an_older_one_that_names_it() {
    let mut world = with_service(&[("10.244.1.7", Some("node1"), true)]);
    let api = Service::clone(world.cluster.services.get(&object("shop/api")).unwrap());
    let greedy = Service { cluster_ips: vec![[10, 96, 0, 2].into()], created: -1, ..api.clone() };
    world.cluster.services.insert(object("shop/greedy"), greedy);
    let first = |world: &World, to| {
        let answer = text(&asked_in(world, "shop/web", to).unwrap());
        answer.split(" at ").next().unwrap().to_owned()
    };
    assert_eq!(first(&world, "203.0.113.200:443"), "Service shop/greedy", "both name it: the older one");
    let given = vec![LoadBalancerAddress { address: [203, 0, 113, 200].into(), through_balancer: false }];
    world.cluster.services.insert(object("shop/api"), Service { load_balancer: given, ..api });
    assert_eq!(first(&world, "203.0.113.200:443"), "Service shop/api");
    assert_eq!(first(&world, "192.0.2.11:30443"), "Service shop/greedy", "node ports of both: the older one");
    assert_eq!(first(&world, "10.96.0.1:443"), "Service shop/api");
}

#[test]
fn a_service_is_answered_in_the_family_of_its_address() {
    let world = with_service(&[("10.244.1.7", Some("node1"), true), ("fd00:10:244:2::9", Some("node2"), true)]);
    let found = asked_in(&world, "shop/web", "[fd00:10:96::1]:443").unwrap();
    let targets: Vec<_> = found.answers.iter().map(|answer| answer.to.to_string()).collect();
    assert_eq!(targets, ["shop/far (fd00:10:244:2::9)"]);
    assert_eq!(asked_in(&world, "shop/db", "[fd00:10:96::1]:443"), Err(Unanswerable::NoCommonFamily));
    let denied = asked_in(&world, "shop/db", "10.96.0.1:443").unwrap();
    assert!(
        text(&denied).starts_with("Service shop/api at 10.96.0.1, tcp 443: denied to its endpoint\n"),
        "{denied:?}"
    );
}

#[test]
fn an_endpoint_in_the_network_of_a_node_is_named_by_its_pod_or_its_node() {
    let mut world = with_service(&[("192.0.2.11", Some("node1"), true), ("192.0.2.12", Some("node2"), true)]);
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: [192, 0, 2, 12].into() }];
    let node = Node { addresses, ..Node::default() };
    world.cluster.nodes.insert("node2".into(), node);
    let mut server = pod("192.0.2.11", "", "https/tcp/6443");
    server.host_network = true;
    world.cluster.pods.insert(object("shop/api-1"), server);
    let found = asked_in(&world, "shop/web", "10.96.0.1:443").unwrap();
    let targets: Vec<_> = found.answers.iter().map(|answer| answer.to.to_string()).collect();
    assert_eq!(targets, ["shop/api-1 (192.0.2.11)", "node node2 (192.0.2.12)"]);
    let text = text(&found);
    assert!(text.contains("ingress: not concerned: shop/api-1 uses the network of its node\n  endpoint: on this node, in its host network\n"), "{text}");
    assert!(
        text.contains("ingress: not concerned: node node2 itself\n  endpoint: on node node2, in its host network\n"),
        "{text}"
    );
    // Of several pods there, the one that has the port by name; where none or all have it, the node is named.
    let mut other = pod("192.0.2.11", "", "http/tcp/80");
    other.host_network = true;
    world.cluster.pods.insert(object("shop/other"), other.clone());
    assert_eq!(asked_in(&world, "shop/web", "10.96.0.1:443").unwrap().answers[0].to.to_string(), targets[0]);
    world.cluster.pods.insert(object("shop/api-1"), other);
    let to = asked_in(&world, "shop/web", "10.96.0.1:443").unwrap().answers[0].to.to_string();
    assert_eq!(to, "this node (192.0.2.11)");
}

#[test]
fn a_service_that_is_refused_for_an_endpoint_on_this_node_names_the_endpoint() {
    let world = with_service(&[("192.0.2.11", None, true), ("10.244.1.8", Some("node1"), true)]);
    for to in ["10.96.0.1:443", "192.0.2.11:30443"] {
        let found = asked_in(&world, "shop/db", to).unwrap();
        let answer = text(&found);
        let denied = "denied as a whole\n  egress: denied: a Service at this address has the endpoint 192.0.2.11:6443/tcp on this node";
        assert!(answer.contains(denied), "{to}: {answer}");
        let json = super::json(&found);
        assert_eq!(json["service"]["refused"]["egress"]["endpoint"], "192.0.2.11:6443/tcp");
        let facts: Vec<_> = (0..2)
            .map(|at| (&json["answers"][at]["endpoint"]["hostNetwork"], &json["answers"][at]["allowed"]))
            .collect();
        assert_eq!(facts, [(&json!(false), &json!(true)), (&json!(true), &json!(false))]);
        assert!(asked_in(&world, "shop/web", to).unwrap().served.unwrap().refused.is_none(), "web is not isolated");
    }
    assert!(asked_in(&world, "shop/db", "10.96.0.1:444").is_err(), "another port is another question");
}

#[test]
fn a_service_without_endpoints_says_so_and_one_with_many_is_answered_for_the_first() {
    let empty = asked_in(&with_service(&[]), "shop/web", "10.96.0.1:443").unwrap();
    assert_eq!(text(&empty), "Service shop/api at 10.96.0.1, tcp 443: it has no endpoint\n");
    let names: Vec<String> = (0..=service::MOST).map(|at| format!("10.244.3.{at}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), Some("node2"), true)).collect();
    let found = asked_in(&with_service(&many), "shop/web", "10.96.0.1:443").unwrap();
    assert_eq!(found.answers.len(), service::MOST);
    assert!(
        text(&found).starts_with("Service shop/api at 10.96.0.1, tcp 443: allowed to the first 100 of 101 endpoints\n")
    );
}

#[test]
fn what_cannot_be_answered_says_why() {
    assert_eq!(asked("shop/none", "shop/db:80"), Err(Unanswerable::NoPod(object("shop/none"))));
    assert_eq!(asked("shop/done", "shop/db:80"), Err(Unanswerable::Finished(object("shop/done"))));
    assert_eq!(asked("2001:db8:113::1", "shop/db:80"), Err(Unanswerable::NoCommonFamily));
}

#[test]
fn programs_get_the_same_as_people() {
    let mut answers = asked("shop/web", "shop/db:5432/tcp").unwrap();
    answers.answers[0].enforced = Some(Err("a chain is missing".to_owned()));
    let found = super::json(&answers);
    let expected = json!({ "service": null, "answers": [{
        "family": "IPv4",
        "from": { "address": "10.244.1.7", "pod": "shop/web", "node": null, "standing": "here" },
        "to": { "address": "10.244.1.8", "pod": "shop/db", "node": null, "standing": "here" },
        "protocol": "tcp",
        "port": 5432,
        "allowed": true,
        "bridges": [],
        "egress": { "decision": "open", "pod": "shop/web" },
        "ingress": { "decision": "allowed", "pod": "shop/db", "policy": "shop/db", "rule": 1 },
        "endpoint": null,
        "inKernel": false,
        "kernelLacks": "a chain is missing",
    }] });
    assert_eq!(found, expected);
}

#[test]
fn words_that_are_no_question_are_refused_with_what_was_wanted() {
    for (from, to) in
        [("shop", "shop/db:80"), ("shop/web", "shop/db"), ("shop/web", "shop/db:80/icmp"), ("a/b", "a/:1")]
    {
        assert!(Question::parse(from, to).is_err_and(|text| text.contains("must be")), "{from} {to}");
    }
    let v6 = Question::parse("a/b", "[fd00::7]:80/udp").unwrap();
    assert_eq!((v6.to, v6.protocol, v6.port), (End::Address("fd00::7".parse().unwrap()), Protocol::Udp, 80));
}

#[test]
fn isolation_is_told_of_pods_of_this_node_and_of_others_who_judges_them() {
    const OF_SERVICES: &str = "an address of Services: packets to it are judged behind the Service, by the policies of the sender and of the endpoint's pod";
    let of = |word: &str| {
        let (answer, _) = tokio::sync::oneshot::channel();
        let about = [("what".to_owned(), word.to_owned())].into();
        let form = crate::observe::local::AnswerFormat::Json;
        let question = crate::observe::local::Question { path: ISOLATION, about, form, answer };
        with_known(&world(), |known| isolated(known, &question))
    };
    let answered = |word: &str| -> serde_json::Value { serde_json::from_str(&of(word).unwrap()).unwrap() };
    let db = answered("shop/db");
    assert_eq!(db["party"], "shop/db (10.244.1.8)");
    let ingress = json!({ "direction": "ingress", "isolated": true, "policies": ["shop/db"], "byNamespace": true });
    let egress = json!({ "direction": "egress", "isolated": true, "policies": ["shop/out"], "byNamespace": false });
    assert_eq!(db["isolation"], json!([ingress, egress]));
    let lines = [
        "isolated for ingress by shop/db, the annotation of its namespace: what none of its rules allows is dropped",
        "isolated for egress by shop/out: what none of its rules allows is dropped",
        "whether a packet passes: sluice policy explain --from NAMESPACE/POD --to shop/db:PORT",
    ];
    assert_eq!(db["text"], json!(lines));
    // By its address, of either family, it is the same pod.
    assert_eq!(answered("fd00:10:244:1::7")["party"], "shop/web (fd00:10:244:1::7)");
    assert_eq!(answered("10.244.1.7")["isolation"][1]["isolated"], false);
    for (word, line) in [
        ("shop/far", "its own node node2 judges what it receives and sends"),
        ("fd00:10:244:2::9", "its own node node2 judges what it receives and sends"),
        ("192.0.2.11", "a node itself: policies do not apply to it"),
        ("203.0.113.7", "no running pod's: only the policies of the sender decide"),
        ("10.96.0.77", OF_SERVICES),
        ("203.0.113.200", OF_SERVICES),
        (
            "10.244.1.99",
            "no pod of this node is known at this address, and --netpol-default-deny closes it to all but this node",
        ),
    ] {
        let answer = answered(word);
        assert_eq!((&answer["isolation"], &answer["text"][0]), (&json!([]), &json!(line)), "{word}");
    }
    let hint = "sluice policy explain --from NAMESPACE/POD --to [2001:db8::7]:PORT";
    assert_eq!(answered("2001:db8::7")["ask"], hint);
    assert_eq!(of("shop/none"), Err("there is no pod shop/none".to_owned()));
    assert!(of("web").is_err_and(|why| why.contains("must be NAMESPACE/POD or an address")));
}
