//! The cost of `externalTrafficPolicy: Local` from inside for a packet to this host: datagrams over the loopback device, without the product's rules
//! and with them, and with few and many service addresses in their set.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use sluice::kernel::ipset::Entry;
use sluice::kernel::nftables::{Content, Object, OwnTable};
use sluice::net::{PerFamily, Protocol};
use sluice::proxy::inside;
use sluice::proxy::local_node::LocalNode;
use sluice::proxy::names::Set;
use sluice::reconcile::{Growth, Mirror, Moment, Reflection};

use crate::namespace;
use crate::race::{Way, race, timed};

const DATAGRAMS: usize = 20_000;
const ROUNDS: usize = 20;
const MANY: u32 = 10_000;

type Contents = BTreeMap<Object, Content>;

pub fn measure() -> Result<(), String> {
    namespace::in_new(datagrams);
    Ok(())
}

/// The rules and the set, with so many addresses that are not this one.
fn contents(others: u32) -> Contents {
    let range = "10.244.1.0/24".parse().expect("a range");
    let node = LocalNode {
        families: PerFamily { v4: true, v6: false },
        pod_cidrs: PerFamily { v4: vec![range], v6: Vec::new() },
        ..LocalNode::default()
    };
    let mut contents = inside::in_table(&node, &PerFamily { v4: true, v6: false });
    let other = |number: u32| Ipv4Addr::from_bits(Ipv4Addr::new(203, 0, 0, 0).to_bits() + number);
    let elements = (0..others).map(|number| Entry::IpPort(other(number).into(), Protocol::Udp, 53));
    contents.extend(elements.map(|entry| (Set::InsideOnly.object(&entry), Content::Element)));
    contents
}

/// Brings these objects about, and no others.
fn put(table: &mut Mirror<OwnTable>, want: &Contents) {
    table.mark_all();
    table.transact(want, Growth::Full, true, Moment { now: Instant::now(), jitter: 0 });
    assert!(table.is_settled(), "{:?}", table.trouble());
}

fn datagrams() {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let to = receiver.local_addr().expect("it is bound");
    sender.connect(to).expect("a socket knows its peer");
    let table = RefCell::new(Mirror::new(OwnTable::open("sluice_bench").expect("a socket")));
    let with = |want: Contents| {
        let (table, sender, receiver) = (&table, &sender, &receiver);
        move || {
            put(&mut table.borrow_mut(), &want);
            sent(sender, receiver)
        }
    };
    let itself = match to {
        SocketAddr::V4(to) => Entry::IpPort((*to.ip()).into(), Protocol::Udp, to.port()),
        SocketAddr::V6(_) => unreachable!("it is bound to an IPv4 address"),
    };
    let in_set = contents(0).into_iter().chain([(Set::InsideOnly.object(&itself), Content::Element)]).collect();
    race(
        &format!("{DATAGRAMS} datagrams to this host, with the rules of external policy Local from inside"),
        ROUNDS,
        &mut [
            Way::new("no rules", with(Contents::new())),
            Way::new("rules, and one service address in their set", with(contents(1))),
            Way::new("rules, and 10,000 service addresses in their set", with(contents(MANY))),
            Way::new("to an address of the set, from the node itself", with(in_set)),
        ],
        || {},
    );
    put(&mut table.borrow_mut(), &Contents::new());
}

/// Time that the datagrams take, each received before the next one is sent.
fn sent(sender: &UdpSocket, receiver: &UdpSocket) -> Duration {
    let mut buffer = [0; 64];
    timed(|| {
        for _ in 0..DATAGRAMS {
            sender.send(&[7; 32]).expect("it is sent");
            receiver.recv(&mut buffer).expect("it arrives");
        }
    })
}
