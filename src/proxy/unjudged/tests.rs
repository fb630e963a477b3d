//! Cases of the machine, in words: what is desired of one port, what the firewall has judged, and who waits then.

use super::*;
use crate::kernel::ipvs::{Destination, Forwarding, Service, Virtual};

const PORT: &str = "203.0.113.1";

struct Case {
    desired: Desired,
    unjudged: Unjudged,
    now: Instant,
}

fn port(address: &str) -> ServiceKey {
    ServiceKey::Address { address: address.parse().expect("an address"), protocol: crate::net::Protocol::Tcp, port: 80 }
}

fn mark(address: &str) -> ServiceKey {
    let number = address.bytes().map(u32::from).sum();
    ServiceKey::Mark { mark: number, family: port(address).family() }
}

fn endpoint(last: &str) -> SocketAddr {
    format!("10.244.1.{last}:80").parse().expect("an address and a port")
}

impl Case {
    fn new() -> Case {
        Case { desired: Desired::default(), unjudged: Unjudged::default(), now: Instant::now() }
    }

    /// A port in tunnel mode gets these endpoints with a World, `5=0` for one that drains as it terminates and serves, `5=gone` for one that drains as it is not ready or has left its slices; the firewall has judged
    /// another one.
    fn wants(&mut self, address: &str, endpoints: &str, worlds: (u64, u64)) {
        let destination = |word: &str| {
            let (last, weight) = word.split_once('=').unwrap_or((word, "1"));
            let weight = if weight == "gone" { 0 } else { weight.parse().expect("a weight") };
            Destination { address: endpoint(last), weight, forwarding: Forwarding::Tunnel }
        };
        let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        let destinations: Vec<Destination> = endpoints.split_whitespace().map(destination).collect();
        let (port, mark) = (port(address), mark(address));
        let ServiceKey::Mark { mark: number, .. } = mark else { unreachable!("it is a mark") };
        self.desired.marks.insert(port, number);
        self.desired.marked.insert(mark, port);
        self.desired.virtuals.insert(mark, Virtual { service, destinations: destinations.into() });
        let gone: Vec<SocketAddr> =
            endpoints.split_whitespace().filter_map(|word| word.strip_suffix("=gone")).map(endpoint).collect();
        let may_serve = |_: &ServiceKey, destination| !gone.contains(&destination);
        let tunnels = DesiredTunnels { desired: &self.desired, may_serve };
        self.unjudged.follow(tunnels, &[mark], Worlds { number: worlds.0, judged: worlds.1 }, self.now);
    }

    fn leaves_its_tunnel(&mut self, address: &str, worlds: (u64, u64)) {
        let (port, mark) = (port(address), mark(address));
        self.desired.marks.remove(&port);
        self.desired.marked.remove(&mark);
        self.desired.virtuals.remove(&mark);
        let tunnels = DesiredTunnels { desired: &self.desired, may_serve: |_: &ServiceKey, _| false };
        self.unjudged.follow(tunnels, &[mark, port], Worlds { number: worlds.0, judged: worlds.1 }, self.now);
    }

    #[track_caller]
    fn waits(&self, address: &str, endpoints: &str) {
        let held = self.unjudged.waiting().remove(&port(address)).unwrap_or_default();
        assert_eq!(held.waiting, endpoints.split_whitespace().map(endpoint).collect());
    }

    fn pass(&mut self, milliseconds: u64) -> usize {
        self.pass_with(milliseconds, |_| Use::Begins)
    }

    fn pass_with(&mut self, milliseconds: u64, use_of: impl Fn(SocketAddr) -> Use) -> usize {
        self.now += Duration::from_millis(milliseconds);
        self.unjudged.expire(self.now, |_, destination| use_of(destination))
    }
}

#[test]
fn a_new_endpoint_waits_until_its_world_or_a_later_one_is_judged() {
    let mut case = Case::new();
    case.wants(PORT, "5 6", (3, 2));
    case.waits(PORT, "5 6");
    case.unjudged.judged(2);
    case.waits(PORT, "5 6");
    case.unjudged.judged(4);
    case.waits(PORT, "");
    assert!(!case.unjudged.is_any() && case.unjudged.deadline().is_none());
}

#[test]
fn what_the_firewall_has_judged_before_waits_for_nothing() {
    let mut case = Case::new();
    case.wants(PORT, "5 6", (3, 3));
    case.waits(PORT, "");
}

#[test]
fn a_later_change_holds_up_nothing_of_an_earlier_one_and_no_other_port() {
    let mut case = Case::new();
    case.wants(PORT, "5", (1, 0));
    case.wants("203.0.113.2", "5", (1, 0));
    case.wants(PORT, "5 6", (2, 0));
    case.unjudged.judged(1);
    case.waits(PORT, "6");
    case.waits("203.0.113.2", "");
    // A rollout that never stops is judged all the same.
    for number in 3..20 {
        case.unjudged.judged(number - 1);
        case.wants(PORT, &format!("{} {}", number + 3, number + 4), (number, number - 1));
        case.waits(PORT, &format!("{}", number + 4));
    }
}

#[test]
fn what_goes_waits_no_more_and_waits_anew_when_it_comes_back() {
    let mut case = Case::new();
    case.wants(PORT, "5 6", (1, 0));
    case.wants(PORT, "6=gone", (2, 0));
    case.waits(PORT, "");
    case.unjudged.judged(2);
    case.wants(PORT, "5 6", (3, 2));
    case.waits(PORT, "5 6");
    case.leaves_its_tunnel(PORT, (4, 2));
    assert!(!case.unjudged.is_any());
    case.unjudged.judged(4);
    case.wants(PORT, "5 6", (5, 4));
    case.waits(PORT, "5 6");
}

#[test]
fn a_wait_has_an_end_and_what_is_used_too_early_is_known_until_it_is_judged() {
    let mut case = Case::new();
    case.wants(PORT, "5", (1, 0));
    assert_eq!(case.pass(600), 0);
    case.wants(PORT, "5 6", (2, 0));
    assert_eq!(case.pass(399), 0);
    assert_eq!(case.pass(1), 1, "each has its own time");
    case.waits(PORT, "6");
    assert_eq!((case.unjudged.early(), case.unjudged.deadline()), (1, Some(case.now + Duration::from_millis(600))));
    case.unjudged.judged(1);
    assert_eq!(case.unjudged.early(), 0);
    assert_eq!(case.pass(600), 1);
    case.wants(PORT, "5", (3, 1));
    assert_eq!(case.unjudged.early(), 0, "it has gone");
}

#[test]
fn an_endpoint_that_terminates_and_serves_has_been_judged_all_the_time_and_one_that_is_not_ready_has_not() {
    let mut case = Case::new();
    case.wants(PORT, "5 6", (1, 1));
    case.wants(PORT, "5=gone 6", (2, 2));
    case.wants(PORT, "5 6", (3, 2));
    case.waits(PORT, "5");
    case.unjudged.judged(3);
    // It terminates while another one is ready.
    case.wants(PORT, "5 6=0", (3, 3));
    case.wants(PORT, "6", (4, 3));
    case.waits(PORT, "");
    // One that was never known waits as any other.
    case.wants(PORT, "6 7=0", (5, 4));
    case.wants(PORT, "6 7", (6, 4));
    case.waits(PORT, "7");
    assert_eq!(case.unjudged.waiting()[&port(PORT)].judged, BTreeSet::from([endpoint("6")]));
    case.unjudged.judged(5);
    case.waits(PORT, "");
}

#[test]
fn what_is_used_all_the_time_is_not_told_as_used_too_early() {
    let mut case = Case::new();
    case.wants(PORT, "5 6", (1, 0));
    let use_of = |destination| if destination == endpoint("6") { Use::Begins } else { Use::GoesOn };
    assert_eq!(case.pass_with(1000, use_of), 1);
    case.waits(PORT, "");
    assert_eq!(case.unjudged.early(), 1);
}

#[test]
fn one_that_was_not_used_when_its_wait_ended_waits_anew() {
    let mut case = Case::new();
    case.wants(PORT, "5 6=0", (1, 0));
    let use_of = |destination| if destination == endpoint("5") { Use::GoesOn } else { Use::None };
    assert_eq!((case.pass_with(1000, use_of), case.unjudged.early()), (0, 0));
    case.wants(PORT, "6", (2, 0));
    case.waits(PORT, "6");
}
