//! Configurations that are accepted or refused, and the words of the refusal.

use ipnet::IpNet;

use super::*;

fn proxy(words: &[&str]) -> ProxyConfig {
    config(words).proxy.expect("the proxy runs")
}

fn texts(prefixes: &[IpNet]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn periods_must_be_longer_than_zero() {
    let flags = [
        ("cache-sync-timeout", "1m"),
        ("config-sync-period", "1m"),
        ("injected-routes-sync-period", "1m"),
        ("iptables-sync-period", "5m"),
        ("ipvs-sync-period", "5m"),
        ("routes-sync-period", "5m"),
    ];
    for (flag, example) in flags {
        for (typed, meant) in [("0", "0s"), ("0s", "0s"), ("-1s", "-1s"), ("-90m", "-1h30m0s")] {
            let sentence = format!("--{flag} must be longer than 0s, for example {example}; it is {meant}.");
            check_mistakes(&[&format!("--{flag}={typed}")], &[&sentence]);
        }
        check_mistakes(&[&format!("--{flag}=1ns")], &[]);
    }
}

#[test]
fn all_services_are_listed_once_a_second_at_most() {
    for (typed, meant) in [("0", "0s"), ("1ms", "1ms"), ("999ms", "999ms"), ("-1m", "-1m0s")] {
        let sentence = format!("--loadbalancer-sync-period must be 1s or longer, for example 1m; it is {meant}.");
        check_mistakes(&[&format!("--loadbalancer-sync-period={typed}")], &[&sentence]);
    }
    check_mistakes(&["--loadbalancer-sync-period=1s"], &[]);
}

#[test]
fn durations_with_bounds_accept_both_bounds() {
    let flags = [
        ("bgp-holdtime", "3s", "65535s", "2.999s", "65536s", "3s to 18h12m15s"),
        ("bgp-mesh-holdtime", "3s", "65535s", "2.999s", "65536s", "3s to 18h12m15s"),
        ("bgp-graceful-restart-time", "1ns", "4095s", "0s", "4095.1s", "1ns to 1h8m15s"),
        ("bgp-graceful-restart-deferral-time", "1ns", "18h", "0s", "18h1ns", "1ns to 18h0m0s"),
    ];
    for (flag, shortest, longest, too_short, too_long, bounds) in flags {
        check_mistakes(&[&format!("--{flag}={shortest}"), &format!("--{flag}={longest}")], &[]);
        for typed in [too_short, too_long, "-1s"] {
            let meant: GoDuration = typed.parse().expect("a duration");
            let sentence = format!("--{flag} must be from {bounds}; it is {meant}.");
            check_mistakes(&[&format!("--{flag}={typed}")], &[&sentence]);
        }
    }
}

#[test]
fn numbers_with_bounds_accept_both_bounds() {
    let flags = [
        ("overlay-encap-port", 1024, 65535),
        ("overlay-vxlan-port", 1024, 65535),
        ("overlay-vxlan-id", 1, 16_777_215),
        ("overlay-wireguard-port", 1024, 65535),
        ("bgp-port", 1, 65535),
        ("bgp-mesh-max-prefixes", 1, 100_000_000),
        ("bfd-port", 1, 65535),
        ("bfd-detection-multiplier", 1, 255),
        ("bfd-desired-min-tx-interval", 1, 4294967),
        ("bfd-required-min-rx-interval", 1, 4294967),
    ];
    for (flag, smallest, largest) in flags {
        check_mistakes(&[&format!("--{flag}={smallest}")], &[]);
        check_mistakes(&[&format!("--{flag}={largest}")], &[]);
        let sentence = |typed: u64| format!("--{flag} must be a number from {smallest} to {largest}; it is {typed}.");
        check_mistakes(&[&format!("--{flag}={}", smallest - 1)], &[&sentence(smallest - 1)]);
        if largest != 65535 || !flag.starts_with("overlay-") {
            check_mistakes(&[&format!("--{flag}={}", largest + 1)], &[&sentence(largest + 1)]);
        }
    }
}

#[test]
fn words_are_out_of_their_few() {
    for accepted in [
        "--overlay-type=full",
        "--overlay-encap=fou",
        "--overlay-encap=vxlan",
        "--log-format=json",
        "--router-id=generate",
    ] {
        check_mistakes(&[accepted], &[]);
    }
    check_mistakes(&["--overlay-type=Full"], &["--overlay-type must be subnet or full; it is \"Full\"."]);
    check_mistakes(&["--overlay-type="], &["--overlay-type must be subnet or full; it is \"\"."]);
    assert_eq!(
        config(&["--run-router=true", "--overlay-encap=wireguard"]).router.and_then(|router| router.key_file),
        Some("/var/lib/sluice/wireguard.key".into())
    );
    check_mistakes(
        &["--overlay-encap=wireguard", "--state-dir="],
        &[
            "--overlay-encap=wireguard keeps this node's private key in the directory of --state-dir, which is empty: name one.",
        ],
    );
    check_mistakes(&["--overlay-wireguard-rotate-key=1h"], &[]);
    for short in ["59m0s", "-1h0m0s"] {
        let sentence = format!("--overlay-wireguard-rotate-key must be 0 or at least 1h; it is {short}.");
        check_mistakes(&[&format!("--overlay-wireguard-rotate-key={short}")], &[&sentence]);
    }
    check_mistakes(
        &["--overlay-encap=gre"],
        &["--overlay-encap must be ipip, fou, vxlan or wireguard; it is \"gre\"."],
    );
    assert_eq!(config(&["--log-format=json"]).log_format, LogFormat::Json);
}

#[test]
fn a_family_must_be_left_and_the_ranges_must_be_of_enabled_families() {
    assert_eq!(config(&["--enable-ipv6"]).families, PerFamily { v4: true, v6: true });
    check_mistakes(
        &["--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/108"],
        &[
            "--service-cluster-ip-range has fd00:10:96::/108, but IPv6 is off: remove that range or start with --enable-ipv6=true.",
        ],
    );
    for flag in ["service-external-ip-range", "loadbalancer-ip-range"] {
        let words = ["--enable-ipv4=false", "--enable-ipv6", &format!("--{flag}=203.0.113.0/24")];
        let sentence = format!(
            "--{flag} has 203.0.113.0/24, but IPv4 is off: remove that range or start with --enable-ipv4=true."
        );
        check_mistakes(&words, &[&sentence]);
    }
    check_mistakes(&["--excluded-cidrs=2001:db8::/32"], &[]);
}

#[test]
fn the_default_range_of_cluster_ips_goes_with_its_family() {
    let v6_alone = ["--enable-ipv4=false", "--enable-ipv6=true"];
    assert_eq!(texts(&proxy(&v6_alone).ranges.cluster_ips), "");
    check_mistakes(
        &["--enable-ipv4=false", "--enable-ipv6=true", "--service-cluster-ip-range=10.96.0.0/12"],
        &[
            "--service-cluster-ip-range has 10.96.0.0/12, but IPv4 is off: remove that range or start with --enable-ipv4=true.",
        ],
    );
    let typed = ["--enable-ipv4=false", "--enable-ipv6=true", "--service-cluster-ip-range=fd00:10:96::/108"];
    assert_eq!(texts(&proxy(&typed).ranges.cluster_ips), "fd00:10:96::/108");
}

#[test]
fn there_are_one_or_two_ranges_of_cluster_ips() {
    let sentence = "--service-cluster-ip-range must be one or two ranges, for example 10.96.0.0/12; it has";
    check_mistakes(&["--service-cluster-ip-range="], &[&format!("{sentence} 0.")]);
    check_mistakes(&["--service-cluster-ip-range=10.0.0.0/16,10.1.0.0/16,10.2.0.0/16"], &[&format!("{sentence} 3.")]);
    check_mistakes(&["--service-cluster-ip-range=10.0.0.0/16,10.1.0.0/16"], &[]);
}

#[test]
fn ranges_are_networks() {
    let config = proxy(&[
        "--enable-ipv6",
        "--excluded-cidrs=10.1.2.3/8, fd00::1/64",
        "--excluded-cidrs=203.0.113.7/32",
        "--service-external-ip-range=203.0.113.0/24",
        "--loadbalancer-ip-range=0.0.0.0/0,::/0",
    ]);
    assert_eq!(texts(&config.excluded_cidrs), "10.0.0.0/8 fd00::/64 203.0.113.7/32");
    assert_eq!(texts(&config.ranges.external_ips), "203.0.113.0/24");
    assert_eq!(texts(&config.ranges.load_balancer_ips), "0.0.0.0/0 ::/0");
    for flag in ["excluded-cidrs", "service-external-ip-range", "loadbalancer-ip-range", "service-cluster-ip-range"] {
        for typed in
            ["10.0.0.1", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "x", "010.0.0.0/8", "10.0.0.0/+8", "10.0.0.0/"]
        {
            let sentence = format!(
                "--{flag} must be ranges like 10.0.0.0/8 or fd00::/64 with commas between them; {typed:?} is none."
            );
            check_mistakes(&[&format!("--{flag}={typed}")], &[&sentence]);
        }
    }
}

#[test]
fn switches_of_the_service_proxy_arrive() {
    let all_other = proxy(&[
        "--ipvs-graceful-termination",
        "--ipvs-graceful-period=0",
        "--ipvs-permit-all=false",
        "--masquerade-all",
        "--nodeport-bindon-all-ip",
        "--strict-external-ip-validation=false",
        "--ipvs-sync-period=1m",
    ]);
    assert!(all_other.graceful_termination && all_other.masquerade_all && all_other.nodeport_bindon_all_ip);
    assert!(!all_other.guard && !all_other.ranges.strict);
    assert_eq!((all_other.sync_period, all_other.graceful_period), (Duration::from_secs(60), Duration::ZERO));
    check_mistakes(
        &["--ipvs-graceful-period=-1s"],
        &["--ipvs-graceful-period must be 0s or longer, for example 30s; it is -1s."],
    );
}

#[test]
fn timeouts_are_whole_seconds_that_the_kernel_can_count() {
    let timeouts = |words: &[&str]| {
        let config = proxy(words);
        (config.tcp_timeout, config.tcp_fin_timeout, config.udp_timeout)
    };
    let words = ["--service-tcp-timeout=15m", "--service-tcpfin-timeout=2m0.9s", "--service-udp-timeout=0"];
    assert_eq!(timeouts(&words), (Some(900), Some(120), None));
    assert_eq!(timeouts(&["--service-udp-timeout=2147483s"]), (None, None, Some(2_147_483)));
    for flag in ["service-tcp-timeout", "service-tcpfin-timeout", "service-udp-timeout"] {
        for (typed, meant) in [("-1s", "-1s"), ("999ms", "999ms"), ("2147484s", "596h31m24s")] {
            let sentence = format!("--{flag} must be 0s to keep the kernel's, or from 1s to 2147483s; it is {meant}.");
            check_mistakes(&[&format!("--{flag}={typed}")], &[&sentence]);
        }
    }
}

#[test]
fn node_ports_are_two_ports_in_rising_order() {
    for (typed, first, last) in [("30000-32767", 30000, 32767), ("1:65535", 1, 65535), ("0-1", 0, 1)] {
        let range = proxy(&[&format!("--service-node-port-range={typed}")]).service_node_port_range;
        assert_eq!(range, first..=last, "{typed}");
    }
    for typed in ["", "30000", "2-1", "1-1", "1-65536", "1-2-3", " 1-2", "+1-2", "-1-2", "a-b", "30000–32767"] {
        let sentence = format!(
            "--service-node-port-range must be two ports in rising order, for example 30000-32767; it is {typed:?}."
        );
        check_mistakes(&[&format!("--service-node-port-range={typed}")], &[&sentence]);
    }
}

#[test]
fn listeners_have_an_address_a_port_and_a_path() {
    let observe = |words: &[&str]| config(words).observe;
    let health = |words: &[&str]| observe(words).health.map(|address| address.to_string());
    assert_eq!(health(&["--health-addr=127.0.0.1"]), Some("127.0.0.1:20244".to_owned()));
    assert_eq!(health(&["--health-addr=localhost"]), Some("127.0.0.1:20244".to_owned()));
    assert_eq!(health(&["--health-addr=::1", "--health-port=1"]), Some("[::1]:1".to_owned()));
    assert_eq!(health(&["--health-addr=[::1]", "--health-port=65535"]), Some("[::1]:65535".to_owned()));
    assert_eq!(health(&["--health-port=0"]), None);
    let metrics = observe(&["--metrics-port=65535", "--metrics-path=/own/path"]).metrics.expect("65535 is a port");
    assert_eq!((metrics.address.to_string(), metrics.path), ("[::]:65535".to_owned(), "/own/path".to_owned()));
    for flag in ["health-addr", "metrics-addr"] {
        for typed in ["node-1", "127.0.0.1:80", "[::1", "127.1"] {
            let sentence = format!("--{flag} must be an IP address, or empty for all addresses; it is {typed:?}.");
            check_mistakes(&[&format!("--{flag}={typed}")], &[&sentence]);
        }
    }
    for typed in ["", "metrics", "/a b", "/a?b", "/ä"] {
        let sentence =
            format!("--metrics-path must be a path that begins with /, for example /metrics; it is {typed:?}.");
        check_mistakes(&[&format!("--metrics-path={typed}")], &[&sentence]);
    }
}

#[test]
fn two_listeners_cannot_share_an_address() {
    let sentence =
        "--health-port and --metrics-port are both 20244: give them different ports, or different addresses.";
    check_mistakes(&["--metrics-port=20244"], &[sentence]);
    check_mistakes(&["--metrics-port=20244", "--metrics-addr=127.0.0.1"], &[sentence]);
    let words = ["--metrics-port=20244", "--metrics-addr=127.0.0.1", "--health-addr=127.0.0.1"];
    check_mistakes(&words, &[sentence]);
    check_mistakes(&["--metrics-port=20244", "--metrics-addr=127.0.0.1", "--health-addr=127.0.0.2"], &[]);
    check_mistakes(&["--metrics-port=20244", "--health-port=0"], &[]);
}

#[test]
fn identifiers_and_addresses_of_the_speaker_are_addresses() {
    check_mistakes(&["--router-id=192.0.2.1", "--gobgp-admin-address=", "--gobgp-admin-port=0"], &[]);
    check_mistakes(&["--gobgp-admin-address=::1"], &[]);
    check_mistakes(
        &["--router-id=2001:db8::1"],
        &[
            "--router-id must have the form of an IPv4 address, for example 192.0.2.10, or be \"generate\"; it is \"2001:db8::1\".",
        ],
    );
    check_mistakes(
        &["--gobgp-admin-address=admin"],
        &["--gobgp-admin-address must be an IP address, for example 127.0.0.1; it is \"admin\"."],
    );
}

#[test]
fn the_cluster_comes_from_the_api_or_from_files() {
    let source = |words: &[&str]| config(words).source;
    let master = |typed: &str| match source(&[&format!("--master={typed}")]) {
        Source::Api { master, .. } => master.map(|uri| uri.to_string()),
        Source::Manifests(_) => None,
    };
    assert_eq!(master("https://192.0.2.10:6443"), Some("https://192.0.2.10:6443/".to_owned()));
    assert_eq!(master("http://192.0.2.10:8080/prefix"), Some("http://192.0.2.10:8080/prefix".to_owned()));
    assert_eq!(master("192.0.2.10:6443"), Some("https://192.0.2.10:6443/".to_owned()));
    assert_eq!(master("https://[2001:db8::1]:6443"), Some("https://[2001:db8::1]:6443/".to_owned()));
    let kubeconfig = Some("/etc/kubeconfig".into());
    assert_eq!(source(&["--kubeconfig=/etc/kubeconfig"]), Source::Api { kubeconfig, master: None });
    assert_eq!(source(&["--manifests=/etc/objects"]), Source::Manifests("/etc/objects".into()));
    for typed in ["ftp://192.0.2.10", "https://", "/path", "https://a b"] {
        let sentence = format!("--master must be a URL like https://192.0.2.10:6443; it is {typed:?}.");
        check_mistakes(&[&format!("--master={typed}")], &[&sentence]);
    }
    // Nothing of a name and a password.
    for typed in ["ftp://wizard:secret-word@192.0.2.10", "https//wizard:secret-word@192.0.2.10"] {
        let sentence = "--master must be a URL like https://192.0.2.10:6443; it is \"192.0.2.10\".";
        check_mistakes(&[&format!("--master={typed}")], &[sentence]);
    }
    check_mistakes(
        &["--manifests=d", "--kubeconfig=k", "--master=m"],
        &[
            "--manifests and --kubeconfig are both given: objects come from files or from the API, so remove one.",
            "--manifests and --master are both given: objects come from files or from the API, so remove one.",
        ],
    );
}

#[test]
fn the_local_socket_can_be_moved_or_left_out() {
    assert_eq!(config(&[]).socket, Some("/run/sluice/sluice.sock".into()));
    assert_eq!(config(&["--socket="]).socket, None);
    assert_eq!(config(&["--socket=/run/other.sock"]).socket, Some("/run/other.sock".into()));
}

#[test]
fn a_question_is_no_start() {
    let asked = ask(&["policy", "explain", "--from", "a/b", "--to=10.244.1.7:80/udp", "-o", "json"]);
    let Ok(Request::Ask(asked)) = asked else { panic!("{asked:?}") };
    let (from, to) = ("a/b".to_owned(), "10.244.1.7:80/udp".to_owned());
    let socket = "/run/sluice/sluice.sock".into();
    assert_eq!(asked, Ask::PolicyExplain { from, to, output: Output::Json, socket });
    let refused = ask(&["policy", "explain", "--from", "a/b"]).expect_err("one side is missing");
    assert!(refused.exit_code == 2 && refused.text.contains("--to"), "{refused:?}");
}

#[test]
fn the_state_directory_can_be_moved_or_left_out() {
    assert_eq!(config(&["--state-dir="]).state_dir, None);
    assert_eq!(config(&["--state-dir=/run/state"]).state_dir, Some("/run/state".into()));
}

#[test]
fn the_node_is_named_by_flag_then_variable_then_host() {
    let named = |flag: &str, variable: Option<&str>, host: &str| {
        let environment = Environment {
            node_name: variable.map(str::to_owned),
            host_name: host.to_owned(),
            ..Environment::default()
        };
        let flags = flags(&["--run-router=false", "--run-firewall=false", &format!("--hostname-override={flag}")]);
        Config::from_flags(&flags, 0, &environment).map(|config| config.node_name).map_err(|error| error.to_string())
    };
    assert_eq!(named("a", Some("b"), "c"), Ok("a".to_owned()));
    assert_eq!(named("", Some("b"), "c"), Ok("b".to_owned()));
    assert_eq!(named("", None, "c"), Ok("c".to_owned()));
    assert_eq!(named("", Some(""), "c"), Ok("c".to_owned()));
    assert_eq!(named("", Some(" Node-1.Example.Com\n"), ""), Ok("node-1.example.com".to_owned()));
    let refused = |origin: &str, typed: &str| {
        Err(format!(
            "{origin} cannot be a node's name, which has letters, digits, - and . only: \
             set --hostname-override to the name of this node; it is {typed:?}."
        ))
    };
    assert_eq!(named("a_b", None, "c"), refused("--hostname-override", "a_b"));
    assert_eq!(named("", Some("a/b"), "c"), refused("NODE_NAME", "a/b"));
    assert_eq!(named("", None, ""), refused("the name of this host", ""));
    assert_eq!(named("-a", None, ""), refused("--hostname-override", "-a"));
    assert_eq!(named("a.", None, ""), refused("--hostname-override", "a."));
    // What is removed from a host does not depend on it.
    for cleanup in ["--cleanup-config", "--cleanup-nftables", "--cleanup-kube-proxy"] {
        let environment = Environment { host_name: "a_b".to_owned(), ..Environment::default() };
        assert!(Config::from_flags(&flags(&[cleanup]), 0, &environment).is_ok(), "{cleanup}");
    }
    let long = "a".repeat(254);
    assert_eq!(named(&long, None, ""), refused("--hostname-override", &long));
}

#[test]
fn flags_of_the_earliest_versions_are_noticed_and_still_checked() {
    let notices = config(&["--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--config-sync-period=1m"]).notices;
    assert_eq!(
        notices,
        [
            "--cluster-cidr has no effect: pod ranges are read from the Node objects.",
            "--config-sync-period has no effect: changes arrive as they happen."
        ]
    );
    check_mistakes(
        &["--cluster-cidr=10.244.0.0"],
        &["--cluster-cidr must be a range like 10.244.0.0/16, or be removed; \"10.244.0.0\" is none."],
    );
}

#[test]
fn the_packet_filter_is_one_choice_for_all_subsystems() {
    let asked = |words: &[&str]| config(words).netfilter;
    assert_eq!((asked(&[]), asked(&["--netfilter=auto"])), (Netfilter::Auto, Netfilter::Auto));
    assert_eq!(asked(&["--netfilter=iptables"]), Netfilter::Iptables);
    assert_eq!(proxy(&[]).backend, Backend::Iptables, "until the host has been asked");
    check_mistakes(&["--netfilter=nft"], &["--netfilter must be auto, nftables or iptables; it is \"nft\"."]);
    let words = flags(&["--use-nftables-for-netpol", "--netfilter=iptables"]);
    let mut mistakes = Mistakes::default();
    let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
    let meant = Config::meant(&words, 0, &environment, &mut mistakes);
    let sentence = "--netfilter=iptables contradicts --use-nftables-for-netpol: remove one of them.";
    assert_eq!((meant.netfilter, mistakes.sentences()), (Netfilter::Nftables, &[sentence.to_owned()][..]));
    for asked in ["--use-nftables-for-netpol", "--netfilter=nftables"] {
        let meant = Config::meant(&flags(&[asked]), 0, &environment, &mut Mistakes::default());
        assert_eq!(meant.netfilter, Netfilter::Nftables);
        assert!(meant.router.is_some_and(|router| router.backend == Backend::Nftables));
        assert!(meant.proxy.is_some_and(|proxy| proxy.backend == Backend::Nftables));
        assert!(meant.firewall.is_some_and(|firewall| firewall.backend == Backend::Nftables));
        check_mistakes(&[asked], &[]);
    }
}

#[test]
fn a_report_names_every_value_of_the_configuration_and_no_secret() {
    let secret = "c2VjcmV0LXdvcmQ=";
    let words = flags(&[
        "--master=https://wizard:secret-word@192.0.2.10:6443/path?token=secret-word",
        "--peer-router-ips=192.0.2.20",
        "--peer-router-asns=64600",
        &format!("--peer-router-passwords={secret}"),
        "--cluster-asn=64512",
    ]);
    let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
    let mut mistakes = Mistakes::default();
    let told = Config::meant(&words, 0, &environment, &mut mistakes).told();
    assert!(mistakes.is_empty(), "{mistakes}");
    for word in ["https://192.0.2.10:6443/path", "192.0.2.20", "64600", "64512", "Secret(…)", "node-1"] {
        assert!(told.contains(word), "{word} in {told}");
    }
    for word in ["secret-word", secret, "wizard", "c2Vj", "115,\n"] {
        assert!(!told.contains(word), "{word} in {told}");
    }
}
