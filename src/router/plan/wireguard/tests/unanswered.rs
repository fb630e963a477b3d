//! Nodes that are named where they do not answer.

use super::*;
use crate::model::Reflection;

#[test]
fn clients_of_a_reflector_are_named_although_they_do_not_peer_with_each_other_and_a_node_that_is_not_ready_is_not() {
    let of_reflector = |(name, node): (&'static str, Node), should_announce: bool| {
        let cluster = [0, 0, 0, 1].into();
        let node = crate::router::given::with(node, |routing| routing.reflection = Reflection::Client(cluster));
        (name, Node { should_announce, ..node })
    };
    for source in ["--node-routes=bgp", "--node-routes=api"] {
        let words = [ENCRYPTED[0], ENCRYPTED[1], source];
        let nodes = [of_reflector(own(), true), of_reflector(second(), true), of_reflector(third(), false)];
        let plan = plan_of(&words, &nodes);
        assert_eq!(peers(&plan).len(), 2, "{source}: both are sent to");
        let named = plan.ready_nodes_sent_to_by(|_| true).into_iter().map(ToString::to_string);
        assert_eq!(named.collect::<Vec<String>>(), ["node-2"], "{source}");
    }
}
