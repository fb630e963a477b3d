//! Services of which the kernel refuses a part, as the running loop tells of them.

use sluice::model::{Cause, Scheduler};

use super::asked::{asked, audit, with_socket};
use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// Two Services: one asks for a scheduler, the other one has an endpoint that is a broadcast address here.
fn odd() -> World {
    let mut world = generate::empty_world();
    for (of, address, scheduler, last) in [("one", ADDRESS, Scheduler::Mh, 5), ("other", OTHER, Scheduler::Rr, 255)] {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let mut service = Service::new(vec![address.parse().expect("an address")], vec![port]);
        service.annotations.scheduler = scheduler;
        world.cluster.services.insert(name(of), service);
        let endpoints = [ready([10, 244, 1, 6], None), ready([10, 244, 1, last], None)];
        world.cluster.endpoints.insert(name(of), in_one_slice(8080, endpoints));
    }
    world
}

#[test]
fn what_the_kernel_refuses_of_a_service_is_that_services_problem_and_the_node_is_ready_and_synced() {
    with_running(async |running| {
        running.kernel.with(|machine| {
            machine.state.addresses = State::of_others().addresses;
            machine.lacking_schedulers = ["mh".into()].into();
            machine.refused_destinations = [([10, 244, 1, 255], 8080).into()].into();
        });
        running.world.send_replace(odd());
        let is_ready = || running.health.unready(Instant::now()).is_empty();
        running.until("it is ready", |_| is_ready()).await;
        let said = || {
            let problems = running.problems.borrow();
            let all =
                problems.iter().flat_map(|(name, its)| its.iter().map(|one| (name.name.to_string(), one.clone())));
            all.map(|(name, one)| (name, one.cause, one.subject.to_string())).collect::<Vec<_>>()
        };
        let expected = [
            ("one".to_owned(), Cause::Kernel, "scheduler mh".to_owned()),
            ("other".to_owned(), Cause::Kernel, "endpoint 10.244.1.255:8080".to_owned()),
        ];
        assert_eq!(said(), expected);
        let notes: Vec<String> = running.health.notes().iter().map(ToString::to_string).collect();
        assert!(
            notes[0].starts_with("virtual services: Service default/one: the kernel of this node has no scheduler mh"),
            "{notes:?}"
        );
        assert!(
            notes.len() == 2
                && notes[1]
                    .contains("Service default/other: the kernel of this node takes no endpoint at 10.244.1.255:8080"),
            "{notes:?}"
        );
        // It stays ready while it is tried again.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert!(is_ready(), "{:?}", running.health.unready(Instant::now()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.kernel.with(|machine| {
            machine.lacking_schedulers.clear();
            machine.refused_destinations.clear();
        });
        running.settles(&odd()).await;
        running.until("nothing is said any more", |_| said().is_empty() && running.health.notes().is_empty()).await;
    });
}

#[test]
fn what_the_kernel_refuses_is_said_to_who_asks_and_stays_a_difference_after_a_repair() {
    with_socket(async |socket, running| {
        running.kernel.with(|machine| {
            machine.lacking_schedulers = ["mh".into()].into();
            machine.refused_destinations = [254, 255].map(|last| ([10, 244, 1, last], 8080).into()).into();
        });
        let mut world = odd();
        let endpoints = [6, 254, 255].map(|last| ready([10, 244, 1, last], None));
        world.cluster.endpoints.insert(name("other"), in_one_slice(8080, endpoints));
        running.world.send_replace(world.clone());
        running.until("it is ready", |_| running.health.unready(Instant::now()).is_empty()).await;
        let (_, text) = asked(&socket, "default/other", None).await;
        let place = format!("tcp {OTHER}:80 (cluster IP): in place");
        assert!(text.contains(&place) && text.contains("10.244.1.255:8080: out: the kernel refuses it"), "{text}");
        assert!(text.contains("10.244.1.6:8080: in;"), "{text}");
        let (_, text) = asked(&socket, "default/one", None).await;
        assert!(text.contains("different in the kernel") && text.contains("no scheduler mh"), "{text}");
        let (_, text) = asked(&socket, "", None).await;
        let line = text.lines().find(|line| line.starts_with("default/other ")).unwrap_or_default();
        assert!(line.contains(" 1/3 ") && line.ends_with(" 1 in place, 2 problems"), "{text}");
        for repair in [false, true] {
            let (text, exit_code) = audit(&socket, repair).await;
            // Each has a name of its own, by which a repair finds it again.
            let failed = |object: &str, why: &str| {
                let line = format!(
                    "proxy: virtual services: tcp {object}: the last change failed: the kernel of this node {why}"
                );
                text.lines().any(|it| it.starts_with(&line))
            };
            assert!(failed(&format!("{ADDRESS}:80, scheduler mh"), "has no scheduler mh"), "{text}");
            for endpoint in ["10.244.1.254:8080", "10.244.1.255:8080"] {
                let object = format!("{OTHER}:80, endpoint {endpoint}");
                assert!(failed(&object, &format!("takes no endpoint at {endpoint}")), "{text}");
            }
            assert_eq!((text.lines().count(), exit_code), (3, 1), "{text}");
        }
        // By now the next try by itself is a second away as a rule (`tests/sim/refused.rs` has the time in its hands). A repair tries at once.
        tokio::time::sleep(Duration::from_secs(4)).await;
        running.kernel.with(|machine| {
            machine.lacking_schedulers.clear();
            machine.refused_destinations.clear();
        });
        let (text, exit_code) = audit(&socket, true).await;
        assert!(exit_code == 0 && text.lines().all(|line| line.ends_with("; repaired")), "{text}");
        running.settles(&world).await;
        running.until("nothing is refused any more", |_| running.health.notes().is_empty()).await;
        assert_eq!(audit(&socket, false).await, (String::new(), 0));
    });
}

#[test]
fn a_kernel_that_has_no_virtual_services_at_all_is_trouble() {
    with_running(async |running| {
        running.kernel.with(|machine| {
            machine.state.addresses = State::of_others().addresses;
            machine.unreadable = Some("virtual services");
        });
        running.world.send_replace(odd());
        let unready = || running.health.unready(Instant::now()).iter().map(ToString::to_string).collect::<Vec<_>>();
        running.until("it says so", |_| unready().iter().any(|line| line.contains("virtual services"))).await;
        assert!(running.health.notes().is_empty());
    });
}
