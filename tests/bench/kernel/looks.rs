//! Cost of finding changes by others to virtual services and set elements: processor time, so that what
//! else the machine does counts little.

use std::fmt::Write;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use sluice::kernel::Name;
use sluice::kernel::ipset::Elements;
use sluice::kernel::ipvs::{Destination, Forwarding, Service, ServiceKey, Services, Virtual};
use sluice::kernel::processor::thread_time;
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Glance, Phase, Step, Target};

use crate::namespace::{self, attempt, run};

const ELEMENTS: u32 = 10_000;
const ROUNDS: usize = 5;

pub fn measure() -> Result<(), String> {
    namespace::in_new(elements);
    if !attempt("modprobe ip_vs").0 {
        return Err("this kernel has no module ip_vs; run it in the guest of the lab".to_owned());
    }
    for (count, destinations) in [(2_000, 3), (2_000, 10), (10_000, 3)] {
        for family in Family::BOTH {
            namespace::in_new(move || virtuals(family, count, destinations));
        }
    }
    Ok(())
}

/// Two sets as of so many Services with one port each.
fn elements() {
    let mut script = String::from("create addresses hash:ip timeout 0\ncreate ports hash:ip,port timeout 0\n");
    for index in 0..ELEMENTS {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + index);
        writeln!(script, "add addresses {address}\nadd ports {address},tcp:80").expect("a string takes all");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("restore");
    std::fs::write(&path, script).expect("a file");
    run(&format!("ipset restore -f {}", path.display()));
    let names = ["addresses", "ports"].map(|name| Name::Exact(name.into()));
    let mut elements = Elements::open(names.to_vec()).expect("a socket");
    let seen = elements.read().expect("the sets exist");
    println!("\n{} elements in two sets, processor time; best of {ROUNDS}", seen.len());
    let count = u32::try_from(seen.len()).expect("a small number");
    best("glance: numbers", count, || assert_eq!(elements.glance(&seen), Glance::Alike));
    best("scan: all listed and compared", count, || {
        assert_eq!(elements.scan(&seen).expect("the sets exist"), Glance::Alike);
    });
    best("audit: all read as a map", count, || assert_eq!(elements.read().expect("the sets exist"), seen));
}

fn virtuals(family: Family, count: u32, destinations: u32) {
    let wanted: Vec<(ServiceKey, Virtual)> = (0..count).map(|index| service(family, index, destinations)).collect();
    let mut services = Services::open(Box::new(|_| true)).expect("sockets");
    let steps: Vec<Step<'_, ServiceKey, Virtual>> =
        wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
    assert!(services.apply(Phase::Grow, &steps).is_empty(), "the kernel takes them");
    let seen = services.read().expect("the kernel lists them");
    let keys: Vec<ServiceKey> = seen.keys().copied().collect();
    println!("\n{count} {family} services with {destinations} destinations each, processor time; best of {ROUNDS}");
    services.glance(&seen);
    best("glance", count, || assert_eq!(services.glance(&seen), Glance::Alike));
    best("all services listed by netlink, without destinations", count, || {
        assert_eq!(services.keys().expect("the kernel lists them").len(), keys.len());
    });
    best("destinations compared", count, || {
        if family == Family::V6 {
            while services.list_some() == Some(false) {}
        }
        assert!(services.unlike(&seen, &keys).expect("the kernel answers").is_empty());
    });
    best("audit", count, || {
        let some = services.to_audit(&seen, &keys);
        assert_eq!(services.read_some(&some).expect("the kernel answers").len(), some.len());
    });
    best("each read by netlink", count, || {
        assert_eq!(services.read_some(&keys).expect("the kernel answers"), seen);
    });
    best("/proc/net/ip_vs, only read", count, || {
        let mut file = std::fs::File::open("/proc/thread-self/net/ip_vs").expect("IPVS has one");
        let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            bytes += read;
        }
        assert!(bytes > keys.len());
    });
    run("ipvsadm -C");
}

fn service(family: Family, index: u32, count: u32) -> (ServiceKey, Virtual) {
    let address = |first: [u32; 2], index: u32| -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::from(first[0] + index).into(),
            Family::V6 => Ipv6Addr::from(u128::from(first[1]) << 96 | u128::from(index)).into(),
        }
    };
    let key =
        ServiceKey::Address { address: address([0x0a60_0100, 0xfd00_0010], index), protocol: Protocol::Tcp, port: 80 };
    let destination = |number| Destination {
        address: SocketAddr::new(address([0x0af4_0001, 0xfd00_0244], index * count + number + 1), 8080),
        weight: 1,
        forwarding: Forwarding::Nat,
    };
    let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
    (key, Virtual { service, destinations: (0..count).map(destination).collect() })
}

fn best(name: &str, objects: u32, mut run: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = thread_time();
        run();
        best = best.min(thread_time() - begun);
    }
    println!(
        "  {name:<62} {:>11.3} ms {:>9.3} µs each",
        best.as_secs_f64() * 1e3,
        best.as_secs_f64() * 1e6 / f64::from(objects)
    );
}
