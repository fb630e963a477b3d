//! Connections that a policy newly denies end, and others go on: real streams of both families.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sluice::firewall::established::apply::end_refused;
use sluice::firewall::established::{Concerned, refused};
use sluice::firewall::flows::Kernel;
use sluice::model::Ports;
use sluice::net::Family;

use super::firewall::{Machine, app, config, from_app, ingress, rule, with_each};
use super::places::inside;

/// A connection between two pods, with both of its ends.
struct Stream {
    client: TcpStream,
    server: TcpStream,
}

impl Stream {
    fn open(machine: &Machine, family: Family, from: &str, port: u16) -> Stream {
        let target = SocketAddr::new(machine.places.address("web", family), port);
        let namespace = |name: &str| File::open(format!("/run/netns/{name}")).expect("the pod's namespace");
        let listener = inside(&namespace("web"), || TcpListener::bind(target).expect("the port is free"));
        let client = inside(&namespace(from), || TcpStream::connect_timeout(&target, Duration::from_secs(5)));
        let client = client.expect("nothing denies it yet");
        let (server, _) = listener.accept().expect("it is connected");
        server.set_read_timeout(Some(Duration::from_millis(700))).expect("a socket can be told so");
        Stream { client, server }
    }

    /// Whether what is sent arrives.
    fn goes_on(&mut self) -> bool {
        // A refused stream may have ended by an error already.
        let sent = self.client.write_all(b"more");
        let mut bytes = [0; 4];
        sent.is_ok() && self.server.read_exact(&mut bytes).is_ok()
    }
}

#[test]
fn a_stream_that_a_policy_newly_denies_ends_and_another_goes_on() {
    with_each(false, |machine| {
        // Somebody has to be isolated for the rules to see connections.
        machine.put_policy(
            "web",
            ingress(app("web"), &[rule(from_app("db"), Ports::Any), rule(from_app("plain"), Ports::Any)]),
        );
        machine.settle();
        for (number, family) in (0..).zip(Family::BOTH) {
            machine.put_policy(
                "web",
                ingress(app("web"), &[rule(from_app("db"), Ports::Any), rule(from_app("plain"), Ports::Any)]),
            );
            machine.settle();
            let mut denied = Stream::open(machine, family, "db", 9000 + number);
            let mut allowed = Stream::open(machine, family, "plain", 9010 + number);
            assert!(denied.goes_on() && allowed.goes_on(), "{family}: nothing has changed");
            machine.put_policy("web", ingress(app("web"), &[rule(from_app("plain"), Ports::Any)]));
            machine.settle();
            assert!(denied.goes_on() && allowed.goes_on(), "{family}: rules alone end no connection");
            let concerned: Concerned = [machine.places.address("web", family)].into_iter().collect();
            let config = config(false);
            let ended = end_refused(&Kernel, &concerned, |connections| {
                Ok(refused(machine.rules(), (&machine.world, &config), &connections))
            });
            assert_eq!(ended, Ok(1), "{family}");
            assert!(!denied.goes_on(), "{family}: the policy denies it");
            assert!(allowed.goes_on(), "{family}: the policy allows it");
        }
    });
}
