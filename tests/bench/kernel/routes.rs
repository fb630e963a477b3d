//! Routes through a gateway.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{NextHop, Ownership, Protocol, Route, RouteKey, RouteKind, Routes};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{self, run};
use crate::race::{Way, fed, race, timed};

const ROUTES: u32 = 20_000;
const TABLE: u32 = 1000;
const PROTOCOL: u8 = 17;
const ROUNDS: usize = 10;

pub fn measure() -> Result<(), String> {
    namespace::in_new(in_namespace);
    Ok(())
}

fn in_namespace() {
    run("ip link add eth0 type veth peer name theirs");
    run("ip link set eth0 up");
    run("ip link set theirs up");
    run("ip address add 192.0.2.1/24 dev eth0");
    let keys: Vec<RouteKey> = (0..ROUTES).map(|index| RouteKey::new(TABLE, prefix(index).into())).collect();
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL,
        source: None,
        next_hops: [NextHop { link: LinkName("eth0".into()), gateway: Some([192, 0, 2, 2].into()), on_link: false }]
            .into(),
    };
    let route = Arc::new(route);
    let steps: Vec<Step<'_, RouteKey, Arc<Route>>> =
        keys.iter().map(|key| Step { key, have: None, want: Some(&route) }).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let batch = directory.path().join("batch");
    let line = |index| format!("route add {} via 192.0.2.2 dev eth0 proto {PROTOCOL} table {TABLE}\n", prefix(index));
    std::fs::write(&batch, (0..ROUTES).map(line).collect::<String>()).expect("a file");
    let open =
        || Routes::open(Ownership::Protocols(vec![Protocol { table: TABLE, protocol: PROTOCOL }])).expect("sockets");
    let (mut alone, mut together) = (open(), open());
    let mut ways = [
        Way::new("ip -batch", || {
            let took = fed("ip", &["-batch", "-"], &batch);
            check();
            took
        }),
        Way::new("kernel::route, one message per send, waiting for each", || {
            let took = timed(|| {
                for step in &steps {
                    assert!(alone.apply(Phase::Grow, std::slice::from_ref(step)).is_empty(), "the kernel takes it");
                }
            });
            check();
            took
        }),
        Way::new("kernel::route, batches", || {
            let took = timed(|| assert!(together.apply(Phase::Grow, &steps).is_empty(), "the kernel takes them"));
            check();
            took
        }),
    ];
    race(&format!("{ROUTES} routes"), ROUNDS, &mut ways, || {
        run(&format!("ip route flush table {TABLE}"));
    });
}

fn prefix(index: u32) -> Ipv4Net {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + index).into()
}

fn check() {
    let shown = run(&format!("ip route show table {TABLE}"));
    assert_eq!(shown.lines().count(), usize::try_from(ROUTES).expect("a small number"));
}
