//! The pod's end of a tunnel for direct server return, on a kernel with `ipip` and `ip6_tunnel`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sluice::kernel::namespace::Namespace;
use sluice::kernel::pod_tunnel::PodNetwork;
use sluice::net::Family;
use sluice::pod_tunnels::apply::{Failure, bring_about, remove_abandoned};
use sluice::pod_tunnels::compare::{WantedTunnel, changes};

use crate::namespace::{self, attempt, run};

const PLACE: &str = "/run/netns/pod";

/// Runs `test` on a node with one pod at its veth, in a `/run` of its own.
fn on_a_node(test: impl FnOnce() + Send) {
    namespace::in_new(|| {
        let (made, _, error) = attempt("ip link add probe type ipip local 192.0.2.1 remote 192.0.2.9");
        assert!(made, "this kernel has no module ipip; run this test in the guest of the lab: {error}");
        run("ip link delete probe");
        namespace::own_run();
        start_pod();
        test();
    });
}

/// The pod's interface is not called eth0.
fn start_pod() {
    for command in [
        "ip netns add pod",
        "ip link add host0 type veth peer name net1 netns pod",
        "ip link set host0 up",
        "ip address add 10.244.1.1/24 dev host0",
        "ip address add fd00:10:244:1::1/64 dev host0 nodad",
        "ip -n pod link set lo up",
        "ip -n pod link set net1 up",
        "ip -n pod address add 10.244.1.5/24 dev net1",
        "ip -n pod address add fd00:10:244:1::5/64 dev net1 nodad",
        "ip -n pod route add default via 10.244.1.1",
        "ip -n pod route add default via fd00:10:244:1::1",
        "ip netns exec pod sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
    ] {
        run(command);
    }
}

fn want(pod: &str, services: &[&str]) -> WantedTunnel {
    let address = |text: &&str| text.parse().expect("an address");
    let services: BTreeSet<IpAddr> = services.iter().map(address).collect();
    WantedTunnel { pod: address(&pod), services, shrinks: true }
}

fn bring(want: &WantedTunnel) -> usize {
    bring_about(&[PathBuf::from(PLACE)], want, |_| true).expect("it can be made").changes
}

/// One line for each address of our devices, and one for each of them without any.
fn inside() -> String {
    let shown = run("ip -n pod -o -d address show");
    let mut lines: Vec<String> = Vec::new();
    for device in ["kube-tunnel-if", "kube-tunnel-v6"] {
        if attempt(&format!("ip -n pod link show {device}")).0 {
            let of = shown.lines().filter(|line| line.contains(device) && !line.contains("fe80:"));
            let words = of.filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned));
            let mut words: Vec<String> = words.collect();
            words.sort();
            lines.push(format!("{device}: {}", words.join(" ")));
        }
    }
    lines.join("; ")
}

/// Packets in a tunnel to the pod, as a director sends them.
fn tunnel_to_pod() {
    run("ip link add to-pod type ipip local 10.244.1.1 remote 10.244.1.5");
    run("ip link set to-pod up");
    run("ip route add 203.0.113.7/32 dev to-pod src 10.244.1.1");
    run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.host0.rp_filter=0");
    run("ip link add to-pod6 type ip6tnl mode any local fd00:10:244:1::1 remote fd00:10:244:1::5 encaplimit none");
    run("ip link set to-pod6 up");
    run("ip route add 2001:db8:1::7/128 dev to-pod6 src fd00:10:244:1::1");
}

#[test]
fn a_pod_with_strict_reverse_path_filtering_answers_for_a_service_address_of_either_family() {
    on_a_node(|| {
        tunnel_to_pod();
        let filters = || run("ip netns exec pod sysctl -n net.ipv4.conf.all.rp_filter net.ipv4.conf.net1.rp_filter");
        let before = filters();
        assert!(before.starts_with('1'), "{before}");
        let (v4, v6) = (want("10.244.1.5", &["203.0.113.7"]), want("fd00:10:244:1::5", &["2001:db8:1::7"]));
        for (want, service) in [(&v4, "203.0.113.7"), (&v6, "2001:db8:1::7")] {
            assert!(!attempt(&format!("ping -c 1 -W 1 {service}")).0, "nobody has it yet");
            assert!(bring(want) > 0);
            assert_eq!(bring(want), 0, "the second time nothing is to be done");
            let (answered, out, error) = attempt(&format!("ping -c 3 -i 0.2 -W 5 {service}"));
            assert!(answered, "{out} {error}");
        }
        assert_eq!(inside(), "kube-tunnel-if: 203.0.113.7/32; kube-tunnel-v6: 2001:db8:1::7/128");
        assert_eq!(filters(), before, "others keep theirs");
        assert_eq!(bring(&want("10.244.1.5", &[])), 1);
        assert_eq!(bring(&want("fd00:10:244:1::5", &[])), 1);
        assert_eq!(inside(), "");
    });
}

#[test]
fn a_pod_whose_new_devices_have_no_ipv6_answers_for_an_ipv6_address() {
    on_a_node(|| {
        tunnel_to_pod();
        run("ip netns exec pod sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        let want = want("fd00:10:244:1::5", &["2001:db8:1::7"]);
        assert!(bring(&want) > 0);
        assert_eq!(bring(&want), 0, "the second time nothing is to be done");
        let (answered, out, error) = attempt("ping -c 3 -i 0.2 -W 5 2001:db8:1::7");
        assert!(answered, "{out} {error}");
    });
}

#[test]
fn addresses_follow_their_services_and_what_others_put_there_stays() {
    on_a_node(|| {
        bring(&want("10.244.1.5", &["203.0.113.7", "203.0.113.8"]));
        run("ip -n pod address add 192.0.2.9/24 dev kube-tunnel-if");
        bring(&want("10.244.1.5", &["203.0.113.8", "203.0.113.9"]));
        assert_eq!(inside(), "kube-tunnel-if: 192.0.2.9/24 203.0.113.8/32 203.0.113.9/32");
        bring(&want("10.244.1.5", &[]));
        assert_eq!(inside(), "kube-tunnel-if: 192.0.2.9/24");
    });
}

#[test]
fn what_kube_router_left_is_taken_over_and_what_serves_nobody_goes() {
    on_a_node(|| {
        run("ip -n pod link add kube-tunnel-if type ipip local 10.244.1.5 ttl 0 nopmtudisc");
        run("ip -n pod link set kube-tunnel-if up");
        run("ip -n pod address add 203.0.113.7/32 dev kube-tunnel-if scope link");
        run("ip netns exec pod sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.kube-tunnel-if.rp_filter=0");
        run("ip -n pod link add kube-tunnel-v6 type ip6tnl mode any local fd00:10:244:1::5 encaplimit 0");
        run("ip -n pod link set kube-tunnel-v6 up");
        run("ip -n pod address add 2001:db8:1::7/128 dev kube-tunnel-v6 nodad");
        assert_eq!(bring(&want("10.244.1.5", &["203.0.113.7"])), 0);
        assert_eq!(bring(&want("fd00:10:244:1::5", &["2001:db8:1::7"])), 0);
        let is_v4 = |address: IpAddr| address.is_ipv4();
        assert_eq!(remove_abandoned(Path::new(PLACE), is_v4).expect("it can be removed"), 1);
        assert_eq!(inside(), "kube-tunnel-if: 203.0.113.7/32");
        assert_eq!(remove_abandoned(Path::new(PLACE), |_| false).expect("it can be removed"), 1);
        assert_eq!(inside(), "");
    });
}

#[test]
fn a_process_that_ends_before_any_of_its_changes_is_finished_or_undone_by_the_next() {
    on_a_node(|| {
        for (pod, services, expected) in [
            ("10.244.1.5", ["203.0.113.7", "203.0.113.8"], "kube-tunnel-if: 203.0.113.7/32 203.0.113.8/32"),
            (
                "fd00:10:244:1::5",
                ["2001:db8:1::7", "2001:db8:1::8"],
                "kube-tunnel-v6: 2001:db8:1::8/128 2001:db8:1::7/128",
            ),
        ] {
            let (made, nothing) = (want(pod, &services), want(pod, &[]));
            for count in 0..=5 {
                for next in [&made, &nothing] {
                    break_off(&made, count);
                    bring(next);
                    let sorted = |text: &str| {
                        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                        words.sort();
                        words
                    };
                    let expected = if next.services.is_empty() { "" } else { expected };
                    assert_eq!(sorted(&inside()), sorted(expected), "{pod} after {count}");
                    bring(&nothing);
                }
                bring(&made);
                break_off(&nothing, count);
                bring(&nothing);
                assert_eq!(inside(), "", "{pod} after {count}");
            }
        }
    });
}

/// Makes the first changes and no more.
fn break_off(want: &WantedTunnel, count: usize) {
    let pod = Namespace::open(Path::new(PLACE)).expect("it is there");
    pod.run(|| {
        let mut network = PodNetwork::open(Family::from(want.pod)).expect("a socket");
        let seen = network.read().expect("a reading");
        for change in changes(&seen, want, |_| true).expect("nothing stands in the way").iter().take(count) {
            network.apply(change).expect("the kernel takes it");
        }
    })
    .expect("root may enter it");
}

#[test]
fn a_sandbox_that_is_made_anew_is_set_up_and_one_that_is_gone_is_not_found() {
    on_a_node(|| {
        let want = want("10.244.1.5", &["203.0.113.7"]);
        bring(&want);
        // The kernel deletes the devices of a namespace some time after its name, so a CNI plugin deletes the veth itself.
        run("ip link delete host0");
        run("ip netns delete pod");
        let outcome = bring_about(&[PathBuf::from(PLACE)], &want, |_| true);
        assert!(matches!(outcome, Err(Failure::NotFound)), "{outcome:?}");
        start_pod();
        bring(&want);
        assert_eq!(inside(), "kube-tunnel-if: 203.0.113.7/32");
    });
}

#[test]
fn a_pod_of_ipv6_alone_gets_the_tunnel_of_ipv6_alone() {
    on_a_node(|| {
        run("ip -n pod address delete 10.244.1.5/24 dev net1");
        bring(&want("fd00:10:244:1::5", &["2001:db8:1::7"]));
        assert_eq!(inside(), "kube-tunnel-v6: 2001:db8:1::7/128");
    });
}
