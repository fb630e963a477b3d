//! Findings about the packet filter, and about others that use it.

use super::*;

#[test]
fn the_packet_filter_is_the_one_that_the_agent_would_choose() {
    let refused = || Trial::Refused("no nft_fib".to_owned());
    check_ok(
        &[],
        |facts| facts.packet_filter.variant = Some(Variant::Legacy),
        "iptables: the rules of this host are those of legacy",
    );
    check_ok(
        &[],
        |facts| facts.packet_filter.nftables = refused(),
        "iptables: the kernel refuses what nftables needs (no nft_fib)",
    );
    check_ok(&["--netfilter=iptables"], |_| {}, "iptables, as --netfilter says");
    check_ok(&[], |facts| facts.packet_filter.nftables = Trial::NotTried, "it was not tried, because that would load");
    let untried_and_missing = |facts: &mut Facts| {
        facts.packet_filter.nftables = Trial::NotTried;
        modules(facts, ModuleState::Missing, &["nft_fib_inet"]);
    };
    let lacking = "iptables: the kernel refuses what nftables needs (it lacks the modules nft_fib_inet)";
    check_ok(&[], untried_and_missing, lacking);
    let neither = |facts: &mut Facts| (facts.packet_filter.nftables, facts.packet_filter.variant) = (refused(), None);
    check(&[], neither, Level::Fatal, &["neither iptables nor an nftables", "starts nothing", "package iptables-nft"]);
    let neither = |facts: &mut Facts| (facts.packet_filter.nftables, facts.packet_filter.variant) = (refused(), None);
    check(&ROUTER, neither, Level::Degraded, &["the router goes on without one"]);
    check(
        &["--netfilter=nftables"],
        |facts| facts.packet_filter.nftables = refused(),
        Level::Fatal,
        &["--netfilter is nftables"],
    );
    let without_v6 = |facts: &mut Facts| {
        facts.network.addresses.push(host_address("eth0", "2001:db8::1/64"));
        facts.process.programs.remove("ip6tables-nft-restore");
        facts.process.programs.remove("ip6tables-restore");
    };
    let words = [&PROXY[..], &["--netfilter=iptables", "--enable-ipv6"]].concat();
    let bad = found(&words, without_v6);
    assert!(
        bad.iter().any(|one| one.level == Level::Fatal && one.subject == "program ip6tables-nft-restore"),
        "{bad:#?}"
    );
}

#[test]
fn legacy_programs_serve_where_the_kernel_has_no_nf_tables() {
    let without_tables = |facts: &mut Facts| {
        facts.packet_filter.nftables = Trial::NotTried;
        modules(facts, ModuleState::Missing, &crate::kernel::nftables::probe::MODULES);
        modules(facts, ModuleState::Missing, &["nft_compat"]);
        modules(facts, ModuleState::OnDisk, &["ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle"]);
    };
    for words in [&[][..], &["--netfilter=iptables"]] {
        check_ok(words, without_tables, "of its programs those of the variant legacy work on this kernel");
        let without_nat = |facts: &mut Facts| {
            without_tables(facts);
            modules(facts, ModuleState::Missing, &["iptable_nat"]);
        };
        check(words, without_nat, Level::Fatal, &["kernel module iptable_nat:"]);
    }
    let without_legacy = |facts: &mut Facts| {
        without_tables(facts);
        modules(facts, ModuleState::Missing, &["ip_tables"]);
    };
    let both = "cannot be used on it either (it lacks the modules nf_tables; it lacks the modules ip_tables)";
    check(&[], without_legacy, Level::Fatal, &[both, "starts nothing"]);
    let without_programs = |facts: &mut Facts| {
        without_tables(facts);
        facts.process.programs.retain(|name| !name.contains("legacy"));
    };
    check(&[], without_programs, Level::Fatal, &["cannot be used on it either (it lacks the modules nf_tables)"]);
    // Of a release that knows no variants.
    let plain = |facts: &mut Facts| {
        without_tables(facts);
        facts.process.programs.retain(|name| !name.contains("legacy") && !name.contains("nft"));
    };
    check_ok(&[], plain, "of its programs those of the variant legacy");
}

#[test]
fn beside_rules_of_legacy_iptables_sets_are_what_may_lack() {
    let without = |module: &'static str| {
        move |facts: &mut Facts| {
            facts.packet_filter.variant = Some(Variant::Legacy);
            modules(facts, ModuleState::Missing, &[module]);
        }
    };
    check_ok(&[], without("nf_tables"), "the rules of this host are those of legacy");
    check(&[], without("ip_set"), Level::Fatal, &["are those of legacy iptables", "it lacks the modules ip_set"]);
    check(&[], without("xt_set"), Level::Fatal, &["kernel module xt_set:"]);
}

#[test]
fn programs_that_lack_matter_as_much_as_who_needs_them() {
    let without = |facts: &mut Facts| {
        facts.packet_filter.variant = None;
        facts.process.programs.clear();
    };
    let two = |words: &[&str], level: Level, lost: &str| {
        let found = found(&[words, &["--netfilter=iptables"]].concat(), without);
        let bad: Vec<&Finding> = found.iter().filter(|one| one.level != Level::Ok).collect();
        let named: Vec<&str> = bad.iter().map(|one| one.subject.as_str()).collect();
        assert_eq!(named, ["program iptables-nft-save", "program iptables-nft-restore"]);
        assert!(bad.iter().all(|one| one.level == level && one.why.ends_with(lost)), "{bad:#?}");
        let chosen = found.iter().find(|one| one.subject == "packet filter").expect("it is told");
        assert_eq!(chosen.what, "iptables, as --netfilter says: none of its programs is installed");
    };
    two(&[], Level::Fatal, ": no policies, no Services");
    two(&FIREWALL, Level::Fatal, ": no policies");
    two(&PROXY, Level::Fatal, ": no Services");
    two(&ROUTER, Level::Degraded, "and the router goes on");
}

#[test]
fn the_modules_of_iptables_matter_where_that_is_used() {
    let without = |facts: &mut Facts| modules(facts, ModuleState::Missing, &["xt_comment"]);
    check_ok(&[], without, "nftables");
    check(&["--netfilter=iptables"], without, Level::Fatal, &["kernel module xt_comment", "kernel-modules-extra"]);
}

#[test]
fn chains_of_others_that_drop_are_named_unless_the_agent_opens_them() {
    check_ok(
        &[],
        |facts| facts.packet_filter.dropping = vec![dropping("ip", "filter", "FORWARD")],
        "let packets of pods and Services pass",
    );
    check_ok(
        &[],
        |facts| facts.packet_filter.dropping = vec![dropping("ip", "filter", "INPUT")],
        "BGP itself (TCP port 179)",
    );
    let firewalld =
        |facts: &mut Facts| facts.packet_filter.dropping = vec![dropping("inet", "firewalld", "filter_FORWARD")];
    check(
        &[],
        firewalld,
        Level::Degraded,
        &["chain filter_FORWARD of table inet firewalld", "zone=trusted --add-interface=kube-bridge"],
    );
    let own = |facts: &mut Facts| facts.packet_filter.dropping = vec![dropping("inet", "site", "forward")];
    check(&FIREWALL, own, Level::Degraded, &["nft list table inet site"]);
    check(&[], |facts| facts.packet_filter.has_unreadable_tables = true, Level::Degraded, &["legacy iptables"]);
    check(
        &[],
        |facts| facts.packet_filter.unread = Some("EPERM".to_owned()),
        Level::Degraded,
        &["cannot be read: EPERM"],
    );
}

#[test]
fn another_program_matters_where_a_subsystem_here_does_the_same() {
    let chain = |name: &'static str| {
        move |facts: &mut Facts| {
            facts.packet_filter.chains.insert(name.to_owned());
        }
    };
    let device = |name: &'static str| {
        move |facts: &mut Facts| {
            facts.network.links.insert(name.to_owned());
        }
    };
    check(
        &[],
        chain("KUBE-SERVICES"),
        Level::Degraded,
        &["kube-proxy", "left over", "sluice --cleanup-kube-proxy", "--run-service-proxy=false"],
    );
    check(&[], device("kube-ipvs0"), Level::Degraded, &["kube-proxy", "device kube-ipvs0"]);
    let table = |facts: &mut Facts| {
        facts.packet_filter.tables.insert("kube-proxy".to_owned());
    };
    check(&PROXY, table, Level::Degraded, &["table kube-proxy"]);
    check_ok(&ROUTER, chain("KUBE-SERVICES"), "no subsystem that runs here does the same");
    check_ok(&FIREWALL, device("flannel.1"), "flannel: there are device flannel.1");
    check(&[], device("flannel.1"), Level::Degraded, &["flannel", "ip link delete flannel.1", "--run-router=false"]);
    check(
        &FIREWALL,
        chain("cali-FORWARD"),
        Level::Degraded,
        &["Calico", "both policy engines", "--run-firewall=false"],
    );
    check(
        &[],
        device("cilium_host"),
        Level::Degraded,
        &["Cilium", "--run-service-proxy=false --run-router=false --run-firewall=false"],
    );
    let runs = |facts: &mut Facts| {
        facts.network.processes.insert("kube-proxy".to_owned());
    };
    check(&[], runs, Level::Degraded, &["the process kube-proxy runs"]);
    check_ok(&[], chain("KUBE-ROUTER-SERVICES"), "no other proxy");
    check_ok(&[], |facts| facts.network.virtual_services = 3, "3 virtual services of another program");
}
