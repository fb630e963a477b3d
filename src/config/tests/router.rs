//! Meaning of the router's flags.

use super::*;
use crate::config::DrainLabel;
use crate::net::{Family, NodeAnnotations, Password, Remote, RemoteAs};

/// The router's configuration, whether or not this build has a router.
fn router(words: &[&str]) -> RouterConfig {
    let mut mistakes = Mistakes::default();
    let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
    let config = Config::meant(&flags(words), 0, &environment, &mut mistakes);
    assert!(mistakes.is_empty(), "{words:?}: {mistakes}");
    config.router.expect("the router is on by default")
}

#[test]
fn without_flags_there_is_a_mesh_with_tunnels_between_subnets() {
    let config = router(&[]);
    assert_eq!(config.cni_file, Some("/etc/cni/net.d/10-kuberouter.conf".into()));
    assert!(config.auto_mtu && config.pod_egress && config.full_mesh && config.internal_peers);
    assert_eq!(config.node_routes, NodeRoutes::Bgp);
    assert_eq!(
        config.overlay,
        Some(Overlay { reach: Reach::Subnet, encapsulation: Encapsulation::Ipip, received: Received::default() })
    );
    assert_eq!((config.cluster_asn, config.router_id, config.port), (64512, RouterId::Address, 179));
    assert_eq!((config.hold_time, config.graceful_restart, config.multihop), (90, None, None));
    assert_eq!((config.peers.len(), config.passwords_file), (0, None));
    let only_pods = Advertise { pod_cidrs: true, cluster_ips: false, external_ips: false, load_balancer_ips: false };
    assert_eq!(config.advertise, only_pods);
    assert_eq!(config.admin, ["127.0.0.1:50051".parse().expect("a socket's address")]);
    assert_eq!((config.sync_period, config.routes_sync_period), (Duration::from_secs(300), Duration::from_secs(60)));
}

#[test]
fn every_flag_of_the_router_arrives() {
    let config = router(&[
        "--enable-cni=false",
        "--overlay-type=full",
        "--overlay-encap=fou",
        "--overlay-encap-port=6000",
        "--nodes-full-mesh=false",
        "--enable-ibgp=false",
        "--cluster-asn=4200000001",
        "--router-id=192.0.2.9",
        "--bgp-port=1179",
        "--bgp-holdtime=30s",
        "--bgp-graceful-restart",
        "--bgp-graceful-restart-time=500ms",
        "--peer-router-multihop-ttl=3",
        "--override-nexthop",
        "--advertise-pod-cidr=false",
        "--advertise-loadbalancer-ip",
    ]);
    assert_eq!(config.cni_file, None);
    let encapsulation = Encapsulation::Fou(Fou { port: 6000 });
    assert_eq!(config.overlay, Some(Overlay { reach: Reach::Full, encapsulation, received: Received::default() }));
    assert!(!config.full_mesh && !config.internal_peers && config.override_next_hop);
    assert_eq!((config.cluster_asn, config.port, config.hold_time), (4_200_000_001, 1179, 30));
    assert_eq!(config.router_id, RouterId::Is("192.0.2.9".parse().expect("an address")));
    let restart =
        GracefulRestart { seconds: 1, deferral: Duration::from_secs(360), long_lived: 0, notifications: false };
    assert_eq!(config.graceful_restart, Some(restart), "part of a second is a second: 0 would mean never");
    assert_eq!(config.multihop, Some(3));
    assert!(!config.advertise.pod_cidrs && config.advertise.load_balancer_ips);
    assert_eq!(router(&["--enable-overlay=false"]).overlay, None);
    assert_eq!(router(&["--peer-router-multihop-ttl=1"]).multihop, None, "one hop is what there is anyway");
}

#[test]
fn other_kinds_of_tunnels_are_received_beside_the_one_that_is_sent_by() {
    let overlay = |words: &[&str]| router(words).overlay.expect("there are tunnels");
    let kinds = |words: &[&str]| overlay(words).kinds().map(Encapsulation::name).collect::<Vec<_>>();
    assert_eq!(kinds(&["--overlay-encap-receive="]), ["ipip"]);
    assert_eq!(kinds(&["--overlay-encap-receive=wireguard, vxlan,vxlan"]), ["ipip", "vxlan", "wireguard"]);
    let repeated = ["--overlay-encap=vxlan", "--overlay-encap-receive=fou", "--overlay-encap-receive=ipip,wireguard"];
    assert_eq!(kinds(&repeated), ["vxlan", "ipip", "fou", "wireguard"]);
    let all = overlay(&repeated);
    assert_eq!(all.device_of_each_node(), Some(Encapsulation::Ipip), "it takes both");
    assert_eq!(
        (all.fou().map(|fou| fou.port), all.overhead(Family::V4), all.overhead(Family::V6)),
        (Some(5555), 60, 80)
    );
    let fou = overlay(&["--overlay-encap=fou", "--overlay-encap-receive=ipip"]);
    assert_eq!(fou.device_of_each_node(), Some(fou.encapsulation));
    assert!(router(&["--overlay-encap-receive=wireguard"]).key_file.is_some());
    check_mistakes(
        &["--overlay-encap-receive=ipip,gre"],
        &[
            "--overlay-encap-receive must be ipip, fou, vxlan or wireguard, with commas between them; \"gre\" is none.",
            "--overlay-encap-receive names what is received besides --overlay-encap, which is ipip already.",
        ],
    );
    check_mistakes(
        &["--enable-overlay=false", "--overlay-encap-receive=vxlan"],
        &["--overlay-encap-receive is about tunnels between nodes, which --enable-overlay=false switches off."],
    );
    check_mistakes(
        &["--overlay-encap=fou", "--overlay-encap-receive=vxlan", "--overlay-encap-port=4789"],
        &["--overlay-encap and --overlay-encap-receive need a UDP port for each kind of tunnels; 4789 is that of two."],
    );
    let beside = ["--overlay-encap=wireguard", "--overlay-encap-receive=vxlan", "--overlay-wireguard-port=4788"];
    check_mistakes(&beside, &[]);
    check_mistakes(
        &[&beside[..], &["--overlay-wireguard-rotate-key=720h"]].concat(),
        &[
            "--overlay-wireguard-rotate-key has nodes receive at the port beside that of wireguard too; 4789 is that of other tunnels.",
        ],
    );
    check_mistakes(
        &["--overlay-encap-receive=wireguard", "--state-dir="],
        &[
            "--overlay-encap-receive=wireguard keeps this node's private key in the directory of --state-dir, which is empty: name one.",
        ],
    );
}

#[test]
fn nodes_whose_objects_give_the_routes_answer_others_and_peer_with_nobody() {
    let config = router(&["--node-routes=api", "--enable-ibgp=true"]);
    assert_eq!((config.node_routes, config.internal_peers, config.answers_nodes), (NodeRoutes::Api, false, true));
    let config = router(&["--node-routes=api", "--enable-ibgp=false"]);
    assert_eq!((config.node_routes, config.internal_peers, config.answers_nodes), (NodeRoutes::Api, false, false));
    check_mistakes(&["--node-routes=kernel"], &["--node-routes must be bgp or api; it is \"kernel\"."]);
}

#[test]
fn the_address_of_the_node_is_detected_where_the_router_runs() {
    let checked = |words: &[&str]| config(&[&["--run-router"], words].concat());
    let of = |words: &[&str]| checked(words).node_address.map(|method| method.to_string());
    assert_eq!(of(&[]), None);
    assert_eq!(of(&["--node-ip-autodetect="]), None);
    assert_eq!(of(&["--node-ip-autodetect=interface=eth1,^bond0$"]).as_deref(), Some("interface=eth1,^bond0$"));
    let both = "can-reach=192.0.2.1,2001:db8::1";
    assert_eq!(of(&["--node-ip-autodetect", both]).as_deref(), Some(both));
    let without = ["--node-ip-autodetect=cidr=192.0.2.0/24", "--run-router=false"];
    assert_eq!(of(&without), None);
    assert_eq!(checked(&without).notices, ["--node-ip-autodetect has no effect: the router does not run."]);
    for (value, mistake) in [
        (
            "first-found",
            "--node-ip-autodetect: must be can-reach=ADDRESS, interface=REGEX, skip-interface=REGEX or cidr=LIST; it is \"first-found\".",
        ),
        ("cidr=eth0", "--node-ip-autodetect: cidr needs networks such as 192.0.2.0/24; \"eth0\" is none."),
    ] {
        check_mistakes(&[&format!("--node-ip-autodetect={value}")], &[mistake]);
    }
}

#[test]
fn a_drain_has_taints_a_label_and_a_delay() {
    let drain = router(&[]).drain;
    assert_eq!((drain.taints.len(), drain.delay), (0, Duration::from_secs(10)));
    let drain = router(&["--drain-taints=a,b=c:NoExecute", "--drain-taints=d:NoSchedule", "--drain-delay=1m"]).drain;
    let [a, b, d] = drain.taints.as_slice() else { panic!("three taints: {:?}", drain.taints) };
    assert!(a.names("a", "x", "NoSchedule") && !a.names("b", "x", "NoSchedule"));
    assert!(b.names("b", "c", "NoExecute") && !b.names("b", "c", "NoSchedule") && !b.names("b", "", "NoExecute"));
    assert!(d.names("d", "x", "NoSchedule") && !d.names("d", "x", "NoExecute"));
    assert_eq!(drain.delay, Duration::from_secs(60));
    let why = "--drain-taints must be taints like example.com/leaving, example.com/leaving=now or example.com/leaving:NoExecute \
               with commas between them; \"a:Never\" is none.";
    check_mistakes(&["--drain-taints=a:Never"], &[why]);
    check_mistakes(&["--drain-delay=2h"], &["--drain-delay must be from 0s to 1h0m0s; it is 2h0m0s."]);
    for (words, label) in [
        (&[][..], DrainLabel::Auto),
        (&["--drain-label=auto"], DrainLabel::Auto),
        (&["--drain-label=always"], DrainLabel::Always),
        (&["--drain-label=never"], DrainLabel::Never),
    ] {
        assert_eq!(router(words).drain.label, label, "{words:?}");
    }
    check_mistakes(&["--drain-label=no"], &["--drain-label must be auto, always or never; it is \"no\"."]);
}

#[test]
fn external_peers_are_put_together_from_their_lists() {
    let words = [
        "--peer-router-ips=203.0.113.1,2001:db8:113::2",
        "--peer-router-asns=65001,4200000001",
        "--peer-router-ports=179,1179",
        "--peer-router-passwords=,cGFzcw==",
        "--peer-router-passwords-file=/etc/peers",
    ];
    let config = router(&words);
    let [first, second] = config.peers.as_slice() else { panic!("two peers: {:?}", config.peers) };
    assert_eq!((first.asn, first.port, &first.password), (RemoteAs::Number(65001), Some(179), &Password::None));
    assert_eq!((second.asn, second.port), (RemoteAs::Number(4_200_000_001), Some(1179)));
    let Password::Key(secret) = &second.password else { panic!("a password: {:?}", second.password) };
    assert_eq!(secret.key(), b"pass");
    assert_eq!(config.passwords_file, None, "the flag wins over the file");
    let config = router(&[&words[..3], &words[4..]].concat());
    assert_eq!(config.passwords_file, Some("/etc/peers".into()));
    assert!(config.peers.iter().all(|peer| peer.password == Password::Unknown), "nobody has read the file yet");
    assert!(!format!("{:?}", router(&words)).contains("pass\""));
}

#[test]
fn the_management_api_always_listens_where_its_client_looks() {
    let listens = |words: &[&str]| router(words).admin.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(listens(&["--gobgp-admin-address=192.0.2.1"]), "192.0.2.1:50051 127.0.0.1:50051");
    assert_eq!(listens(&["--gobgp-admin-address=0.0.0.0", "--gobgp-admin-port=1"]), "0.0.0.0:1");
    assert_eq!(listens(&["--gobgp-admin-address=::1"]), "[::1]:50051");
    assert_eq!(listens(&["--gobgp-admin-address="]), "127.0.0.1:50051");
    assert_eq!(listens(&["--gobgp-admin-port=0"]), "");
}

#[test]
fn the_cni_file_is_where_the_surroundings_say() {
    let file = Some("/etc/cni/net.d/10-kuberouter.conflist".into());
    let environment = Environment { host_name: "node-1".to_owned(), cni_file: file.clone(), ..Environment::default() };
    let config = Config::meant(&flags(&[]), 0, &environment, &mut Mistakes::default());
    assert_eq!(config.router.and_then(|router| router.cni_file), file);
}

#[test]
fn long_lived_graceful_restart_goes_on_where_graceful_restart_ends() {
    let time = |words: &[&str]| router(words).graceful_restart.map(|restart| restart.long_lived);
    assert_eq!(time(&["--bgp-graceful-restart"]), Some(0));
    assert_eq!(time(&["--bgp-graceful-restart", "--bgp-llgr-time=1h0.9s"]), Some(3600));
    assert_eq!(time(&["--bgp-graceful-restart", "--bgp-llgr-time=500ms"]), Some(1));
    assert_eq!(time(&["--bgp-graceful-restart", "--bgp-llgr-time=16777215s"]), Some(16_777_215));
    check_mistakes(
        &["--bgp-llgr-time=1h"],
        &["--bgp-llgr-time goes on where graceful restart ends, so it needs --bgp-graceful-restart; that is off."],
    );
    check_mistakes(
        &["--bgp-graceful-restart", "--bgp-llgr-time=16777216s"],
        &["--bgp-llgr-time must be from 0s to 4660h20m15s; it is 4660h20m16s."],
    );
}

#[test]
fn places_of_passwords_do_not_depend_on_where_the_program_was_started() {
    let config = router(&["--peer-router-passwords-dir=/peers", "--bgp-mesh-password-file=/mesh"]);
    assert_eq!((config.passwords_dir, config.mesh_password_file), (Some("/peers".into()), Some("/mesh".into())));
    for flag in ["peer-router-passwords-dir", "bgp-mesh-password-file"] {
        check_mistakes(
            &[&format!("--{flag}=secrets")],
            &[&format!("--{flag} must be an absolute path, one that begins with /; it is \"secrets\".")],
        );
    }
}

#[test]
fn annotations_of_nodes_are_believed_unless_flags_say_less() {
    assert_eq!(config(&[]).node_annotations, NodeAnnotations::default());
    let names = ["--rr-server-nodes=Node-1, node-2", "--rr-server-nodes=node-3"];
    let found = config(&[&["--node-pod-cidr-annotations=false"][..], &names].concat()).node_annotations;
    let reflectors = ["node-1", "node-2", "node-3"].map(Into::into).into();
    assert_eq!(found, NodeAnnotations { pod_cidrs: false, reflectors: Some(reflectors) });
    let mistaken = |typed: &[&str], odd: &str| {
        let why = "--rr-server-nodes must be names of Nodes with commas between them, like node-1,node-2; ".to_owned();
        check_mistakes(typed, &[&format!("{why}{odd:?} is none.")]);
    };
    mistaken(&["--rr-server-nodes=node-1,,node-2"], "");
    assert_eq!(config(&["--rr-server-nodes="]).node_annotations, NodeAnnotations::default(), "its default");
    for odd in ["node-1 node-2", "node/node-1", "[node-1]"] {
        mistaken(&[&format!("--rr-server-nodes={odd}")], odd);
    }
}

#[test]
fn identifiers_and_passwords_have_their_limits() {
    check_mistakes(
        &["--router-id=0.0.0.0"],
        &[
            "--router-id must have the form of an IPv4 address, for example 192.0.2.10, or be \"generate\"; it is \"0.0.0.0\".",
        ],
    );
    let long = format!("--peer-router-passwords={}", "QUJD".repeat(27));
    check_mistakes(
        &["--peer-router-ips=203.0.113.1", "--peer-router-asns=64512", &long],
        &["--peer-router-passwords must be of 80 bytes at most; number 1 is longer."],
    );
}

#[test]
fn a_password_that_cannot_be_read_is_not_repeated() {
    let (sentence, code) = refused(&["--peer-router-passwords=hu\"sh"]);
    assert!(
        sentence.starts_with("--peer-router-passwords cannot be read: ") && !sentence.contains("sh\""),
        "{sentence}"
    );
    assert_eq!(code, 2);
}

#[test]
fn peers_may_be_behind_interfaces() {
    let peers =
        |words: &[&str]| router(words).peers.into_iter().map(|peer| (peer.remote, peer.asn)).collect::<Vec<_>>();
    let link = |name: &str| Remote::Link(name.into());
    assert_eq!(
        peers(&["--peer-router-interfaces=eth1,eth2=65001", "--peer-router-interfaces=eth3=external"]),
        [
            (link("eth1"), RemoteAs::External),
            (link("eth2"), RemoteAs::Number(65001)),
            (link("eth3"), RemoteAs::External)
        ]
    );
}
