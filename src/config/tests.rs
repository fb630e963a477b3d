//! Tables of cases for the command line and the configuration.

use std::ffi::OsString;

use super::*;

mod checks;
mod completion;
mod contract;
mod load_balancer;
mod peers;
mod pods;
mod router;

/// Runs the whole way from words to a request; the name of the program is put in front.
fn ask(words: &[&str]) -> Result<Request, Refusal> {
    let words: Vec<OsString> = std::iter::once(&"sluice").chain(words).map(OsString::from).collect();
    request(&words)
}

/// The flags of a command line that must parse.
fn flags(words: &[&str]) -> Flags {
    match ask(words) {
        Ok(Request::Run { flags, .. }) => *flags,
        other => panic!("{words:?} must parse and run, but: {other:?}"),
    }
}

/// The first line printed when a command line is refused, and the exit code.
fn refused(words: &[&str]) -> (String, u8) {
    match ask(words) {
        Err(refusal) => (refusal.text.lines().next().unwrap_or_default().to_owned(), refusal.exit_code),
        other => panic!("{words:?} must be refused, but: {other:?}"),
    }
}

/// A configuration from the least that is needed, plus these words.
fn configured(words: &[&str]) -> Result<Config, Mistakes> {
    let environment = Environment { node_name: None, host_name: "node-1".to_owned(), ..Environment::default() };
    let words: Vec<&str> = ["--run-router=false", "--run-firewall=false"].iter().chain(words).copied().collect();
    Config::from_flags(&flags(&words), 0, &environment)
}

fn config(words: &[&str]) -> Config {
    configured(words).unwrap_or_else(|mistakes| panic!("{words:?} must be accepted, but: {mistakes}"))
}

/// Checks that these words lead to exactly these mistakes.
fn check_mistakes(words: &[&str], sentences: &[&str]) {
    let found = configured(words).err().unwrap_or_default();
    assert_eq!(found.sentences(), sentences, "{words:?}");
}

#[test]
fn a_switch_is_set_by_its_name_alone_or_by_a_value_behind_the_equals_sign() {
    assert!(flags(&["--masquerade-all"]).masquerade_all);
    assert!(!flags(&[]).masquerade_all);
    assert!(flags(&[]).run_router);
    for (value, meant) in [("1", true), ("T", true), ("True", true), ("0", false), ("f", false), ("FALSE", false)] {
        assert_eq!(flags(&[&format!("--run-router={value}")]).run_router, meant, "{value}");
    }
    assert_eq!(refused(&["--run-router=yes"]), ("--run-router cannot be \"yes\": it must be true or false.".into(), 2));
    assert_eq!(refused(&["--run-router="]).1, 2);
}

#[test]
fn a_word_behind_a_switch_is_a_stray_word_and_stray_words_are_refused() {
    let sentence =
        "\"false\" belongs to no flag: write --flag=value with the = sign, as in --run-router=false, and nothing else.";
    assert_eq!(refused(&["--run-router", "false"]), (sentence.into(), 1));
    assert_eq!(refused(&["--", "false"]), (sentence.into(), 1));
    assert_eq!(refused(&["false", "--help"]), (sentence.into(), 1));
    assert_eq!(refused(&["--", "--help"]).1, 1);
    assert_eq!(refused(&["-"]).1, 1);
}

#[test]
fn the_program_itself_may_be_the_first_word_as_in_commands_for_an_image_that_starts_it() {
    for program in ["/usr/local/bin/kube-router", "kube-router", "/usr/local/bin/sluice"] {
        assert!(flags(&[program, "--masquerade-all"]).masquerade_all, "{program}");
        assert!(matches!(ask(&[program, "svc"]), Ok(Request::Ask(_))), "{program}");
        assert_eq!(refused(&["--masquerade-all", program]).1, 1, "{program} is a stray word elsewhere");
        assert_eq!(refused(&[program, program]).1, 1, "once");
        assert_eq!(flags(&["--hostname-override", program]).hostname_override, program, "a value is a value");
    }
    assert_eq!(refused(&["/usr/local/bin/kube-router.sh"]).1, 1);
}

#[test]
fn other_flags_take_their_value_behind_the_equals_sign_or_as_the_next_word() {
    assert_eq!(flags(&["--bgp-port=1790"]).bgp_port, 1790);
    assert_eq!(flags(&["--bgp-port", "1790"]).bgp_port, 1790);
    assert_eq!(flags(&["--service-tcp-timeout", "-1s"]).service_tcp_timeout, "-1s".parse().expect("a duration"));
    assert_eq!(flags(&["--kubeconfig", "--run-router"]).kubeconfig, "--run-router");
    assert_eq!(flags(&["--kubeconfig=a=b"]).kubeconfig, "a=b");
    assert_eq!(flags(&["--router-id="]).router_id, "");
    assert_eq!(flags(&["--router-id", ""]).router_id, "");
    assert_eq!(refused(&["--bgp-port"]), ("--bgp-port needs a value.".into(), 2));
    assert_eq!(refused(&["--cluster-asn="]).1, 2);
}

#[test]
fn the_last_use_of_a_flag_counts() {
    assert_eq!(flags(&["--bgp-port=1", "--bgp-port=2"]).bgp_port, 2);
    assert!(!flags(&["--masquerade-all", "--masquerade-all=false"]).masquerade_all);
    assert_eq!(flags(&["-v1", "--v=3"]).verbosity, "3");
}

#[test]
fn lists_add_up_and_the_first_use_replaces_the_default() {
    let ranges = |words: &[&str]| {
        let ranges = config(words).proxy.expect("the proxy runs").ranges.cluster_ips;
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ranges(&[]), "10.96.0.0/12");
    assert_eq!(ranges(&["--service-cluster-ip-range=10.0.0.0/16"]), "10.0.0.0/16");
    let twice = ["--service-cluster-ip-range=10.0.0.0/16", "--service-cluster-ip-range", "10.1.0.0/16"];
    assert_eq!(ranges(&twice), "10.0.0.0/16 10.1.0.0/16");
    assert_eq!(ranges(&["--service-cluster-ip-range=\"10.0.0.0/16\",10.1.0.1/16"]), "10.0.0.0/16 10.1.0.0/16");
}

#[test]
fn empty_lists_are_accepted_where_go_accepts_them() {
    let words = ["--peer-router-ips=", "--peer-router-passwords=", "--excluded-cidrs=", "--peer-router-ips", ""];
    assert!(flags(&words).peer_router_ips.iter().all(|list| list.0.is_empty()));
    let sentence = "--peer-router-asns cannot be \"\": it must be decimal numbers with commas between them.";
    assert_eq!(refused(&["--peer-router-asns="]), (sentence.into(), 2));
}

#[test]
fn numbers_are_read_in_any_base_and_must_fit() {
    assert_eq!(flags(&["--cluster-asn=0xFBF0"]).cluster_asn, 64496);
    assert_eq!(flags(&["--health-port=0o17"]).health_port, 15);
    let sentence = "--health-port cannot be \"65536\": it must be a whole number from 0 to 65535.";
    assert_eq!(refused(&["--health-port=65536"]), (sentence.into(), 2));
    assert_eq!(refused(&["--health-port", "-1"]).1, 2);
    assert_eq!(refused(&["--peer-router-multihop-ttl=256"]).1, 2);
    assert_eq!(refused(&["--peer-router-asns=0x10"]).1, 2);
}

#[test]
fn a_bad_duration_is_a_bad_flag() {
    let sentence = "--ipvs-sync-period cannot be \"90\": a duration needs a unit, for example 90s or 5m.";
    assert_eq!(refused(&["--ipvs-sync-period=90"]), (sentence.into(), 2));
    assert_eq!(refused(&["--config-sync-period=1d"]).1, 2);
}

#[test]
fn an_unknown_flag_is_refused_and_a_similar_one_is_named() {
    assert_eq!(
        refused(&["--run-routers=false"]),
        ("--run-routers is not a flag of this program; --run-router is.".into(), 2)
    );
    assert_eq!(refused(&["--qqq"]), ("--qqq is not a flag of this program.".into(), 2));
    assert_eq!(refused(&["-x"]).1, 2);
    assert_eq!(refused(&["-run-router"]).1, 2, "long names need two dashes");
    assert_eq!(refused(&["--run-rout=false"]).1, 2, "names cannot be shortened");
    assert_eq!(refused(&["--no-run-router"]).1, 2);
}

#[test]
fn a_refused_flag_is_named_in_one_sentence_and_the_next_says_where_all_are() {
    let refusal = ask(&["--qqq"]).expect_err("unknown");
    let sentence = "--qqq is not a flag of this program.";
    assert_eq!(refusal.text, format!("{sentence}\nsluice --help lists all flags."));
}

#[test]
fn a_word_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let refusal =
        request(&["sluice".into(), OsString::from_vec(b"--kubeconfig=\xff".to_vec())]).expect_err("not UTF-8");
    assert_eq!(refusal.exit_code, 2);
}

#[test]
fn verbosity_has_three_forms_and_is_checked_before_everything_but_parsing() {
    let verbosity = |words: &[&str]| match ask(words) {
        Ok(Request::Run { verbosity, .. }) => verbosity,
        other => panic!("{words:?}: {other:?}"),
    };
    for words in [&["-v", "2"][..], &["-v=2"], &["-v2"], &["--v=2"], &["--v", "2"], &["-v", "+2"]] {
        assert_eq!(verbosity(words), 2, "{words:?}");
    }
    assert_eq!(verbosity(&[]), 0);
    assert_eq!(verbosity(&["-v=-1"]), 0);
    assert_eq!(verbosity(&["-v", "-1"]), 0);
    assert_eq!(verbosity(&["-v", "1000"]), 255);
    let sentence = "-v must be a whole number, for example -v 2; it is \"high\".";
    assert_eq!(refused(&["-v=high"]), (sentence.into(), 1));
    assert_eq!(refused(&["-v=high", "--help", "stray"]), (sentence.into(), 1));
    assert_eq!(refused(&["-v=high", "--qqq"]).1, 2);
}

#[test]
fn help_comes_before_version_and_both_before_the_configuration() {
    let printed = |words: &[&str]| match ask(words) {
        Ok(Request::Print(text)) => text,
        other => panic!("{words:?}: {other:?}"),
    };
    for words in
        [&["-h"][..], &["--help"], &["-hV"], &["--version", "--help"], &["--help=true"], &["-h", "-v3"], &["-hv3"]]
    {
        assert!(printed(words).starts_with("Usage of sluice:\n"), "{words:?}");
    }
    for words in [&["-V"][..], &["--version"], &["-V", "--help=false"]] {
        let text = printed(words);
        assert!(text.starts_with("sluice version ") && !text.contains('\n'), "{words:?}: {text}");
    }
    assert!(printed(&["-V", "--ipvs-sync-period=-1s"]).contains("version"));
}

#[test]
fn the_least_that_is_needed_is_accepted() {
    let config = config(&[]);
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.source, Source::Api { kubeconfig: None, master: None });
    assert_eq!(config.state_dir, Some("/var/lib/sluice".into()));
    assert_eq!(config.cache_sync_timeout, Duration::from_secs(60));
    assert_eq!(config.families, PerFamily { v4: true, v6: false });
    assert_eq!(config.observe.health, Some("[::]:20244".parse().expect("an address")));
    assert_eq!(config.observe.metrics, None);
    assert_eq!(config.log_format, LogFormat::Text);
    assert!(config.cleanup.is_none() && !config.runs_nothing() && config.notices.is_empty());
    let proxy = config.proxy.expect("the proxy runs");
    assert_eq!(proxy.sync_period, Duration::from_secs(300));
    assert_eq!(proxy.graceful_period, Duration::from_secs(30));
    assert!(proxy.guard && proxy.ranges.strict);
    assert!(!proxy.graceful_termination && !proxy.masquerade_all && !proxy.nodeport_bindon_all_ip);
    assert_eq!((proxy.tcp_timeout, proxy.tcp_fin_timeout, proxy.udp_timeout), (None, None, None));
    assert_eq!(proxy.service_node_port_range, 30000..=32767);
}

#[test]
fn bfd_is_for_the_peers_of_flags_or_for_the_mesh() {
    let router = |words: &[&str]| config(&[words, &["--run-router"]].concat()).router.expect("it runs");
    let peers = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"];
    let times =
        ["--bfd-detection-multiplier=5", "--bfd-desired-min-tx-interval=300", "--bfd-required-min-rx-interval=200"];
    let with = |more: &[&str]| {
        let router = router(&[&peers[..], &times[..], more].concat());
        (router.peers[0].bfd, router.bfd_mesh)
    };
    let bfd = crate::net::Bfd { port: 3784, multiplier: 5, send: 300, receive: 200 };
    assert_eq!(with(&[]), (None, None));
    assert_eq!(with(&["--enable-bfd"]), (Some(bfd), None));
    assert_eq!(with(&["--enable-bfd-mesh"]), (None, Some(bfd)));
    assert_eq!(config(&["--enable-bfd", "--bfd-port=1234"]).notices, Vec::<String>::new());
}

#[test]
fn the_allocator_of_addresses_needs_ranges() {
    let mistakes = configured(&["--run-loadbalancer"]).expect_err("it has nothing to give");
    assert!(mistakes.to_string().starts_with("--run-loadbalancer needs ranges that addresses come from"), "{mistakes}");
    let range = "--loadbalancer-ip-range=203.0.113.0/24";
    let of_files = config(&["--run-loadbalancer", range, "--manifests=/x"]);
    assert!(of_files.load_balancer.is_some(), "addresses are given in memory");
    let with =
        config(&["--run-loadbalancer", range, "--loadbalancer-default-class=false", "--loadbalancer-sync-period=2m"]);
    let allocator = with.load_balancer.expect("it runs");
    assert_eq!((allocator.namespace.as_str(), allocator.identity.as_str()), ("kube-system", "node-1"));
    assert_eq!((allocator.takes_default_class, allocator.sync_period), (false, Duration::from_secs(120)));
    assert_eq!((allocator.ranges.load_balancer_ips.len(), with.notices), (1, Vec::new()));
    assert!(config(&[range]).load_balancer.is_none());
}

#[test]
fn a_flag_that_does_nothing_is_told_with_its_reason_and_ends_nothing() {
    for (typed, reason) in [
        ("--loadbalancer-default-class=false", "the address allocator does not run"),
        ("--loadbalancer-sync-period=2m", "the address allocator does not run"),
        ("--bfd-port=1234", "neither --enable-bfd nor --enable-bfd-mesh is on"),
        ("--bfd-detection-multiplier=5", "neither --enable-bfd nor --enable-bfd-mesh is on"),
        ("--bfd-desired-min-tx-interval=300", "neither --enable-bfd nor --enable-bfd-mesh is on"),
        ("--bfd-required-min-rx-interval=300", "neither --enable-bfd nor --enable-bfd-mesh is on"),
        ("--enable-pprof=true", "this build has no profiler"),
        ("--cluster-cidr=10.244.0.0/16", "pod ranges are read from the Node objects"),
        ("--config-sync-period=5m", "changes arrive as they happen"),
    ] {
        let flag = typed.split('=').next().expect("a flag");
        assert_eq!(config(&[typed]).notices, [format!("{flag} has no effect: {reason}.")]);
    }
    let announces =
        ["--run-router", "--run-service-proxy=false", "--advertise-external-ip", "--advertise-loadbalancer-ip"];
    let lacks = |flag: &str, range: &str| {
        format!("--{flag} has no effect: no address is in a range of --{range}, which names none.")
    };
    let external = lacks("advertise-external-ip", "service-external-ip-range");
    let load_balancer = lacks("advertise-loadbalancer-ip", "loadbalancer-ip-range");
    assert_eq!(config(&announces).notices, [external.clone(), load_balancer]);
    let with = |typed: &[&str]| config(&[&announces[..], typed].concat()).notices;
    assert_eq!(with(&["--loadbalancer-ip-range=192.0.2.0/24"]), [external]);
    assert_eq!(with(&["--strict-external-ip-validation=false"]), [""; 0]);
    let without_proxy = config(&["--hairpin-mode", "--run-service-proxy=false"]);
    assert_eq!(without_proxy.notices, ["--hairpin-mode has no effect: the service proxy does not run."]);
    let endpoint = "--runtime-endpoint=unix:///run/containerd/containerd.sock";
    let needs = "--runtime-endpoint has no effect: direct server return needs --enable-direct-server-return, and the service proxy or the firewall.";
    let on = "--enable-direct-server-return";
    assert_eq!(config(&[endpoint]).notices, [needs]);
    let without_proxy = "--run-service-proxy=false";
    assert_eq!(config(&[endpoint, on, without_proxy]).notices, [needs]);
    let judges = config(&[endpoint, on, without_proxy, "--run-firewall"]).notices;
    assert_eq!(judges, [""; 0], "the firewall judges what another process serves");
    assert_eq!(config(&[endpoint, on]).notices, [""; 0]);
    let guarded = ["--run-firewall", "--netpol-cni", "--netpol-source-guard"];
    let off = "--enable-direct-server-return has no effect: --netpol-source-guard drops what pods send with a service address, so Services with kube-router.io/service.dsr are served with NAT.";
    assert_eq!(config(&[&[endpoint, on], &guarded[..]].concat()).notices, [off]);
    assert_eq!(config(&guarded).notices, [""; 0]);
    let encrypted = "--overlay-encap=wireguard";
    let off = "--enable-direct-server-return has no effect: with --overlay-encap=wireguard a node takes from another one what that node's own addresses and pods send, and an answer comes from a service \
               address, so Services with kube-router.io/service.dsr are served with NAT.";
    assert_eq!(config(&[endpoint, on, encrypted]).notices, [off]);
    assert_eq!(config(&[endpoint, on, encrypted, "--enable-overlay=false"]).notices, [""; 0]);
    assert_eq!(config(&[encrypted]).notices, [""; 0]);
    assert_eq!(config(&["--hairpin-mode"]).notices, [""; 0], "every pod reaches itself anyway");
}

#[test]
fn the_firewall_runs_by_default_with_the_ranges_of_services() {
    let environment = Environment { node_name: None, host_name: "node-1".to_owned(), ..Environment::default() };
    let words = ["--run-router=false", "--service-external-ip-range=203.0.113.0/24", "--netpol-default-deny"];
    let config = Config::from_flags(&flags(&words), 0, &environment).expect("the flags are sound");
    let firewall = config.firewall.expect("the firewall runs");
    assert!(firewall.default_deny);
    assert_eq!(firewall.sync_period, Duration::from_secs(300));
    assert_eq!(firewall.ranges.cluster_ips, ["10.96.0.0/12".parse().expect("a range")]);
    assert_eq!(firewall.ranges.external_ips, ["203.0.113.0/24".parse().expect("a range")]);
    assert!(firewall.ranges.load_balancer_ips.is_empty());
    assert_eq!(firewall.service_node_port_range, 30000..=32767);
    assert_eq!(self::config(&[]).firewall, None);
}

#[test]
fn cleaning_up_needs_no_word_about_subsystems() {
    let environment = Environment { node_name: None, host_name: "node-1".to_owned(), ..Environment::default() };
    for (words, cleanup) in [
        (&["--cleanup-config"][..], Cleanup::Everything),
        (&["--cleanup-nftables"], Cleanup::Tables),
        (&["--cleanup-nftables", "--cleanup-config"], Cleanup::Everything),
        (&["--cleanup-kube-proxy", "--run-service-proxy=false"], Cleanup::KubeProxy),
    ] {
        let config = Config::from_flags(&flags(words), 0, &environment).expect("cleanup is possible");
        assert!(config.cleanup == Some(cleanup) && !config.runs_nothing());
    }
}

#[test]
fn what_is_ours_and_what_is_kube_proxys_are_not_cleaned_up_by_one_command() {
    for other in ["--cleanup-config", "--cleanup-nftables"] {
        check_mistakes(
            &["--cleanup-kube-proxy", other],
            &[
                "--cleanup-kube-proxy removes what kube-proxy left, and --cleanup-config and --cleanup-nftables what this program made: run them one after the other.",
            ],
        );
    }
}

#[test]
fn nothing_to_run_is_told_apart() {
    assert!(config(&["--run-service-proxy=false"]).runs_nothing());
}

#[test]
fn all_mistakes_are_collected() {
    check_mistakes(
        &["--ipvs-sync-period=-1s", "--overlay-type=half", "--enable-ipv4=false", "--log-format=xml"],
        &[
            "--enable-ipv4 and --enable-ipv6 are both off: start with at least one of them, for example --enable-ipv4=true.",
            "--ipvs-sync-period must be longer than 0s, for example 5m; it is -1s.",
            "--overlay-type must be subnet or full; it is \"half\".",
            "--log-format must be text or json; it is \"xml\".",
        ],
    );
}

#[test]
fn odd_forms_are_read_as_go_reads_them() {
    let ends = |words: &[&str]| match ask(words) {
        Ok(Request::Run { .. }) => 255,
        Ok(Request::Ask(_) | Request::Print(_) | Request::Write(_) | Request::Preflight { .. }) => 0,
        Err(refusal) => refusal.exit_code,
    };
    let cases: [(&[&str], u8); 19] = [
        (&["-h=false"], 255),
        (&["-h=true"], 0),
        (&["-hV"], 0),
        (&["-Vh"], 0),
        (&["-hx"], 2),
        (&["-V2"], 2),
        (&["-h2"], 2),
        (&["-vV"], 1),
        (&["-v"], 2),
        (&["--v"], 2),
        (&["-v="], 1),
        (&["--help=maybe"], 2),
        (&["---help"], 2),
        (&["--=x"], 2),
        (&["--run-router=true=false"], 2),
        (&["-5"], 2),
        (&["--RUN-ROUTER"], 2),
        (&["--run_router"], 2),
        (&["--"], 255),
    ];
    for (words, exit_code) in cases {
        assert_eq!(ends(words), exit_code, "{words:?}");
    }
    assert_eq!(flags(&["--kubeconfig", "--", "--master=m"]).kubeconfig, "--");
    assert_eq!(flags(&["--kubeconfig", "--", "--master=m"]).master, "m");
}

proptest::proptest! {
    #[test]
    fn any_words_end_in_a_configuration_or_in_sentences(
        typed in proptest::collection::vec((0_usize..90, 0_usize..24, "[-a-z0-9.:/,\"= ]{0,12}"), 0..6)
    ) {
        let names: Vec<String> = usage("sluice").lines().skip(1).filter_map(flag_name).collect();
        let values = ["", "0", "-1s", "1h", "true", "10.0.0.0/8", "::/0", "65535", "\"", ",,", "192.0.2.1", "unix:///x"];
        let words: Vec<String> = typed.iter().map(|(flag, value, random)| {
            let value = values.get(*value).copied().unwrap_or(random);
            names.get(*flag).map_or(random.clone(), |name| format!("--{name}={value}"))
        }).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Ok(Request::Run { flags, verbosity }) = ask(&words) {
            let outcome = Config::from_flags(&flags, verbosity, &Environment::default());
            let mistakes = outcome.err().unwrap_or_default();
            proptest::prop_assert!(mistakes.sentences().iter().all(|text| text.ends_with('.') && !text.contains('\n')));
        }
    }
}

/// The long name in a line of the usage text.
fn flag_name(line: &str) -> Option<String> {
    line.split_once("--")?.1.split(' ').next().map(str::to_owned)
}
