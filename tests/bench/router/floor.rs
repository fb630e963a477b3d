//! The least that a row of the router's benchmark costs here: the same messages to the kernel, and the same packets, without anything else.
//!
//! `routes COUNT [each]` adds so many routes through the first neighbour, many in one send, of which the last is acknowledged, or each. `packets COUNT here`
//! sends to so many neighbours, and receives from them, what BFD does, until the command `measure SECONDS`; `packets COUNT there` does it for
//! the neighbours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sluice::kernel::link::{self, LinkName};
use sluice::kernel::netlink::{Bus, Messages, Socket, flag};
use sluice::kernel::processor::thread_time;
use sluice::kernel::udp::{self, Batch};

use crate::routes::{address, prefix};
use crate::{Measured, command, number, say};

/// As BFD of ours has them at 300 ms.
const INTERVAL: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_micros(18_750);
const PORT: u16 = 4784;
const FIRST_PORT: u16 = 49152;
const LENGTH: usize = 24;

/// `RTM_NEWROUTE`, `RTA_DST`, `RTA_OIF`, `RTA_GATEWAY`, `RTA_TABLE`.
const NEW_ROUTE: u16 = 24;
const DESTINATION: u16 = 1;
const DEVICE: u16 = 4;
const GATEWAY: u16 = 5;
const TABLE: u16 = 15;
/// `NLM_F_ACK`.
const ACKNOWLEDGED: u16 = 4;
/// So many acknowledgements fit into what a socket may receive.
const EACH: usize = 256;

pub fn run(measured: Measured, words: &[&str]) {
    match words {
        ["routes", count] => routes(number(count), 0, usize::MAX),
        ["routes", count, "each"] => routes(number(count), ACKNOWLEDGED, EACH),
        ["packets", count, side] => packets(measured, number(count), *side == "here"),
        _ => panic!("floor ADDRESS ASN (routes COUNT [each] | packets COUNT (here|there))"),
    }
}

fn routes(count: usize, flags: u16, at_once: usize) {
    let since = Instant::now();
    let mut socket = Socket::open(Bus::Route).expect("a socket");
    let device = link::named(&LinkName("eth0".into())).expect("a listing").expect("it is there").index;
    let mut messages = Messages::new();
    let all: Vec<usize> = (0..count).collect();
    for portion in all.chunks(at_once.min(count)) {
        messages.clear();
        for route in portion {
            let destination = prefix(*route);
            // Family, length, source length, TOS, table, protocol, scope, type, flags: to 198.18.1.1 like BGP's of ours.
            let header = [2, destination.prefix_len(), 0, 0, 254, 17, 0, 1, 0, 0, 0, 0];
            messages.begin(NEW_ROUTE, flags | flag::CREATE | flag::EXCLUSIVE).header(&header);
            messages.address(DESTINATION, destination.addr()).u32(TABLE, 254);
            messages.u32(DEVICE, device).address(GATEWAY, address(0).into());
        }
        let refused = socket.batch(&mut messages).expect("the kernel answers");
        assert!(refused.is_empty(), "{:?}", refused.first());
    }
    say("floor", since);
}

/// Sockets of one side, and when each sends next.
struct Side {
    receivers: Vec<UdpSocket>,
    senders: Vec<(UdpSocket, Instant)>,
    batch: Batch,
    chance: u64,
}

fn packets(measured: Measured, count: usize, here: bool) {
    sluice::kernel::tcp::raise_open_files().expect("root may");
    let us = IpAddr::V4(measured.address);
    let sender = |neighbour: usize| {
        let them = IpAddr::V4(address(neighbour));
        let (local, remote) = if here { (us, them) } else { (them, us) };
        let from = SocketAddr::new(local, FIRST_PORT + neighbour as u16);
        let socket = udp::sending(from, SocketAddr::new(remote, PORT)).expect("a socket");
        (socket, Instant::now() + INTERVAL * neighbour as u32 / count as u32)
    };
    let locals = if here { vec![us] } else { (0..count).map(|neighbour| address(neighbour).into()).collect() };
    let receiver = |local: IpAddr| udp::receiving(SocketAddr::new(local, PORT), false).expect("a socket");
    let mut side = Side {
        receivers: locals.into_iter().map(receiver).collect(),
        senders: (0..count).map(sender).collect(),
        batch: Batch::default(),
        chance: 1,
    };
    let (asked, asks) = mpsc::channel();
    std::thread::spawn(move || {
        while let Some(line) = command() {
            let seconds = line.strip_prefix("measure ").map(number).expect("measure SECONDS");
            if asked.send(seconds).is_err() {
                return;
            }
        }
    });
    loop {
        match asks.try_recv() {
            Ok(seconds) => side.measure(Duration::from_secs(seconds as u64)),
            Err(mpsc::TryRecvError::Empty) => drop(side.turn()),
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}

impl Side {
    fn measure(&mut self, time: Duration) {
        let (since, before) = (Instant::now(), thread_time());
        let (mut sent, mut received) = (0, 0);
        while since.elapsed() < time {
            let (more_sent, more_received) = self.turn();
            (sent, received) = (sent + more_sent, received + more_received);
        }
        let percent = 100.0 * (thread_time() - before).as_secs_f64() / since.elapsed().as_secs_f64();
        println!("{{\"event\": \"floor\", \"percent\": {percent:.3}, \"sent\": {sent}, \"received\": {received}}}");
    }

    /// Receives what has come, sends what is due, and rests; returns the numbers of packets.
    fn turn(&mut self) -> (usize, usize) {
        let now = Instant::now();
        let (mut sent, mut received) = (0, 0);
        for receiver in &self.receivers {
            while self.batch.read(receiver) {
                received += self.batch.count();
            }
            received += self.batch.count();
        }
        for (socket, next) in &mut self.senders {
            if *next <= now {
                self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // 86 % to 93 %, as BFD of ours.
                *next = now + INTERVAL * (880 + (self.chance >> 56) as u32 * 72 / 255) / 1024;
                // The other side may not be there yet, or no longer.
                sent += usize::from(socket.send(&[0; LENGTH]).is_ok());
            }
        }
        std::thread::sleep((now + PAUSE).saturating_duration_since(Instant::now()));
        (sent, received)
    }
}
