use super::super::{Forwarding, Service, flags};
use super::*;

fn virtual_service(scheduler: &str, destinations: &[(&str, u32)]) -> Virtual {
    let destination = |(address, weight): &(&str, u32)| Destination {
        address: address.parse().expect("an address and a port"),
        weight: *weight,
        forwarding: Forwarding::Nat,
    };
    Virtual {
        service: Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 },
        destinations: destinations.iter().map(destination).collect(),
    }
}

/// The messages of one step: `S` for the virtual service, else the host's number in the address of a destination.
fn messages(have: Option<&Virtual>, want: &Virtual) -> String {
    let key = ServiceKey::Address { address: [10, 96, 0, 1].into(), protocol: crate::net::Protocol::Tcp, port: 80 };
    let (messages, owners, acts) = (Messages::new(), Vec::new(), Vec::new());
    let mut plan = Plan { messages, owners, acts, spread: RandomState::default() };
    plan.add(0, &Step { key: &key, have, want: Some(want) }, true);
    let words = plan.acts.iter().map(|act| match act {
        Act::Destination(address) => address.to_string().split(['.', ':']).nth(3).map(str::to_owned),
        _ => Some("S".to_owned()),
    });
    words.collect::<Option<Vec<_>>>().expect("IPv4 addresses").join(" ")
}

#[test]
fn clients_may_fall_back_until_no_destination_has_weight_0() {
    let with = |scheduler: &str, flags, destinations: &[(&str, u32)]| {
        let mut made = virtual_service(scheduler, destinations);
        made.service.flags = flags;
        made
    };
    let (one, terminating, back) = (("10.244.1.1:80", 1), ("10.244.1.2:80", 0), ("10.244.1.2:80", 1));
    for scheduler in ["sh", "mh"] {
        let falls_back = with(scheduler, flags::SCHEDULER_1, &[one, terminating]);
        for (want, order) in [(with(scheduler, 0, &[one]), "2 S"), (with(scheduler, 0, &[one, back]), "2 S")] {
            assert_eq!(messages(Some(&falls_back), &want), order, "{scheduler}");
        }
        let plain = with(scheduler, 0, &[one, back]);
        assert_eq!(messages(Some(&plain), &falls_back), "S 2", "{scheduler}: it may fall back before one has weight 0");
        let around = with("rr", 0, &[one, terminating]);
        assert_eq!(messages(Some(&plain), &around), "S 2", "{scheduler}");
    }
}

#[test]
fn a_new_virtual_service_has_first_who_serves() {
    let want = virtual_service("rr", &[("10.244.1.1:80", 0), ("10.244.1.2:80", 1), ("10.244.1.3:80", 0)]);
    let all: BTreeSet<String> = (0..50).map(|_| messages(None, &want)).collect();
    assert!(all.iter().all(|order| order.starts_with("S 2 ")), "{all:?}");
}

#[test]
fn destinations_do_not_begin_with_the_same_one_on_all_nodes() {
    let want = virtual_service("rr", &[("10.244.1.1:80", 1), ("10.244.1.2:80", 1), ("10.244.1.3:80", 1)]);
    let address = [10, 96, 0, 1].into();
    let key = ServiceKey::Address { address, protocol: crate::net::Protocol::Tcp, port: 80 };
    let first_on_a_node = |_| {
        let (messages, owners, acts) = (Messages::new(), Vec::new(), Vec::new());
        let mut plan = Plan { messages, owners, acts, spread: RandomState::default() };
        plan.add(0, &Step { key: &key, have: None, want: Some(&want) }, true);
        let destinations = plan.acts.iter().filter_map(|act| match act {
            Act::Destination(address) => Some(*address),
            _ => None,
        });
        let all: Vec<SocketAddr> = destinations.collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3, "each once");
        all.first().copied()
    };
    let first: BTreeSet<Option<SocketAddr>> = (0..100).map(first_on_a_node).collect();
    assert_eq!(first.len(), 3, "of 100 nodes none begins with another one than {first:?}");
}

#[test]
fn a_grown_service_has_old_and_new_destinations_and_the_new_weights() {
    let have = virtual_service("rr", &[("10.244.1.1:80", 1), ("10.244.1.2:80", 1)]);
    let want = virtual_service("lc", &[("10.244.1.2:80", 0), ("10.244.1.3:80", 1)]);
    let both = virtual_service("lc", &[("10.244.1.1:80", 1), ("10.244.1.2:80", 0), ("10.244.1.3:80", 1)]);
    assert_eq!(Services::grown(&have, &want), both);
    assert_eq!(Services::grown(&both, &want), both);
    assert_eq!(Services::grown(&want, &want), want);
}

#[test]
fn clients_may_fall_back_until_the_last_drained_destination_is_gone() {
    let with_flag = |mut service: Virtual| {
        service.service.flags = flags::SCHEDULER_1;
        service
    };
    let have = with_flag(virtual_service("mh", &[("10.244.1.1:80", 0), ("10.244.1.2:80", 1)]));
    let want = virtual_service("mh", &[("10.244.1.2:80", 1)]);
    assert_eq!(Services::grown(&have, &want), have, "what shall go is still there, and so is the flag");
    let gone = with_flag(virtual_service("mh", &[("10.244.1.2:80", 1)]));
    assert_eq!(Services::grown(&gone, &want), want);
    let other = virtual_service("rr", &[("10.244.1.2:80", 1)]);
    assert_eq!(
        Services::grown(&have, &other).service,
        other.service,
        "the flag means something else to another scheduler"
    );
}
