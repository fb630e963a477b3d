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
    let may_not = |module: &'static str| {
        move |facts: &mut Facts| {
            modules(facts, ModuleState::OnDisk, &[module]);
            facts.kernel.release = "6.18.2-talos".to_owned();
            facts.kernel.cannot_load = Some("this process may not load modules (CAP_SYS_MODULE)".to_owned());
        }
    };
    // Nobody but the agent asks for the second; the others the kernel asks for itself, which may come to nothing.
    for module in ["ip_vs", "br_netfilter", "dummy"] {
        let todo = format!("machine.kernel.modules, - name: {module}");
        check(&[], may_not(module), Level::Degraded, &[&format!("kernel module {module}:"), "CAP_SYS_MODULE", &todo]);
    }
    let sealed = |module: &'static str| {
        move |facts: &mut Facts| {
            modules(facts, ModuleState::OnDisk, &[module]);
            seal(facts);
        }
    };
    for (module, level) in [("ip_vs", Level::Fatal), ("dummy", Level::Fatal), ("veth", Level::Degraded)] {
        let todo = format!("write {module} into a file in the host's /etc/modules-load.d, and reboot");
        check(&[], sealed(module), level, &["nobody can load it", "kernel.modules_disabled", &todo]);
    }
    let unmounted = |facts: &mut Facts| {
        modules(facts, ModuleState::Unknown, &["ip_vs", "dummy"]);
        facts.kernel.cannot_load = Some("there is no /lib/modules/6.12".to_owned());
    };
    check(&[], unmounted, Level::Degraded, &["nothing says whether", "ip_vs, dummy", "mount the host's /lib/modules"]);
}

/// Nobody loads a module on this host any more.
fn seal(facts: &mut Facts) {
    facts.kernel.is_sealed = true;
    facts.kernel.cannot_load = Some("loading was switched off (kernel.modules_disabled)".to_owned());
}

/// The host forbids a module, which lies on its disk.
fn forbid(facts: &mut Facts, module: &'static str, is_ours: bool) {
    modules(facts, ModuleState::OnDisk, &[module]);
    let line = format!("install {module} /bin/false");
    let rule = Rule { file: "/etc/modprobe.d/hard.conf".into(), line, forbids: true };
    facts.kernel.forbidden = Forbidden { rules: vec![(module.to_owned(), rule)], is_ours };
}

#[test]
fn a_module_that_the_host_forbids_is_named_with_the_line_that_does() {
    let with = |module: &'static str, is_ours| move |facts: &mut Facts| forbid(facts, module, is_ours);
    let line = "/etc/modprobe.d/hard.conf forbids it (install";
    check(&[], with("ip_vs", true), Level::Fatal, &["kernel module ip_vs", line, "take that line away"]);
    check_ok(&[], with("ip_vs", false), "the agent loads it all the same");
    // The kernel loads these by the host's modprobe, whoever asks.
    check(&[], with("dummy", false), Level::Fatal, &["kernel module dummy", line]);
    check(&[], with("veth", false), Level::Degraded, &["kernel module veth", line]);
    check_ok(&FIREWALL, with("ip_vs", true), "nftables");
    // Who may not load it asks nobody else to do so against the host's will.
    let with_no_right = |facts: &mut Facts| {
        forbid(facts, "dummy", false);
        facts.kernel.cannot_load = Some("this process may not load modules (CAP_SYS_MODULE)".to_owned());
    };
    check(&[], with_no_right, Level::Fatal, &["kernel module dummy", line, "take that line away"]);
    let loaded = |facts: &mut Facts| {
        with("dummy", true)(facts);
        modules(facts, ModuleState::Present, &["dummy"]);
    };
    check_ok(&[], loaded, "loaded or compiled in");
}

#[test]
fn nftables_is_not_called_usable_where_a_module_of_it_does_not_come() {
    let untried = |facts: &mut Facts| {
        facts.packet_filter.nftables = Trial::NotTried;
        modules(facts, ModuleState::OnDisk, &["nft_fib_inet"]);
    };
    let forbidden = |facts: &mut Facts| {
        untried(facts);
        forbid(facts, "nft_fib_inet", false);
    };
    let with_no_right = |facts: &mut Facts| {
        forbidden(facts);
        facts.kernel.cannot_load = Some("this process may not load modules (CAP_SYS_MODULE)".to_owned());
    };
    let sealed = |facts: &mut Facts| {
        untried(facts);
        seal(facts);
    };
    check_ok(&[], untried, "nftables: the kernel has all modules that it needs");
    // The agent takes iptables where that works.
    let by_host = "(/etc/modprobe.d/hard.conf forbids nft_fib_inet (install nft_fib_inet /bin/false))";
    let instead = format!("iptables: the kernel refuses what nftables needs {by_host}");
    check_ok(&[], forbidden, &instead);
    check_ok(&[], with_no_right, &instead);
    check_ok(
        &[],
        sealed,
        "iptables: the kernel refuses what nftables needs (nobody can load the modules nft_fib_inet: ",
    );
    let nftables = ["--netfilter=nftables"];
    let said = ["--netfilter is nftables", by_host, "nft_fib_inet: take that line away"];
    check(&nftables, forbidden, Level::Fatal, &said);
    check(&nftables, with_no_right, Level::Fatal, &said);
    let at_boot = ["nobody can load the modules nft_fib_inet", "kernel.modules_disabled", "and reboot"];
    check(&nftables, sealed, Level::Fatal, &at_boot);
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
    // Pods that answer for themselves do so from any link: that of any pod, of which one that there was before may be strict.
    let all_off = |is_any_strict: bool| {
        move |facts: &mut Facts| {
            let all = Setting("net/ipv4/conf/all/rp_filter".into());
            facts.kernel.replaced_for_devices.extend(is_any_strict.then_some(all));
            with("net/ipv4/conf/all/rp_filter", "0")(facts);
        }
    };
    let tunnels = ["--enable-direct-server-return"];
    check(&tunnels, all_off(true), Level::Degraded, &["net.ipv4.conf.all.rp_filter", "has to be 2"]);
    check_ok(&tunnels, all_off(false), "settings");
    check_ok(&[], all_off(true), "settings");
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
    let of_both = |name: &&str| name.starts_with("ip_set") || name.ends_with("_REJECT");
    let without_sets = |words| named(words).into_iter().filter(|name| !of_both(name)).collect::<Vec<_>>();
    assert_eq!(without_sets(&[]), v4);
    assert_eq!(without_sets(&["--enable-ipv4=false", "--enable-ipv6"]), v6);
    assert_eq!(without_sets(&["--enable-ipv6"]), [v4, v6].concat());
}

#[test]
fn rules_of_iptables_need_the_modules_of_what_is_in_them() {
    let typed = |words: &[&'static str]| [&["--netfilter=iptables"][..], words].concat();
    let without = |name: &'static str| move |facts: &mut Facts| modules(facts, ModuleState::Missing, &[name]);
    for (words, name, level) in [
        (&FIREWALL[..], "xt_multiport", Level::Fatal),
        (&FIREWALL[..], "ipt_REJECT", Level::Fatal),
        (&PROXY[..], "ip_set_hash_ipportnet", Level::Fatal),
        (&PROXY[..], "xt_nat", Level::Fatal),
        (&PROXY[..], "ipt_REJECT", Level::Fatal),
        (&ROUTER[..], "ip_set_hash_net", Level::Degraded),
    ] {
        check(&typed(words), without(name), level, &[&format!("kernel module {name}:")]);
    }
    for (module, other) in [("xt_NFLOG", "nft_log"), ("xt_limit", "nft_limit")] {
        let neither = move |facts: &mut Facts| modules(facts, ModuleState::Missing, &[module, other]);
        check(
            &typed(&FIREWALL),
            neither,
            Level::Degraded,
            &[&format!("kernel module {module}:"), "nothing says which"],
        );
    }
    let ending = [&FIREWALL[..], &["--netpol-flush-established"]].concat();
    check(&typed(&ending), without("xt_connmark"), Level::Fatal, &["kernel module xt_connmark"]);
    let tunnels = [&PROXY[..], &["--enable-direct-server-return"]].concat();
    check(&typed(&tunnels), without("xt_TCPMSS"), Level::Degraded, &["kernel module xt_TCPMSS"]);
    for (words, name) in [
        (&FIREWALL[..], "xt_nat"),
        (&FIREWALL[..], "xt_connmark"),
        (&FIREWALL[..], "ip6t_REJECT"),
        (&PROXY[..], "xt_multiport"),
        (&PROXY[..], "xt_NFLOG"),
        (&ROUTER[..], "xt_addrtype"),
        (&ROUTER[..], "ipt_REJECT"),
    ] {
        check_ok(&typed(words), without(name), "iptables, as --netfilter says");
    }
    let both = modules::of_iptables(&config(&["--enable-ipv6"]), Some(Variant::NfTables));
    assert!(["ipt_REJECT", "ip6t_REJECT"].iter().all(|name| both.iter().any(|need| need.module == *name)), "{both:?}");
}

#[test]
fn a_module_by_its_former_name_is_as_good() {
    let words = [&ROUTER[..], &["--netfilter=iptables"]].concat();
    let earlier = |facts: &mut Facts| modules(facts, ModuleState::Missing, &["xt_MASQUERADE"]);
    check_ok(&words, earlier, "ipt_MASQUERADE");
    let logs = |facts: &mut Facts| modules(facts, ModuleState::Missing, &["xt_NFLOG", "xt_limit"]);
    check_ok(&["--netfilter=iptables"], logs, "nft_log");
    let neither = ["xt_MASQUERADE", "ipt_MASQUERADE", "ip6t_MASQUERADE"];
    let without = |facts: &mut Facts| modules(facts, ModuleState::Missing, &neither);
    check(&words, without, Level::Degraded, &["kernel module xt_MASQUERADE", "with this node's address"]);
    let unknown = |facts: &mut Facts| modules(facts, ModuleState::Unknown, &neither);
    check(&words, unknown, Level::Degraded, &["nothing says whether this kernel has xt_MASQUERADE"]);
}
