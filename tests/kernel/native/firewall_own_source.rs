//! IPv6 packets from elsewhere with an address of the node as source, which the kernel takes: real packets, with each packet filter.
//!
//! What passes INPUT with a service address IPVS sends on with its source, and what comes from an address of the node no pod is kept from.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs::File;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use super::enforcer::Filter;
use super::firewall::{GATEWAY, Machine, with};
use super::places::inside;
use crate::namespace::run;

const NODE: &str = GATEWAY.2;
/// Of a Service: local on the node, and nobody else's.
const SERVICE: &str = "fd00:10:96::7";
/// Of a Service with direct server return: local for marked packets alone.
const TUNNELLED: &str = "2001:db8:96::7";
const ELSEWHERE: &str = "plain";
/// A packet is handed on at once, but not every one on a busy machine.
const TRIES: usize = 5;
const PATIENCE: Duration = Duration::from_millis(80);

/// A node with such addresses, and a socket of its own at each.
struct Bed<'a> {
    machine: &'a mut Machine,
    socket: UdpSocket,
    port: u16,
}

fn with_each(test: impl Fn(&Bed<'_>) + Send + Sync) {
    for filter in Filter::ALL {
        with(filter, false, |machine| {
            run(&format!("ip -6 addr add {SERVICE}/128 dev lo nodad"));
            run(&format!("ip -6 route add local {TUNNELLED} dev lo table 78"));
            run("ip -6 rule add fwmark 1/1 lookup 78 priority 32764");
            for source in [NODE, SERVICE, TUNNELLED] {
                run(&format!("ip -n {ELSEWHERE} -6 addr add {source}/128 dev lo nodad noprefixroute"));
            }
            // What is local in the pod as well has to leave it all the same, with whatever source.
            run(&format!("ip -n {ELSEWHERE} -6 rule del priority 0"));
            run(&format!("ip -n {ELSEWHERE} -6 rule add priority 40000 lookup local"));
            run(&format!("ip -n {ELSEWHERE} -6 addr add fe80::77/64 dev eth0 nodad"));
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let port = socket.local_addr().unwrap().port();
            machine.settle();
            test(&Bed { machine, socket, port });
        });
    }
}

impl Bed<'_> {
    /// Whether the node takes a packet that a pod sends from an address to another one.
    fn takes(&self, source: &str, target: &str) -> bool {
        let pod = File::open(format!("/run/netns/{ELSEWHERE}")).unwrap();
        (0..TRIES).any(|_| {
            inside(&pod, || {
                let socket = UdpSocket::bind((source.parse::<Ipv6Addr>().unwrap(), 0)).unwrap();
                socket.send_to(b"from elsewhere", (target.parse::<Ipv6Addr>().unwrap(), self.port)).unwrap();
            });
            self.socket.recv_from(&mut [0; 64]).is_ok()
        })
    }

    fn told(&self) -> String {
        self.machine.enforcer.filter.saved()
    }
}

#[test]
fn who_sends_with_an_address_of_the_node_reaches_neither_it_nor_a_service_of_it() {
    with_each(|bed| {
        let own = super::firewall::PODS.iter().find(|(name, ..)| *name == ELSEWHERE).unwrap().2;
        for target in [NODE, SERVICE] {
            assert!(bed.takes(own, target), "a pod reaches {target} with its own address\n{}", bed.told());
            for source in [NODE, SERVICE] {
                assert!(!bed.takes(source, target), "from {source} to {target}\n{}", bed.told());
            }
        }
    });
}

#[test]
fn what_the_node_sends_to_itself_and_what_answers_of_direct_server_return_look_like_passes() {
    with_each(|bed| {
        let from_itself = |target: &str| {
            let socket = UdpSocket::bind((NODE.parse::<Ipv6Addr>().unwrap(), 0)).unwrap();
            socket.send_to(b"from itself", (target.parse::<Ipv6Addr>().unwrap(), bed.port)).unwrap();
            (0..TRIES).any(|_| bed.socket.recv_from(&mut [0; 64]).is_ok())
        };
        for target in [NODE, SERVICE] {
            assert!(from_itself(target), "to {target}\n{}", bed.told());
        }
        assert!(bed.takes(TUNNELLED, NODE), "a service address that is local for marked packets alone\n{}", bed.told());
    });
}

#[test]
fn a_packet_to_a_group_comes_back_to_the_node_that_sends_it_and_a_link_local_address_may_be_there_twice() {
    with_each(|bed| {
        let link = format!("to-{ELSEWHERE}");
        let group: Ipv6Addr = "ff05::77".parse().unwrap();
        let index = super::firewall_link_local::scope_of(&link);
        bed.socket.join_multicast_v6(&group, index).unwrap();
        run(&format!("ip -6 route add multicast ff05::77/128 dev {link} table local metric 1"));
        let socket = UdpSocket::bind((NODE.parse::<Ipv6Addr>().unwrap(), 0)).unwrap();
        let is_back = (0..TRIES).any(|_| {
            socket.send_to(b"to all", (group, bed.port)).unwrap();
            bed.socket.recv_from(&mut [0; 64]).is_ok()
        });
        assert!(is_back, "{}", bed.told());
        run("ip link add other type veth peer name beside");
        run("ip link set other up");
        run("ip -6 addr add fe80::77/64 dev other nodad");
        let pod = File::open(format!("/run/netns/{ELSEWHERE}")).unwrap();
        let arrives = (0..TRIES).any(|_| {
            inside(&pod, || {
                let scope = super::firewall_link_local::scope_of("eth0");
                let source = std::net::SocketAddrV6::new("fe80::77".parse().unwrap(), 0, 0, scope);
                let socket = UdpSocket::bind(source).unwrap();
                socket.send_to(b"a neighbour", (NODE.parse::<Ipv6Addr>().unwrap(), bed.port)).unwrap();
            });
            bed.socket.recv_from(&mut [0; 64]).is_ok()
        });
        assert!(arrives, "{}", bed.told());
    });
}
