//! Errors of ICMP about what a pod answers, which come to a director.
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use super::*;

/// The far end of a router with a narrow link behind it: its address, and the router's on the lan.
fn beyond(family: Family, service: IpAddr) -> File {
    let (bits, six, router, network, near, far) = match family {
        Family::V4 => ("24", "-4", on_lan(family, 250), "198.51.100.0/24", "198.51.100.1", "198.51.100.10"),
        Family::V6 => ("64 nodad", "-6", on_lan(family, 250), "2001:db8:51::/64", "2001:db8:51::1", "2001:db8:51::10"),
    };
    run("ip netns add router");
    run("ip link add to-router master lan type veth peer name eth0 netns router");
    run("ip link set to-router up");
    run("ip netns add far");
    run("ip -n router link add to-far type veth peer name eth0 netns far");
    for place in ["router", "far"] {
        run(&format!("ip -n {place} link set lo up"));
        run(&format!("ip -n {place} link set eth0 up"));
    }
    run(&format!("ip -n router addr add {router}/{bits} dev eth0"));
    run(&format!("ip -n router addr add {near}/{bits} dev to-far"));
    run("ip -n router link set to-far mtu 1300 up");
    run(&format!("ip -n far addr add {far}/{bits} dev eth0"));
    run(&format!("ip -n far {six} route add default via {near}"));
    let place = File::open("/run/netns/router").expect("the new namespace");
    inside(&place, || {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting of the namespace");
        }
    });
    run(&format!("ip -n router {six} route add {service} via {} dev eth0", on_lan(family, DIRECTORS[0])));
    for host in [DIRECTORS[0], FIRST_POD] {
        run(&format!("ip -n h{host} {six} route add {network} via {router} dev eth0"));
    }
    File::open("/run/netns/far").expect("the new namespace")
}

/// The number of packets that a host could not send on because they were too long.
fn too_long(place: &str, family: Family) -> u64 {
    let name = if family == Family::V6 { "Icmp6OutPktTooBigs" } else { "IcmpOutDestUnreachs" };
    let shown = run(&format!("ip netns exec {place} nstat -asz {name}"));
    let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{shown}"));
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{shown}"))
}

#[test]
fn an_error_about_a_pods_answer_that_comes_to_the_director_reaches_the_pod() {
    for module in ["ip_vs", "ip_vs_rr", "dummy", "ipip", "ip6_tunnel"] {
        run(&format!("modprobe {module}"));
    }
    for (family, backend) in Family::BOTH
        .into_iter()
        .flat_map(|family| ["--netfilter=nftables", "--netfilter=iptables"].map(|backend| (family, backend)))
    {
        let _in_use = in_use();
        in_new(|| {
            own_run();
            let (_, [.., service]) = if family == Family::V6 { V6 } else { V4 };
            let service: IpAddr = service.parse().expect("an address");
            let lan = Lan::new(family, service);
            let far = beyond(family, service);
            let pod: IpAddr = on_lan(family, FIRST_POD).parse().expect("an address");
            inside(&lan.directors[0], || {
                let node = on_lan(family, DIRECTORS[0]).parse().expect("an address");
                Agent::on((family, node), "eth0", backend).serve_with((family, service), &[pod]);
            });
            let connect = || TcpStream::connect_timeout(&(service, PORT).into(), PATIENCE);
            let mut client = (0..10).find_map(|_| inside(&far, connect).ok()).expect("it is served");
            let until = Instant::now() + PATIENCE;
            let mut server = loop {
                match accept_of(&lan.servers[0], &client) {
                    Some((accepted, _)) => break accepted,
                    None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                    None => panic!("{family} {backend}: no server has accepted the connection"),
                }
            };
            server.set_nonblocking(false).expect("it may wait");
            client.set_read_timeout(Some(PATIENCE * 3)).expect("a time");
            let before = too_long("router", family);
            let answer = vec![7; 200_000];
            let received = std::thread::scope(|scope| {
                let sending = scope.spawn(|| server.write_all(&answer));
                let mut received = vec![0; answer.len()];
                let read = client.read_exact(&mut received);
                if read.is_err() {
                    // The sender need not wait for what never comes.
                    let _ = client.shutdown(std::net::Shutdown::Both);
                }
                let sent = sending.join().expect("it ends");
                read.and(sent).map(|()| received)
            });
            assert!(too_long("router", family) > before, "{family} {backend}: the way back is narrow");
            assert_eq!(received.map(|all| all.len()).ok(), Some(answer.len()), "{family} {backend}");
        });
    }
}
