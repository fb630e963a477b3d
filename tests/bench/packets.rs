//! Cost of packets between two pods: connections in a second, bytes in a second over one connection, and datagrams that are refused.
//!
//! `packets serve` answers on two ports, in the network namespace of one pod: 8080 takes connections and lets go of them,
//! 9090 reads what comes. `packets measure ADDRESS SECONDS`, in that of another pod, does first the one and then the other
//! and prints one JSON object. A connection is ended by a reset, so that its port can be used again at once.
//! `packets flood ADDRESS SECONDS` sends datagrams to a port that nobody opened, as fast as it can.
//!
//! `scripts/bench firewall` runs it, with and without policies.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

const CONNECTIONS: u16 = 8080;
const BYTES: u16 = 9090;
const NOBODY: u16 = 9999;
const CHUNK: usize = 64 << 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", ..] => serve(),
        ["measure", address, seconds, ..] => {
            let address: IpAddr = address.parse().expect("an address");
            let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
            println!("{{\"connections\": {:.0}, \"bytes\": {:.0}}}", connections(address, time), bytes(address, time));
        }
        ["flood", address, seconds, ..] => {
            let address: IpAddr = address.parse().expect("an address");
            let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
            println!("{{\"datagrams\": {:.0}}}", datagrams(address, time));
        }
        _ => panic!("packets serve | packets measure|flood ADDRESS SECONDS"),
    }
}

fn serve() {
    let listen = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free");
    let (short, long) = (listen(CONNECTIONS), listen(BYTES));
    std::thread::spawn(move || short.incoming().for_each(drop));
    for stream in long.incoming() {
        std::thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            let Ok(mut stream) = stream else { return };
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        });
    }
}

/// New connections in a second, one after the other.
fn connections(address: IpAddr, time: Duration) -> f64 {
    let (begun, mut made) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        let mut stream = TcpStream::connect(SocketAddr::new(address, CONNECTIONS)).expect("a policy allows it");
        // Until the other end has let go of it: whoever is faster than it accepts waits a second for a lost packet.
        let _ = stream.read(&mut [0]);
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket can be told so");
        made += 1;
    }
    f64::from(made) / begun.elapsed().as_secs_f64()
}

/// Bytes in a second that one connection takes.
fn bytes(address: IpAddr, time: Duration) -> f64 {
    let mut stream = TcpStream::connect(SocketAddr::new(address, BYTES)).expect("a policy allows it");
    let chunk = vec![0; CHUNK];
    let (begun, mut sent) = (Instant::now(), 0.0);
    while begun.elapsed() < time {
        stream.write_all(&chunk).expect("the connection stays");
        sent += CHUNK as f64;
    }
    sent / begun.elapsed().as_secs_f64()
}

/// Datagrams in a second, each from a socket that does not hear of refusals and to a port that nobody opened.
fn datagrams(address: IpAddr, time: Duration) -> f64 {
    let unspecified: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((unspecified, 0)).expect("there is a free port");
    let (begun, mut sent) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        let _ = socket.send_to(&[0; 64], (address, NOBODY));
        sent += 1;
    }
    f64::from(sent) / begun.elapsed().as_secs_f64()
}
