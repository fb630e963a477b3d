//! Datagrams, clients of the pod's own node, a Service of another namespace, and how long answers take beside NAT.

use std::net::UdpSocket;

use super::*;

const DATAGRAM_SERVICES: [&str; 2] = ["203.0.113.8", "2001:db8:113::8"];
/// Addresses of a Service in another namespace.
const STRANGE_SERVICES: [&str; 2] = ["203.0.113.9", "2001:db8:113::9"];
/// Datagrams of an answer, and the bytes of each.
const DATAGRAMS: usize = 40;
const DATAGRAM: usize = 1_200;
/// Another pod of the pod's node.
const NEAR_POD: [&str; 2] = ["10.244.1.9", "fd00:10:244:1::9"];

/// A Service of any namespace for the pod, with its slices, its name standing for the file.
fn put_service(nodes: &Nodes, (namespace, name): (&str, &str), (last, protocol): (u8, &str), external: [&str; 2]) {
    let slice = |(family, address): (&str, &str)| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{name: {name}-{family}, \
             namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}, ports: [{{name: main, protocol: {protocol}, port: {PORT}}}], \
             endpoints: [{{addresses: [\"{address}\"], nodeName: node1, conditions: {{ready: true}}}}]}}\n"
        )
    };
    let slices = [("IPv4", ADDRESS), ("IPv6", ADDRESS_V6)].map(slice).concat();
    let [v4, v6] = external;
    nodes.put(
        name,
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}, annotations: {{kube-router.io/service.dsr: tunnel}}}}, \
             spec: {{clusterIP: 10.96.0.{last}, clusterIPs: [10.96.0.{last}, \"fd00:10:96::{last}\"], ipFamilies: [IPv4, IPv6], \
             externalIPs: [{v4}, \"{v6}\"], ports: [{{name: main, protocol: {protocol}, port: {PORT}}}]}}}}\n{slices}"
        ),
    );
    for (service, gateway) in external.iter().zip(["198.51.100.2", "2001:db8:100::2"]) {
        run(&format!("ip -n client route replace {service} via {gateway}"));
    }
}

/// A program of the pod that answers a datagram with many, from the address that was asked. It waits for the addresses, which come with the tunnels.
struct Datagrams {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Datagrams {
    fn start(place: &Path) -> Datagrams {
        let ends = Arc::new(AtomicBool::new(false));
        let answering = parsed(DATAGRAM_SERVICES).map(|service| {
            let (pod, is_over) = (File::open(place).expect("the pod's namespace"), ends.clone());
            std::thread::spawn(move || {
                inside(&pod, || {
                    let mut bound = None;
                    while !is_over.load(Ordering::Relaxed) {
                        let Some(socket) = &bound else {
                            bound = UdpSocket::bind((service, PORT)).ok();
                            sleep(Duration::from_millis(20));
                            continue;
                        };
                        answer(socket);
                    }
                });
            })
        });
        Datagrams { ends, threads: answering.into() }
    }
}

fn answer(socket: &UdpSocket) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
    let Ok((_, client)) = socket.recv_from(&mut [0; 64]) else { return };
    for _ in 0..DATAGRAMS {
        let _ = socket.send_to(&[b'x'; DATAGRAM], client);
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("it ends"));
    }
}

/// The datagrams that come back from the address that was asked, of one question.
fn datagrams(service: IpAddr) -> usize {
    let any: IpAddr = if service.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    inside(&there("client"), || {
        let socket = UdpSocket::bind((any, 0)).expect("there are ports");
        // Connected: what has another source is not heard.
        socket.connect((service, PORT)).expect("there is a route");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time");
        let _ = socket.send(b"?");
        (0..DATAGRAMS).take_while(|_| socket.recv(&mut [0; 2048]).is_ok_and(|length| length == DATAGRAM)).count()
    })
}

/// Datagrams pass as connections do, and their answers do not pass the director.
fn datagrams_are_answered(nodes: &Nodes) {
    put_service(nodes, ("shop", "lookups"), (11, "UDP"), DATAGRAM_SERVICES);
    for service in parsed(DATAGRAM_SERVICES) {
        let begun = Instant::now();
        let answers = loop {
            let before = ["node", "client"].map(received);
            let found = datagrams(service);
            let after = ["node", "client"].map(received);
            if found == DATAGRAMS {
                break after[0] - before[0];
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{service}: {found} datagrams\n{}", nodes.shown());
        };
        println!(
            "{}: {service}: {DATAGRAMS} datagrams of {DATAGRAM} bytes, {answers} bytes by the director",
            nodes.filter
        );
        assert!(answers < 10_000, "{service}: {answers} bytes came from the pod's node: answers pass the director");
    }
}

/// A pod beside the one that answers, and the host of both.
fn own_node_is_served(nodes: &Nodes) {
    run("ip netns add near");
    run("ip -n near link set lo up");
    run("ip link add to-near type veth peer name eth0 netns near");
    run("ip link set to-near master pods up");
    run("ip -n near link set eth0 up");
    NEAR_POD.iter().zip(["24", "64"]).for_each(|(address, bits)| {
        run(&format!("ip -n near address add {address}/{bits} dev eth0{}", nodad(address)));
    });
    run("ip -n near route add default via 10.244.1.1");
    run("ip -n near -6 route add default via fd00:10:244:1::1");
    nodes.until_served("near", "a pod of the pod's own node", true);
    // The name of the node's own namespace.
    run("touch /run/netns/host");
    run("mount --bind /proc/self/ns/net /run/netns/host");
    nodes.until_served("host", "the pod's own node", true);
    run("umount /run/netns/host");
    run("rm /run/netns/host");
    // A node has a route to everywhere: what it sends itself is routed before it is marked.
    run("ip -n director route add default via 192.0.2.1");
    run("ip -n director -6 route add default via 2001:db8:2::1");
    nodes.until_served("director", "the node that clients come to", true);
}

/// A Service puts its addresses into pods of its own namespace alone, and the pod's own Services go on.
fn strangers_are_not_answered(nodes: &Nodes, place: &Path) {
    put_service(nodes, ("bank", "thief"), (12, "TCP"), STRANGE_SERVICES);
    // The director sends to the pod, because that is an endpoint.
    let [v4, _] = STRANGE_SERVICES;
    let begun = Instant::now();
    let knows = |of: &str| attempt(&format!("ip netns exec director {of}")).1.contains(v4);
    while !["nft list ruleset", "ipset save"].into_iter().any(knows) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the Service is not known\n{}", nodes.shown());
        sleep(Duration::from_millis(100));
    }
    // Its own node has had longer than it needs to set a pod up.
    sleep(Duration::from_secs(3));
    for (strange, own) in parsed(STRANGE_SERVICES).into_iter().zip(parsed(SERVICES)) {
        let found = asked(strange, PATIENCE);
        assert!(found.is_err(), "{found:?}: a pod answers for a Service of another namespace");
        assert_eq!(asked(own, PATIENCE), Ok(own), "its own Service");
    }
    let addresses = containerd::inside(place, "ip -o address show");
    assert!(STRANGE_SERVICES.iter().all(|strange| !addresses.contains(strange)), "{addresses}");
    nodes.put("thief", "");
}

/// Millions of bytes in a second, of ten answers after each other, at the first address: the median of three times, after one answer that does not count.
fn throughput(expected: [&str; 2]) -> f64 {
    let [service, _] = parsed(SERVICES);
    let [expected, _] = parsed(expected);
    let answers = |count: usize| (0..count).for_each(|_| assert_eq!(asked(service, MORE_PATIENCE), Ok(expected)));
    answers(1);
    let mut found = [(); 3].map(|()| {
        let begun = Instant::now();
        answers(10);
        (10 * LONG) as f64 / 1e6 / begun.elapsed().as_secs_f64()
    });
    found.sort_by(f64::total_cmp);
    found[1]
}

/// How fast answers come: over the director's link as it is, and while that is slow.
struct Measured {
    fast: f64,
    slow: f64,
}

/// With NAT and by the pod itself, each twice in turn: what the machine does beside concerns both.
fn measured_in_turn(nodes: &Nodes) -> [[Measured; 2]; 2] {
    let measured = |expected| Measured { fast: throughput(expected), slow: beside_slow_link(expected) };
    [(); 2].map(|()| {
        nodes.put_service(false);
        nodes.until("with NAT", PODS);
        let with_nat = measured(PODS);
        nodes.put_service(true);
        nodes.until("with direct server return again", SERVICES);
        [with_nat, measured(SERVICES)]
    })
}

/// How much the director's link to clients carries while it is slow.
const SLOW: &str = "100mbit";

/// The same while the director's link to clients is slow.
fn beside_slow_link(expected: [&str; 2]) -> f64 {
    run(&format!("tc -n director qdisc add dev client root tbf rate {SLOW} burst 128kb latency 50ms"));
    let found = throughput(expected);
    run("tc -n director qdisc del dev client root");
    found
}

#[test]
fn datagrams_and_clients_of_the_pods_own_node_are_served_and_no_pod_answers_for_another_namespace() {
    let _alone = alone();
    for filter in ["nftables", "iptables"] {
        let _in_use = in_use();
        beside_containerd_of_both_families(|runtime| {
            ways();
            let mut nodes = Nodes::new(filter);
            let (id, place, server) = start_pod(runtime);
            let answering = Datagrams::start(&place);
            nodes.start(POD_NODE);
            nodes.start(DIRECTOR);
            nodes.until("with direct server return", SERVICES);
            datagrams_are_answered(&nodes);
            own_node_is_served(&nodes);
            strangers_are_not_answered(&nodes, &place);
            for [with_nat, by_pod] in measured_in_turn(&nodes) {
                println!(
                    "{filter}: answers of {LONG} bytes: {:.1} MB/s with NAT through the director, {:.1} by the pod itself; where the director sends {SLOW} to clients at most, {:.1} and {:.1}",
                    with_nat.fast, by_pod.fast, with_nat.slow, by_pod.slow
                );
                // 12.5 MB/s is what the link carries.
                assert!(with_nat.slow < 13.0, "the director's link is not slow: {:.1} MB/s", with_nat.slow);
                assert!(
                    by_pod.slow > 1.5 * with_nat.slow,
                    "answers of the pod itself are not faster: {:.1} MB/s",
                    by_pod.slow
                );
            }
            drop(answering);
            drop(server);
            runtime.end_sandbox(&id);
        });
    }
}
