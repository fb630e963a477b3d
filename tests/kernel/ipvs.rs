//! Virtual services on a kernel with `ip_vs`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeBounds;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use sluice::kernel::Error;
use sluice::kernel::ipvs::{
    ClientConnections, Destination, Forwarding, Observed, Service, ServiceKey, Services, Timeouts, Virtual, flags,
};
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Drift, Failure, Glance, Growth, Mirror, Moment, Phase, Reflection, Sorted, Step, Target};

use crate::namespace::{self, attempt, run};

/// Held for reading by all who use the module, for writing by who unloads it.
pub static MODULE: RwLock<()> = RwLock::new(());

/// Keeps the module loaded.
pub fn in_use() -> RwLockReadGuard<'static, ()> {
    MODULE.read().unwrap_or_else(PoisonError::into_inner)
}

fn in_new(test: impl FnOnce() + Send) {
    let _in_use = in_use();
    namespace::in_new(|| {
        let (loaded, _, error) = attempt("modprobe ip_vs");
        assert!(loaded, "this kernel has no module ip_vs; run this test in the guest of the lab: {error}");
        test();
    });
}

fn everything() -> Services {
    Services::open(Box::new(|_| true)).expect("sockets")
}

fn service(text: &str) -> ServiceKey {
    let (protocol, address) = text.split_once(' ').expect("a protocol and an address");
    let address: std::net::SocketAddr = address.parse().expect("an address and a port");
    let protocol = Protocol::ALL.into_iter().find(|p| p.to_string() == protocol).expect("a protocol");
    ServiceKey::Address { address: address.ip(), protocol, port: address.port() }
}

fn destination(address: &str, weight: u32, forwarding: Forwarding) -> Destination {
    Destination { address: address.parse().expect("an address and a port"), weight, forwarding }
}

/// A service without flags, and its destinations as `address=weight`.
fn virtual_service(scheduler: &str, destinations: &[&str]) -> Virtual {
    let parse = |text: &&str| {
        let (address, weight) = text.split_once('=').expect("an address and a weight");
        destination(address, weight.parse().expect("a weight"), Forwarding::Nat)
    };
    Virtual {
        service: Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 },
        destinations: destinations.iter().map(parse).collect(),
    }
}

fn apply(
    services: &mut Services,
    phase: Phase,
    steps: &[(ServiceKey, Option<&Virtual>, Option<&Virtual>)],
) -> Vec<Failure<Error>> {
    let steps: Vec<Step<'_, ServiceKey, Virtual>> =
        steps.iter().map(|(key, have, want)| Step { key, have: *have, want: *want }).collect();
    services.apply(phase, &steps)
}

fn assert_done(failures: &[Failure<Error>]) {
    assert!(failures.is_empty(), "{failures:?}");
}

/// Lines of `ipvsadm -Sn`, sorted, each once.
///
/// The kernel keeps the services of all namespaces in one table and goes on with a list by its place there. A test
/// beside this one that adds a service between two parts of the list has one of ours listed again, and one that
/// removes a service has one of ours left out. So the list is read until two readings agree.
fn saved() -> Vec<String> {
    let read = || -> BTreeSet<String> { run("ipvsadm -Sn").lines().map(|line| line.trim().to_owned()).collect() };
    let mut before = read();
    loop {
        let now = read();
        if now == before {
            return now.into_iter().collect();
        }
        before = now;
    }
}

fn examples() -> BTreeMap<ServiceKey, Virtual> {
    let mut affine = virtual_service("rr", &["10.244.1.1:8080=1", "10.244.1.2:8080=0"]);
    affine.service.flags = flags::PERSISTENT;
    affine.service.persistence_seconds = 10800;
    let mut hashed = virtual_service("mh", &["[fd00:10:244::1]:53=3"]);
    hashed.service.flags = flags::SCHEDULER_1 | flags::SCHEDULER_2;
    let mut tunnelled = virtual_service("sh", &[]);
    tunnelled.destinations = [destination("10.244.1.1:0", 1, Forwarding::Tunnel)].into();
    let mut tunnelled6 = virtual_service("lc", &[]);
    tunnelled6.destinations = [destination("[fd00:10:244::1]:0", 1, Forwarding::Tunnel)].into();
    BTreeMap::from([
        (service("tcp 10.96.0.1:80"), affine),
        (service("udp [fd00:10:96::1]:53"), hashed),
        (service("sctp 10.96.0.2:9000"), virtual_service("wrr", &[])),
        (ServiceKey::Mark { mark: 7, family: Family::V4 }, tunnelled),
        (ServiceKey::Mark { mark: 7, family: Family::V6 }, tunnelled6),
    ])
}

const EXAMPLES_SAVED: [&str; 10] = [
    "-A -f 7 -6 -s lc",
    "-A -f 7 -s sh",
    "-A -t 10.96.0.1:80 -s rr -p 10800",
    "-A -u [fd00:10:96::1]:53 -s mh -b mh-fallback,mh-port",
    "-A --sctp-service 10.96.0.2:9000 -s wrr",
    "-a -f 7 -6 -r [fd00:10:244::1]:0 -i -w 1 --tun-type ipip",
    "-a -f 7 -r 10.244.1.1:0 -i -w 1 --tun-type ipip",
    "-a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1",
    "-a -t 10.96.0.1:80 -r 10.244.1.2:8080 -m -w 0",
    "-a -u [fd00:10:96::1]:53 -r [fd00:10:244::1]:53 -m -w 3",
];

#[test]
fn what_we_write_ipvsadm_reads() {
    in_new(|| {
        let examples = examples();
        let steps: Vec<_> = examples.iter().map(|(key, value)| (*key, None, Some(value))).collect();
        let mut services = everything();
        assert_done(&apply(&mut services, Phase::Grow, &steps));
        let mut expected = EXAMPLES_SAVED.map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(saved(), expected);
        assert_eq!(services.read().expect("a reading"), examples);
        assert_eq!(services.keys().expect("keys"), examples.keys().copied().collect());
        let keys: Vec<ServiceKey> = examples.keys().copied().collect();
        assert_eq!(services.read_some(&keys).expect("a reading"), examples);
    });
}

#[test]
fn exchanged_and_reweighted_destinations_are_seen_by_comparing_them() {
    in_new(|| {
        let examples = examples();
        let steps: Vec<_> = examples.iter().map(|(key, value)| (*key, None, Some(value))).collect();
        let mut services = everything();
        assert_done(&apply(&mut services, Phase::Grow, &steps));
        let keys: Vec<ServiceKey> = examples.keys().copied().collect();
        // IPv6 services by the file that lists all, and each by netlink.
        let unlike = |services: &mut Services| {
            let by_netlink = services.unlike(&examples, &keys).expect("the kernel answers");
            assert_eq!(services.list_some(), Some(true));
            let by_file = services.unlike(&examples, &keys).expect("the kernel answers");
            assert_eq!(by_netlink, by_file);
            let audited = services.to_audit(&examples, &keys);
            assert!(by_file.iter().all(|key| audited.contains(key)), "an audit reads them: {audited:?}");
            by_file
        };
        assert_eq!(unlike(&mut services), [], "nobody has changed anything");
        let (web, v6) = ("-t 10.96.0.1:80", "-u [fd00:10:96::1]:53");
        for (service_of, at) in [("tcp 10.96.0.1:80", web), ("udp [fd00:10:96::1]:53", v6)] {
            let key = service(service_of);
            let first = examples[&key].destinations.to_vec()[0];
            let (address, weight) = (first.address, first.weight);
            let method = if first.forwarding == Forwarding::Tunnel { "-i" } else { "-m" };
            let other = if address.is_ipv4() { "10.244.9.9:99" } else { "[fd00:244::99]:99" };
            run(&format!("ipvsadm -e {at} -r {address} {method} -w {}", weight + 3));
            assert_eq!(unlike(&mut services), [key], "another weight");
            run(&format!("ipvsadm -d {at} -r {address}"));
            assert_eq!(unlike(&mut services), [key], "one is gone");
            run(&format!("ipvsadm -a {at} -r {other} {method} -w {weight}"));
            assert_eq!(unlike(&mut services), [key], "exchanged");
            run(&format!("ipvsadm -a {at} -r {address} {method} -w {weight}"));
            assert_eq!(unlike(&mut services), [key], "one more");
            run(&format!("ipvsadm -d {at} -r {other}"));
            assert_eq!(unlike(&mut services), [], "as it was");
        }
        run("ipvsadm -C");
        assert_eq!(unlike(&mut services).into_iter().collect::<BTreeSet<_>>(), keys.iter().copied().collect());
    });
}

#[test]
fn alike_destinations_are_known_in_whatever_order_the_kernel_lists_them() {
    in_new(|| {
        let key = service("tcp 10.96.1.1:80");
        let of = |ip: &str| format!("{ip}:8080");
        let all = ["10.244.1.1", "10.244.1.2", "10.244.1.3"];
        let known = virtual_service("rr", &["10.244.1.1:8080=1", "10.244.1.2:8080=1", "10.244.1.3:8080=1"]);
        let seen = BTreeMap::from([(key, known)]);
        let mut services = everything();
        let mut unlike = || services.unlike(&seen, &[key]).expect("the kernel answers");
        let at = "-t 10.96.1.1:80";
        let add = |ip: &str| run(&format!("ipvsadm -a {at} -r {} -m -w 1", of(ip)));
        let delete = |ip: &str| run(&format!("ipvsadm -d {at} -r {}", of(ip)));
        for (first, backwards) in (0..3).flat_map(|first| [(first, false), (first, true)]) {
            run(&format!("ipvsadm -A {at} -s rr"));
            let order = [0, 1, 2].map(|turn| all[(first + if backwards { 3 - turn } else { turn }) % 3]);
            for ip in order {
                add(ip);
            }
            assert_eq!(unlike(), [], "added as {order:?}");
            delete(order[1]);
            add("10.244.9.9");
            assert_eq!(unlike(), [key], "added as {order:?}, and the second was exchanged");
            run(&format!("ipvsadm -D {at}"));
        }
    });
}

#[test]
fn an_audit_of_many_services_sees_what_it_leaves_to_glances_although_there_were_none() {
    in_new(|| {
        let one =
            |number: u32| (service(&format!("tcp 10.96.1.{number}:80")), virtual_service("rr", &["10.244.1.1:8080=1"]));
        let want: BTreeMap<ServiceKey, Virtual> = (1..=100).map(one).collect();
        let mut mirror = Mirror::new(everything());
        let at = || Moment { now: Instant::now(), jitter: 0 };
        mirror.grow(&want, Growth::Full, at());
        run("ipvsadm -E -t 10.96.1.7:80 -s lc");
        run("ipvsadm -E -t 10.96.1.99:80 -s rr -p 60");
        let mut found = Vec::new();
        while {
            let audited = mirror.audit(at());
            found.extend(audited.drift);
            !audited.finished
        } {}
        let different = ["tcp 10.96.1.7:80", "tcp 10.96.1.99:80"].map(|key| Drift::Different(key.to_owned()));
        assert_eq!(found, different);
        mirror.grow(&want, Growth::Full, at());
        assert_eq!(mirror.target().read().expect("a reading"), want);
    });
}

#[test]
fn a_glance_sees_what_ipvsadm_changed() {
    // The number of services on the host tells of IPv6: nobody else may change it meanwhile.
    let alone = MODULE.write().unwrap_or_else(PoisonError::into_inner);
    namespace::in_new(|| {
        run("modprobe ip_vs");
        let examples = examples();
        let steps: Vec<_> = examples.iter().map(|(key, value)| (*key, None, Some(value))).collect();
        let mut services = everything();
        assert_done(&apply(&mut services, Phase::Grow, &steps));
        assert_eq!(services.glance(&examples), Glance::Alike, "nobody has changed anything");
        let tells = |services: &mut Services, change: &str, key: &str, repair: &[&str]| {
            run(change);
            assert_eq!(services.glance(&examples), Glance::These(vec![service(key)]), "{change}");
            repair.iter().for_each(|command| drop(run(command)));
            assert_eq!(services.glance(&examples), Glance::Alike, "after {change} and {repair:?}");
        };
        let (web, v6) = ("-t 10.96.0.1:80", "-u [fd00:10:96::1]:53");
        let back = format!("ipvsadm -a {web} -r 10.244.1.1:8080 -m -w 1");
        tells(&mut services, &format!("ipvsadm -d {web} -r 10.244.1.1:8080"), "tcp 10.96.0.1:80", &[&back]);
        let back = format!("ipvsadm -E {web} -s rr -p 10800");
        tells(&mut services, &format!("ipvsadm -E {web} -s lc -p 10800"), "tcp 10.96.0.1:80", &[&back]);
        let back = ["ipvsadm -A --sctp-service 10.96.0.2:9000 -s wrr"];
        tells(&mut services, "ipvsadm -D --sctp-service 10.96.0.2:9000", "sctp 10.96.0.2:9000", &back);
        let gone = ["ipvsadm -D -t 10.96.0.9:80"];
        tells(&mut services, "ipvsadm -A -t 10.96.0.9:80 -s rr", "tcp 10.96.0.9:80", &gone);
        let back = [format!("ipvsadm -A {v6} -s mh -b flag-1,flag-2")];
        let back: Vec<&str> = back.iter().map(String::as_str).collect();
        tells(&mut services, &format!("ipvsadm -D {v6}"), "udp [fd00:10:96::1]:53", &back);
        run("ipvsadm -C");
        let Glance::These(keys) = services.glance(&examples) else { panic!("all services are gone") };
        assert_eq!(keys.len(), examples.len());
    });
    drop(alone);
}

/// Services as last seen, which counts how often all of them are looked through.
struct CountedLooks<'a> {
    seen: &'a BTreeMap<ServiceKey, Virtual>,
    times: Cell<usize>,
}

impl Sorted<ServiceKey, Virtual> for CountedLooks<'_> {
    fn value(&self, key: &ServiceKey) -> Option<&Virtual> {
        self.seen.get(key)
    }

    fn entries<'a>(&'a self) -> impl Iterator<Item = (&'a ServiceKey, &'a Virtual)>
    where
        ServiceKey: 'a,
        Virtual: 'a,
    {
        self.times.set(self.times.get() + 1);
        self.seen.iter()
    }

    fn between<'a>(&'a self, range: impl RangeBounds<ServiceKey>) -> impl Iterator<Item = (&'a ServiceKey, &'a Virtual)>
    where
        ServiceKey: 'a,
        Virtual: 'a,
    {
        self.seen.range(range)
    }

    fn count(&self) -> usize {
        self.seen.len()
    }
}

#[test]
fn a_glance_compares_nothing_where_the_kernel_has_what_our_own_changes_made_of_the_last_listing() {
    in_new(|| {
        let mut services = everything();
        let glance = |services: &mut Services, seen: &BTreeMap<ServiceKey, Virtual>| {
            let counted = CountedLooks { seen, times: Cell::new(0) };
            (services.glance(&counted), counted.times.get())
        };
        // Those of IPv6 are listed where the number of services on the host has changed, also by namespaces of other tests.
        let mut seen = examples();
        seen.retain(|key, _| key.family() == Family::V4);
        let steps: Vec<_> = seen.iter().map(|(key, value)| (*key, None, Some(value))).collect();
        assert_done(&apply(&mut services, Phase::Grow, &steps));
        assert_eq!(glance(&mut services, &seen), (Glance::Alike, 1), "for the first time");
        assert_eq!(glance(&mut services, &seen), (Glance::Alike, 0));
        let web = service("tcp 10.96.0.1:80");
        let marked = ServiceKey::Mark { mark: 9, family: Family::V4 };
        let tunnelled = [destination("10.244.1.1:0", 1, Forwarding::Tunnel)];
        let changes = [
            (web, Some(virtual_service("mh", &["10.244.1.1:8080=1", "10.244.1.3:8080=1", "10.244.1.4:8080=0"]))),
            (service("udp 10.96.0.7:53"), Some(virtual_service("rr", &["10.244.1.1:53=1"]))),
            (marked, Some(Virtual { destinations: tunnelled.into(), ..virtual_service("sh", &[]) })),
            (web, None),
            (marked, None),
            (web, Some(virtual_service("wlc", &[]))),
        ];
        for (key, want) in changes {
            let have = seen.get(&key).cloned();
            assert_done(&apply(&mut services, Phase::Grow, &[(key, have.as_ref(), want.as_ref())]));
            match want {
                Some(want) => seen.insert(key, want),
                None => seen.remove(&key),
            };
            assert_eq!(glance(&mut services, &seen), (Glance::Alike, 0), "{key}");
        }
        run("ipvsadm -E -t 10.96.0.1:80 -s lc");
        assert_eq!(glance(&mut services, &seen), (Glance::These(vec![web]), 1));
    });
}

#[test]
fn what_ipvsadm_writes_we_read() {
    in_new(|| {
        run("ipvsadm -A -t 10.96.0.1:80 -s rr -p 10800");
        run("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.2:8080 -m -w 0");
        run("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1");
        run("ipvsadm -A -u [fd00:10:96::1]:53 -s mh -b flag-1,flag-2");
        run("ipvsadm -a -u [fd00:10:96::1]:53 -r [fd00:10:244::1]:53 -m -w 3");
        run("ipvsadm -A -f 7 -s sh");
        run("ipvsadm -a -f 7 -r 10.244.1.1 -i");
        run("ipvsadm -A -f 7 -6 -s lc");
        run("ipvsadm -a -f 7 -6 -r [fd00:10:244::1]:0 -i");
        run("ipvsadm -A --sctp-service 10.96.0.2:9000 -s wrr");
        assert_eq!(everything().read().expect("a reading"), examples());
    });
}

#[test]
fn destinations_of_other_methods_are_seen_as_different() {
    in_new(|| {
        run("ipvsadm -A -t 10.96.0.1:80 -s rr");
        run("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.1 -g");
        run("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.2 -i --tun-type gue --tun-port 6080");
        let mut services = everything();
        let key = service("tcp 10.96.0.1:80");
        let found = services.read().expect("a reading").remove(&key).expect("the service");
        assert_eq!(
            found.destinations.iter().map(|d| d.forwarding).collect::<Vec<_>>(),
            [Forwarding::Other(3), Forwarding::Other(2)]
        );
        let mut want = virtual_service("rr", &["10.244.1.1:80=1"]);
        let ipip = destination("10.244.1.2:80", 1, Forwarding::Tunnel);
        want.destinations = want.destinations.iter().chain([ipip]).collect();
        assert_done(&apply(&mut services, Phase::Grow, &[(key, Some(&found), Some(&want))]));
        assert_eq!(services.read().expect("a reading").get(&key), Some(&want));
    });
}

#[test]
fn a_change_grows_first_and_shrinks_afterwards() {
    in_new(|| {
        let mut services = everything();
        let key = service("tcp 10.96.0.1:80");
        let old = virtual_service("rr", &["10.244.1.1:80=1", "10.244.1.2:80=1"]);
        let mut new = virtual_service("lc", &["10.244.1.2:80=0", "10.244.1.3:80=1"]);
        new.service.flags = flags::PERSISTENT;
        new.service.persistence_seconds = 60;
        assert_done(&apply(&mut services, Phase::Grow, &[(key, None, Some(&old))]));
        let grown = Services::grown(&old, &new);
        assert_done(&apply(&mut services, Phase::Grow, &[(key, Some(&old), Some(&grown))]));
        assert_eq!(services.read().expect("a reading").get(&key), Some(&grown));
        assert_done(&apply(&mut services, Phase::Shrink, &[(key, Some(&grown), Some(&new))]));
        assert_eq!(
            saved(),
            [
                "-A -t 10.96.0.1:80 -s lc -p 60",
                "-a -t 10.96.0.1:80 -r 10.244.1.2:80 -m -w 0",
                "-a -t 10.96.0.1:80 -r 10.244.1.3:80 -m -w 1",
            ]
        );
        new.service.flags = 0;
        new.service.persistence_seconds = 0;
        let persistent = services.read().expect("a reading").remove(&key).expect("the service");
        assert_done(&apply(&mut services, Phase::Grow, &[(key, Some(&persistent), Some(&new))]));
        assert_eq!(services.read().expect("a reading").get(&key), Some(&new));
        assert_done(&apply(&mut services, Phase::Shrink, &[(key, Some(&new), None)]));
        assert!(saved().is_empty());
    });
}

#[test]
fn services_of_others_are_not_even_read() {
    in_new(|| {
        run("ipvsadm -A -t 203.0.113.9:80 -s rr");
        run("ipvsadm -a -t 203.0.113.9:80 -r 203.0.113.10:80 -m");
        let foreign = saved();
        let key = service("tcp 10.96.0.1:80");
        let mut services = Services::open(Box::new(|_| false)).expect("sockets");
        services.set_ours(Box::new(move |asked| *asked == key));
        let want = virtual_service("rr", &["10.244.1.1:80=1"]);
        assert_done(&apply(&mut services, Phase::Grow, &[(key, None, Some(&want))]));
        let found = services.read().expect("a reading");
        assert_eq!(found, BTreeMap::from([(key, want.clone())]));
        assert_eq!(services.keys().expect("keys"), found.keys().copied().collect());
        assert!(services.read_some(&[service("tcp 203.0.113.9:80")]).expect("a reading").is_empty());
        assert_eq!(services.stats().expect("counters").len(), 1);
        assert_done(&apply(&mut services, Phase::Shrink, &[(key, Some(&want), None)]));
        assert_eq!(saved(), foreign);
    });
}

#[test]
fn a_step_that_meets_drift_fails_alone() {
    in_new(|| {
        let mut services = everything();
        let names = ["tcp 10.96.0.1:80", "tcp 10.96.0.2:80", "tcp 10.96.0.3:80", "tcp 10.96.0.4:80"];
        let [gone, cut, taken, well] = names.map(service);
        let old = virtual_service("rr", &["10.244.1.1:80=1", "10.244.1.2:80=1"]);
        let new = virtual_service("rr", &["10.244.1.2:80=5"]);
        let make: Vec<_> = [gone, cut, well].into_iter().map(|key| (key, None, Some(&old))).collect();
        assert_done(&apply(&mut services, Phase::Grow, &make));
        run("ipvsadm -D -t 10.96.0.1:80");
        run("ipvsadm -d -t 10.96.0.2:80 -r 10.244.1.2:80");
        run("ipvsadm -A -t 10.96.0.3:80 -s wlc");
        let steps = [
            (gone, Some(&old), Some(&new)),
            (cut, Some(&old), Some(&new)),
            (taken, None, Some(&new)),
            (well, Some(&old), Some(&new)),
        ];
        let failures = apply(&mut services, Phase::Shrink, &steps);
        let told: Vec<(usize, bool, bool)> =
            failures.iter().map(|f| (f.step, f.error.is_absent(), f.error.is_exists())).collect();
        assert_eq!(told, [(0, true, false), (1, true, false), (2, false, true)]);
        let drifted = failures.iter().find(|f| f.step == 1).expect("the second step failed");
        assert!(drifted.error.to_string().contains("destination 10.244.1.2:80"), "{}", drifted.error);
        assert_eq!(services.read_some(&[gone, well]).expect("a reading"), BTreeMap::from([(well, new)]));
    });
}

#[test]
fn a_missing_scheduler_is_named_and_the_other_services_are_made() {
    in_new(|| {
        let mut services = everything();
        let odd = virtual_service("nosuch", &["10.244.1.1:80=1"]);
        let good = virtual_service("rr", &["10.244.1.1:80=1"]);
        let steps = [(service("tcp 10.96.0.1:80"), None, Some(&odd)), (service("tcp 10.96.0.2:80"), None, Some(&good))];
        let failures = apply(&mut services, Phase::Grow, &steps);
        let [failure] = failures.as_slice() else { panic!("one step fails: {failures:?}") };
        assert_eq!(failure.step, 0);
        let text = failure.error.to_string();
        assert!(
            text.contains("add virtual service tcp 10.96.0.1:80") && text.contains("no scheduler nosuch"),
            "{text}"
        );
        assert_eq!(services.keys().expect("keys").len(), 1);
    });
}

#[test]
fn timeouts_are_written_only_where_they_differ() {
    in_new(|| {
        let mut services = everything();
        let before = services.timeouts().expect("timeouts");
        assert!(!services.set_timeouts(Timeouts::default()).expect("nothing to write"));
        assert!(!services.set_timeouts(before).expect("nothing to write"));
        assert!(services.set_timeouts(Timeouts { tcp: 0, tcp_fin: 33, udp: before.udp }).expect("one is written"));
        assert_eq!(services.timeouts().expect("timeouts"), Timeouts { tcp_fin: 33, ..before });
        let shown = run("ipvsadm -Ln --timeout");
        assert!(shown.contains(&format!("{} 33 {}", before.tcp, before.udp)), "{shown}");
    });
}

#[test]
fn counters_and_connections_tell_what_passed() {
    in_new(|| {
        run("ip address add 10.96.0.1/32 dev lo");
        run("ip address add 10.244.1.1/32 dev lo");
        let listener = TcpListener::bind("10.244.1.1:8080").expect("a backend");
        let key = service("tcp 10.96.0.1:80");
        let mut services = everything();
        let want = virtual_service("rr", &["10.244.1.1:8080=1"]);
        assert_done(&apply(&mut services, Phase::Grow, &[(key, None, Some(&want))]));
        let client = TcpStream::connect("10.96.0.1:80").expect("the service answers");
        let (_server, _) = listener.accept().expect("a connection");
        // The kernel sums its counters every two seconds.
        let counted = (0..300).find_map(|_| {
            thread::sleep(Duration::from_millis(100));
            let stats = services.stats().expect("counters");
            stats.into_iter().find(|(_, stats)| stats.connections > 0)
        });
        let (counted, stats) = counted.expect("the connection is counted within 30 s");
        assert_eq!((counted, stats.connections), (key, 1));
        assert!(stats.packets_in >= 2 && stats.bytes_in > stats.packets_in, "{stats:?}");
        let connections = services.connections(&key).expect("connections");
        assert_eq!(connections.iter().map(|(_, c)| (c.active, c.inactive)).collect::<Vec<_>>(), [(1, 0)]);
        let observed = services.observe(&key).expect("it can be read").expect("it is there");
        assert_eq!(observed.without_counters(), want);
        let of_destinations = |observed: &Observed| {
            let found = observed.destinations.iter().map(|it| (it.connections.active, it.stats.connections));
            found.collect::<Vec<_>>()
        };
        assert_eq!((observed.stats.connections, of_destinations(&observed)), (1, vec![(1, 1)]));
        assert_eq!(services.observe(&service("tcp 10.96.0.1:81")).expect("it can be read"), None);
        drop(client);
    });
}

#[test]
fn connections_are_found_by_their_clients_of_both_families() {
    in_new(|| {
        for (address, endpoint, bits) in [("10.96.0.1", "10.244.1.1", 32), ("fd00:96::1", "fd00:244:1::1", 128)] {
            let at = |host: &str, port| SocketAddr::new(host.parse().expect("an address"), port);
            for host in [address, endpoint] {
                run(&format!("ip address add {host}/{bits} dev lo"));
            }
            let has_client = |client: &str| {
                let client: IpAddr = client.parse().expect("an address");
                let mut connections = ClientConnections::default();
                let mut looks = std::iter::repeat_with(|| connections.look(|one| one == client).expect("it is read"));
                looks.find_map(|found| found).expect("the file has an end")
            };
            let listener = TcpListener::bind(at(endpoint, 8080)).expect("a backend");
            let want = virtual_service("rr", &[&format!("{}=1", at(endpoint, 8080))]);
            let key = service(&format!("tcp {}", at(address, 80)));
            assert_done(&apply(&mut everything(), Phase::Grow, &[(key, None, Some(&want))]));
            assert!(!has_client(address), "nobody has connected yet");
            let client = TcpStream::connect(at(address, 80)).expect("the service answers");
            let _server = listener.accept().expect("a connection");
            let own = client.local_addr().expect("it is connected").ip().to_string();
            assert!(has_client(&own) && !has_client("198.51.100.7") && !has_client("2001:db8::7"), "{own}");
        }
    });
}

#[test]
fn the_module_may_be_reloaded_under_us() {
    let _alone = MODULE.write().unwrap_or_else(PoisonError::into_inner);
    namespace::in_new(|| {
        assert!(attempt("modprobe ip_vs").0, "this kernel has no module ip_vs; run this test in the guest of the lab");
        let mut services = everything();
        let key = service("tcp 10.96.0.1:80");
        let want = virtual_service("rr", &["10.244.1.1:80=1"]);
        assert_done(&apply(&mut services, Phase::Grow, &[(key, None, Some(&want))]));
        assert_done(&apply(&mut services, Phase::Shrink, &[(key, Some(&want), None)]));
        // Namespaces of earlier tests, with their services, are taken down in the background.
        let unloaded = (0..300).any(|_| {
            thread::sleep(Duration::from_millis(100));
            let users = "xt_ipvs ip_vs_rr ip_vs_lc ip_vs_sh ip_vs_mh ip_vs_wrr ip_vs_wlc";
            attempt(&format!("modprobe -r {users}"));
            attempt("modprobe -r ip_vs").0
        });
        assert!(unloaded, "ip_vs is unloaded within 30 s: {}", run("lsmod"));
        assert_done(&apply(&mut services, Phase::Grow, &[(key, None, Some(&want))]));
        assert_eq!(services.read().expect("a reading"), BTreeMap::from([(key, want)]));
    });
}
