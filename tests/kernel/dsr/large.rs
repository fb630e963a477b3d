//! Requests over IPv4 that are too long for the tunnel to the pod and may not be fragmented: the pod gets them whole, over each kind of overlay beneath.

use super::ways::{NodeOfPod, director};
use super::*;

/// Bytes of a datagram whose packet is as long as the client's link allows, 1500.
const DATAGRAM: usize = 1472;
/// Bytes of a request by TCP, in many segments of which each is as long as that.
const REQUEST: usize = 200_000;

/// Leads what the director sends to the pods of the other node, which is this namespace, through a tunnel of this kind.
fn tunnel_between_nodes(kind: &str) {
    let [director, _] = DIRECTORS;
    let ends = [on_lan(Family::V4, director), on_lan(Family::V4, 200)];
    let device = |ends: [&String; 2]| {
        let [local, remote] = ends;
        match kind {
            "ipip" => format!("over type ipip local {local} remote {remote}"),
            "fou" => {
                format!("over type ipip local {local} remote {remote} encap gue encap-sport auto encap-dport 5555")
            }
            _ => format!("over mtu 1450 type vxlan id 7 local {local} remote {remote} dstport 4789"),
        }
    };
    let [there, here] = &ends;
    for (ip, link, address) in [
        (format!("ip -n h{director}"), device([there, here]), "10.244.200.1"),
        ("ip".to_owned(), device([here, there]), "10.244.200.2"),
    ] {
        if kind == "fou" {
            run(&format!("{ip} fou add port 5555 gue"));
        }
        run(&format!("{ip} link add {link}"));
        run(&format!("{ip} addr add {address}/24 dev over"));
        run(&format!("{ip} link set over up"));
    }
    let via = if kind == "vxlan" { "via 10.244.200.2" } else { "" };
    run(&format!("ip -n h{director} route replace 10.244.2.0/24 {via} dev over src {there}"));
}

impl Agent {
    /// Serves datagrams and connections at one port of the pod.
    fn serve_both(&mut self, service: IpAddr, pod: IpAddr) {
        let of_pod = Endpoint { address: pod, node: Some("node2".into()), conditions: Conditions::READY, hints: None };
        self.serve_as((Family::V4, service), vec![of_pod.clone()], |service| {
            let port = |protocol: Protocol| ServicePort {
                name: protocol.to_string().into(),
                protocol,
                port: PORT,
                node_port: None,
            };
            service.ports = vec![port(Protocol::Tcp), port(Protocol::Udp)].into();
        });
        let port = |protocol: Protocol| EndpointPort { name: protocol.to_string().into(), protocol, port: PORT };
        let ports = vec![port(Protocol::Tcp), port(Protocol::Udp)].into();
        let slice = EndpointSlice { family: Family::V4, ports, endpoints: [of_pod].into_iter().collect() };
        let slices = [("one".into(), Arc::new(slice))].into();
        self.world.cluster.endpoints.insert(ObjectName::new("shop", "web"), Endpoints { slices });
        self.settle();
    }
}

/// Whether the pod gets a datagram of this length. The kernel forbids to fragment one that the link carries.
fn arrives(client: &File, server: &UdpSocket, service: IpAddr, length: usize) -> bool {
    let socket = inside(client, || UdpSocket::bind(("0.0.0.0", 0))).expect("there are ports");
    (0..5).any(|_| {
        socket.send_to(&vec![b'x'; length], (service, PORT)).expect("the link carries it");
        server.recv_from(&mut [0; 2048]).is_ok_and(|(received, _)| received == length)
    })
}

/// Whether the pod gets a whole request by TCP.
fn is_read(client: &File, node: &NodeOfPod, service: IpAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&(service, PORT).into(), PATIENCE);
    let Some(mut stream) = (0..5).find_map(|_| inside(client, connect).ok()) else { return false };
    let until = Instant::now() + PATIENCE;
    let mut accepted = loop {
        match accept_of(&node.server, &stream) {
            Some((accepted, _)) => break accepted,
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            None => return false,
        }
    };
    accepted.set_nonblocking(false).expect("it may wait");
    accepted.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time");
    std::thread::scope(|scope| {
        scope.spawn(|| drop(stream.write_all(&vec![b'x'; REQUEST])));
        accepted.read_exact(&mut vec![0; REQUEST]).is_ok()
    })
}

#[test]
fn a_request_that_is_too_long_for_the_tunnel_reaches_the_pod_over_each_overlay() {
    for module in ["ip_vs", "ip_vs_rr", "dummy", "ipip", "ip6_tunnel", "fou", "vxlan"] {
        run(&format!("modprobe {module}"));
    }
    for kind in ["none", "ipip", "fou", "vxlan"] {
        let _in_use = in_use();
        in_new(|| {
            own_run();
            let (_, [.., service]) = V4;
            let service: IpAddr = service.parse().expect("an address");
            let lan = Lan::new(Family::V4, service);
            Lan::lead_to(Family::V4, service, DIRECTORS[0]);
            let (node, pod) = NodeOfPod::new(Family::V4, service);
            if kind != "none" {
                tunnel_between_nodes(kind);
            }
            let place = File::open("/run/netns/behind").expect("the pod");
            let server = inside(&place, || UdpSocket::bind((service, PORT))).expect("the port is free");
            server.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
            inside(&lan.directors[0], || director(Family::V4).serve_both(service, pod));
            let client = &lan.clients[0];
            assert!(arrives(client, &server, service, 100), "{kind}: it is served");
            if kind == "none" {
                // As the kernel has it by itself: it would tell the client, and has no source for that.
                let put = |value| inside(&lan.directors[0], || fs::write("/proc/sys/net/ipv4/vs/pmtu_disc", value));
                put("1").expect("a setting of the director");
                assert!(!arrives(client, &server, service, DATAGRAM), "the kernel needs no setting");
                put("0").expect("a setting of the director");
            }
            assert!(arrives(client, &server, service, DATAGRAM), "{kind}: a datagram of {DATAGRAM} bytes");
            assert!(is_read(client, &node, service), "{kind}: a request of {REQUEST} bytes");
        });
    }
}
