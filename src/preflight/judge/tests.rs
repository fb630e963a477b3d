mod backends;
mod rights;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use super::*;
use crate::config::{Environment, Request, Variant, request};
use crate::k8s::access::{Allowed, Unknown};
use crate::kernel::address::{HostAddress, Scope};
use crate::kernel::link::{LinkKind, LinkName};
use crate::kernel::module::ModuleState;
use crate::kernel::nftables::foreign::DroppingChain;
use crate::kernel::sysctl::Setting;
use crate::kernel::vxlan::{Vxlan, link_address};
use crate::model::{Node, NodeAddress, NodeAddressKind};
use crate::preflight::facts::*;
use crate::preflight::{Level, Report};

fn config(words: &[&str]) -> Config {
    let words: Vec<OsString> =
        ["sluice", "--hostname-override=node-1"].iter().chain(words).map(OsString::from).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    Config::from_flags(&flags, verbosity, &Environment::default()).expect("the flags are sound")
}

fn host_address(link: &str, address: &str) -> HostAddress {
    HostAddress {
        link: LinkName(link.into()),
        index: 2,
        kind: LinkKind::Other("".into()),
        up: true,
        mtu: 1500,
        address: address.parse().expect("an address"),
        scope: Scope::Global,
        lasting: true,
        duplicate: false,
    }
}

/// A host and a cluster on which nothing lacks, for this configuration.
fn facts(config: &Config) -> Facts {
    let node = Node {
        addresses: vec![NodeAddress {
            kind: NodeAddressKind::Internal,
            address: "192.0.2.1".parse().expect("an address"),
        }],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a range")],
        ..Node::default()
    };
    let rights = cluster::rights(config, Some(&node)).into_iter();
    let rights = rights.map(|need| AskedRight { right: need.right, allowed: Allowed::Yes, is_served: true }).collect();
    let api = ApiFacts {
        version: "v1.36.1".to_owned(),
        node: Ok(node),
        rights,
        own_cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
        service_ranges: Vec::new(),
    };
    let path = |path: &str| PathBuf::from(path);
    let directories =
        [(Purpose::State, "/var/lib/sluice"), (Purpose::Sockets, "/run/sluice"), (Purpose::Cni, "/etc/cni/net.d")];
    Facts {
        kernel: KernelFacts {
            release: "6.12.0-55.el10.x86_64".to_owned(),
            version: "#1 SMP".to_owned(),
            modules: modules::all().map(|name| (name, ModuleState::Present)).collect(),
            cannot_load: None,
            settings: settings::asked(config, "6.12.0", Default::default())
                .into_iter()
                .map(|setting| (setting, FoundSetting { value: "1".to_owned(), unwritable: None }))
                .collect(),
        },
        process: ProcessFacts {
            is_root: true,
            may_change_network: true,
            may_enter_namespaces: true,
            programs: packet_filter::PROGRAMS.into(),
            agent_answers: false,
        },
        packet_filter: PacketFilterFacts {
            nftables: Trial::Works,
            variant: Some(Variant::NfTables),
            has_unreadable_tables: false,
            dropping: Vec::new(),
            tables: Default::default(),
            chains: Default::default(),
            unread: None,
        },
        network: NetworkFacts {
            addresses: vec![host_address("eth0", "192.0.2.1/24")],
            links: ["lo", "eth0"].map(str::to_owned).into(),
            ..NetworkFacts::default()
        },
        files: FileFacts {
            directories: directories.map(|(purpose, at)| Directory { purpose, path: path(at), obstacle: None }).into(),
            has_runtime_socket: true,
            ..FileFacts::default()
        },
        cluster: ClusterFacts::Answered(Box::new(api)),
    }
}

/// Expects that a change to a sound host leads to one finding that is not ok, of this level, with these words in it.
#[track_caller]
fn check(words: &[&str], change: impl FnOnce(&mut Facts), level: Level, said: &[&str]) {
    let found = found(words, change);
    let bad: Vec<&Finding> = found.iter().filter(|finding| finding.level != Level::Ok).collect();
    let [finding] = bad[..] else { panic!("not one finding: {bad:#?}") };
    let text = format!("{}: {} / {} / {}", finding.subject, finding.what, finding.why, finding.todo);
    assert_eq!(finding.level, level, "{text}");
    for word in said {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!finding.why.is_empty() && !finding.todo.is_empty(), "{text}");
    assert!([&finding.what, &finding.why, &finding.todo].iter().all(|sentence| !sentence.ends_with('.')), "{text}");
}

/// Expects that all findings are ok, and that one of them has these words in it.
#[track_caller]
fn check_ok(words: &[&str], change: impl FnOnce(&mut Facts), said: &str) {
    let found = found(words, change);
    let bad: Vec<&Finding> = found.iter().filter(|finding| finding.level != Level::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let all: Vec<String> = found.iter().map(|finding| format!("{}: {}", finding.subject, finding.what)).collect();
    assert!(all.iter().any(|text| text.contains(said)), "{said:?} is not in: {all:#?}");
}

fn found(words: &[&str], change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let config = config(words);
    let mut facts = facts(&config);
    change(&mut facts);
    judge(&facts, &config)
}

fn modules(facts: &mut Facts, state: ModuleState, names: &[&'static str]) {
    facts.kernel.modules.extend(names.iter().map(|name| (*name, state)));
}

fn api(facts: &mut Facts) -> &mut ApiFacts {
    let ClusterFacts::Answered(api) = &mut facts.cluster else { panic!("it answers") };
    api
}

fn dropping(family: &'static str, table: &str, chain: &str) -> DroppingChain {
    let (table, chain) = (table.to_owned(), chain.to_owned());
    DroppingChain { family, table, chain, enters: Default::default(), opened: Default::default() }
}

const FIREWALL: [&str; 2] = ["--run-router=false", "--run-service-proxy=false"];
const PROXY: [&str; 2] = ["--run-router=false", "--run-firewall=false"];
const ROUTER: [&str; 2] = ["--run-firewall=false", "--run-service-proxy=false"];

#[test]
fn a_sound_host_has_nothing_but_ok() {
    for words in
        [&[][..], &FIREWALL, &PROXY, &ROUTER, &["--run-loadbalancer", "--loadbalancer-ip-range=203.0.113.0/24"]]
    {
        check_ok(words, |_| {}, "nftables: the kernel can do all that is needed");
    }
    let report = Report::new("node-1", "0.1.0", found(&[], |_| {}));
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

#[test]
fn a_missing_module_names_its_package_and_what_does_not_work() {
    let without = |names: &'static [&'static str]| move |facts: &mut Facts| modules(facts, ModuleState::Missing, names);
    check(
        &[],
        without(&["ip_vs"]),
        Level::Fatal,
        &["kernel module ip_vs", "no Service is served", "kernel-modules-core", "6.12.0-55.el10"],
    );
    check(
        &[],
        without(&["br_netfilter"]),
        Level::Degraded,
        &["br_netfilter", "no policy holds", "kernel-modules-extra"],
    );
    check(&ROUTER, without(&["ipip"]), Level::Degraded, &["tunnels", "kernel-modules-core"]);
    check_ok(&FIREWALL, without(&["ip_vs", "ipip", "fou"]), "nftables");
    check_ok(&["--enable-overlay=false"], without(&["ipip"]), "nftables");
    check(&["--overlay-encap=fou"], without(&["fou", "fou6"]), Level::Degraded, &["kernel module fou:"]);
    let of_talos = |facts: &mut Facts| {
        facts.kernel.release = "6.18.2-talos".to_owned();
        modules(facts, ModuleState::Missing, &["ip_vs_rr"]);
    };
    check(&PROXY, of_talos, Level::Fatal, &["machine.kernel.modules, - name: ip_vs_rr"]);
}

#[test]
fn a_module_on_the_disk_is_loaded_by_the_agent_unless_it_may_not() {
    let on_disk = |facts: &mut Facts| modules(facts, ModuleState::OnDisk, &["ip_vs"]);
    check_ok(&[], on_disk, "modprobe finds them, and the agent loads them: ip_vs");
    let may_not = |facts: &mut Facts| {
        modules(facts, ModuleState::OnDisk, &["ip_vs"]);
        facts.kernel.release = "6.18.2-talos".to_owned();
        facts.kernel.cannot_load = Some("this process may not load modules (CAP_SYS_MODULE)".to_owned());
    };
    check(
        &[],
        may_not,
        Level::Degraded,
        &["kernel module ip_vs", "CAP_SYS_MODULE", "machine.kernel.modules, - name: ip_vs"],
    );
    let unmounted = |facts: &mut Facts| {
        modules(facts, ModuleState::Unknown, &["ip_vs", "dummy"]);
        facts.kernel.cannot_load = Some("there is no /lib/modules/6.12".to_owned());
    };
    check(&[], unmounted, Level::Degraded, &["nothing says whether", "ip_vs, dummy", "mount the host's /lib/modules"]);
}

#[test]
fn settings_that_cannot_be_written_matter_where_their_value_is_wrong() {
    let with = |name: &'static str, value: &'static str| {
        move |facts: &mut Facts| {
            let unwritable = Some("Read-only file system".to_owned());
            facts.kernel.settings.insert(Setting(name.into()), FoundSetting { value: value.to_owned(), unwritable });
        }
    };
    check(
        &[],
        with("net/ipv4/vs/conntrack", "0"),
        Level::Degraded,
        &["net.ipv4.vs.conntrack", "Read-only", "sysctl -w net.ipv4.vs.conntrack=1"],
    );
    check_ok(&[], with("net/ipv4/vs/conntrack", "1"), "settings");
    check_ok(&ROUTER, with("net/ipv4/vs/conntrack", "0"), "settings");
    check(&FIREWALL, with("net/bridge/bridge-nf-call-iptables", "0"), Level::Degraded, &["bridge-nf-call-iptables"]);
    check(
        &[],
        with("net/ipv4/conf/eth0/rp_filter", "1"),
        Level::Degraded,
        &["net.ipv4.conf.eth0.rp_filter", "has to be 2"],
    );
    check_ok(&[], with("net/ipv4/conf/eth0/rp_filter", "0"), "settings");
    check(&[], with("net/ipv4/ip_forward", "0"), Level::Degraded, &["forwards no packets"]);
    // Pods that answer for themselves do so from any link, also from one that is made later.
    let all_off = |default: &'static str| {
        move |facts: &mut Facts| {
            let value = default.to_owned();
            let later = FoundSetting { value, unwritable: None };
            facts.kernel.settings.insert(Setting("net/ipv4/conf/default/rp_filter".into()), later);
            with("net/ipv4/conf/all/rp_filter", "0")(facts);
        }
    };
    let tunnels = ["--enable-direct-server-return"];
    check(&tunnels, all_off("1"), Level::Degraded, &["net.ipv4.conf.all.rp_filter", "has to be 2"]);
    check_ok(&tunnels, all_off("0"), "settings");
    check_ok(&[], all_off("1"), "settings");
    check(&tunnels, with("net/ipv4/vs/pmtu_disc", "1"), Level::Degraded, &["net.ipv4.vs.pmtu_disc", "has to be 0"]);
}

#[test]
fn networks_of_the_host_in_the_ranges_of_pods_and_services_are_named() {
    let network = |link: &'static str, address: &'static str| {
        move |facts: &mut Facts| facts.network.addresses.push(host_address(link, address))
    };
    check(
        &[],
        network("eth1", "10.244.1.7/16"),
        Level::Fatal,
        &["pod range 10.244.1.0/24", "10.244.0.0/16 of the device eth1"],
    );
    check(&[], network("cni0", "10.244.1.1/24"), Level::Fatal, &["ip address delete 10.244.1.1/24 dev cni0"]);
    check_ok(&[], network("kube-bridge", "10.244.1.1/24"), "no network of this host is in 10.244.1.0/24, 10.96.0.0/12");
    check_ok(&PROXY, network("eth1", "10.244.1.7/16"), "no network of this host");
    check(
        &[],
        network("eth1", "10.100.0.7/24"),
        Level::Degraded,
        &["range of Services 10.96.0.0/12", "10.100.0.0/24 of the device eth1"],
    );
    check_ok(&ROUTER, network("eth1", "10.100.0.7/24"), "no network of this host");
    let route = |to: &'static str| {
        move |facts: &mut Facts| {
            let (to, text) = (to.parse().expect("a range"), format!("{to} via 192.0.2.9 dev eth0"));
            facts.network.routes.push(FoundRoute { to, links: vec!["eth0".to_owned()], text });
        }
    };
    check(&[], route("10.244.1.128/25"), Level::Degraded, &["route leads into it: 10.244.1.128/25 via 192.0.2.9"]);
    check(&[], route("10.97.0.0/16"), Level::Degraded, &["range of Services"]);
    check_ok(&[], route("10.0.0.0/8"), "no network of this host");
    let overlapping = |facts: &mut Facts| {
        let node = api(facts).node.as_mut().expect("it is known");
        node.pod_cidrs = vec!["10.98.1.0/24".parse().expect("a range")];
    };
    check(&[], overlapping, Level::Fatal, &["10.96.0.0/12", "10.98.1.0/24", "overlap"]);
}

#[test]
fn devices_by_which_pods_of_this_node_are_attached_are_no_conflict() {
    let conf = r#"{"type":"bridge","bridge":"cni0"}"#;
    let route = |to: &str, link: &str| FoundRoute {
        to: to.parse().expect("a range"),
        links: vec![link.to_owned()],
        text: format!("{to} dev {link}"),
    };
    let of_bridge = |facts: &mut Facts| {
        facts.files.cni_text = Some(Ok(conf.to_owned()));
        facts.network.addresses.push(host_address("cni0", "10.244.1.1/24"));
        facts.network.routes.push(route("10.244.1.0/25", "cni0"));
    };
    check_ok(&[], of_bridge, "no network of this host is in 10.244.1.0/24");
    let of_another_bridge = |facts: &mut Facts| {
        of_bridge(facts);
        facts.network.addresses.push(host_address("docker0", "10.244.1.1/24"));
    };
    check(&[], of_another_bridge, Level::Fatal, &["10.244.1.0/24 of the device docker0"]);
    let of_pairs = |facts: &mut Facts| {
        facts.files.cni_text = Some(Ok(r#"{"type":"ptp"}"#.to_owned()));
        facts.network.pairs = ["veth1", "eth0"].map(str::to_owned).into();
        facts.network.addresses.push(host_address("veth1", "10.244.1.1/32"));
        facts.network.routes.push(route("10.244.1.5/32", "veth1"));
    };
    check_ok(&[], of_pairs, "no network of this host is in 10.244.1.0/24");
    // The host may be a container, whose own device is one end of a pair.
    let of_container = |facts: &mut Facts| {
        of_pairs(facts);
        facts.network.addresses.push(host_address("eth0", "10.244.1.9/24"));
    };
    check(&[], of_container, Level::Fatal, &["10.244.1.0/24 of the device eth0"]);
}

#[test]
fn a_family_needs_an_address_and_a_range() {
    let found = found(&["--enable-ipv6"], |_| {});
    let fatal: Vec<&str> = found.iter().filter(|one| one.level == Level::Fatal).map(|one| one.what.as_str()).collect();
    assert_eq!(fatal.len(), 2, "{fatal:?}");
    assert!(fatal.iter().any(|what| what.contains("no device of this host has a global IPv6 address")), "{fatal:?}");
    assert!(fatal.iter().any(|what| what.contains("it has no IPv6 range for pods")), "{fatal:?}");
}

#[test]
fn the_addresses_that_would_be_detected_are_named_and_those_that_would_not_are_too() {
    let with_back = |facts: &mut Facts| {
        facts.network.addresses.push(host_address("eth1", "198.51.100.1/24"));
        facts.network.sources.v4 = Some([198, 51, 100, 1].into());
    };
    let found = "other nodes route to 198.51.100.1 (--node-ip-autodetect=cidr=198.51.100.0/24)";
    check_ok(&["--node-ip-autodetect=cidr=198.51.100.0/24"], with_back, found);
    let found = "other nodes route to 198.51.100.1 (--node-ip-autodetect=can-reach=203.0.113.1)";
    check_ok(&["--node-ip-autodetect=can-reach=203.0.113.1"], with_back, found);
    let lacking = [
        "--node-ip-autodetect=interface=eth7 finds no IPv4 address",
        "other nodes route to the InternalIP of its Node",
    ];
    check(&["--node-ip-autodetect=interface=eth7"], with_back, Level::Degraded, &lacking);
}

#[test]
fn a_port_that_others_have_ends_the_agent_or_makes_it_wait() {
    let taken = |number| {
        move |facts: &mut Facts| {
            facts.network.listening.insert((Transport::Tcp, number));
        }
    };
    check(&[], taken(20244), Level::Fatal, &["port 20244 (--health-port)"]);
    check(&[], taken(179), Level::Degraded, &["port 179 (--bgp-port)", "another BGP speaker"]);
    check_ok(&PROXY, taken(179), "nobody listens on 20244");
    let of_agent = |facts: &mut Facts| {
        facts.network.listening.insert((Transport::Tcp, 20244));
        facts.process.agent_answers = true;
    };
    check_ok(&[], of_agent, "an agent runs on this host already, and somebody listens on 20244");
    let of_both = |facts: &mut Facts| {
        of_agent(facts);
        facts.network.listening.insert((Transport::Tcp, 179));
        facts.network.of_agent = Some([(Transport::Tcp, 20244)].into());
    };
    check(&[], of_both, Level::Degraded, &["port 179 (--bgp-port)"]);
    let of_agent_alone = |facts: &mut Facts| {
        of_agent(facts);
        facts.network.of_agent = Some([(Transport::Tcp, 20244)].into());
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
            facts.network.listening.insert((Transport::Udp, port));
        }
    };
    let words = ["--overlay-encap=vxlan"];
    let program = |facts: &mut Facts| {
        facts.network.listening.insert((Transport::Udp, 4789));
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
            facts.network.listening.insert((Transport::Udp, 51820));
            modules(facts, ModuleState::Present, &["wireguard"]);
        }
    };
    // Packets arrive there whether or not any are sent by it.
    for words in [["--overlay-encap=wireguard"], ["--overlay-encap-receive=wireguard"]] {
        for of_others in [None, Some("wg0")] {
            check(&words, taken(of_others), Level::Degraded, &["port 51820 (--overlay-wireguard-port)"]);
        }
        check(&words, |_: &mut Facts| {}, Level::Degraded, &["wireguard"]);
        check_ok(&words, taken(Some("sluice-wg0")), "nobody listens on 20244");
    }
    check_ok(&[], taken(None), "nobody listens on");
}

#[test]
fn the_port_behind_that_of_wireguard_has_to_be_free_where_keys_change() {
    let taken = |link: Option<&'static str>| {
        move |facts: &mut Facts| {
            facts.network.links.extend(link.map(str::to_owned));
            facts.network.listening.insert((Transport::Udp, 51821));
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
            facts.network.listening.insert((Transport::Udp, number));
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
}

#[test]
fn nothing_is_tried_that_would_load_the_modules_of_counters() {
    let may_be_tried = |state, release| modules::is_loaded_or_folded(state, release, (6, 2));
    for (state, release, expected) in [
        (ModuleState::Present, "5.15.0", true),
        (ModuleState::OnDisk, "5.15.0", false),
        (ModuleState::OnDisk, "6.12.0", false),
        (ModuleState::Missing, "5.14.0-503.el9.x86_64", true),
        (ModuleState::Unknown, "5.15.0", false),
        (ModuleState::Unknown, "6.2.0", true),
        (ModuleState::Unknown, "nonsense", false),
    ] {
        assert_eq!(may_be_tried(Some(state), release), expected, "{state:?} {release}");
    }
    let asked: Vec<&str> = modules::all().collect();
    assert!(["nft_counter", "nft_objref"].iter().all(|name| asked.contains(name)));
}

#[test]
fn a_directory_that_cannot_be_written_matters_by_its_purpose() {
    let with = |purpose| {
        move |facts: &mut Facts| {
            let mut directories = facts.files.directories.iter_mut();
            let directory = directories.find(|one| one.purpose == purpose).expect("it is there");
            directory.obstacle = Some("Read-only file system".to_owned());
        }
    };
    check(&[], with(Purpose::State), Level::Degraded, &["/var/lib/sluice", "last known state", "--state-dir="]);
    check(&[], with(Purpose::Sockets), Level::Degraded, &["/run/sluice", "sluice status"]);
    check(
        &["--netpol-cni", "--enable-cni=false"],
        with(Purpose::Sockets),
        Level::Fatal,
        &["no pod starts (--netpol-cni)"],
    );
    check(&[], with(Purpose::Cni), Level::Fatal, &["/etc/cni/net.d", "NotReady", "--enable-cni=false"]);
}

#[test]
fn the_process_has_to_be_root_and_to_have_its_capability() {
    check(&[], |facts| facts.process.is_root = false, Level::Fatal, &["not root"]);
    check(&[], |facts| facts.process.may_change_network = false, Level::Fatal, &["CAP_NET_ADMIN"]);
}

#[test]
fn cni_files_that_sort_first_or_cannot_be_used_are_named() {
    let first =
        |facts: &mut Facts| facts.files.preferred_cni_file = Some(PathBuf::from("/etc/cni/net.d/05-cilium.conflist"));
    check(&[], first, Level::Degraded, &["/etc/cni/net.d/05-cilium.conflist sorts before"]);
    let text = |text: &'static str| move |facts: &mut Facts| facts.files.cni_text = Some(Ok(text.to_owned()));
    check(&[], text("no JSON"), Level::Degraded, &["CNI file /etc/cni/net.d/10-kuberouter.conf", "not JSON"]);
    check_ok(&[], text(r#"{"type":"ptp"}"#), "it uses another bridge");
    check_ok(&[], text(r#"{"type":"bridge","bridge":"kube-bridge"}"#), "attaches pods to kube-bridge");
    check(
        &[],
        |facts| facts.files.cni_text = Some(Err("EACCES".to_owned())),
        Level::Degraded,
        &["cannot be read: EACCES"],
    );
}

#[test]
fn passwords_that_cannot_be_read_are_named_by_their_flag() {
    for (which, words) in [
        (
            Passwords::Peers,
            ["--peer-router-passwords-file cannot be read: EACCES", "the external peers", "mount the file"],
        ),
        (Passwords::PeersInDirectory, ["--peer-router-passwords-dir cannot", "passwordfile", "mount the directory"]),
        (Passwords::Nodes, ["--bgp-mesh-password-file cannot be read", "sessions with other nodes", "mount the file"]),
    ] {
        let unread = |facts: &mut Facts| facts.files.unread_passwords = vec![(which, "EACCES".to_owned())];
        check(&[], unread, Level::Degraded, &words);
    }
}

#[test]
fn direct_server_return_needs_the_runtimes_socket_and_tunnels() {
    let words = ["--enable-direct-server-return", "--runtime-endpoint=unix:///run/containerd/containerd.sock"];
    check_ok(&words, |_| {}, "nftables");
    let socket = |facts: &mut Facts| facts.files.has_runtime_socket = false;
    check(&words, socket, Level::Degraded, &["/run/containerd/containerd.sock", "served with NAT"]);
    check(&words[..1], socket, Level::Degraded, &["in its usual places", "--runtime-endpoint"]);
    let setns = |facts: &mut Facts| facts.process.may_enter_namespaces = false;
    // Where answers would be dropped nothing is served through tunnels.
    let encrypted = [&words[..], &["--overlay-encap=wireguard"]].concat();
    let of_tunnels =
        |finding: &Finding| ["container runtime", "direct server return"].contains(&finding.subject.as_str());
    assert!(found(&encrypted, socket).iter().chain(&found(&encrypted, setns)).all(|finding| !of_tunnels(finding)));
    let found = found(&["--enable-direct-server-return", "--netpol-cni", "--enable-cni=false"], socket);
    assert!(found.iter().all(|finding| finding.subject != "container runtime"), "the plugin tells where pods are");
    check(&words, setns, Level::Degraded, &["CAP_SYS_ADMIN", "PodTunnelMissing", "SYS_ADMIN to its capabilities"]);
    check_ok(&words[1..], setns, "nftables");
    for (tables, chains) in [(&["inet firewalld"][..], &[][..]), (&[], &["KUBE-FORWARD"])] {
        let invalid = |facts: &mut Facts| {
            facts.packet_filter.tables.extend(tables.iter().map(|name| (*name).to_owned()));
            facts.packet_filter.chains.extend(chains.iter().map(|name| (*name).to_owned()));
        };
        check(&words, invalid, Level::Degraded, &["ct state invalid", "of TCP"]);
        check_ok(&[], invalid, "nftables");
    }
    let module = |facts: &mut Facts| modules(facts, ModuleState::Missing, &["ip6_tunnel"]);
    check(&words, module, Level::Degraded, &["kernel module ip6_tunnel", "inside pods"]);
}
