//! `--cleanup-kube-proxy` over what kube-proxy leaves in its mode ipvs, on a kernel with `ip_vs` and `dummy`.

use crate::cleanup_kube_proxy::{CLEANUP, SERVED, clean_up, put_those_of_ipvs, serve};
use crate::namespace::{attempt, in_new, own_run, run};

/// Virtual services, by the family: what kube-proxy made (its own device has the address, or it is a node port), and others'.
const KUBE_PROXYS: [[&str; 4]; 2] = [
    ["10.96.0.1:443", "203.0.113.9:80", "192.0.2.11:30080", "192.0.0.8:30080"],
    ["[fd00:10:96::1]:443", "[2001:db8:113::9]:80", "[2001:db8::11]:30080", "[2001:db8::12]:30080"],
];
const OTHERS: [[&str; 3]; 2] = [
    ["192.0.2.11:80", "198.51.100.7:30080", "10.99.0.1:443"],
    ["[2001:db8::11]:80", "[2001:db8:51::7]:30080", "[fd00:10:99::1]:443"],
];
/// At addresses of kube-proxy's device, too, and marked by the service proxy here as its own.
const TAKEN_OVER: [&str; 2] = ["10.96.0.10:53", "[fd00:10:96::a]:53"];
const ENDPOINTS: [&str; 2] = ["10.244.1.5:53", "[fd00:10:244:1::5]:53"];

fn services() -> Vec<String> {
    let listed = run("ipvsadm -Sn");
    let mut found: Vec<String> = listed
        .lines()
        .filter(|line| line.starts_with("-A"))
        .map(|line| line.split(' ').nth(2).unwrap_or_default().to_owned())
        .collect();
    found.sort();
    found
}

fn put(flavour: &str, marks: &str) {
    for module in ["ip_vs", "dummy"] {
        let (loaded, _, error) = attempt(&format!("modprobe {module}"));
        assert!(loaded, "this kernel has no module {module}; run this test in the guest of the lab: {error}");
    }
    run("ip link add eth0 type dummy");
    run("ip link set eth0 up");
    run("ip addr add 192.0.2.11/24 dev eth0");
    run("ip -6 addr add 2001:db8::11/64 dev eth0 nodad");
    // Of the service proxy here; kube-proxy has node ports at any address of the host.
    run("ip link add kube-dummy-if type dummy");
    run("ip link set kube-dummy-if up");
    run("ip addr add 192.0.0.8/32 dev kube-dummy-if");
    run("ip -6 addr add 2001:db8::12/128 dev kube-dummy-if nodad");
    run("ip link add kube-ipvs0 type dummy");
    for address in ["10.96.0.1/32", "10.96.0.10/32", "203.0.113.9/32"] {
        run(&format!("ip addr add {address} dev kube-ipvs0"));
    }
    for address in ["fd00:10:96::1/128", "fd00:10:96::a/128", "2001:db8:113::9/128"] {
        run(&format!("ip -6 addr add {address} dev kube-ipvs0 nodad"));
    }
    for (((endpoint, kube_proxys), others), taken_over) in
        ENDPOINTS.into_iter().zip(KUBE_PROXYS).zip(OTHERS).zip(TAKEN_OVER)
    {
        for service in kube_proxys.into_iter().chain(others).chain([taken_over]) {
            run(&format!("ipvsadm -A -t {service} -s rr"));
            run(&format!("ipvsadm -a -t {service} -r {endpoint} -m"));
        }
    }
    run("ipvsadm -A -f 77 -s rr");
    put_those_of_ipvs(flavour);
    match marks {
        "sets" => {
            run("ipset create kube-router-svip-prt hash:ip,port family inet");
            run("ipset create inet6:kube-router-svip-prt hash:ip,port family inet6");
            run("ipset add kube-router-svip-prt 10.96.0.10,tcp:53");
            run("ipset add inet6:kube-router-svip-prt fd00:10:96::a,tcp:53");
        }
        _ => serve(SERVED),
    }
}

#[test]
fn its_virtual_services_go_and_those_that_the_service_proxy_took_over_stay_with_their_endpoints() {
    for (flavour, marks) in [("nft", "sets"), ("legacy", "table")] {
        in_new(|| {
            own_run();
            put(flavour, marks);
            clean_up();
            let mut stay: Vec<&str> = OTHERS.concat().into_iter().chain(TAKEN_OVER).chain(["77"]).collect();
            stay.sort_unstable();
            assert_eq!(services(), stay, "{flavour} {marks}");
            let destinations = run("ipvsadm -Sn");
            assert!(ENDPOINTS.iter().all(|one| destinations.contains(&format!("-r {one}"))), "{destinations}");
            assert!(!attempt("ip link show kube-ipvs0").0, "its device is left");
            assert!(!run("ipset list -n").contains("KUBE-"), "{}", run("ipset list -n"));
            // Without the device nothing tells that a virtual service was kube-proxy's.
            clean_up();
            assert_eq!(services(), stay);
        });
    }
}

#[test]
fn while_nothing_is_served_of_what_is_marked_nothing_goes() {
    in_new(|| {
        own_run();
        put("nft", "table");
        for service in TAKEN_OVER {
            run(&format!("ipvsadm -D -t {service}"));
        }
        let before = (services(), run("iptables-nft-save -c"), run("ipset list -n"));
        let (succeeded, _, said) = attempt(CLEANUP);
        assert!(!succeeded && said.contains("has not taken over on this host"), "{said}");
        let rules = |saved: &str| saved.lines().filter(|line| line.contains("KUBE-")).count();
        assert_eq!((services(), run("ipset list -n")), (before.0, before.2));
        assert_eq!(rules(&run("iptables-nft-save -c")), rules(&before.1));
    });
}

#[test]
fn our_cleanup_leaves_virtual_services_that_a_kube_proxy_has_as_well() {
    for (flavour, marks) in [("nft", "sets"), ("legacy", "table")] {
        in_new(|| {
            own_run();
            put(flavour, marks);
            // Ours alone: no address of kube-proxy's device, nor of this host.
            for (service, set, element) in [
                ("10.96.0.77:80", "ports4", "10.96.0.77 . tcp . 80"),
                ("[fd00:10:96::77]:80", "ports6", "fd00:10:96::77 . tcp . 80"),
            ] {
                run(&format!("ipvsadm -A -t {service} -s rr"));
                if marks == "table" {
                    run(&format!("nft add element inet sluice_proxy {set} {{ {element} }}"));
                } else {
                    let name = if set == "ports4" { "kube-router-svip-prt" } else { "inet6:kube-router-svip-prt" };
                    run(&format!("ipset add {name} {}", element.replace(" . tcp . ", ",tcp:")));
                }
            }
            let directory = tempfile::tempdir().expect("a directory");
            let place = directory.path().display();
            let (succeeded, _, said) = attempt(&format!(
                "env KUBE_ROUTER_CNI_CONF_FILE={place}/net.d/10-kuberouter.conflist {} --cleanup-config --socket= --state-dir={place}/state",
                env!("CARGO_BIN_EXE_sluice"),
            ));
            assert!(succeeded, "{said}");
            let mut stay: Vec<&str> =
                KUBE_PROXYS.concat().into_iter().chain(OTHERS.concat()).chain(TAKEN_OVER).chain(["77"]).collect();
            stay.sort_unstable();
            assert_eq!(services(), stay, "{flavour} {marks}");
            assert!(!run("nft list tables").contains("sluice") && !run("ipset list -n").contains("kube-router"));
        });
    }
}
