//! The way of a Service through direct server return and back, once and with one packet filter: what runs each day.

use super::*;

#[test]
fn a_pod_answers_past_the_director_also_without_agents_and_the_next_agent_undoes_what_is_over() {
    let _alone = alone();
    let _in_use = in_use();
    beside_containerd_of_both_families(|runtime| {
        ways();
        let mut nodes = Nodes::new("nftables");
        let (id, place, server) = start_pod(runtime);
        nodes.start(POD_NODE);
        nodes.start(DIRECTOR);
        println!("served after {:?}", nodes.until("with direct server return", SERVICES));
        nodes.answers_pass_by();
        // What stands needs no agent; what is over meanwhile the next one takes away.
        nodes.kill(POD_NODE);
        for service in parsed(SERVICES) {
            assert_eq!(asked(service, PATIENCE), Ok(service), "without the agent of the pod's node");
        }
        nodes.put_service(false);
        nodes.start(POD_NODE);
        println!("with NAT after {:?}", nodes.until("without the annotation", PODS));
        runtime.wait("the tunnels go", || !containerd::inside(&place, "ip -o link show").contains("kube-tunnel"));
        nodes.put_service(true);
        println!("through the tunnel after {:?}", nodes.until("with the annotation again", SERVICES));
        drop(server);
        runtime.end_sandbox(&id);
    });
}
