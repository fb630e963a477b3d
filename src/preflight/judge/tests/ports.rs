//! Findings about ports that others listen on.

use super::*;
use crate::model::Routing;

fn everywhere(transport: Transport, port: u16) -> (Transport, SocketAddr) {
    (transport, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
}

#[test]
fn a_listener_is_in_the_way_at_its_own_address_alone() {
    let words = ["--metrics-addr=192.0.2.1", "--metrics-port=9100"];
    let taken = |at: &'static str| {
        move |facts: &mut Facts| {
            facts.network.listening.insert((Transport::Tcp, at.parse().expect("an address")));
        }
    };
    for elsewhere in ["127.0.0.1:9100", "[2001:db8::1]:9100", "192.0.2.1:9101"] {
        check_ok(&words, taken(elsewhere), "nobody listens on 20244, 192.0.2.1:9100");
    }
    for there in ["192.0.2.1:9100", "0.0.0.0:9100"] {
        check(&words, taken(there), Level::Fatal, &["port 192.0.2.1:9100 (--metrics-port)"]);
    }
    // That one may have IPv6 alone.
    check(&words, taken("[::]:9100"), Level::Degraded, &["port 192.0.2.1:9100 (--metrics-port)"]);
    // All addresses of both families are listened on by default.
    for there in ["127.0.0.1:20244", "0.0.0.0:20244", "[fe80::1]:20244"] {
        check(&[], taken(there), Level::Fatal, &["port 20244 (--health-port)"]);
    }
    // The speaker listens at the node's addresses.
    check_ok(&[], taken("127.0.0.1:179"), "nobody listens on");
    check(&[], taken("192.0.2.7:179"), Level::Degraded, &["port 179 (--bgp-port)"]);
}

#[test]
fn another_listener_beside_the_agents_own_is_in_the_way() {
    let both = |facts: &mut Facts| {
        let [its, others] =
            ["192.0.2.1:9100", "127.0.0.1:9100"].map(|at| (Transport::Tcp, at.parse().expect("an address")));
        facts.network.listening.extend([its, others]);
        facts.process.agent_answers = true;
        facts.network.of_agent = Some([its].into());
    };
    check(&["--metrics-port=9100"], both, Level::Fatal, &["port 9100 (--metrics-port)"]);
}

#[test]
fn an_address_that_the_host_has_not_ends_the_agent_unless_the_kernel_lets_it_be_bound() {
    for (flag, address) in [("--health-addr", "192.0.2.99"), ("--health-addr", "2001:db8::99")] {
        let typed = format!("{flag}={address}");
        check(&[&typed], |_| {}, Level::Fatal, &[address, flag, "ends at its start"]);
        let may_be_bound = |facts: &mut Facts| facts.network.binds_elsewhere = PerFamily { v4: true, v6: true };
        check_ok(&[&typed], may_be_bound, "nobody listens on");
    }
    for there in ["192.0.2.1", "127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::ffff:192.0.2.1", "::ffff:127.0.0.1"] {
        check_ok(&[&format!("--health-addr={there}")], |_| {}, "nobody listens on");
    }
    let admin = ["--gobgp-admin-address=192.0.2.99", "--gobgp-admin-port=50051"];
    check(&admin, |_| {}, Level::Degraded, &["192.0.2.99", "--gobgp-admin-address", "goes on trying"]);
}

#[test]
fn a_port_that_others_have_ends_the_agent_or_makes_it_wait() {
    let taken = |number| {
        move |facts: &mut Facts| {
            facts.network.listening.insert(everywhere(Transport::Tcp, number));
        }
    };
    check(&[], taken(20244), Level::Fatal, &["port 20244 (--health-port)"]);
    check(&[], taken(179), Level::Degraded, &["port 179 (--bgp-port)", "another BGP speaker"]);
    check_ok(&PROXY, taken(179), "nobody listens on 20244");
    let of_kube_router = |facts: &mut Facts| {
        facts.network.listening.insert(everywhere(Transport::Tcp, 20244));
        facts.network.processes.insert("kube-router".to_owned());
    };
    check_ok(&[], of_kube_router, "kube-router runs on this host, and somebody listens on 20244");
    let of_agent = |facts: &mut Facts| {
        facts.network.listening.insert(everywhere(Transport::Tcp, 20244));
        facts.process.agent_answers = true;
    };
    check_ok(&[], of_agent, "an agent runs on this host already, and somebody listens on 20244");
    let of_both = |facts: &mut Facts| {
        of_agent(facts);
        facts.network.listening.insert(everywhere(Transport::Tcp, 179));
        facts.network.of_agent = Some([everywhere(Transport::Tcp, 20244)].into());
    };
    check(&[], of_both, Level::Degraded, &["port 179 (--bgp-port)"]);
    let of_agent_alone = |facts: &mut Facts| {
        of_agent(facts);
        facts.network.of_agent = Some([everywhere(Transport::Tcp, 20244)].into());
    };
    check_ok(&[], of_agent_alone, "nobody but the agent that runs on this host listens on 20244");
}

#[test]
fn the_port_of_vxlan_may_be_that_of_a_device_of_others_but_not_the_number_too() {
    let device = |name: &'static str, id, port| {
        move |facts: &mut Facts| {
            let local: IpAddr = [192, 0, 2, 1].into();
            let address = link_address(local);
            let device = Vxlan { local, id, port, address, mtu: None, up: true, is_fixed: true, is_numbered: true };
            facts.network.vxlan.insert(name.to_owned(), device);
            modules(facts, ModuleState::Present, &["vxlan"]);
            facts.network.links.insert(name.to_owned());
            facts.network.listening.insert(everywhere(Transport::Udp, port));
        }
    };
    let words = ["--overlay-encap=vxlan"];
    let program = |facts: &mut Facts| {
        facts.network.listening.insert(everywhere(Transport::Udp, 4789));
        modules(facts, ModuleState::Present, &["vxlan"]);
    };
    check(&words, program, Level::Degraded, &["port 4789 (--overlay-vxlan-port)"]);
    check_ok(&words, device("of-others", 4096, 4789), "nobody listens on 20244");
    check_ok(&words, device("sluice-vxlan4", 1, 4789), "nobody listens on 20244");
    let both = ["vxlan device of-others has number 1 and port 4789", "--overlay-vxlan-id"];
    check(&words, device("of-others", 1, 4789), Level::Degraded, &both);
    check_ok(&[], device("of-others", 1, 4789), "nobody listens on");
}

#[test]
fn the_port_of_wireguard_is_that_of_our_device_alone() {
    let taken = |link: Option<&'static str>| {
        move |facts: &mut Facts| {
            facts.network.links.extend(link.map(str::to_owned));
            facts.network.listening.insert(everywhere(Transport::Udp, 51820));
            modules(facts, ModuleState::Present, &["wireguard"]);
        }
    };
    // Packets arrive there whether or not any are sent by it.
    for words in [["--overlay-encap=wireguard"], ["--overlay-encap-receive=wireguard"]] {
        for of_others in [None, Some("wg0")] {
            check(&words, taken(of_others), Level::Degraded, &["port 51820 (--overlay-wireguard-port)"]);
        }
        check_ok(&words, |_| {}, "nobody listens on 20244");
        check_ok(&words, taken(Some("sluice-wg0")), "nobody listens on 20244");
    }
    check_ok(&[], taken(None), "nobody listens on");
}

#[test]
fn the_port_behind_that_of_wireguard_has_to_be_free_where_keys_change() {
    let taken = |link: Option<&'static str>| {
        move |facts: &mut Facts| {
            facts.network.links.extend(link.map(str::to_owned));
            facts.network.listening.insert(everywhere(Transport::Udp, 51821));
            modules(facts, ModuleState::Present, &["wireguard"]);
        }
    };
    let words = ["--overlay-encap=wireguard", "--overlay-wireguard-rotate-key=720h"];
    for of_others in [None, Some("wg0"), Some("sluice-wg0")] {
        check(&words, taken(of_others), Level::Degraded, &["port 51821 (--overlay-wireguard-port)", "key"]);
    }
    check_ok(&words, taken(Some("sluice-wg1")), "nobody listens on 20244");
    check_ok(&words[..1], taken(None), "nobody listens on 20244");
}

#[test]
fn bfd_listens_on_ports_of_its_own() {
    let taken = |number| {
        move |facts: &mut Facts| {
            facts.network.listening.insert(everywhere(Transport::Udp, number));
        }
    };
    check_ok(&[], taken(3784), "nobody listens on");
    let mesh = ["--enable-bfd-mesh"];
    check(&mesh, taken(3784), Level::Degraded, &["port 3784 (--enable-bfd-mesh)", "start without"]);
    check(&mesh, taken(4784), Level::Degraded, &["port 4784 (--enable-bfd-mesh)"]);
    let peer = ["--peer-router-ips=192.0.2.254", "--peer-router-asns=64513", "--cluster-asn=64512", "--enable-bfd"];
    check(&peer, taken(3784), Level::Degraded, &["port 3784 (--enable-bfd)"]);
    check_ok(&peer, taken(4784), "nobody listens on");
    let distant = [&peer[..], &["--peer-router-multihop-ttl=3"]].concat();
    check(&distant, taken(4784), Level::Degraded, &["port 4784 (--enable-bfd)"]);
    check_ok(&distant, taken(3784), "nobody listens on");
    // In our AS the distance is that of the address, whatever the flag says.
    let inside = |address| [address, "--peer-router-asns=64512", "--peer-router-multihop-ttl=3", "--enable-bfd"];
    let (near, far) = (inside("--peer-router-ips=192.0.2.254"), inside("--peer-router-ips=198.51.100.254"));
    check(&near, taken(3784), Level::Degraded, &["port 3784 (--enable-bfd)"]);
    check_ok(&near, taken(4784), "nobody listens on");
    check(&far, taken(4784), Level::Degraded, &["port 4784 (--enable-bfd)"]);
    check_ok(&far, taken(3784), "nobody listens on");
    let without_network = |number| {
        move |facts: &mut Facts| {
            taken(number)(facts);
            facts.network.addresses = vec![host_address("eth0", "192.0.2.1/32")];
        }
    };
    check(&far, without_network(3784), Level::Degraded, &["port 3784 (--enable-bfd)"]);
    // Without a full mesh ours is that of the annotation.
    let of_annotation = |facts: &mut Facts| {
        taken(4784)(facts);
        let routing = Routing { asn: Some(64999), ..Routing::default() };
        api(facts).node.as_mut().expect("known").routing = Some(Box::new(routing));
    };
    let apart = [&near[..], &["--nodes-full-mesh=false"]].concat();
    check(&apart, of_annotation, Level::Degraded, &["port 4784 (--enable-bfd)"]);
}
