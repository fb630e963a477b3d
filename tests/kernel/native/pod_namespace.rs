//! Network namespaces of pods: which one is entered, and what is left where nothing can be made in it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use sluice::kernel::address::addresses_within;
use sluice::kernel::namespace::{Namespace, NamespaceId};
use sluice::kernel::netlink::DumpBounds;
use sluice::pod_tunnels::apply::{Failure, bring_about, remove_abandoned};
use sluice::pod_tunnels::compare::{Obstacle, WantedTunnel};

use crate::namespace::{self, run, shell};

/// Runs `test` with the place of a pod's namespace, where these commands were run; on a thread of another one.
fn with_pod(commands: &[&str], test: impl FnOnce(PathBuf) + Send) {
    let (place_out, place_in) = channel();
    let (done_out, done) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            namespace::in_new(move || {
                commands.iter().for_each(|command| drop(run(command)));
                place_out.send(namespace::path()).expect("the test waits for it");
                // The namespace lives as long as the test.
                let _ = done.recv();
            });
        });
        let place = place_in.recv().expect("the pod starts");
        namespace::in_new(|| test(place));
        drop(done_out);
    });
}

fn want(pod: &str, services: &[&str]) -> WantedTunnel {
    let address = |text: &&str| text.parse().expect("an address");
    let services: BTreeSet<IpAddr> = services.iter().map(address).collect();
    WantedTunnel { pod: address(&pod), services, shrinks: true }
}

#[test]
fn work_is_done_in_the_pods_namespace_and_this_thread_stays_where_it_is() {
    with_pod(&["ip address add 10.244.1.5/32 dev lo"], |place| {
        let own = NamespaceId::at(&namespace::path()).expect("it is there");
        let pod = Namespace::open(&place).expect("it is there");
        let inside = pod.run(|| (NamespaceId::at(&namespace::path()), shell("ip -o address show dev lo")));
        let (id, shown) = inside.expect("root may enter it");
        assert_eq!(id, Some(pod.id()));
        assert!(shown.contains("10.244.1.5"), "{shown}");
        assert_eq!(NamespaceId::at(&namespace::path()), Some(own));
        assert!(!shell("ip -o address show dev lo").contains("10.244.1.5"));
    });
}

#[test]
fn a_namespace_without_the_pods_address_gets_nothing_whoever_named_it() {
    with_pod(&["ip address add 10.244.1.6/32 dev lo", "ip address add fd00:10:244:1::6/128 dev lo nodad"], |place| {
        let gone = PathBuf::from("/proc/4194304/ns/net");
        let hosts = PathBuf::from("/proc/self/ns/net");
        for want in [want("10.244.1.5", &["203.0.113.7"]), want("fd00:10:244:1::5", &["2001:db8:1::7"])] {
            for places in
                [vec![], vec![gone.clone()], vec![hosts.clone()], vec![gone.clone(), hosts.clone(), place.clone()]]
            {
                let outcome = bring_about(&places, &want, |_| true);
                assert!(matches!(outcome, Err(Failure::NotFound)), "{outcome:?}");
            }
        }
        let pod = Namespace::open(&place).expect("it is there");
        let links = pod.run(|| shell("ip -o link show")).expect("root may enter it");
        assert!(!links.contains("kube-tunnel"), "{links}");
    });
}

#[test]
fn a_device_of_the_pods_own_under_the_tunnels_name_stays_and_is_named() {
    let commands = [
        "ip link add kube-tunnel-if type bridge",
        "ip address add 10.244.1.5/32 dev lo",
        "ip address add 203.0.113.9/32 dev kube-tunnel-if",
    ];
    with_pod(&commands, |place| {
        let outcome = bring_about(std::slice::from_ref(&place), &want("10.244.1.5", &["203.0.113.7"]), |_| true);
        let foreign = Obstacle::ForeignDevice("bridge".to_owned());
        assert!(matches!(&outcome, Err(Failure::Obstacle(found)) if *found == foreign), "{outcome:?}");
        assert_eq!(
            bring_about(std::slice::from_ref(&place), &want("10.244.1.5", &[]), |_| true)
                .expect("nothing is ours")
                .changes,
            0
        );
        assert_eq!(remove_abandoned(&place, |_| false).expect("nothing is ours"), 0);
        let pod = Namespace::open(&place).expect("it is there");
        let shown = pod.run(|| shell("ip -o address show dev kube-tunnel-if")).expect("root may enter it");
        assert!(shown.contains("203.0.113.9"), "{shown}");
    });
}

#[test]
fn a_pod_with_more_addresses_than_any_pod_has_is_left_out() {
    with_pod(&["ip address add 10.244.1.5/32 dev lo"], |place| {
        let lines = "{ print \"address add 10.99.\" int($1 / 250) \".\" $1 % 250 \"/32 dev lo\" }";
        let script = format!("seq 0 4199 | awk '{lines}' | ip -batch -");
        let pod = Namespace::open(&place).expect("it is there");
        pod.run(|| shell(&script)).expect("root may enter it");
        let outcome = bring_about(std::slice::from_ref(&place), &want("10.244.1.5", &["203.0.113.7"]), |_| true);
        let Err(Failure::Kernel(error)) = outcome else { panic!("{outcome:?}") };
        assert!(error.to_string().contains("more than 4096"), "{error}");
    });
}

#[test]
fn devices_and_addresses_are_read_up_to_their_bound() {
    with_pod(&["ip address add 10.244.1.5/32 dev lo"], |place| {
        let script: String = (0..5).map(|number| format!("ip link add b{number} type bridge; ")).collect();
        let pod = Namespace::open(&place).expect("it is there");
        pod.run(|| shell(&script)).expect("root may enter it");
        let read = |most| pod.run(|| addresses_within(DumpBounds { tries: 3, most })).expect("root may enter it");
        // A kernel with modules of tunnels gives each namespace devices of theirs.
        let all: usize =
            pod.run(|| shell("ip -o link show | wc -l")).expect("root may enter it").trim().parse().expect("a number");
        let found = read(all).expect("there are so many devices");
        assert!(found.iter().any(|one| one.address.to_string() == "10.244.1.5/32"), "{found:?}");
        let error = read(all - 1).expect_err("there is one more").to_string();
        assert!(error.contains("list devices") && error.contains(&format!("more than {}", all - 1)), "{error}");
    });
}

#[test]
fn a_pod_that_goes_meanwhile_is_not_found_and_the_host_has_nothing_to_be_removed() {
    let mut place = PathBuf::new();
    with_pod(&["ip address add 10.244.1.5/32 dev lo"], |found| place = found);
    // A thread that has been waited for keeps its namespace until the kernel has done away with it.
    let until = Instant::now() + Duration::from_secs(10);
    while place.exists() && Instant::now() < until {
        sleep(Duration::from_millis(5));
    }
    let outcome = bring_about(std::slice::from_ref(&place), &want("10.244.1.5", &["203.0.113.7"]), |_| true);
    assert!(matches!(outcome, Err(Failure::NotFound)), "{outcome:?}");
    assert_eq!(remove_abandoned(&place, |_| false).expect("nothing is there"), 0);
    assert_eq!(remove_abandoned(Path::new("/proc/self/ns/net"), |_| false).expect("it is not entered"), 0);
}
