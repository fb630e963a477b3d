//! Findings about the process: its rights, files that it reads and writes, and what direct server return needs.

use super::*;

fn directory_of(facts: &mut Facts, purpose: Purpose) -> &mut Directory {
    facts.files.directories.iter_mut().find(|one| one.purpose == purpose).expect("it is there")
}

#[test]
fn a_directory_that_cannot_be_written_matters_by_its_purpose() {
    let with = |purpose| {
        move |facts: &mut Facts| {
            directory_of(facts, purpose).obstacle = Some("Read-only file system".to_owned());
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
fn folders_that_an_image_brings_are_not_the_hosts() {
    let with = |purpose| move |facts: &mut Facts| directory_of(facts, purpose).passing = Some(Passing::WithContainer);
    let cni = ["directory /etc/cni/net.d: it is the container's own, and not the host's", "mount the host's"];
    check(&[], with(Purpose::Cni), Level::Fatal, &cni);
    let sockets = ["directory /run/sluice: it is the container's own", "no pod starts (--netpol-cni)"];
    check(&["--netpol-cni", "--enable-cni=false"], with(Purpose::Sockets), Level::Fatal, &sockets);
    // Who asks in the same container needs no folder of the host.
    check_ok(&[], with(Purpose::Sockets), "directory /run/sluice: it can be written");
}

#[test]
fn a_state_directory_that_goes_with_the_pod_matters_where_a_private_key_is_in_it() {
    let with = |purpose: Purpose, passing: Passing| {
        move |facts: &mut Facts| {
            directory_of(facts, purpose).passing = Some(passing);
            modules(facts, ModuleState::Present, &["wireguard"]);
        }
    };
    for words in [&["--overlay-encap=wireguard"][..], &["--overlay-encap-receive=wireguard"]] {
        let in_container = with(Purpose::State, Passing::WithContainer);
        check(
            words,
            in_container,
            Level::Degraded,
            &["/var/lib/sluice: it does not last", "overlayfs", "another private key", "mount a directory"],
        );
        check(words, with(Purpose::State, Passing::Memory), Level::Degraded, &["tmpfs", "upgrade of the agent"]);
        // Sockets belong into memory.
        let in_memory = found(words, with(Purpose::Sockets, Passing::Memory));
        assert!(in_memory.iter().all(|finding| !finding.what.contains("does not last")), "{in_memory:#?}");
    }
    for words in [&[][..], &PROXY] {
        let told =
            "directory /var/lib/sluice: it can be written, and does not last (it is part of the root file system";
        check_ok(words, with(Purpose::State, Passing::WithContainer), told);
        let on_a_disk = found(words, |_| {});
        assert!(on_a_disk.iter().all(|finding| !finding.what.contains("does not last")), "{on_a_disk:#?}");
    }
    let unwritable = |facts: &mut Facts| {
        with(Purpose::State, Passing::WithContainer)(facts);
        directory_of(facts, Purpose::State).obstacle = Some("Read-only file system".to_owned());
    };
    check(&["--overlay-encap=wireguard"], unwritable, Level::Degraded, &["cannot be written: Read-only file system"]);
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
    let older = |facts: &mut Facts| {
        facts.files.preferred_cni_file = Some(PathBuf::from("/etc/cni/net.d/10-kuberouter.conf"));
        facts.files.is_older_form = true;
    };
    check_ok(&[], older, "CNI file /etc/cni/net.d/10-kuberouter.conf: it is the agent's, in its other form");
    let text = |text: &'static str| move |facts: &mut Facts| facts.files.cni_text = Some(Ok(text.to_owned()));
    check(&[], text("no JSON"), Level::Degraded, &["CNI file /etc/cni/net.d/10-kuberouter.conf", "not JSON"]);
    check_ok(&[], text(r#"{"type":"ptp"}"#), "it uses another bridge");
    check_ok(&[], text(" "), "it is empty, and the agent writes it anew");
    let other_ipam = r#"{"type":"bridge","bridge":"kube-bridge","ipam":{"type":"dhcp"}}"#;
    check(&[], text(other_ipam), Level::Degraded, &[r#"its ipam is of type "dhcp" and not host-local"#]);
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
