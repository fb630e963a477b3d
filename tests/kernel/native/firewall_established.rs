//! Connections that a policy newly denies end, whoever sends next, and others go on: real TCP and UDP of both families.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use sluice::firewall::established::apply::{Marked, end_refused};
use sluice::firewall::established::{Concerned, ENDED, refused};
use sluice::firewall::flows::{Flows, Kernel};
use sluice::kernel::conntrack::{Connection, Transport};
use sluice::model::Ports;
use sluice::net::Family;

use super::firewall::{Machine, app, config, from_app, ingress, rule, with_each_that_ends_connections};
use super::places::inside;

/// A connection between two pods, with both of its ends.
enum Stream {
    Tcp { client: TcpStream, server: TcpStream },
    Udp { client: UdpSocket, server: UdpSocket },
}

/// The end that sends.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Client,
    Server,
}

const PATIENCE: Duration = Duration::from_millis(500);

impl Stream {
    fn tcp(machine: &Machine, family: Family, from: &str, port: u16) -> Stream {
        let target = SocketAddr::new(machine.places.address("web", family), port);
        let listener = inside(&namespace("web"), || TcpListener::bind(target).expect("the port is free"));
        let client = inside(&namespace(from), || TcpStream::connect_timeout(&target, Duration::from_secs(5)));
        let client = client.expect("nothing denies it yet");
        let (server, _) = listener.accept().expect("it is connected");
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).expect("a socket can be told so");
        }
        Stream::Tcp { client, server }
    }

    fn udp(machine: &Machine, family: Family, from: &str, port: u16) -> Stream {
        let [web, source] = ["web", from].map(|name| SocketAddr::new(machine.places.address(name, family), port));
        let open = |name: &str, own: SocketAddr, other: SocketAddr| {
            let socket = inside(&namespace(name), || UdpSocket::bind(own).expect("the port is free"));
            socket.connect(other).expect("there is a route");
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket can be told so");
            socket
        };
        Stream::Udp { client: open(from, source, web), server: open("web", web, source) }
    }

    /// Whether what this end sends arrives.
    fn arrives(&mut self, sender: Sender) -> bool {
        let mut bytes = [0; 4];
        match self {
            Stream::Tcp { client, server } => {
                let (from, to) = match sender {
                    Sender::Client => (client, server),
                    Sender::Server => (server, client),
                };
                // A refused stream may have ended by an error already.
                from.write_all(b"more").is_ok() && to.read_exact(&mut bytes).is_ok()
            }
            Stream::Udp { client, server } => {
                let (from, to) = match sender {
                    Sender::Client => (client, server),
                    Sender::Server => (server, client),
                };
                // The error of an earlier packet comes first.
                let sent = from.send(b"more").is_ok() || from.send(b"more").is_ok();
                sent && (to.recv(&mut bytes).is_ok() || to.recv(&mut bytes).is_ok())
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Stream::Tcp { .. } => "TCP",
            Stream::Udp { .. } => "UDP",
        }
    }

    fn goes_on(&mut self) -> bool {
        // The machine may be busy.
        self.wait_at_most(Duration::from_secs(10));
        let goes_on = self.arrives(Sender::Client) && self.arrives(Sender::Server);
        self.wait_at_most(PATIENCE);
        goes_on
    }

    fn wait_at_most(&self, time: Duration) {
        let set = |result: std::io::Result<()>| result.expect("a socket can be told so");
        match self {
            Stream::Tcp { client, server } => [client, server].map(|end| set(end.set_read_timeout(Some(time)))),
            Stream::Udp { client, server } => [client, server].map(|end| set(end.set_read_timeout(Some(time)))),
        };
    }
}

fn namespace(name: &str) -> File {
    File::open(format!("/run/netns/{name}")).expect("the pod's namespace")
}

/// How many connections to these ports have the mark of those that ended.
fn ended(family: Family, ports: &[u16]) -> usize {
    let is_of_these = |connection: &Connection| matches!(connection.transport, Transport::Ports { destination, .. } if ports.contains(&destination));
    let listed = Kernel::default().connections(family, Some(ENDED), &mut |connection, _| is_of_these(connection));
    listed.expect("connections are tracked").len()
}

/// All connections of this family that the kernel tracks, with their marks.
fn tracked(family: Family) -> String {
    format!("{:?}", Kernel::default().connections(family, None, &mut |_, _| true))
}

/// Ends what the policies deny now, of this pod, and what they allow again goes on.
fn judged(machine: &Machine, family: Family) -> Result<Marked, String> {
    let concerned: Concerned = [machine.places.address("web", family)].into_iter().collect();
    let config = config(false);
    end_refused(&Kernel::default(), &concerned, |connections| {
        Ok(refused(machine.rules(), &machine.world, &config, &connections).collect())
    })
}

#[test]
fn a_connection_that_a_policy_newly_denies_ends_whoever_sends_next_and_another_goes_on() {
    with_each_that_ends_connections(|machine| {
        let both = || ingress(app("web"), &[rule(from_app("db"), Ports::Any), rule(from_app("plain"), Ports::Any)]);
        let mut port = 9000;
        for family in Family::BOTH {
            for first in [Sender::Client, Sender::Server] {
                machine.put_policy("web", both());
                machine.settle();
                port += 1;
                let open = |from, port| {
                    [Stream::tcp(machine, family, from, port), Stream::udp(machine, family, from, port + 100)]
                };
                let (mut denied, mut allowed) = (open("db", port), open("plain", port + 10));
                let told = format!("{:?}, {family}, {first:?} first", machine.enforcer.filter);
                for stream in denied.iter_mut().chain(&mut allowed) {
                    assert!(stream.goes_on(), "{told}: nothing has changed");
                }
                machine.put_policy("web", ingress(app("web"), &[rule(from_app("plain"), Ports::Any)]));
                machine.settle();
                for stream in denied.iter_mut().chain(&mut allowed) {
                    assert!(stream.goes_on(), "{told}: rules alone end no connection");
                }
                // Those of earlier rounds may be among them.
                let marked = judged(machine, family);
                assert!(matches!(marked, Ok(Marked { ended: 2.., kept: 0, .. })), "{told}: {marked:?}");
                assert_eq!(ended(family, &[port, port + 100]), 2, "{told}: {marked:?}: {}", tracked(family));
                let other = if matches!(first, Sender::Client) { Sender::Server } else { Sender::Client };
                for (turn, sender) in [first, other, first].into_iter().enumerate() {
                    for stream in &mut denied {
                        let arrives = stream.arrives(sender);
                        let what = format!(
                            "{told}, turn {turn}, {}: {sender:?} sends, and the policy denies it",
                            stream.kind()
                        );
                        assert!(!arrives, "{what}; {marked:?}: {}", tracked(family));
                    }
                }
                assert!(allowed.iter_mut().all(Stream::goes_on), "{told}: the policy allows it");
                let marked = judged(machine, family);
                assert!(matches!(marked, Ok(Marked { ended: 0, allowed: 0, kept: 2.. })), "{told}: {marked:?}");
                machine.put_policy("web", both());
                machine.settle();
                let marked = judged(machine, family);
                assert!(matches!(marked, Ok(Marked { allowed: 2.., kept: 0, .. })), "{told}: {marked:?}");
                let [_, udp] = &mut denied;
                assert!(udp.goes_on(), "{told}: policies allow it again");
            }
        }
    });
}
