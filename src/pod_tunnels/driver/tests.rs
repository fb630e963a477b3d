use std::fs;
use std::os::unix::net::UnixListener;

use super::super::compare::WantedTunnel;
use super::super::machine::NoPlace;
use super::super::places::KnownPod;
use super::*;
use crate::model::ObjectName;
use crate::observe::health::Health;
use crate::observe::metrics::Registry;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn wanted(pods: &[&str]) -> Arc<Wanted> {
    let services = BTreeSet::from([address("203.0.113.7")]);
    let tunnels = pods.iter().map(|pod| (address(pod), services.clone())).collect();
    Arc::new(Wanted { tunnels, complete: false, ..Wanted::default() })
}

/// A driver with nothing to do, whose runtime is this socket; and what it tells.
fn driver(socket: PathBuf) -> (Driver, Health, Registry) {
    let (health, registry) = (Health::default(), Registry::new("1", "2"));
    let pulse = health.register("direct server return", Duration::MAX, Instant::now());
    pulse.ready(true);
    let inputs = Inputs {
        sockets: vec![socket],
        wanted: watch::channel(Arc::default()).1,
        announced: mpsc::channel(1).1,
        standing: watch::channel(Arc::default()).0,
        pulse,
        note: health.note("direct server return"),
        metrics: Metrics::register(&registry).expect("it is new"),
    };
    (Driver::new(inputs), health, registry)
}

fn lines(reasons: &[crate::observe::health::Reason]) -> Vec<String> {
    reasons.iter().map(|reason| reason.text.clone()).collect()
}

#[test]
fn directories_of_network_namespaces_that_are_not_mounted_are_said_once_and_for_all_pods() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut driver, health, _) = driver(directory.path().join("runtime.sock"));
    let netns = directory.path().join("netns");
    driver.machine.want(&wanted(&["10.244.1.5", "10.244.1.6"]).tunnels, true, Instant::now());
    let told = || -> Vec<String> {
        let mut notes = lines(&health.notes());
        notes.retain(|note| note.starts_with("network namespaces"));
        notes
    };
    let mut bring = |pod: &str| {
        let want = WantedTunnel { pod: address(pod), services: [address("203.0.113.7")].into(), shrinks: true };
        // The process is gone, or another one's.
        let places = vec![netns.join("cni-1"), PathBuf::from("/proc/4194304/ns/net")];
        driver.act(Act::Bring { want, places });
        driver.report();
        told()
    };
    let absent = format!(
        "network namespaces of pods cannot be entered: the container runtime keeps them in {}, which is not there; {MOUNT}",
        netns.display()
    );
    assert_eq!(bring("10.244.1.5"), [""; 0], "it may be going");
    assert_eq!(bring("10.244.1.5"), std::slice::from_ref(&absent));
    assert_eq!(bring("10.244.1.6"), std::slice::from_ref(&absent));
    // A directory that a pod has just left says nothing, and takes nothing back.
    fs::create_dir(&netns).expect("it is new");
    assert_eq!(bring("10.244.1.5"), std::slice::from_ref(&absent));
    fs::write(netns.join("cni-1"), "").expect("writable");
    let stale = format!(
        "network namespaces of pods cannot be entered: what the host mounts in {} does not come here; {MOUNT}",
        netns.display()
    );
    assert_eq!(bring("10.244.1.5"), [absent], "it was seen once");
    assert_eq!(bring("10.244.1.5"), [stale]);
    // Nobody looks for any pod any more.
    driver.machine.want(&WantedTunnels::new(), true, Instant::now());
    driver.report();
    assert_eq!(lines(&health.notes()), [""; 0]);
}

#[test]
fn a_pod_that_policies_close_and_nobody_can_look_into_is_trouble_until_it_was() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut driver, health, registry) = driver(directory.path().join("runtime.sock"));
    let closed = |pod: &str| (address(pod), BTreeSet::new());
    let now = Instant::now();
    driver.machine.want(&[closed("10.244.1.5"), closed("10.244.1.6")].into(), true, now);
    let both: BTreeSet<IpAddr> = [address("10.244.1.5"), address("10.244.1.6")].into();
    let refused: Found =
        both.iter().map(|pod| (*pod, Err(NoPlace::Unknown("no container runtime answers".to_owned())))).collect();
    for _ in 0..10 {
        driver.machine.found(&both, &refused, now);
    }
    driver.report();
    let trouble = "pod 10.244.1.5 (and 1 others) is closed to tunnels by network policies, cannot be looked into, and may keep the tunnel of an earlier run: no container runtime answers";
    assert_eq!(lines(&health.unready(now)), [trouble]);
    assert!(registry.text().contains("sluice_dsr_pod_addresses_not_closed 2\n"));
    driver.machine.want(&WantedTunnels::new(), true, now);
    driver.report();
    assert_eq!(lines(&health.unready(now)), [""; 0]);
    assert!(registry.text().contains("sluice_dsr_pod_addresses_not_closed 0\n"));
}

#[tokio::test]
async fn a_pod_that_was_announced_is_set_up_while_another_one_is_still_searched_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    // It takes connections, and says nothing.
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let (wanted_out, wanted_in) = watch::channel(wanted(&["10.244.1.5"]));
    let (_announced_out, announced) = mpsc::channel(1);
    let health = Health::default();
    let pulse = health.register("direct server return", Duration::MAX, Instant::now());
    let note = health.note("direct server return");
    let metrics = Metrics::register(&Registry::new("1", "2")).expect("it is new");
    let inputs = Inputs {
        sockets: vec![socket],
        wanted: wanted_in,
        announced,
        standing: watch::channel(Arc::default()).0,
        pulse,
        note,
        metrics,
    };
    task::LocalSet::new()
        .run_until(async move {
            let mut driver = Driver::new(inputs);
            driver.take_wanted();
            let Next::Act(search) = driver.machine.next(Instant::now()) else { panic!("it is looked for") };
            assert!(matches!(search, Act::Search(_)), "{search:?}");
            driver.act(search);
            let pod = KnownPod { name: ObjectName::new("shop", "web"), uid: None };
            let place = directory.path().to_owned();
            let addresses = vec![address("10.244.1.6")];
            driver.take_announced(&Announced { pod, addresses, place: place.clone() });
            wanted_out.send_replace(wanted(&["10.244.1.5", "10.244.1.6"]));
            driver.take_wanted();
            let next = driver.machine.next(Instant::now());
            let Next::Act(Act::Bring { want, places }) = next else { panic!("it waits for the runtime: {next:?}") };
            assert_eq!((want.pod, places), (address("10.244.1.6"), vec![place]));
        })
        .await;
}
