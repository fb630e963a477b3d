//! Cluster IPs that no Service has, with real packets, in both backends: what a host's default route leads to is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use sluice::kernel::Name;
use sluice::kernel::ipset::{ElementKey, Elements, Entry, SetName, SetSpec, Sets};
use sluice::kernel::iptables::{Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables};
use sluice::kernel::nftables::{Content, Object, OwnTable};
use sluice::model::{Peers, Ports};
use sluice::net::{Family, PerFamily};
use sluice::proxy::guard::{set_spec, table_set};
use sluice::proxy::names::{CHAIN_UNALLOCATED, Set, TABLE};
use sluice::proxy::unallocated::{Ranges, rules, table_chains};
use sluice::reconcile::{Growth, Mirror, Reflection, Target};

use super::enforcer::Filter;
use super::firewall::{self, app, egress, ingress, rule};
use super::moment;
use super::places::inside;
use crate::namespace::{in_new, own_run, run};

/// Somebody who is not there is waited for so long; a refusal may come to TCP only when it asks again, after a second.
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);

const GATEWAYS: [&str; 2] = ["192.0.2.254", "fe80::99"];
const RANGES: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/108"];
const FREE: [&str; 2] = ["10.97.0.200", "fd00:10:96::c8"];
/// In the set of service addresses, and not local yet.
const ALLOCATED: [&str; 2] = ["10.96.0.9", "fd00:10:96::9"];
/// In the range, and the host's own.
const OWN: [&str; 2] = ["10.96.77.1", "fd00:10:96::7701"];
const BEYOND: [&str; 2] = ["10.112.0.1", "fd00:10:97::1"];

/// A host that forwards, with a default route to nobody, and a pod behind it.
fn pod() -> File {
    own_run();
    std::fs::create_dir_all("/run/netns").expect("a directory of names");
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{path}"), value).expect("a setting of the namespace");
    }
    run("ip link set lo up");
    default_route_to_nobody();
    run("ip netns add pod");
    run("ip link add to-pod type veth peer name eth0 netns pod");
    for (own, other, bits) in [("10.244.1.1", "10.244.1.7", "24"), ("fd00:10:244:1::1", "fd00:10:244:1::7", "64 nodad")]
    {
        run(&format!("ip addr add {own}/{bits} dev to-pod"));
        run(&format!("ip -n pod addr add {other}/{bits} dev eth0"));
    }
    run("ip link set to-pod up");
    run("ip -n pod link set eth0 up");
    for (family, gateway) in [("-4", "10.244.1.1"), ("-6", "fd00:10:244:1::1")] {
        run(&format!("ip -n pod {family} route add default via {gateway}"));
    }
    run(&format!("ip addr add {}/32 dev lo", OWN[0]));
    run(&format!("ip addr add {}/128 dev lo nodad", OWN[1]));
    File::open("/run/netns/pod").expect("the new namespace")
}

/// Gives the host a default route to a neighbour that is not there.
fn default_route_to_nobody() {
    run("ip netns add away");
    run("ip link add nowhere type veth peer name eth0 netns away");
    run("ip -n away link set eth0 up");
    run("ip link set nowhere up");
    run("ip addr add 192.0.2.1/24 dev nowhere");
    for (family, gateway) in ["-4", "-6"].into_iter().zip(GATEWAYS) {
        // Nobody there has this address of Ethernet.
        run(&format!("ip neigh add {gateway} lladdr 02:00:00:00:00:99 dev nowhere nud permanent"));
        run(&format!("ip {family} route add default via {gateway} dev nowhere"));
    }
}

fn to(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), 80)
}

fn is_refused(found: &std::io::Result<impl Sized>) -> bool {
    found.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Whether connections and datagrams to this address are refused.
fn refuses(address: &str) -> bool {
    let connects = TcpStream::connect_timeout(&to(address), PATIENCE);
    let any: IpAddr = if to(address).is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    socket.connect(to(address)).expect("there is a route");
    // A packet that is rejected on its way out is an error for the sender at once, and the answer of ICMP is the next one.
    let answer = socket.send(b"?").or(Ok(0)).and_then(|_| socket.recv(&mut [0; 4]));
    is_refused(&connects) && is_refused(&answer)
}

/// Whether nobody says anything.
fn is_silent(address: &str) -> bool {
    TcpStream::connect_timeout(&to(address), SILENCE).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// What the kernel holds of either backend.
enum Held {
    Iptables { sets: Box<Mirror<Sets>>, elements: Box<Mirror<Elements>>, rules: Box<Mirror<Tables>> },
    Nftables(Box<Mirror<OwnTable>>),
}

impl Held {
    fn of(filter: Filter) -> Held {
        match filter {
            Filter::Iptables(flavour) => Held::iptables(flavour),
            Filter::Nftables => {
                Held::Nftables(Box::new(Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"))))
            }
        }
    }

    fn iptables(flavour: Flavour) -> Held {
        let names = || Family::BOTH.map(|family| Name::Exact((*Set::ServiceAddresses.name(family).0).into())).into();
        let chains = vec![(Table::Filter, Name::Exact(CHAIN_UNALLOCATED.into()))];
        let ours = Ownership { chains, leftovers: Leftovers::Proxy };
        let programs = PerFamily::from_fn(|_| Some(Programs { flavour, plain: false }));
        let temporary = SetName("sluice-test-temporary".into());
        Held::Iptables {
            sets: Box::new(Mirror::new(Sets::open(names(), temporary).expect("a socket"))),
            elements: Box::new(Mirror::new(Elements::open(names()).expect("a socket"))),
            rules: Box::new(Mirror::new(Tables::new(programs, ours))),
        }
    }

    /// Has the free addresses of these ranges refused. Returns the number of steps.
    fn refuse(&mut self, ranges: &Ranges) -> u64 {
        let entries = ALLOCATED.map(|address| Entry::Ip(to(address).ip()));
        match self {
            Held::Nftables(table) => {
                let mut wanted: BTreeMap<Object, Content> =
                    Family::BOTH.map(|family| table_set(Set::ServiceAddresses, family)).into();
                wanted.extend(entries.map(|entry| (Set::ServiceAddresses.object(&entry), Content::Element)));
                wanted.extend(table_chains(ranges));
                keep(table, &wanted)
            }
            Held::Iptables { sets, elements, rules: of_kernel } => {
                let specs: BTreeMap<SetName, SetSpec> = Family::BOTH
                    .map(|family| (Set::ServiceAddresses.name(family), set_spec(Set::ServiceAddresses, family, 1)))
                    .into();
                let held: BTreeMap<ElementKey, ()> =
                    entries.map(|entry| (Set::ServiceAddresses.element(entry), ())).into();
                let pieces: BTreeMap<Piece, Rules> =
                    Family::BOTH.into_iter().flat_map(|family| rules(ranges.of(family), family)).collect();
                keep(sets, &specs) + keep(elements, &held) + keep(of_kernel, &pieces)
            }
        }
    }
}

fn ranges() -> Ranges {
    let range = |text: &str| BTreeSet::from([text.parse().expect("a range")]);
    PerFamily { v4: range(RANGES[0]), v6: range(RANGES[1]) }
}

fn keep<T: Target>(mirror: &mut Mirror<T>, wanted: &BTreeMap<T::Key, T::Value>) -> u64 {
    let before = mirror.steps_done();
    mirror.mark_all();
    mirror.grow(wanted, Growth::Full, moment());
    mirror.shrink(wanted, moment());
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
    mirror.steps_done() - before
}

/// A client has an address of the range, behind the pod, and connects to the host: the answers are for a free address that is not the host's.
fn clients_in_the_range_are_answered(pod: &File) {
    for (client, bits, via, host) in [
        ("10.98.7.7", "32", "10.244.1.7", "10.244.1.1:7070"),
        ("fd00:10:96::7:7", "128 nodad", "fd00:10:244:1::7", "[fd00:10:244:1::1]:7070"),
    ] {
        run(&format!("ip -n pod addr add {client}/{bits} dev eth0"));
        run(&format!("ip route add {client} via {via}"));
        let host: SocketAddr = host.parse().expect("an address and a port");
        let _listener = std::net::TcpListener::bind(host).expect("the port is free");
        let source: IpAddr = client.parse().expect("an address");
        let answered = inside(pod, || {
            let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = socket_with(family, SocketType::STREAM, SocketFlags::empty(), None).expect("a socket");
            bind(&socket, &SocketAddr::new(source, 0)).expect("the address is here");
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE)).expect("a time");
            connect(&socket, &host).is_ok()
        });
        assert!(answered, "{client} gets no answer from {host}");
        assert!(refuses(if source.is_ipv4() { FREE[0] } else { FREE[1] }), "and a new connection is refused");
    }
}

#[test]
fn pods_and_the_host_are_refused_at_cluster_ips_that_no_service_has_and_at_no_other_address() {
    for filter in Filter::ALL {
        in_new(|| {
            let pod = pod();
            let everywhere = |what: fn(&str) -> bool, addresses: [&str; 2], told: &str| {
                for address in addresses {
                    assert!(inside(&pod, || what(address)), "a pod to {address}: {told}");
                    assert!(what(address), "the host to {address}: {told}");
                }
            };
            everywhere(is_silent, FREE, "no rule yet");
            let ranges = ranges();
            let mut held = Held::of(filter);
            held.refuse(&ranges);
            assert_eq!(Held::of(filter).refuse(&ranges), 0, "a second process finds everything as it is");
            everywhere(refuses, FREE, "no Service has it");
            everywhere(is_silent, ALLOCATED, "a Service has it, and its route is still missing");
            everywhere(is_silent, BEYOND, "it is in no range");
            everywhere(refuses, OWN, "nobody listens there");
            let listening = OWN.map(|address| std::net::TcpListener::bind(to(address)).expect("the port is free"));
            everywhere(
                |address| TcpStream::connect_timeout(&to(address), PATIENCE).is_ok(),
                OWN,
                "it is the host's own",
            );
            drop(listening);
            clients_in_the_range_are_answered(&pod);
            held.refuse(&Ranges::default());
            everywhere(is_silent, FREE, "the ranges are gone");
        });
    }
}

/// The firewall accepts what pods may send, which must not be the last word about it, whichever of the two writes its rules first.
#[test]
fn with_the_firewall_on_pods_are_refused_at_free_cluster_ips_and_only_there() {
    firewall::with_each(false, |machine| {
        let filter = machine.enforcer.filter;
        default_route_to_nobody();
        let pods = ["plain", "web", "db"].map(|name| {
            let namespace = File::open(format!("/run/netns/{name}")).expect("the pod's namespace");
            (name, namespace)
        });
        let everywhere = |what: fn(&str) -> bool, addresses: [&str; 2], told: &str| {
            // At the same time: each refusal may take a second.
            std::thread::scope(|scope| {
                for address in addresses {
                    for (name, pod) in &pods {
                        scope.spawn(move || {
                            assert!(inside(pod, || what(address)), "{filter:?}, {name} to {address}: {told}");
                        });
                    }
                    scope.spawn(move || assert!(what(address), "{filter:?}, the host to {address}: {told}"));
                }
            });
        };
        // No policy judges what `plain` sends; `web` may send anything, and `db` is judged for what it receives.
        machine.put_policy("out", egress(app("web"), &[rule(Peers::Any, Ports::Any)]));
        machine.put_policy("in", ingress(app("db"), &[rule(Peers::Any, Ports::Any)]));
        let mut held = Held::of(filter);
        held.refuse(&ranges());
        everywhere(refuses, FREE, "the service proxy alone");
        machine.settle();
        everywhere(refuses, FREE, "the firewall came later");
        everywhere(is_silent, BEYOND, "it is in no range");
        everywhere(is_silent, ALLOCATED, "a Service has it, and its route is still missing");
        machine.check_paths("and policies hold beside it");
        held.refuse(&Ranges::default());
        everywhere(is_silent, FREE, "the ranges are gone");
        held.refuse(&ranges());
        everywhere(refuses, FREE, "the service proxy came later");
        drop(held);
        assert_eq!(
            machine.restart() + Held::of(filter).refuse(&ranges()),
            0,
            "neither of them moves the other's rules"
        );
        // What a policy denies stays denied, also at an address that no Service has.
        machine.put_policy("out", egress(app("web"), &[]));
        machine.settle();
        assert!(FREE.iter().all(|free| inside(&pods[1].1, || refuses(free))), "{filter:?}");
    });
}
