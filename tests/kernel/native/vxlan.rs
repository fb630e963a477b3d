//! Overlay devices of the type `vxlan` and what they know of other nodes, with packets between two namespaces.

use std::net::IpAddr;

use sluice::kernel::link::LinkName;
use sluice::kernel::vxlan::{Devices, Entries, Entry, EntryKey, Vxlan, gateway, link_address};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{attempt, in_new, own_run, run};

/// The device, our address and the other node's, both nodes' pods, and the largest packet inside a link of 1,500 bytes.
struct Side {
    link: &'static str,
    here: &'static str,
    there: &'static str,
    pods: [&'static str; 2],
    range: &'static str,
    largest: u32,
}

const V4: Side = Side {
    link: "sluice-vxlan4",
    here: "192.0.2.1",
    there: "192.0.2.2",
    pods: ["10.244.1.1", "10.244.2.1"],
    range: "10.244.2.0/24",
    largest: 1450,
};
const V6: Side = Side {
    link: "sluice-vxlan6",
    here: "2001:db8::1",
    there: "2001:db8::2",
    pods: ["fd00:10:244:1::1", "fd00:10:244:2::1"],
    range: "fd00:10:244:2::/64",
    largest: 1430,
};

impl Side {
    fn name(&self) -> LinkName {
        LinkName(self.link.into())
    }

    fn device(&self) -> Vxlan {
        let local = address(self.here);
        let (mtu, address) = (Some(self.largest), link_address(local));
        Vxlan { local, id: 1, port: 4789, address, mtu, up: true, is_fixed: true, is_numbered: true }
    }

    fn key(&self) -> EntryKey {
        EntryKey { link: self.name(), remote: address(self.there) }
    }

    fn entry(&self) -> Entry {
        Entry::of(address(self.there))
    }

    /// The route to the other node's pods.
    fn add_route(&self) {
        let via = gateway(address(self.there));
        let on_link = if via.is_ipv4() { "onlink" } else { "" };
        run(&format!("ip route add {} via {via} dev {} {on_link} src {}", self.range, self.link, self.here));
    }

    /// Whether a packet of this size reaches the other node's pod and comes back, and what is said otherwise.
    fn echo(&self, size: u32) -> (bool, String) {
        let headers = if self.here.contains(':') { 48 } else { 28 };
        let [from, to] = self.pods;
        let (ok, out, error) = attempt(&format!("ping -c 3 -i 0.2 -W 5 -M do -s {} -I {from} {to}", size - headers));
        (ok, out + &error)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn is_ours(name: &str) -> bool {
    [V4.link, V6.link].contains(&name)
}

/// This namespace and another one, on one link, with addresses that stand for pods.
fn in_two(test: impl FnOnce() + Send) {
    in_new(|| {
        own_run();
        run("mkdir -p /run/netns");
        run("ip netns add far");
        run("ip -n far link set lo up");
        run("ip link add eth0 type veth peer name eth0 netns far");
        for (ip, number) in [("ip", 1), ("ip -n far", 2)] {
            run(&format!("{ip} link set eth0 up"));
            run(&format!("{ip} address add 192.0.2.{number}/24 dev eth0"));
            run(&format!("{ip} address add 2001:db8::{number}/64 dev eth0 nodad"));
            run(&format!("{ip} address add 10.244.{number}.1/32 dev lo"));
            run(&format!("{ip} address add fd00:10:244:{number}::1/128 dev lo nodad"));
        }
        test();
    });
}

/// The other node, as an administrator would set it up.
fn set_up_far(side: &Side) {
    let Side { link, here, there, largest, .. } = side;
    let (own, near) = (link_address(address(there)), link_address(address(here)));
    let via = gateway(address(here));
    let kind = format!("type vxlan id 1 dstport 4789 local {there} nolearning");
    run(&format!("ip -n far link add {link} address {own} mtu {largest} {kind}"));
    run(&format!("ip -n far link set {link} up"));
    run(&format!("ip -n far neigh replace {via} lladdr {near} dev {link} nud permanent"));
    run(&format!("bridge -n far fdb replace {near} dev {link} dst {here} self permanent"));
    let (range, on_link) = if via.is_ipv4() { ("10.244.1.0/24", "onlink") } else { ("fd00:10:244:1::/64", "") };
    run(&format!("ip -n far route add {range} via {via} dev {link} {on_link} src {there}"));
}

fn devices() -> Devices {
    Devices::open(is_ours, true).expect("a socket")
}

fn entries() -> Entries {
    Entries::open([V4.name(), V6.name()]).expect("a socket")
}

/// Takes one step; panics where it fails.
fn step<T: Target>(target: &mut T, key: &T::Key, have: Option<&T::Value>, want: Option<&T::Value>)
where
    T::Error: std::fmt::Debug,
{
    let phase = if want.is_some() { Phase::Grow } else { Phase::Shrink };
    let failures = target.apply(phase, &[Step { key, have, want }]);
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn packets_of_the_largest_size_pass_over_either_family_and_larger_ones_are_answered() {
    in_two(|| {
        let (mut devices, mut entries) = (devices(), entries());
        for side in [&V4, &V6] {
            set_up_far(side);
            step(&mut devices, &side.name(), None, Some(&side.device()));
            step(&mut entries, &side.key(), None, Some(&side.entry()));
            side.add_route();
        }
        // Both at once: number and port are the same.
        for side in [&V4, &V6] {
            assert_eq!(devices.read().expect("a reading").get(&side.name()), Some(&side.device()));
            assert_eq!(entries.read().expect("a reading").get(&side.key()), Some(&side.entry()));
            let (passed, said) = side.echo(side.largest);
            assert!(passed && said.contains(" 0% packet loss"), "{said}");
            let (passed, said) = side.echo(side.largest + 1);
            assert!(!passed && said.contains("mtu") && said.contains(&side.largest.to_string()), "{said}");
        }
        assert_eq!(entries.read().expect("a reading").len(), 2);
    });
}

#[test]
fn what_is_lost_of_an_entry_is_found_and_put_back_and_goes_again() {
    in_two(|| {
        let (mut devices, mut entries) = (devices(), entries());
        for side in [&V4, &V6] {
            step(&mut devices, &side.name(), None, Some(&side.device()));
            let (key, want) = (side.key(), side.entry());
            step(&mut entries, &key, None, Some(&want));
            let (via, own) = (gateway(key.remote), link_address(key.remote));
            run(&format!("ip neigh del {via} dev {}", side.link));
            let have = entries.read().expect("a reading").remove(&key).expect("one half is there");
            assert_eq!(have, Entry { neighbour: None, ..want });
            step(&mut entries, &key, Some(&have), Some(&want));
            run(&format!("bridge fdb del {own} dev {} dst {} self", side.link, side.there));
            let have = entries.read().expect("a reading");
            assert!(have.values().all(|have| *have != want), "{have:?}");
            step(&mut entries, &key, None, Some(&want));
            assert_eq!(entries.read().expect("a reading").get(&key), Some(&want));
            // Somebody gave the gateway another link address.
            run(&format!("ip neigh replace {via} lladdr 02:00:00:00:00:09 dev {} nud permanent", side.link));
            let have = entries.read().expect("a reading").remove(&key).expect("it is there");
            assert_ne!(have, want);
            step(&mut entries, &key, Some(&have), Some(&want));
            step(&mut entries, &key, Some(&want), None);
            assert!(entries.read().expect("a reading").is_empty());
            assert_eq!(run(&format!("ip neigh show dev {} nud permanent", side.link)), "");
        }
    });
}

/// Somebody takes the address without which sources are filtered strictly, and it comes back.
fn take_address_of(devices: &mut Devices, name: &LinkName, wanted: Vxlan) {
    let addresses = || run(&format!("ip -4 -o address show dev {name}"));
    assert!(addresses().contains("127.0.0.8/32 scope host"), "{}", addresses());
    run(&format!("ip address delete 127.0.0.8/32 dev {name}"));
    let have = devices.read().expect("a reading").remove(name).expect("it is there");
    assert_eq!(have, Vxlan { is_numbered: false, ..wanted });
    step(devices, name, Some(&have), Some(&wanted));
    assert_eq!(devices.read().expect("a reading").remove(name), Some(wanted));
    assert!(addresses().contains("127.0.0.8/32 scope host"), "{}", addresses());
}

#[test]
fn loose_filtering_takes_what_leads_back_elsewhere_and_strict_filtering_does_not() {
    in_two(|| {
        step(&mut devices(), &V4.name(), None, Some(&V4.device()));
        step(&mut entries(), &V4.key(), None, Some(&V4.entry()));
        set_up_far(&V4);
        // The way back leads by the link.
        run("ip route add 10.244.2.0/24 via 192.0.2.2 dev eth0 src 192.0.2.1");
        run("ip link set lo up");
        let reaches = |all: u8, device: u8| {
            let conf = "net.ipv4.conf";
            run(&format!(
                "sysctl -qw {conf}.eth0.rp_filter=0 {conf}.all.rp_filter={all} {conf}.{}.rp_filter={device}",
                V4.link
            ));
            attempt("ip netns exec far ping -c 1 -W 1 -I 10.244.2.1 10.244.1.1").0
        };
        for (all, device) in [(0, 0), (0, 2), (1, 2), (2, 0), (2, 1), (2, 2)] {
            assert!(reaches(all, device), "all {all}, device {device}");
        }
        for (all, device) in [(0, 1), (1, 0), (1, 1)] {
            assert!(!reaches(all, device), "all {all}, device {device}");
        }
        run(&format!("ip address delete 127.0.0.8/32 dev {}", V4.link));
        assert!(!reaches(0, 2), "without the address loose is strict");
        // What comes to the address from outside is for nobody.
        step(&mut devices(), &V4.name(), Some(&Vxlan { is_numbered: false, ..V4.device() }), Some(&V4.device()));
        let looked_up = attempt("ip route get 127.0.0.8 from 192.0.2.2 iif eth0");
        assert!(!looked_up.0, "{looked_up:?}");
    });
}

#[test]
fn a_device_is_changed_in_place_where_that_can_be_and_replaced_otherwise_and_those_of_others_stay() {
    in_two(|| {
        run("ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.1 nolearning");
        run("ip link add sluice-vxlan9 type bridge");
        let mut devices = devices();
        assert!(devices.read().expect("a reading").is_empty());
        let number = |side: &Side| run(&format!("ip -o link show {}", side.link)).split(':').next().map(str::to_owned);
        for side in [&V4, &V6] {
            let (name, first) = (side.name(), side.device());
            step(&mut devices, &name, None, Some(&first));
            run(&format!("ip link set {name} down mtu 1300"));
            let have = devices.read().expect("a reading").remove(&name).expect("it is there");
            assert_eq!(have, Vxlan { mtu: Some(1300), up: false, ..first });
            let before = number(side);
            step(&mut devices, &name, Some(&have), Some(&first));
            assert_eq!((number(side), devices.read().expect("a reading").remove(&name)), (before, Some(first)));
            if first.local.is_ipv4() {
                take_address_of(&mut devices, &name, first);
            }
            let elsewhere = address(if first.local.is_ipv4() { "192.0.2.7" } else { "2001:db8::7" });
            let moved = Vxlan { local: elsewhere, address: link_address(elsewhere), ..first };
            step(&mut devices, &name, Some(&first), Some(&moved));
            assert_eq!(devices.read().expect("a reading").remove(&name), Some(moved));
            step(&mut devices, &name, Some(&moved), Some(&first));
            let before = number(side);
            let other = Vxlan { port: 8472, id: 7, ..first };
            step(&mut devices, &name, Some(&first), Some(&other));
            assert_ne!(number(side), before, "neither can be changed");
            assert_eq!(devices.read().expect("a reading").remove(&name), Some(other));
            step(&mut devices, &name, Some(&other), None);
        }
        assert!(devices.read().expect("a reading").is_empty());
        assert!(attempt("ip link show vxlan.calico").0 && attempt("ip link show sluice-vxlan9").0);
        // One that learns is not as wanted, whatever else it has.
        run("ip link add sluice-vxlan4 type vxlan id 1 dstport 4789 local 192.0.2.1 learning");
        let learning = devices.read().expect("a reading").remove(&V4.name()).expect("it is ours by its name");
        assert!(!learning.is_fixed);
        step(&mut devices, &V4.name(), Some(&learning), Some(&V4.device()));
        assert_eq!(devices.read().expect("a reading").remove(&V4.name()), Some(V4.device()));
    });
}
