use super::*;
use crate::model::World;
use crate::router::given::{host, node, world};
use crate::router::plan::tests::{learned, planned};

fn trouble(plan: &mut Plan) -> Option<String> {
    plan.unreached(|_, _| false).trouble
}

fn put(world: &mut World, name: &str, addresses: &str, ranges: &str) {
    world.cluster.nodes.insert(name.into(), node(addresses, ranges));
}

#[test]
fn a_pod_range_that_two_nodes_have_is_trouble_until_one_of_them_has_another() {
    for (range, free, next_hop) in
        [("10.244.2.0/24", "10.244.3.0/24", "192.0.2.2"), ("fd00:10:244:2::/64", "fd00:10:244:3::/64", "2001:db8::2")]
    {
        let mut world = world(
            host("192.0.2.1/24 2001:db8::1/64"),
            &[
                ("node-1", node("192.0.2.1 2001:db8::1", "")),
                ("node-2", node("192.0.2.2 2001:db8::2", range)),
                ("node-3", node("192.0.2.3 2001:db8::3", free)),
            ],
        );
        let mut plan = planned(&[], &world);
        plan.learn(&[learned(range, next_hop)]);
        assert_eq!(trouble(&mut plan), None);
        put(&mut world, "node-3", "192.0.2.3 2001:db8::3", range);
        plan.update(&world);
        let shared = format!(
            "pods cannot be reached: {range} of Node node-2 (Node node-3 has it, too), \
             {range} of Node node-3 (Node node-2 has it, too)"
        );
        assert_eq!(trouble(&mut plan), Some(shared.clone()));
        // A machine that was renamed has two Nodes for a while.
        put(&mut world, "node-3", "192.0.2.2 2001:db8::2", range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
        put(&mut world, "node-3", "192.0.2.3 2001:db8::3", range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), Some(shared));
        world.cluster.nodes.remove(&"node-3".into());
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
    }
}

#[test]
fn pods_of_a_node_without_an_address_of_our_families_are_trouble_and_those_of_one_without_any_are_awaited() {
    for (own, (here, there), range) in [
        ("192.0.2.1/24", ("192.0.2.1", "192.0.2.2"), "10.244.2.0/24"),
        ("2001:db8::1/64", ("2001:db8::1", "2001:db8::2"), "fd00:10:244:2::/64"),
    ] {
        let other = if here.contains(':') { "192.0.2.2" } else { "2001:db8::2" };
        let mut world = world(host(own), &[("node-1", node(here, "")), ("node-2", node("", range))]);
        let mut plan = planned(&[], &world);
        assert_eq!((trouble(&mut plan), plan.unreached(|_, _| false).count), (None, 1));
        put(&mut world, "node-2", other, range);
        plan.update(&world);
        let apart = format!(
            "pods cannot be reached: {range} of Node node-2 (it has no address of a family that this node uses)"
        );
        assert_eq!(trouble(&mut plan), Some(apart));
        put(&mut world, "node-2", &format!("{other} {there}"), range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
    }
}
