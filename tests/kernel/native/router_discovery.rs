//! Router discovery on one link, whatever is sent on others.

use std::net::Ipv6Addr;
use std::thread;
use std::time::{Duration, Instant};

use sluice::kernel::router_discovery::{RouterDiscovery, link_state};
use sluice::kernel::udp::Batch;

use crate::namespace::{in_new, run};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// More than the buffer of a socket holds.
const MANY: usize = 3000;

/// An advertisement with a lifetime of 0.
fn advertisement() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = ADVERTISEMENT;
    bytes
}

fn index(link: &str) -> u32 {
    link_state(link).expect("the kernel answers").expect("it is there").index
}

/// Waits until a link has an address to send with.
fn wait_for_address(link: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while link_state(link).expect("the kernel answers").is_none_or(|state| state.own.is_none()) {
        assert!(Instant::now() < deadline, "{link} has no link-local address");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn pods_that_advertise_themselves_on_their_bridge_take_no_place_from_a_router_on_another_link() {
    in_new(|| {
        run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        for (here, there) in [("eth1", "router"), ("bridge", "pod")] {
            run(&format!("ip link add {here} type veth peer name {there}"));
            run(&format!("ip link set {here} up"));
            run(&format!("ip link set {there} up"));
        }
        ["eth1", "router", "bridge", "pod"].into_iter().for_each(wait_for_address);
        let open = |link| RouterDiscovery::open(link, &[SOLICITATION, ADVERTISEMENT]).expect("root may");
        let (hearing, router, pod) = (open("eth1"), open("router"), open("pod"));
        for _ in 0..MANY {
            pod.send(ALL_NODES, index("pod"), &advertisement()).expect("it is up");
        }
        // What was sent has arrived before the router sends.
        thread::sleep(Duration::from_millis(300));
        router.send(ALL_NODES, index("router"), &advertisement()).expect("it is up");
        let (mut batch, mut links) = (Batch::default(), Vec::new());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !links.contains(&Some(index("eth1"))) && Instant::now() < deadline {
            hearing.read(&mut batch);
            links.extend(batch.datagrams().map(|one| one.link));
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(links, [Some(index("eth1"))], "of {MANY} on the bridge and one on eth1");
    });
}

#[test]
fn a_link_that_is_not_there_is_listened_on_by_nobody() {
    in_new(|| {
        let refused = RouterDiscovery::open("eth1", &[ADVERTISEMENT]).map(|_| ());
        assert!(refused.is_err_and(|error| error.to_string().contains("eth1")));
    });
}
