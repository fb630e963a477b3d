//! Direct server return over an overlay between the director and the pod's node, and over none: packets as large as the links allow, and the size that is left told to the client.

use std::net::UdpSocket;

use super::lines::{Lines, connected};
use super::*;

/// Bytes that a client sends at once: many packets, each as large as it may be.
const UPLOAD: usize = 600_000;
/// The packet of a datagram of this size is as large as the client's link allows (1500) over IPv6; over IPv4 it is 20 bytes smaller.
const DATAGRAM: usize = 1_452;

/// For the first answer, from the moment on at which both agents are ready: three connections of which nobody hears anything.
const SOON: Duration = Duration::from_secs(60);

/// Both agents make the routes between the nodes, over tunnels of this kind.
fn with_overlay(nodes: &mut Nodes, kind: &str) {
    run("ip -n director route del 10.244.1.0/24 via 192.0.2.1");
    run("ip -n director route del fd00:10:244:1::/64 via 2001:db8:2::1");
    run("ip route del 10.244.2.0/24 via 192.0.2.2");
    run("ip route del fd00:10:244:2::/64 via 2001:db8:2::2");
    let flags = ["--run-router", "--enable-cni=false", "--enable-overlay", "--overlay-type=full"];
    nodes.routing = flags.map(str::to_owned).into();
    nodes.routing.push(format!("--overlay-encap={kind}"));
}

/// The Service at the same addresses for datagrams as well.
fn put_datagrams(nodes: &Nodes) {
    let slice = |(family, address): (&str, &str)| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{name: lookups-{family}, \
             namespace: shop, labels: {{kubernetes.io/service-name: lookups}}}}, ports: [{{name: main, protocol: UDP, port: {PORT}}}], \
             endpoints: [{{addresses: [\"{address}\"], nodeName: node1, conditions: {{ready: true}}}}]}}\n"
        )
    };
    let slices = [("IPv4", ADDRESS), ("IPv6", ADDRESS_V6)].map(slice).concat();
    let [v4, v6] = SERVICES;
    nodes.put(
        "lookups",
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: lookups, namespace: shop, annotations: {{kube-router.io/service.dsr: tunnel}}}}, \
             spec: {{clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11, \"fd00:10:96::b\"], ipFamilies: [IPv4, IPv6], \
             externalIPs: [{v4}, \"{v6}\"], ports: [{{name: main, protocol: UDP, port: {PORT}}}]}}}}\n{slices}"
        ),
    );
}

/// What fits in a packet to this address, as far as the client was told.
fn told(service: IpAddr) -> Option<u32> {
    let family = if service.is_ipv4() { "-4" } else { "-6" };
    let shown = run(&format!("ip -n client {family} route get {service}"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().and_then(|number| number.parse().ok())
}

/// A client learns by an error how large a packet may be.
fn size_is_told(service: IpAddr) -> Option<u32> {
    let any: IpAddr = if service.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    inside(&there("client"), || {
        let socket = UdpSocket::bind((any, 0)).expect("there are ports");
        socket.connect((service, PORT)).expect("there is a route");
        for _ in 0..20 {
            // The second one fails at once where the first was answered by an error.
            let _ = socket.send(&[b'x'; DATAGRAM]);
            sleep(Duration::from_millis(50));
        }
    });
    told(service)
}

/// A client sends a lot, and learns what fits, with this encapsulation between the nodes, or with none.
fn large_packets_arrive(kind: Option<&str>, filter: &'static str) {
    let _alone = alone();
    let device = match kind {
        None => "dev node",
        Some("vxlan") => "dev sluice-vxlan",
        Some(_) => "dev tun-",
    };
    let _in_use = in_use();
    beside_containerd_of_both_families(|runtime| {
        ways();
        let mut nodes = Nodes::new(filter);
        if let Some(kind) = kind {
            with_overlay(&mut nodes, kind);
        }
        let kind = kind.unwrap_or("no overlay");
        put_datagrams(&nodes);
        let (id, place) = start_sandbox(runtime, "web", PODS);
        let program = Lines::start(&place, "web");
        nodes.start(POD_NODE);
        nodes.start(DIRECTOR);
        println!("{filter}, {kind}: both agents are ready after {:?}", nodes.until_ready());
        for (service, pod) in parsed(SERVICES).into_iter().zip(parsed(PODS)) {
            let client: IpAddr =
                if service.is_ipv4() { "198.51.100.10" } else { "2001:db8:100::10" }.parse().expect("an address");
            let begun = Instant::now();
            let answer = loop {
                let asked = connected(client, SocketAddr::new(service, PORT)).and_then(|mut one| one.ask(UPLOAD));
                match asked {
                    Ok(answer) => break answer,
                    Err(why) => {
                        println!("{filter}, {kind}: not yet after {:?}: {why}", begun.elapsed());
                        assert!(begun.elapsed() < SOON, "{why}\n{}", nodes.shown());
                    }
                }
                sleep(Duration::from_millis(200));
            };
            assert_eq!(answer, format!("web {UPLOAD}"));
            let way = run(&format!("ip -n director route get {pod}"));
            assert!(way.contains(device), "{pod} is elsewhere: {way}");
            let fits = size_is_told(service);
            println!(
                "{filter}, {kind}: {service}: {UPLOAD} bytes arrived after {:?}; a packet of {fits:?} bytes fits",
                begun.elapsed()
            );
            // Of an IPv4 address in tunnel mode the kernel sends no errors (`docs/status.md`).
            assert!(service.is_ipv4() || fits.is_some_and(|fits| (1280..1500).contains(&fits)), "{service}: {fits:?}");
        }
        drop(program);
        runtime.end_sandbox(&id);
    });
}

#[test]
fn without_an_overlay_large_packets_arrive_and_a_client_is_told_what_fits() {
    ["nftables", "iptables"].into_iter().for_each(|filter| large_packets_arrive(None, filter));
}

#[test]
fn over_ipip_large_packets_arrive_and_a_client_is_told_what_fits() {
    ["nftables", "iptables"].into_iter().for_each(|filter| large_packets_arrive(Some("ipip"), filter));
}

#[test]
fn over_fou_large_packets_arrive_and_a_client_is_told_what_fits() {
    ["nftables", "iptables"].into_iter().for_each(|filter| large_packets_arrive(Some("fou"), filter));
}

#[test]
fn over_vxlan_large_packets_arrive_and_a_client_is_told_what_fits() {
    ["nftables", "iptables"].into_iter().for_each(|filter| large_packets_arrive(Some("vxlan"), filter));
}
