//! `--cleanup-config` as the program does it, over what kube-router leaves of direct server return. Virtual services for marks are in `tests/sim.rs`, and tunnels in
//! pods in `tests/kernel/pod_tunnel.rs`: not every kernel has them.

use std::net::IpAddr;

use sluice::net::service_mark::service_mark;
use sluice::net::{Family, Protocol};

use crate::namespace::{attempt, in_new, own_run, run};

/// The family as `ip` names it, its program of iptables, a service address, and a range that other programs route.
const FAMILIES: [(&str, &str, &str, &str); 2] =
    [("-4", "iptables", "203.0.113.7", "198.51.100.0/24"), ("-6", "ip6tables", "2001:db8:113::7", "2001:db8:51::/64")];

/// Rules of routing, table 78, and the rules of `mangle`, as the kernel's own tools print them.
fn state(flavour: &str) -> String {
    let of = |(family, tool, ..): (&str, &str, &str, &str)| {
        let saved = run(&format!("{tool}-{flavour}-save -t mangle"));
        let rules = saved.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n"));
        let routing = ["rule", "route show table 78", "route show table 79"];
        let routing = routing.map(|what| attempt(&format!("ip {family} {what}")).1).concat();
        rules.collect::<String>() + &routing
    };
    FAMILIES.map(of).concat()
}

/// What looks alike and is somebody else's.
fn put_those_of_others(flavour: &str) {
    for (family, tool, address, range) in FAMILIES {
        run(&format!("ip {family} rule add fwmark 0x5 lookup 78 priority 100"));
        run(&format!("ip {family} route add {range} dev lo table 78"));
        for (chain, rule) in [
            ("PREROUTING", format!("-d {address} -p tcp --dport 80 -j MARK --set-mark 1")),
            ("OUTPUT", format!("-d {address} -p tcp --dport 80:81 -j MARK --set-mark 2")),
            (
                "PREROUTING",
                format!("-s {address} -i eth7 -p tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400"),
            ),
            ("POSTROUTING", "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu".to_owned()),
        ] {
            run(&format!("{tool}-{flavour} -t mangle -A {chain} {rule}"));
        }
    }
}

/// As kube-router leaves it: its policy routing, and the rules of two Services, one of which has a port of each protocol.
fn put_those_of_kube_router(flavour: &str) {
    for (family, tool, address, _) in FAMILIES {
        let ip: IpAddr = address.parse().expect("an address");
        run(&format!("ip {family} rule add from all lookup 79 priority 32765"));
        run(&format!("ip {family} route add local default dev lo table 78"));
        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 99), (Protocol::Tcp, 443)] {
            let mark = service_mark(ip, protocol, port, 0);
            run(&format!("ip {family} rule add fwmark {mark} lookup 78 priority 32764"));
            for chain in ["PREROUTING", "OUTPUT"] {
                run(&format!(
                    "{tool}-{flavour} -t mangle -A {chain} -d {} -m {protocol} -p {protocol} --dport {port} -j MARK --set-mark {mark}",
                    Family::host_prefix(ip)
                ));
            }
            if protocol == Protocol::Tcp {
                run(&format!(
                    "{tool}-{flavour} -t mangle -A PREROUTING -s {address} -m tcp -p tcp --sport {port} -i kube-bridge --tcp-flags SYN,RST SYN \
                     -j TCPMSS --set-mss 1400"
                ));
            }
        }
    }
}

#[test]
fn a_cleanup_leaves_nothing_of_kube_routers_direct_server_return_with_programs_of_iptables_and_without() {
    for (flavour, path) in [("nft", None), ("legacy", None), ("nft", Some("/nowhere"))] {
        in_new(|| {
            own_run();
            let directory = tempfile::tempdir().expect("a directory");
            put_those_of_others(flavour);
            let before = state(flavour);
            put_those_of_kube_router(flavour);
            assert!(state(flavour).lines().count() >= before.lines().count() + 2 * (1 + 1 + 4 * 3 + 2));
            let path = path.map(|path| format!("PATH={path}")).unwrap_or_default();
            let place = directory.path().display();
            let (succeeded, _, said) = attempt(&format!(
                "env {path} KUBE_ROUTER_CNI_CONF_FILE={place}/net.d/10-kuberouter.conflist {} --cleanup-config --socket= --state-dir={place}/state",
                env!("CARGO_BIN_EXE_sluice"),
            ));
            assert_eq!(state(flavour), before, "{flavour} {path}: {said}");
            assert!(succeeded, "{said}");
        });
    }
}
