//! Services with an endpoint on the client's own node, in the real kernel. There is no IPVS here, so the node answers at
//! the service address itself: what reaches it would be translated and delivered without another look
//! (`tests/e2e/network_policies.py` has the whole way).

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, ObjectName, Ports,
    Service, ServicePort,
};
use sluice::net::{Family, Protocol};

use super::firewall::{GATEWAY, Machine, app, block, egress, rule, with_each};
use super::places::inside;
use crate::namespace::run;

const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
const PORT: u16 = 443;
const TARGET: u16 = 6443;
const PATIENCE: Duration = Duration::from_millis(300);

/// The endpoints are on these addresses, IPv4 first.
fn put_service(machine: &mut Machine, endpoints: [&str; 2]) {
    let name = ObjectName::new("shop", "api");
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let slices = endpoints.map(|text| {
        let endpoint = Endpoint { address: address(text), node: None, conditions: Conditions::READY, hints: None };
        let ports = [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: TARGET }].into();
        let slice = EndpointSlice { family: Family::from(address(text)), ports, endpoints: [endpoint].into() };
        (text.into(), Arc::new(slice))
    });
    machine.world.cluster.endpoints.insert(name.clone(), Endpoints { slices: slices.into() });
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: PORT, node_port: None };
    machine.world.cluster.services.insert(name, Service::new(SERVICE.map(address).into(), vec![port]));
}

/// A connection of a pod to the service address.
fn connect(pod: &str, service: &str) -> Option<TcpStream> {
    let namespace = File::open(format!("/run/netns/{pod}")).expect("the namespace");
    let target = SocketAddr::new(service.parse().expect("an address"), PORT);
    inside(&namespace, || TcpStream::connect_timeout(&target, PATIENCE).ok())
}

fn check(machine: &Machine, told: &str, pod: &str, open: bool) {
    for service in SERVICE {
        // The machine may be busy; what is closed is never open.
        let tries = if open { 20 } else { 1 };
        let connected = (0..tries).any(|_| connect(pod, service).is_some());
        assert_eq!(connected, open, "{pod} to {service}, {told}\n{}", machine.saved());
    }
}

#[test]
fn an_endpoint_on_the_clients_own_node_is_judged_before_the_service_address_is_translated() {
    with_each(false, |machine| {
        for (service, length) in SERVICE.into_iter().zip([32, 128]) {
            run(&format!("ip addr add {service}/{length} dev lo"));
        }
        let listener = TcpListener::bind(format!("[::]:{PORT}")).expect("the port is free");
        let (_, v4, v6) = GATEWAY;
        let own =
            |text: &str| HostAddress { address: text.parse().expect("an address"), link: "lo".into(), global: true };
        machine.world.host = Arc::new(Host { addresses: vec![own(v4), own(v6)], ..(*machine.world.host).clone() });
        machine.world.authority.proxy = Authority::Complete;
        put_service(machine, [v4, v6]);
        machine.settle();
        check(machine, "without a policy", "db", true);
        let mut open = (0..20).find_map(|_| connect("db", SERVICE[0])).expect("nothing refuses it");
        let (mut served, _) = loop {
            let (served, from) = listener.accept().expect("it is connected");
            if open.local_addr().is_ok_and(|own| own.port() == from.port()) {
                break (served, from);
            }
        };
        machine.put_policy("out", egress(app("db"), &[]));
        machine.settle();
        check(machine, "with egress denied", "db", false);
        check(machine, "with egress of another pod denied", "plain", true);
        open.write_all(b"on").expect("a connection that exists goes on");
        let mut heard = [0; 2];
        served.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        served.read_exact(&mut heard).expect("a connection that exists goes on");

        let text = machine.refused();
        let line = "sluice_firewall_refused_packets_total{direction=\"egress\",namespace=\"shop\",policy=\"out\"} ";
        let count = text.lines().find_map(|found| found.strip_prefix(line)).expect("a policy that refused says so");
        assert!(count.parse::<u32>().expect("a number") >= 2, "{text}");

        assert_eq!(machine.restart(), 0, "a restart writes nothing");
        let hosts =
            [rule(block("10.244.1.1/32", &[]), Ports::Any), rule(block("fd00:10:244:1::1/128", &[]), Ports::Any)];
        machine.put_policy("out", egress(app("db"), &hosts));
        machine.settle();
        check(machine, "with the endpoints allowed", "db", true);
        machine.put_policy("out", egress(app("db"), &[]));
        machine.settle();
        check(machine, "with egress denied again", "db", false);
        put_service(machine, ["192.0.2.12", "2001:db8:2::12"]);
        machine.settle();
        check(machine, "with endpoints of another node, which OUTPUT judges", "db", true);
    });
}
