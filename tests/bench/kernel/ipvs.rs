//! Virtual services with destinations, on a kernel with `ip_vs`.

use std::cell::RefCell;
use std::fmt::Write;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use sluice::kernel::ipvs::{Destination, Forwarding, Service, ServiceKey, Services, Virtual};
use sluice::net::Protocol;
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{self, attempt, run};
use crate::race::{Way, fed, race, timed};

const SERVICES: u32 = 1_000;
const DESTINATIONS: u32 = 10;
const ROUNDS: usize = 5;

pub fn measure() -> Result<(), String> {
    if !attempt("modprobe ip_vs").0 {
        return Err("this kernel has no module ip_vs; run it in the guest of the lab".to_owned());
    }
    let keys: Vec<ServiceKey> = (0..SERVICES).map(key).collect();
    // Each service as it is with none of its destinations, with the first, with two, and so on.
    let growing: Vec<Vec<Virtual>> =
        (0..SERVICES).map(|index| (0..=DESTINATIONS).map(|count| virtual_service(index, count)).collect()).collect();
    let whole = growing.iter().map(|growing| growing.last());
    let steps: Vec<Step<'_, ServiceKey, Virtual>> =
        keys.iter().zip(whole).map(|(key, want)| Step { key, have: None, want }).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let restore = directory.path().join("restore");
    std::fs::write(&restore, script()).expect("a file");
    // They go when all is measured: the kernel's work to end a namespace shall not be in anybody's time.
    let kept = RefCell::new(Vec::new());
    let run = |fill: &(dyn Fn() -> Duration + Sync)| {
        let (took, namespace) = in_fresh(fill);
        kept.borrow_mut().push(namespace);
        took
    };
    let mut ways = [
        Way::new("ipvsadm -R", || run(&|| fed("ipvsadm", &["-R"], &restore))),
        Way::new("kernel::ipvs, one message per send, waiting for each", || {
            run(&|| {
                let mut services = open();
                timed(|| keys.iter().zip(&growing).for_each(|(key, growing)| one_by_one(&mut services, key, growing)))
            })
        }),
        Way::new("kernel::ipvs, batches", || {
            run(&|| {
                let mut services = open();
                timed(|| assert!(services.apply(Phase::Grow, &steps).is_empty(), "the kernel takes them"))
            })
        }),
    ];
    let title = format!("{SERVICES} virtual services with {} destinations", SERVICES * DESTINATIONS);
    race(&title, ROUNDS, &mut ways, || {});
    Ok(())
}

/// In a network namespace that never had a destination: the kernel keeps deleted ones for minutes, and looks through
/// all of them whenever one is added. Answers how long it took, and the namespace, emptied.
fn in_fresh(fill: &(dyn Fn() -> Duration + Sync)) -> (Duration, File) {
    let mut result = None;
    namespace::in_new(|| {
        let took = fill();
        check();
        run("ipvsadm -C");
        result = Some((took, File::open("/proc/thread-self/ns/net").expect("Linux has /proc")));
    });
    result.expect("a namespace that failed has ended the program")
}

fn open() -> Services {
    Services::open(Box::new(|_| true)).expect("sockets")
}

fn one_by_one(services: &mut Services, key: &ServiceKey, growing: &[Virtual]) {
    let before = std::iter::once(None).chain(growing.iter().map(Some));
    for (have, want) in before.zip(growing) {
        let step = Step { key, have, want: Some(want) };
        assert!(services.apply(Phase::Grow, &[step]).is_empty(), "the kernel takes it");
    }
}

fn service_address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + index)
}

fn destination_address(index: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 1)) + index * DESTINATIONS + number)
}

fn key(index: u32) -> ServiceKey {
    ServiceKey::Address { address: service_address(index).into(), protocol: Protocol::Tcp, port: 80 }
}

fn virtual_service(index: u32, count: u32) -> Virtual {
    let destination = |number| Destination {
        address: SocketAddr::new(destination_address(index, number).into(), 8080),
        weight: 1,
        forwarding: Forwarding::Nat,
    };
    Virtual {
        service: Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 },
        destinations: (0..count).map(destination).collect(),
    }
}

fn script() -> String {
    let mut lines = String::new();
    for index in 0..SERVICES {
        let service = service_address(index);
        writeln!(lines, "-A -t {service}:80 -s rr").expect("a string takes all");
        for number in 0..DESTINATIONS {
            let destination = destination_address(index, number);
            writeln!(lines, "-a -t {service}:80 -r {destination}:8080 -m -w 1").expect("a string takes all");
        }
    }
    lines
}

fn check() {
    let count = run("ipvsadm -Sn").lines().count();
    assert_eq!(count, usize::try_from(SERVICES * (DESTINATIONS + 1)).expect("a small number"));
}
