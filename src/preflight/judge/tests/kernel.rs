//! Findings about kernel modules and settings of the kernel.

use super::*;

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
fn a_module_that_the_host_forbids_is_named_with_the_line_that_does() {
    let with = |module: &'static str, is_ours| {
        move |facts: &mut Facts| {
            modules(facts, ModuleState::OnDisk, &[module]);
            let line = format!("install {module} /bin/false");
            let rule = Rule { file: "/etc/modprobe.d/hard.conf".into(), line, forbids: true };
            facts.kernel.forbidden = Forbidden { rules: vec![(module.to_owned(), rule)], is_ours };
        }
    };
    let line = "/etc/modprobe.d/hard.conf forbids it (install";
    check(&[], with("ip_vs", true), Level::Fatal, &["kernel module ip_vs", line, "take that line away"]);
    check_ok(&[], with("ip_vs", false), "the agent loads it all the same");
    // The kernel loads these by the host's modprobe, whoever asks.
    check(&[], with("dummy", false), Level::Fatal, &["kernel module dummy", line]);
    check(&[], with("veth", false), Level::Degraded, &["kernel module veth", line]);
    check(&FIREWALL, with("nft_fib_ipv4", false), Level::Fatal, &["kernel module nft_fib_ipv4", line, "nf_tables"]);
    check_ok(&FIREWALL, with("ip_vs", true), "nftables");
    let loaded = |facts: &mut Facts| {
        with("dummy", true)(facts);
        modules(facts, ModuleState::Present, &["dummy"]);
    };
    check_ok(&[], loaded, "loaded or compiled in");
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
fn of_every_module_that_may_be_needed_it_is_asked_whether_it_is_there() {
    let asked: Vec<&str> = modules::all().collect();
    let sent = ["ipip", "fou", "vxlan", "wireguard"].map(|kind| format!("--overlay-encap={kind}"));
    let received = ["fou", "vxlan", "wireguard"].map(|kind| format!("--overlay-encap-receive={kind}"));
    for overlay in sent.iter().chain(&received) {
        let config = config(&["--enable-ipv6", "--enable-direct-server-return", overlay]);
        let needed = modules::needs(&config);
        for variant in [Some(Variant::Legacy), Some(Variant::NfTables), None] {
            for need in needed.iter().chain(&modules::of_iptables(&config, variant)) {
                assert!(asked.contains(&need.module), "{overlay}: {}", need.module);
            }
        }
    }
}

#[test]
fn legacy_iptables_needs_the_modules_of_the_families_that_are_on() {
    let named = |words: &[&str]| -> Vec<&str> {
        let needed = modules::of_iptables(&config(words), Some(Variant::Legacy));
        needed.into_iter().map(|need| need.module).filter(|name| name.starts_with("ip")).collect()
    };
    let (v4, v6) = (
        ["ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle"],
        ["ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle"],
    );
    let of_both = |name: &&str| name.starts_with("ip_set");
    let without_sets = |words| named(words).into_iter().filter(|name| !of_both(name)).collect::<Vec<_>>();
    assert_eq!(without_sets(&[]), v4);
    assert_eq!(without_sets(&["--enable-ipv4=false", "--enable-ipv6"]), v6);
    assert_eq!(without_sets(&["--enable-ipv6"]), [v4, v6].concat());
}
