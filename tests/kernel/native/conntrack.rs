//! Tracked flows of the real kernel: those to a backend that is gone are forgotten, and no others.

use sluice::kernel::conntrack::{
    Connection, Flows, Forgetter, Remaining, TrackedConnection, Transport, connections, set_mark,
};
use sluice::kernel::netlink::{Bus, Socket};
use sluice::net::{Family, Protocol};

use crate::namespace::{in_new, run};

/// A tracked UDP or TCP flow from a client to a service that was translated to a backend.
fn track(protocol: &str, client: &str, service: &str, backend: &str) {
    let split = |text: &str| text.rsplit_once(':').map(|(a, p)| (a.to_owned(), p.to_owned())).expect("a port");
    let ((source, sport), (vip, vport), (pod, port)) = (split(client), split(service), split(backend));
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    run(&format!(
        "conntrack -I -p {protocol} --orig-src {source} --orig-dst {vip} --sport {sport} --dport {vport} \
         --reply-src {pod} --reply-dst {source} --reply-port-src {port} --reply-port-dst {sport} --timeout 600 {state}"
    ));
}

fn flows(protocol: Protocol, original_destination: &str, reply_source: &str) -> Flows {
    let parse = |text: &str| text.parse().expect("an address and a port");
    Flows { protocol, original_destination: parse(original_destination), reply_source: parse(reply_source) }
}

fn forget(flows: &[Flows]) -> Result<usize, Remaining> {
    Forgetter::default().forget(flows)
}

fn tracked(family: &str) -> usize {
    run(&format!("conntrack -L -f {family}")).lines().filter(|line| line.contains("src=")).count()
}

#[test]
fn flows_to_one_backend_of_one_service_are_forgotten_and_no_others() {
    in_new(|| {
        for port in [40_000, 40_001] {
            track("udp", &format!("203.0.113.1:{port}"), "10.96.0.10:53", "10.244.0.2:53");
        }
        track("udp", "203.0.113.1:40002", "10.96.0.10:53", "10.244.0.3:53");
        track("udp", "203.0.113.1:40003", "10.96.0.11:53", "10.244.0.2:53");
        track("udp", "203.0.113.1:40004", "10.96.0.10:54", "10.244.0.2:53");
        track("udp", "203.0.113.1:40005", "10.96.0.10:53", "10.244.0.2:54");
        track("tcp", "203.0.113.1:40000", "10.96.0.10:53", "10.244.0.2:53");
        assert_eq!(tracked("ipv4"), 7);
        let gone = flows(Protocol::Udp, "10.96.0.10:53", "10.244.0.2:53");
        let mut forgetter = Forgetter::default();
        assert_eq!(forgetter.forget(&[gone]).expect("the kernel tracks"), 2);
        assert_eq!(tracked("ipv4"), 5);
        assert_eq!(forgetter.forget(&[gone]).expect("missing is fine"), 0);
        assert_eq!(forgetter.forget(&[]).expect("nothing to do"), 0);
        track("udp", "203.0.113.1:40006", "10.96.0.10:53", "10.244.0.2:53");
        assert_eq!(forgetter.forget(&[gone]).expect("by the same socket"), 1);
    });
}

#[test]
fn flows_of_both_families_and_several_protocols_go_at_once() {
    in_new(|| {
        track("udp", "203.0.113.1:40000", "10.96.0.10:53", "10.244.0.2:53");
        track("tcp", "203.0.113.1:40000", "10.96.0.10:53", "10.244.0.2:53");
        let six = "conntrack -I -p udp --orig-src 2001:db8::1 --orig-dst fd00:10:96::a --sport 40000 --dport 53 \
             --reply-src fd00:10:244::2 --reply-dst 2001:db8::1 --reply-port-src 53 --reply-port-dst 40000 --timeout 600";
        run(six);
        let gone = [
            flows(Protocol::Udp, "10.96.0.10:53", "10.244.0.2:53"),
            flows(Protocol::Tcp, "10.96.0.10:53", "10.244.0.2:53"),
            flows(Protocol::Udp, "[fd00:10:96::a]:53", "[fd00:10:244::2]:53"),
        ];
        assert_eq!(forget(&gone).expect("the kernel tracks"), 3);
        assert_eq!((tracked("ipv4"), tracked("ipv6")), (0, 0));
    });
}

#[test]
fn a_flow_in_a_zone_is_forgotten() {
    in_new(|| {
        run("conntrack -I -p udp --orig-src 203.0.113.1 --orig-dst 10.96.0.10 --sport 40000 --dport 53 \
             --reply-src 10.244.0.2 --reply-dst 203.0.113.1 --reply-port-src 53 --reply-port-dst 40000 --timeout 600 --zone 7");
        assert_eq!(forget(&[flows(Protocol::Udp, "10.96.0.10:53", "10.244.0.2:53")]).expect("the kernel tracks"), 1);
        assert_eq!(tracked("ipv4"), 0);
    });
}

#[test]
fn thousands_of_flows_are_forgotten_in_one_go() {
    in_new(|| {
        let mut script = String::new();
        for port in 10_000..13_000 {
            script.push_str(&format!(
                "-I -p udp --orig-src 203.0.113.1 --orig-dst 10.96.0.10 --sport {port} --dport 53 --reply-src 10.244.0.2 \
                 --reply-dst 203.0.113.1 --reply-port-src 53 --reply-port-dst {port} --timeout 600\n"
            ));
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), script).expect("it can be written");
        run(&format!("conntrack --load-file {}", file.path().display()));
        assert_eq!(tracked("ipv4"), 3000);
        assert_eq!(forget(&[flows(Protocol::Udp, "10.96.0.10:53", "10.244.0.2:53")]).expect("the kernel tracks"), 3000);
        assert_eq!(tracked("ipv4"), 0);
    });
}

#[test]
fn connections_are_listed_by_who_began_them_and_who_answers_and_single_ones_are_marked() {
    in_new(|| {
        track("tcp", "203.0.113.1:40000", "10.96.0.10:443", "10.244.0.2:6443");
        track("udp", "203.0.113.1:40001", "10.244.0.3:53", "10.244.0.3:53");
        run(
            "conntrack -I -p tcp --orig-src 203.0.113.1 --orig-dst 10.244.0.3 --sport 40002 --dport 80 --reply-src 10.244.0.3 \
             --reply-dst 203.0.113.1 --reply-port-src 80 --reply-port-dst 40002 --timeout 600 --state TIME_WAIT",
        );
        run("conntrack -I -p udp --orig-src 2001:db8::1 --orig-dst fd00:10:96::a --sport 40000 --dport 53 \
             --reply-src fd00:10:244::2 --reply-dst 2001:db8::1 --reply-port-src 5353 --reply-port-dst 40000 --timeout 600");
        let mut socket = Socket::open(Bus::Netfilter).expect("a socket");
        let mut listed = |family| connections(&mut socket, family, None, &mut |_, _| true).expect("the kernel tracks");
        let six = listed(Family::V6);
        let ends = |connection: &Connection| {
            let Connection { source, destination, replier, transport } = *connection;
            let Transport::Ports { protocol, destination: port, replier: reply_port, .. } = transport else {
                panic!("{connection:?}")
            };
            format!("{protocol} {source} {destination}:{port} {replier}:{reply_port}")
        };
        let mut found: Vec<String> = listed(Family::V4).iter().map(|tracked| ends(&tracked.connection)).collect();
        found.sort();
        assert_eq!(
            found,
            ["tcp 203.0.113.1 10.96.0.10:443 10.244.0.2:6443", "udp 203.0.113.1 10.244.0.3:53 10.244.0.3:53"]
        );
        assert_eq!(
            six.iter().map(|tracked| ends(&tracked.connection)).collect::<Vec<_>>(),
            ["udp 2001:db8::1 fd00:10:96::a:53 fd00:10:244::2:5353"]
        );
        let to_service = &mut |connection: &Connection, _| connection.destination != connection.replier;
        let chosen = connections(&mut socket, Family::V4, None, to_service).expect("the kernel tracks");
        assert_eq!(set_mark(&mut socket, &chosen, 3, true).expect("it is there"), 1);
        let marks = || run("conntrack -L -f ipv4").lines().filter(|line| line.contains("mark=19")).count();
        assert_eq!(set_mark(&mut socket, &chosen, 0x10, true).expect("it is there"), 1);
        assert_eq!(marks(), 1, "other bits stay");
        let marked = connections(&mut socket, Family::V4, Some(0x10), &mut |_, _| true).expect("the kernel tracks");
        let of = |those: &[TrackedConnection]| those.iter().map(|one| one.connection).collect::<Vec<_>>();
        assert_eq!(of(&marked), of(&chosen));
        assert_eq!(marked.iter().map(|one| one.mark).collect::<Vec<_>>(), [19]);
        assert_eq!(set_mark(&mut socket, &marked, 0x10, false).expect("it is there"), 1);
        assert_eq!(marks(), 0);
        run("conntrack -D -p tcp --orig-port-src 40000");
        assert_eq!(set_mark(&mut socket, &marked, 0x10, true).expect("missing is fine"), 0);
        assert_eq!((tracked("ipv4"), tracked("ipv6")), (2, 1));
    });
}
