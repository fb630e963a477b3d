//! Findings on a host and a cluster on which one thing lacks.

mod backends;
mod kernel;
mod networks;
mod ports;
mod process;
mod rights;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::*;
use crate::config::{Environment, Request, Variant, request};
use crate::k8s::access::{Allowed, Unknown};
use crate::kernel::address::{HostAddress, Scope};
use crate::kernel::file_system::Passing;
use crate::kernel::link::{LinkKind, LinkName};
use crate::kernel::listening_port::Transport;
use crate::kernel::module::ModuleState;
use crate::kernel::module::forbidden::{Forbidden, Rule};
use crate::kernel::nftables::foreign::DroppingChain;
use crate::kernel::sysctl::Setting;
use crate::kernel::vxlan::{Vxlan, link_address};
use crate::model::{Node, NodeAddress, NodeAddressKind};
use crate::net::PerFamily;
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
        unbelieved: Vec::new(),
        version: Some("v1.36.1".to_owned()),
        node: Ok(node),
        rights,
        nodes: Ok(vec!["192.0.2.1".parse().expect("an address")]),
        own_cluster_ips: Ok(vec!["10.96.0.1".parse().expect("an address")]),
        service_ranges: Ok(Vec::new()),
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
            is_sealed: false,
            forbidden: Forbidden::default(),
            settings: settings::asked(config, "6.12.0", Default::default())
                .into_iter()
                .map(|setting| {
                    let value = if setting.0.ends_with("gc_thresh3") { "1024" } else { "1" };
                    (setting, FoundSetting { value: value.to_owned(), unwritable: None })
                })
                .collect(),
            replaced_for_devices: Default::default(),
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
            directories: directories
                .map(|(purpose, at)| Directory { purpose, path: path(at), obstacle: None, passing: None })
                .into(),
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
