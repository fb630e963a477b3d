//! A director that is lost while clients are served, and a second one that takes their connections over: with the scheduler mh both send a client to the same pod.

use std::collections::BTreeMap;

use super::lines::{Asking, Lines, connected};
use super::*;

/// The pods that serve: names of different lengths, because their uid follows from that.
const NAMES: [&str; 3] = ["web", "web-b", "web-third"];
const SERVING: [[&str; 2]; 3] = [PODS, ["10.244.1.6", "fd00:10:244:1::6"], ["10.244.1.7", "fd00:10:244:1::7"]];
/// Addresses of the client for each family.
const CLIENTS: u8 = 16;

/// The node of the second director.
fn second_way() {
    run("ip netns add second");
    run("ip -n second link set lo up");
    run("ip link add to-second type veth peer name node netns second");
    run("ip link set to-second up");
    run("ip -n second link set node up");
    run("ip -n second link add client type veth peer name second netns client");
    for (name, device, addresses) in [
        ("second", "client", ["198.51.102.2/24", "2001:db8:102::2/64"]),
        ("client", "second", ["198.51.102.10/24", "2001:db8:102::10/64"]),
        ("second", "node", ["192.0.3.2/24", "2001:db8:3::2/64"]),
        ("second", "lo", ["192.0.2.3/32", "2001:db8:2::3/128"]),
    ] {
        run(&format!("ip -n {name} link set {device} up"));
        addresses
            .iter()
            .for_each(|one| drop(run(&format!("ip -n {name} address add {one} dev {device}{}", nodad(one)))));
    }
    ["192.0.3.1/24", "2001:db8:3::1/64"]
        .iter()
        .for_each(|one| drop(run(&format!("ip address add {one} dev to-second{}", nodad(one)))));
    run("ip -n second route add 10.244.1.0/24 via 192.0.3.1");
    run("ip -n second route add fd00:10:244:1::/64 via 2001:db8:3::1");
    run("ip route add 192.0.2.3 via 192.0.3.2");
    run("ip route add 2001:db8:2::3 via 2001:db8:3::2");
    inside(&there("second"), || {
        for (setting, value) in
            [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv6/conf/all/forwarding", "1")]
        {
            fs::write(format!("/proc/sys/net/{setting}"), value).expect("a setting of the namespace");
        }
    });
    for client in clients() {
        let bits = if client.is_ipv4() { "32" } else { "128 nodad" };
        run(&format!("ip -n client address add {client}/{bits} dev lo"));
    }
}

fn clients() -> Vec<IpAddr> {
    let one = |number: u8| -> [IpAddr; 2] {
        [[198, 51, 103, number].into(), Ipv6Addr::new(0x2001, 0xdb8, 0x103, 0, 0, 0, 0, number.into()).into()]
    };
    (1..=CLIENTS).flat_map(one).collect()
}

fn put_serving(nodes: &Nodes) {
    nodes.put_nodes(&[1, 2, 3]);
    let pods: Vec<(&str, &str, [&str; 2])> =
        NAMES.iter().zip(SERVING).map(|(name, addresses)| (*name, "node1", addresses)).collect();
    nodes.put_these_pods(&pods);
    let slice = |family: &str, index: usize| {
        let endpoint = |addresses: [&str; 2]| {
            format!("{{addresses: [\"{}\"], nodeName: node1, conditions: {{ready: true}}}}", addresses[index])
        };
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{name: web-{family}, \
             namespace: shop, labels: {{kubernetes.io/service-name: web}}}}, ports: [{{name: http, port: {PORT}}}], endpoints: [{}]}}\n",
            SERVING.map(endpoint).join(", ")
        )
    };
    let [v4, v6] = SERVICES;
    nodes.put(
        "service",
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop, annotations: {{kube-router.io/service.dsr: tunnel, \
             kube-router.io/service.scheduler: mh}}}}, spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::a\"], \
             ipFamilies: [IPv4, IPv6], externalIPs: [{v4}, \"{v6}\"], ports: [{{name: http, port: {PORT}}}]}}}}\n{}{}",
            slice("IPv4", 0),
            slice("IPv6", 1)
        ),
    );
}

/// A connection of each client, to the address of its family, and the pod that answers; all of them in the end, because agents may still be starting.
fn connections(nodes: &Nodes) -> Vec<(Asking, String)> {
    let begun = Instant::now();
    let connect = |client: IpAddr| {
        let of_family = |service: &IpAddr| service.is_ipv4() == client.is_ipv4();
        let service = parsed(SERVICES).into_iter().find(of_family).expect("one of each family");
        loop {
            let opened = connected(client, SocketAddr::new(service, PORT)).and_then(|mut asking| {
                let answer = asking.ask(100)?;
                Ok((asking, answer))
            });
            match opened {
                Ok(opened) => return opened,
                Err(why) => assert!(begun.elapsed() < Duration::from_secs(120), "{why}\n{}", nodes.shown()),
            }
            sleep(Duration::from_millis(200));
        }
    };
    clients().into_iter().map(connect).collect()
}

fn comes_by(gateways: [&str; 2]) {
    for (service, gateway) in SERVICES.iter().zip(gateways) {
        run(&format!("ip -n client route replace {service} via {gateway}"));
    }
}

/// Takes the director away, and has the second one take over, while all these connections ask without a pause; returns how many questions were
/// answered, each by the pod that it was before.
fn lose_the_director(nodes: &mut Nodes, open: &mut [(Asking, String)]) -> usize {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                for (asking, answer) in &mut *open {
                    assert_eq!(asking.ask(100).as_ref(), Ok(&*answer), "meanwhile: {}", asking.is_from);
                    count += 1;
                }
            }
            count
        });
        sleep(Duration::from_secs(1));
        nodes.kill(DIRECTOR);
        run("ip -n director link set client down");
        comes_by(["198.51.102.2", "2001:db8:102::2"]);
        sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
        asking.join().expect("every question is answered")
    })
}

#[test]
fn connections_go_on_by_another_director_when_theirs_is_lost() {
    let _alone = alone();
    let [_, _, last] = SERVING;
    for filter in ["nftables", "iptables"] {
        let _in_use = in_use();
        containerd::beside_containerd_of(last, |runtime| {
            ways();
            second_way();
            let mut nodes = Nodes::new(filter);
            put_serving(&nodes);
            let sandboxes: Vec<(String, Lines)> = NAMES
                .iter()
                .zip(SERVING)
                .map(|(name, addresses)| {
                    let (id, place) = start_sandbox(runtime, name, addresses);
                    (id, Lines::start(&place, name))
                })
                .collect();
            for node in [POD_NODE, DIRECTOR, SECOND] {
                nodes.start(node);
            }
            // The second one serves as the first does, before it is needed.
            comes_by(["198.51.102.2", "2001:db8:102::2"]);
            drop(connections(&nodes));
            comes_by(["198.51.100.2", "2001:db8:100::2"]);
            let mut open = connections(&nodes);
            let mut by_pod: BTreeMap<String, usize> = BTreeMap::new();
            for (_, answer) in &open {
                *by_pod.entry(answer.clone()).or_default() += 1;
            }
            println!("{filter}: {} connections: {by_pod:?}", open.len());
            assert!(by_pod.len() > 1, "all clients have one pod, which proves nothing: {by_pod:?}");
            let lost = Instant::now();
            let mut ended = Vec::new();
            let asked = lose_the_director(&mut nodes, &mut open);
            println!("{filter}: {asked} questions answered while the director was lost");
            for round in 0..5 {
                for (asking, answer) in &mut open {
                    match asking.ask(100) {
                        Ok(found) if found == *answer => {}
                        other => ended.push(format!("round {round}: {}: {other:?}, not {answer:?}", asking.is_from)),
                    }
                }
                assert_eq!(ended, [""; 0], "{}", nodes.shown());
            }
            println!("{filter}: all {} connections went on; five rounds within {:?}", open.len(), lost.elapsed());
            drop(open);
            for (id, program) in sandboxes {
                drop(program);
                runtime.end_sandbox(&id);
            }
        });
    }
}
