//! Refused packets as the kernel logs them: from rules of the firewall, with real packets of both families.

use std::time::{Duration, Instant};

use sluice::kernel::nflog::{Logged, OpenError, PacketLog, Transport};
use sluice::net::{Family, Protocol};

use super::enforcer::Filter;
use super::firewall::{app, egress, ingress, with_each};

/// The group to which rules log.
const GROUP: u16 = 100;

/// Waits for a packet that is like this.
fn until_logged(log: &mut PacketLog, what: &str, is_like: impl Fn(&Logged) -> bool) -> Logged {
    let (mut others, until) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    loop {
        let mut found = None;
        log.receive(1000, |packet| match is_like(&packet) {
            true => found = Some(packet),
            false => others.push(packet),
        })
        .expect("the log can be read");
        if let Some(found) = found {
            return found;
        }
        assert!(Instant::now() < until, "{what}: only {others:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_refused_packet_is_logged_with_its_addresses_ports_and_links() {
    with_each(false, |machine| {
        machine.put_policy("in", ingress(app("web"), &[]));
        machine.put_policy("out", egress(app("plain"), &[]));
        machine.settle();
        let mut log = PacketLog::open(GROUP).expect("nobody else reads the group");
        for family in Family::BOTH {
            for (from, to, protocol, port) in [
                ("db", "web", Protocol::Tcp, 80),
                ("plain", "db", Protocol::Udp, 81),
                ("db", "web", Protocol::Sctp, 80),
            ] {
                assert!(!machine.places.reaches(family, (from, to), protocol, port));
                let [source, destination] = [from, to].map(|name| machine.places.address(name, family));
                let packet = until_logged(&mut log, &format!("{family} {from} to {to} {protocol}"), |packet| {
                    let at = matches!(packet.transport, Transport::Ports { protocol: number, destination, .. }
                        if (number, destination) == (protocol.number(), port));
                    at && (packet.source, packet.destination) == (source, destination)
                });
                assert_eq!(packet.input.as_deref(), Some(format!("to-{from}").as_str()));
                assert_eq!(packet.output.as_deref(), Some(format!("to-{to}").as_str()));
                // Rules of nftables say which class of pods they are about.
                let expected = if port == 80 { "in_shop_in_" } else { "out_shop_out_" };
                let expected = if machine.enforcer.filter == Filter::Nftables { expected } else { "" };
                assert!(
                    packet.prefix.starts_with(expected) && packet.prefix.is_empty() == expected.is_empty(),
                    "{packet:?}"
                );
            }
            // A request for the time, and one for information about a node: kinds that do not always pass.
            let kind = if family == Family::V4 { 13 } else { 139 };
            assert!(!machine.places.reaches_with_icmp(family, ("db", "web"), kind));
            until_logged(&mut log, &format!("{family} icmp {kind}"), |packet| {
                packet.transport == Transport::Icmp { kind }
            });
        }
        assert_eq!(log.lost(), 0);
    });
}

#[test]
fn a_group_has_one_reader_and_is_free_when_that_one_is_gone() {
    with_each(false, |_| {
        let first = PacketLog::open(GROUP).expect("nobody else reads the group");
        let refused = PacketLog::open(GROUP).expect_err("the group has a reader");
        assert!(matches!(refused, OpenError::Taken(GROUP)), "{refused}");
        drop(first);
        // The kernel frees the group with the socket's last descriptor. A program that another test starts at this moment
        // has a copy of it between fork(2) and execve(2), so that the group is free a moment later.
        let until = Instant::now() + Duration::from_secs(10);
        let again = loop {
            match PacketLog::open(GROUP) {
                Err(OpenError::Taken(GROUP)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                other => break other,
            }
        };
        again.expect("the group is free again");
    });
}

#[test]
fn a_group_that_was_given_back_is_free_and_is_read_again_by_the_same_socket() {
    with_each(false, |machine| {
        machine.put_policy("in", ingress(app("web"), &[]));
        machine.settle();
        let mut log = PacketLog::open(GROUP).expect("nobody else reads the group");
        let is_for = |port: u16| move |packet: &Logged| matches!(packet.transport, Transport::Ports { destination, .. } if destination == port);
        assert!(!machine.places.reaches(Family::V4, ("db", "web"), Protocol::Tcp, 80));
        log.release().expect("the kernel takes the group back");
        let mut other = PacketLog::open(GROUP).expect("the group is free");
        assert!(matches!(log.acquire(), Err(OpenError::Taken(GROUP))));
        assert!(!machine.places.reaches(Family::V4, ("db", "web"), Protocol::Tcp, 81));
        until_logged(&mut other, "the other reader has it", is_for(81));
        other.release().expect("the kernel takes the group back");
        log.acquire().expect("the group is free");
        assert!(!machine.places.reaches(Family::V4, ("db", "web"), Protocol::Tcp, 82));
        until_logged(&mut log, "the first reader has it again", is_for(82));
        log.receive(1000, |packet| assert!(!is_for(80)(&packet), "from before: {packet:?}"))
            .expect("the log can be read");
    });
}
