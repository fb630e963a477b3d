//! A pod of the director's own node as client of a pod on another node.

use super::ways::{NodeOfPod, beside_each_lan, director};
use super::*;

/// A pod behind the first director, which leads what comes from the other node's pods to it.
fn client_pod(family: Family) -> File {
    let (bits, six, gateway, pod, network) = match family {
        Family::V4 => ("24", "-4", "10.244.3.1", "10.244.3.9", "10.244.3.0/24"),
        Family::V6 => ("64 nodad", "-6", "fd00:10:244:3::1", "fd00:10:244:3::9", "fd00:10:244:3::/64"),
    };
    let [director, _] = DIRECTORS;
    run("ip netns add asker");
    run(&format!("ip -n h{director} link add to-asker type veth peer name eth0 netns asker"));
    run(&format!("ip -n h{director} addr add {gateway}/{bits} dev to-asker"));
    run(&format!("ip -n h{director} link set to-asker up"));
    run("ip -n asker link set lo up");
    run("ip -n asker link set eth0 up");
    run(&format!("ip -n asker addr add {pod}/{bits} dev eth0"));
    run(&format!("ip -n asker {six} route add default via {gateway}"));
    // A node has a route to everywhere, by which an answer's source is no martian.
    run(&format!("ip -n h{director} {six} route add default via {}", on_lan(family, 200)));
    run(&format!("ip {six} route add {network} via {}", on_lan(family, director)));
    File::open("/run/netns/asker").expect("the new namespace")
}

#[test]
fn an_answer_to_a_pod_of_the_directors_node_is_of_a_connection_that_the_node_knows() {
    beside_each_lan(|lan, (family, service)| {
        let (node, pod) = NodeOfPod::new(family, service);
        let asker = client_pod(family);
        let of_pod = Endpoint { address: pod, node: Some("node2".into()), conditions: Conditions::READY, hints: None };
        let [director_place, _] = &lan.directors;
        inside(director_place, || director(family).serve_as((family, service), vec![of_pod], |_| {}));
        let exchanged = || {
            let connect = || TcpStream::connect_timeout(&(service, PORT).into(), PATIENCE);
            let client = inside(&asker, connect).ok()?;
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                if let Some((accepted, _)) = accept_of(&node.server, &client) {
                    accepted.set_nonblocking(false).expect("it may wait");
                    return exchange(&mut (client, accepted, 0)).ok();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            None
        };
        assert_eq!((0..5).find_map(|_| exchanged()), Some(()), "{family}: without any rule");
        // What isolates the pod for ingress, and drops what is invalid before that.
        let [director, _] = DIRECTORS;
        let nft = |rule: &str| run(&format!("ip netns exec h{director} nft {rule}"));
        nft("add table inet host");
        nft("add chain inet host forward { type filter hook forward priority 0 ; }");
        nft("add rule inet host forward ct state invalid counter drop");
        nft("add rule inet host forward ct state established counter accept");
        nft("add rule inet host forward oifname to-asker counter drop");
        let found = (0..5).find_map(|_| exchanged());
        assert_eq!(found, Some(()), "{family}: {}", nft("list chain inet host forward"));
    });
}
