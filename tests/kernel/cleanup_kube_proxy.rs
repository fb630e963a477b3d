//! `--cleanup-kube-proxy` as the program does it, over what kube-proxy leaves in tables and sets, beside a service proxy that serves, on a kernel with `ip_vs`. What it leaves in IPVS and its device are
//! in `tests/kernel/left_by_kube_proxy.rs`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::namespace::{attempt, in_new, own_run, run, shell};
use crate::running::Running;

pub const CLEANUP: &str = concat!(env!("CARGO_BIN_EXE_sluice"), " --cleanup-kube-proxy --run-service-proxy=false");

/// Runs the cleanup; panics where it fails, or changes the table by which the service proxy is known to serve.
pub fn clean_up() {
    let ours = || attempt("nft -a list table inet sluice_proxy").1;
    let before = ours();
    let (succeeded, _, said) = attempt(CLEANUP);
    assert!(succeeded, "{said}");
    assert_eq!(ours(), before, "the agent's own table");
}

/// As a service proxy with nftables marks what it serves.
pub fn mark(ports: [(&str, &str, &str); 2]) {
    run("nft add table inet sluice_proxy");
    for (set, kind, address) in ports {
        run(&format!("nft add set inet sluice_proxy {set} {{ type {kind} . inet_proto . inet_service ; }}"));
        run(&format!("nft add element inet sluice_proxy {set} {{ {address} . tcp . 53 }}"));
    }
}

/// As a service proxy with nftables serves and marks. What stands in IPVS already stays.
pub fn serve(ports: [(&str, &str, &str); 2]) {
    let (loaded, _, error) = attempt("modprobe ip_vs");
    assert!(loaded, "this kernel has no module ip_vs; run this test in the guest of the lab: {error}");
    mark(ports);
    for (_, _, address) in ports {
        attempt(&format!("ipvsadm -A -t {} -s rr", endpoint(address)));
        run(&format!("ipvsadm -L -n -t {}", endpoint(address)));
    }
}

pub const SERVED: [(&str, &str, &str); 2] =
    [("ports4", "ipv4_addr", "10.96.0.10"), ("ports6", "ipv6_addr", "fd00:10:96::a")];

/// Programs of iptables, and an address of a Service and of an endpoint of their family.
const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("iptables", "10.96.0.10/32", "10.244.1.5", "inet"),
    ("ip6tables", "fd00:10:96::a/128", "fd00:10:244:1::5", "inet6"),
];

fn endpoint(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:53") } else { format!("{address}:53") }
}

/// Rules and chains of all tables, as the kernel's own tools print them, without counters and comments.
pub fn rules(flavour: &str) -> Vec<String> {
    let of = |(tool, ..): (&str, &str, &str, &str)| {
        let saved = run(&format!("{tool}-{flavour}-save"));
        let lines =
            saved.lines().filter(|line| line.starts_with("-A") || line.starts_with(':') || line.starts_with('*'));
        lines.map(|line| format!("{tool} {}", line.split('[').next().unwrap_or_default())).collect::<Vec<_>>()
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

fn put(flavour: &str, tool: &str, text: &str) {
    shell(&format!("{tool}-{flavour}-restore --noflush <<'END'\n{text}\nEND"));
}

/// What kubelets, the plugin portmap, network policies and an administrator have beside it.
fn put_those_of_others(flavour: &str) {
    for (tool, service, endpoint, _) in FAMILIES {
        put(
            flavour,
            tool,
            &format!(
                "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
                 *nat\n:KUBE-KUBELET-CANARY - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:KUBE-ROUTER-SNAT - [0:0]\n\
                 -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A POSTROUTING -j KUBE-ROUTER-SNAT\n\
                 -A POSTROUTING -s {endpoint} -o eth9 -j MASQUERADE\nCOMMIT\n\
                 *filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-ROUTER-FORWARD - [0:0]\n:KUBE-POD-FW-AAAA - [0:0]\n\
                 -A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n-A FORWARD -j KUBE-ROUTER-FORWARD\n-A FORWARD -d {service} -j ACCEPT\n\
                 -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n-A KUBE-ROUTER-FORWARD -d {endpoint} -j KUBE-POD-FW-AAAA\nCOMMIT"
            ),
        );
    }
}

/// As kube-proxy writes it in its mode iptables, with one Service of one endpoint.
pub fn put_those_of_iptables(flavour: &str) {
    for (tool, service, address, _) in FAMILIES {
        let at = endpoint(address);
        put(
            flavour,
            tool,
            &format!(
                "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n\
                 *filter\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
                 -A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n-A INPUT -j KUBE-NODEPORTS\n-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
                 -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n-A FORWARD -j KUBE-FORWARD\n-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
                 -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
                 -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n\
                 *nat\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
                 :KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]\n:KUBE-SVL-TCOU7JCQXEZGVUNU - [0:0]\n:KUBE-EXT-TCOU7JCQXEZGVUNU - [0:0]\n:KUBE-SEP-ZZUA5JGFBKSMP3QV - [0:0]\n\
                 -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
                 -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
                 -A KUBE-SERVICES -d {service} -p udp -m udp --dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU\n-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
                 -A KUBE-NODEPORTS -p udp -m udp --dport 30053 -j KUBE-EXT-TCOU7JCQXEZGVUNU\n-A KUBE-EXT-TCOU7JCQXEZGVUNU -j KUBE-MARK-MASQ\n-A KUBE-EXT-TCOU7JCQXEZGVUNU -j KUBE-SVC-TCOU7JCQXEZGVUNU\n\
                 -A KUBE-SVC-TCOU7JCQXEZGVUNU -j KUBE-SEP-ZZUA5JGFBKSMP3QV\n-A KUBE-SEP-ZZUA5JGFBKSMP3QV -s {address} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-ZZUA5JGFBKSMP3QV -p udp -m udp -j DNAT --to-destination {at}\nCOMMIT"
            ),
        );
    }
}

/// As kube-proxy writes it in its mode ipvs: sets, and rules that name them.
pub fn put_those_of_ipvs(flavour: &str) {
    for (tool, _, _, family) in FAMILIES {
        let beginning = if family == "inet" { "KUBE-" } else { "KUBE-6-" };
        for (name, kind) in [
            ("CLUSTER-IP", "hash:ip,port"),
            ("LOOP-BACK", "hash:ip,port,ip"),
            ("LOAD-BALANCER-SOURCE-CIDR", "hash:ip,port,net"),
            ("IPVS-IPS", "hash:ip"),
        ] {
            let name: String = format!("{beginning}{name}").chars().take(31).collect();
            run(&format!("ipset create {name} {kind} family {family}"));
        }
        run(&format!("ipset create {beginning}NODE-PORT-TCP bitmap:port range 0-65535"));
        put(
            flavour,
            tool,
            &format!(
                "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-SOURCE-RANGES-FIREWALL - [0:0]\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-IPVS-OUT-FILTER - [0:0]\n\
                 -A INPUT -j KUBE-IPVS-FILTER\n-A INPUT -j KUBE-PROXY-FIREWALL\n-A INPUT -j KUBE-NODE-PORT\n-A FORWARD -j KUBE-FORWARD\n-A OUTPUT -j KUBE-IPVS-OUT-FILTER\n\
                 -A KUBE-IPVS-FILTER -m set --match-set {beginning}CLUSTER-IP dst,dst -j RETURN\n-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {beginning}IPVS-IPS dst -j REJECT\nCOMMIT\n\
                 *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
                 -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
                 -A KUBE-POSTROUTING -m set --match-set {beginning}LOOP-BACK dst,dst,src -j MASQUERADE\n-A KUBE-NODE-PORT -p tcp -m set --match-set {beginning}NODE-PORT-TCP dst -j KUBE-MARK-MASQ\n\
                 -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\nCOMMIT"
            ),
        );
    }
}

#[test]
fn chains_and_sets_of_kube_proxy_go_and_those_of_others_stay() {
    for flavour in ["nft", "legacy"] {
        for put_it in [put_those_of_iptables as fn(&str), put_those_of_ipvs] {
            in_new(|| {
                own_run();
                put_those_of_others(flavour);
                serve(SERVED);
                run("ipset create KUBE-SRC-3A7HYPCJLP7UJ2GI hash:ip");
                let (before, sets) = (rules(flavour), run("ipset save"));
                put_it(flavour);
                assert!(rules(flavour).len() > before.len() + 20, "nothing was put");
                clean_up();
                assert_eq!(rules(flavour), before, "{flavour}");
                assert_eq!(run("ipset save"), sets, "{flavour}");
                clean_up();
                assert_eq!(rules(flavour), before, "again there is nothing to do");
            });
        }
    }
}

#[test]
fn its_tables_of_nf_tables_go_and_those_of_others_stay() {
    in_new(|| {
        own_run();
        serve(SERVED);
        let others = ["ip kube-proxy-monitor", "inet kube-proxy"];
        for table in others.iter().chain(&["ip kube-proxy", "ip6 kube-proxy"]) {
            run(&format!("nft add table {table}"));
        }
        shell(
            "nft -f - <<'END'
             add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
             add chain ip kube-proxy services
             add chain ip kube-proxy service-ULMVA6XW-ns1/svc1/tcp/p80
             add rule ip kube-proxy service-ULMVA6XW-ns1/svc1/tcp/p80 meta l4proto tcp dnat to 10.244.1.5:80
             add element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 : goto service-ULMVA6XW-ns1/svc1/tcp/p80 }
             add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
             add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat; }
             add rule ip kube-proxy nat-prerouting jump services
END",
        );
        clean_up();
        let left: Vec<String> = run("nft list tables").lines().map(|line| line.replace("table ", "")).collect();
        assert!(others.iter().all(|one| left.iter().any(|found| found == one)), "{left:?}");
        assert!(!left.iter().any(|one| one == "ip kube-proxy" || one == "ip6 kube-proxy"), "{left:?}");
    });
}

#[test]
fn while_kube_proxy_runs_on_this_host_nothing_goes_and_one_of_another_namespace_is_not_meant() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("kube-proxy");
    fs::copy("/bin/sleep", &program).expect("a program of that name");
    let start = || Running(Command::new(&program).arg("600").arg0("kube-proxy").spawn().expect("it starts"));
    let _elsewhere = start();
    in_new(|| {
        own_run();
        put_those_of_iptables("nft");
        serve(SERVED);
        let before = rules("nft");
        let here = start();
        let (succeeded, _, said) = attempt(CLEANUP);
        assert!(!succeeded && said.contains(&format!("(process {}): end it first", here.0.id())), "{said}");
        drop(here);
        assert_eq!(rules("nft"), before);
        // Processes of the host are not seen in a container.
        let metrics = TcpListener::bind(("127.0.0.1", 10249)).expect("nobody listens there");
        let (succeeded, _, said) = attempt(CLEANUP);
        assert!(!succeeded && said.contains("(somebody listens on its port 10249): end it first"), "{said}");
        assert_eq!(rules("nft"), before);
        drop(metrics);
        clean_up();
        assert!(!rules("nft").iter().any(|line| line.contains("KUBE-")));
    });
}

#[test]
fn without_a_service_proxy_that_has_taken_over_nothing_goes() {
    in_new(|| {
        own_run();
        put_those_of_iptables("nft");
        let before = rules("nft");
        let (succeeded, _, said) = attempt(CLEANUP);
        assert!(!succeeded && said.contains("has not taken over on this host"), "{said}");
        assert_eq!(rules("nft"), before);
        // An address that has a set of its own is nobody's service.
        run("ipset create kube-router-svip hash:ip");
        run("ipset add kube-router-svip 10.96.0.10");
        assert!(!attempt(CLEANUP).0);
        run("ipset create kube-router-svip-prt hash:ip,port");
        run("ipset add kube-router-svip-prt 10.96.0.10,udp:53");
        assert!(!attempt(CLEANUP).0);
        run("modprobe ip_vs");
        run("ipvsadm -A -u 10.96.0.10:53 -s rr");
        clean_up();
        assert!(!rules("nft").iter().any(|line| line.contains("KUBE-SERVICES")));
    });
}

#[test]
fn a_chain_of_kube_proxy_that_a_rule_of_others_jumps_to_stays_with_that_rule_and_is_told() {
    for flavour in ["nft", "legacy"] {
        in_new(|| {
            own_run();
            serve(SERVED);
            put_those_of_iptables(flavour);
            for (tool, ..) in FAMILIES {
                put(
                    flavour,
                    tool,
                    "*nat\n:CNI-HOSTPORT-SETMARK - [0:0]\n-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT",
                );
            }
            let (succeeded, _, said) = attempt(CLEANUP);
            assert!(!succeeded && said.contains("KUBE-MARK-MASQ"), "{flavour}: {said}");
            let left: Vec<String> = rules(flavour).into_iter().filter(|line| line.contains("KUBE-")).collect();
            assert!(left.iter().all(|line| line.contains("KUBE-MARK-MASQ")), "{flavour}: {left:?}");
            assert!(
                left.iter().filter(|line| line.contains("-A CNI-HOSTPORT-SETMARK")).count() == 2,
                "{flavour}: {left:?}"
            );
        });
    }
}

#[test]
fn what_is_in_the_tables_of_the_other_variant_goes_too() {
    in_new(|| {
        own_run();
        serve(SERVED);
        // The kubelet's hint says which variant the host uses.
        put_those_of_others("nft");
        put_those_of_iptables("legacy");
        clean_up();
        let left: Vec<String> = rules("legacy").into_iter().filter(|line| line.contains("KUBE-")).collect();
        assert_eq!(left, Vec::<String>::new());
    });
}
