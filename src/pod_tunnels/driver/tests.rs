use std::os::unix::net::UnixListener;

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
