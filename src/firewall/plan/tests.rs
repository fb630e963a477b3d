use super::*;
use crate::firewall::given::{address, labels, object, pod, pods, pods_in, policy, rule};
use crate::firewall::rules::{Contents, Direction, Isolation};
use crate::model::{Host, NetworkPolicy};

/// A World with two namespaces, each with this number of pods, of which the first of `shop` is this node's.
fn world(pods: usize) -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    for (place, name) in ["other", "shop"].into_iter().enumerate() {
        put_namespace(&mut world, name, "team=red");
        for number in 0..pods {
            let mut pod =
                pod(&format!("10.244.{}.{}", 100 * place + number / 250, number % 250), "app=web", "http/tcp/80");
            pod.node = (number > 0 || place == 0).then(|| "node2".into()).or(pod.node);
            world.cluster.pods.insert(ObjectName::new(name, &format!("pod-{number}")), pod);
        }
    }
    world
}

fn put_namespace(world: &mut World, name: &str, of: &str) {
    world.cluster.namespaces.insert(name.into(), Namespace { labels: labels(of), isolated: false });
}

fn put_policy(world: &mut World, name: &str, policy: NetworkPolicy) {
    world.cluster.policies.insert(object(name), policy);
}

fn relabel(world: &mut World, name: &str, of: &str) {
    let mut pod = (**world.cluster.pods.get(&object(name)).unwrap()).clone();
    pod.labels = labels(of);
    world.cluster.pods.insert(object(name), pod);
}

fn allows(peers: &[crate::model::Peer], ports: &[&str]) -> NetworkPolicy {
    policy("app=web", Some(&[rule(peers, ports)]), None)
}

#[test]
fn a_changed_label_asks_about_one_pod_however_many_there_are() {
    let mut asked = Vec::new();
    for size in [10, 1000] {
        let mut world = world(size);
        put_policy(&mut world, "shop/in", allows(&[pods_in("team=red", "app=web")], &["tcp/80"]));
        let mut plan = Plan::new();
        plan.update(&world);
        relabel(&mut world, "other/pod-3", "app=db");
        let changed = plan.update(&world);
        let set = plan.rules().sets.keys().next().unwrap().clone();
        assert_eq!(changed.elements, [(set, Element::Address(address("10.244.0.3")))]);
        assert!(changed.pods.is_empty() && changed.policies.is_empty() && changed.sets.is_empty());
        asked.push(changed.pods_asked);
    }
    assert_eq!(asked, [1, 1]);
}

#[test]
fn a_pod_that_no_selector_could_select_is_not_asked() {
    let mut world = world(10);
    put_policy(&mut world, "shop/in", allows(&[pods("app=db")], &[]));
    let mut plan = Plan::new();
    plan.update(&world);
    relabel(&mut world, "other/pod-3", "app=cache");
    assert_eq!(plan.update(&world), RuleSetChanges::default());
}

#[test]
fn a_new_set_looks_only_into_the_namespaces_that_it_is_about() {
    let mut world = world(100);
    let mut plan = Plan::new();
    plan.update(&world);
    put_policy(&mut world, "shop/in", allows(&[pods("app=db")], &["tcp/http"]));
    let changed = plan.update(&world);
    assert_eq!(changed.sets.len(), 2);
    assert_eq!(changed.pods_asked, 100 + 2, "the pods of one namespace, and this node's pod for its port and itself");
}

#[test]
fn labels_of_a_namespace_move_its_pods_into_the_sets_that_ask_for_them() {
    let mut world = world(5);
    put_policy(&mut world, "shop/in", allows(&[pods_in("team=blue", "app=web")], &[]));
    let mut plan = Plan::new();
    plan.update(&world);
    put_namespace(&mut world, "other", "team=red note=new");
    assert_eq!(plan.update(&world), RuleSetChanges::default(), "no selector asks for that label");
    put_namespace(&mut world, "other", "team=blue");
    assert_eq!(plan.update(&world).elements.len(), 5);
    world.cluster.namespaces.remove(&"other".into());
    assert_eq!(plan.update(&world).elements.len(), 5);
    assert!(plan.rules().sets.values().all(Contents::is_empty));
}

#[test]
fn a_policy_is_compiled_while_it_selects_a_pod_of_this_node() {
    let mut world = world(5);
    let key = PolicyKey { policy: object("shop/in"), direction: Direction::Ingress };
    put_policy(&mut world, "shop/in", policy("app=db", Some(&[rule(&[pods("app=web")], &[])]), None));
    let mut plan = Plan::new();
    plan.update(&world);
    assert!(plan.rules().policies.is_empty() && plan.rules().sets.is_empty());
    relabel(&mut world, "shop/pod-0", "app=db");
    let changed = plan.update(&world);
    assert!(changed.policies.contains(&key) && changed.pods.contains(&object("shop/pod-0")));
    assert_eq!((plan.rules().policies.len(), plan.rules().sets.len()), (1, 1));
    relabel(&mut world, "shop/pod-0", "app=web");
    let changed = plan.update(&world);
    assert!(changed.policies.contains(&key) && changed.sets.len() == 1);
    assert!(plan.rules().policies.is_empty() && plan.rules().sets.is_empty());
}

#[test]
fn a_set_that_goes_from_one_policy_to_another_keeps_what_it_holds() {
    let mut world = world(5);
    put_policy(&mut world, "shop/one", allows(&[pods("app=web")], &["tcp/80"]));
    let mut plan = Plan::new();
    plan.update(&world);
    world.cluster.policies.remove(&object("shop/one"));
    put_policy(&mut world, "shop/two", allows(&[pods("app=web")], &["tcp/443"]));
    let changed = plan.update(&world);
    assert_eq!((changed.policies.len(), changed.pods.len()), (2, 1));
    assert!(changed.sets.is_empty() && changed.elements.is_empty());
}

#[test]
fn a_changed_rule_asks_no_pod() {
    let mut world = world(5);
    put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &["tcp/80"]));
    let mut plan = Plan::new();
    plan.update(&world);
    put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &["tcp/443"]));
    let changed = plan.update(&world);
    assert_eq!((changed.policies.len(), changed.pods_asked), (1, 0));
    assert!(changed.pods.is_empty() && changed.sets.is_empty() && changed.elements.is_empty());
}

#[test]
fn another_name_of_this_node_makes_other_pods_local() {
    let mut world = world(5);
    put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &[]));
    let mut plan = Plan::new();
    plan.update(&world);
    world.host = Arc::new(Host { node_name: "node2".into(), ..Host::default() });
    let changed = plan.update(&world);
    assert!(changed.pods.contains(&object("shop/pod-0")) && changed.pods.contains(&object("shop/pod-1")));
    assert!(!plan.rules().pods.contains_key(&object("shop/pod-0")));
    assert_eq!(plan.rules().pods.len(), 9);
}

#[test]
fn the_annotation_of_a_namespace_isolates_its_pods_of_this_node() {
    let mut world = world(5);
    let mut plan = Plan::new();
    plan.update(&world);
    let isolated = Namespace { labels: labels("team=red"), isolated: true };
    world.cluster.namespaces.insert("shop".into(), isolated);
    let changed = plan.update(&world);
    assert_eq!(changed.pods.into_iter().collect::<Vec<_>>(), [object("shop/pod-0")]);
    let pod = &plan.rules().pods[&object("shop/pod-0")];
    assert_eq!(pod.ingress, Isolation::Isolated { policies: [].into(), by_namespace: true });
    assert_eq!(pod.egress, Isolation::Open);
}
