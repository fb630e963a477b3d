//! Addresses on devices.

use std::collections::BTreeMap;

use sluice::kernel::address::{AddressKey, Addresses, Scope, host_addresses};
use sluice::kernel::link::{LinkKind, LinkName};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{in_new, run};

fn key(link: &str, address: &str) -> AddressKey {
    AddressKey { link: LinkName(link.into()), address: address.parse().expect("an address with its length") }
}

fn ours() -> Addresses {
    Addresses::open([LinkName("ours".into()), LinkName("absent".into())]).expect("sockets")
}

fn devices() {
    run("ip link add ours type veth peer name theirs");
    run("ip link set ours up");
    run("ip link set theirs up");
}

const OURS: [&str; 4] = ["10.96.0.1/32", "10.244.1.1/24", "fd00:10:96::1/128", "fd00:10:244::1/64"];

#[test]
fn what_we_write_ip_reads() {
    in_new(|| {
        devices();
        let mut addresses = ours();
        let keys = OURS.map(|address| key("ours", address));
        let add: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(addresses.apply(Phase::Grow, &add).is_empty());
        assert_eq!(addresses.read().expect("a reading"), keys.iter().cloned().map(|key| (key, ())).collect());
        let shown = run("ip -o address show dev ours");
        for line in
            ["inet 10.96.0.1/32 scope link", "inet 10.244.1.1/24 scope global", "fd00:10:96::1/128 scope global"]
        {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(!shown.lines().any(|line| line.contains("fd00:") && line.contains("tentative")), "{shown}");
        let failures = addresses.apply(Phase::Grow, &add);
        assert!(failures.len() == 4 && failures.iter().all(|failure| failure.error.is_exists()), "{failures:?}");
        let delete: Vec<_> = keys.iter().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(addresses.apply(Phase::Shrink, &delete).is_empty());
        assert!(addresses.read().expect("a reading").is_empty());
        assert!(run("ip address show dev ours").contains("fe80::"), "the kernel's own address stays");
        let failures = addresses.apply(Phase::Shrink, &delete);
        assert!(failures.len() == 4 && failures.iter().all(|failure| failure.error.is_absent()), "{failures:?}");
    });
}

#[test]
fn what_ip_writes_we_read_and_nothing_of_other_devices() {
    in_new(|| {
        devices();
        for address in OURS {
            run(&format!("ip address add {address} dev ours nodad"));
        }
        run("ip address add 192.0.2.1/24 dev theirs");
        // The kernel's own address of that device may still be looking for a second one like it.
        let foreign = run("ip -4 address show dev theirs");
        let mut addresses = ours();
        let found = addresses.read().expect("a reading");
        let expected: BTreeMap<_, _> = OURS.map(|address| (key("ours", address), ())).into();
        assert_eq!(found, expected);
        let steps: Vec<_> = found.keys().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(addresses.apply(Phase::Shrink, &steps).is_empty());
        assert_eq!(run("ip -4 address show dev theirs"), foreign);
    });
}

#[test]
fn an_address_on_a_missing_device_fails_alone() {
    in_new(|| {
        devices();
        let keys = [key("absent", "10.96.0.1/32"), key("ours", "10.96.0.1/32")];
        let steps: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        let mut addresses = ours();
        let failures = addresses.apply(Phase::Grow, &steps);
        let [failure] = failures.as_slice() else { panic!("one step fails: {failures:?}") };
        assert!(failure.step == 0 && failure.error.to_string().contains("no device absent"), "{}", failure.error);
        assert_eq!(addresses.keys().expect("keys").len(), 1);
    });
}

#[test]
fn addresses_that_are_to_go_or_are_not_proven_do_not_last() {
    in_new(|| {
        devices();
        run("sysctl -qw net.ipv6.conf.ours.accept_dad=1");
        run("ip address add 192.0.2.1/24 dev ours");
        run("ip address add 192.0.2.2/24 dev ours");
        run("ip address add 192.0.2.3/24 dev ours valid_lft forever preferred_lft 0");
        run("ip address add 2001:db8::1/64 dev ours nodad");
        run("ip address add 2001:db8::2/64 dev ours nodad valid_lft forever preferred_lft 0");
        run("ip address add 2001:db8::3/64 dev ours");
        let found = host_addresses().expect("a reading");
        let lasts = |address: &str| {
            let one = found.iter().find(|found| found.address.addr().to_string() == address);
            one.unwrap_or_else(|| panic!("{address} is found")).lasting
        };
        assert!(["192.0.2.1", "192.0.2.2", "2001:db8::1"].into_iter().all(lasts), "{found:?}");
        assert!(["192.0.2.3", "2001:db8::2", "2001:db8::3"].into_iter().all(|address| !lasts(address)), "{found:?}");
        let (first, ours) = (found.first().expect("loopback"), found.iter().find(|one| one.link.0 == "ours"));
        assert!(first.index == 1 && ours.is_some_and(|ours| ours.index > 1), "{found:?}");
    });
}

#[test]
fn the_hosts_addresses_tell_their_device_and_scope() {
    in_new(|| {
        devices();
        run("ip address add 192.0.2.1/24 dev ours");
        run("ip address add 2001:db8::1/64 dev ours nodad");
        run("ip link set theirs down");
        run("ip address add 203.0.113.1/24 dev theirs");
        let found = host_addresses().expect("a reading");
        let one = |address: &str| {
            let found = found.iter().find(|found| found.address.to_string() == address);
            let found = found.unwrap_or_else(|| panic!("{address} is found"));
            (found.link.to_string(), found.kind.clone(), found.up, found.scope)
        };
        let veth = LinkKind::Other("veth".into());
        assert_eq!(one("192.0.2.1/24"), ("ours".into(), veth.clone(), true, Scope::Global));
        assert_eq!(one("2001:db8::1/64"), ("ours".into(), veth.clone(), true, Scope::Global));
        assert_eq!(one("203.0.113.1/24"), ("theirs".into(), veth, false, Scope::Global));
        assert_eq!(one("127.0.0.1/8"), ("lo".into(), LinkKind::Other("".into()), true, Scope::Host));
        assert_eq!(one("::1/128").3, Scope::Host);
        assert!(found.iter().any(|found| found.link.0 == "ours" && found.scope == Scope::Link), "{found:?}");
    });
}
