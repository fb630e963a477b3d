//! Our speaker and its driver over real sockets, which takes and passes on every route. The agent does so with nobody: its policy is one of nodes
//! and their pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::bgp::driver::{self, Setup};
use sluice::bgp::policy::{Decision, Policy};
use sluice::bgp::rib::{Bounds, NextHops, Own, Policies, Rules};
use sluice::bgp::session::{Local, Settings};
use sluice::bgp::speaker::{Order, WantedNeighbour};
use sluice::bgp::transport::{TimeToLive, Transport};
use sluice::net::PerFamily;
use sluice::observe::health::Health;
use tokio::sync::watch;

use crate::{Measured, number};

/// Runs until it is killed.
pub fn run(measured: Measured, peers: &[&str]) {
    let accept = || Arc::new(Policy::all(Decision::Accept));
    let rules = Rules {
        own: Own { asn: measured.asn, identifier: measured.address, cluster: measured.address },
        policies: Policies { import: accept(), export: accept() },
        addresses: BTreeSet::from([measured.address.into()]),
        sharing: 1,
        held: PerFamily::default(),
        bounds: Bounds::default(),
        seed: 1,
    };
    let pulse = Health::default().register("bgp", Duration::from_secs(60), Instant::now());
    let (_stop, stopped) = watch::channel(false);
    let setup = Setup { rules, restarting: None, forwarding: true, pulse };
    let (handle, mut events, _thread) = driver::spawn(setup, stopped).expect("a thread for the speaker");
    let wanted = peers.iter().map(|peer| Order::Want(Arc::new(wanted(measured, peer))));
    let orders: Vec<Order> = wanted.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        handle.order(orders).await.expect("the speaker lives");
        let on = BTreeSet::from([SocketAddr::new(measured.address.into(), 179)]);
        handle.listen(on).await.expect("the speaker lives");
        while events.next().await.is_some() {}
    });
}

fn wanted(measured: Measured, peer: &str) -> WantedNeighbour {
    let (address, asn) = peer.split_once('=').expect("ADDRESS=ASN");
    let own = IpAddr::from(measured.address);
    WantedNeighbour {
        address: address.parse().expect("an address"),
        settings: Settings {
            local: Local { asn: measured.asn, identifier: measured.address },
            asn: Some(number(asn) as u32),
            is_external: false,
            passive: true,
            hold_time: 90,
            connect_retry: Duration::from_secs(120),
            mutual: false,
            families: PerFamily { v4: true, v6: true },
            restart: None,
        },
        transport: Transport { local: Some(own), time_to_live: TimeToLive::Hops(1), ..Transport::default() },
        client: false,
        own: PerFamily { v4: Some(own), v6: None },
        next_hops: NextHops::Usual,
        liveness: None,
        expected: true,
        first_as: true,
        most: PerFamily::default(),
    }
}
