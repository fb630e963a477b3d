//! Flags about pods on the node: the CNI plugin, the guard of sources, and the container runtime.

use super::*;

#[test]
fn pods_are_held_back_where_the_firewall_runs_and_by_a_list_of_plugins() {
    let on = ["--netpol-cni", "--run-firewall"];
    assert_eq!(config(&on).cni_socket, Some("/run/sluice/cni.sock".into()));
    assert_eq!(config(&["--run-firewall"]).cni_socket, None);
    assert_eq!(config(&[&on[..], &["--socket=/x/s.sock"]].concat()).cni_socket, Some("/x/cni.sock".into()));
    assert_eq!(config(&[&on[..], &["--cleanup-config"]].concat()).cni_socket, None);
    check_mistakes(
        &[&on[..], &["--socket="]].concat(),
        &["--netpol-cni needs a socket beside that of --socket, which is empty: leave --socket at its default, \
           /run/sluice/sluice.sock."],
    );
    let without_firewall = config(&["--netpol-cni"]);
    assert_eq!(without_firewall.cni_socket, None);
    assert_eq!(without_firewall.notices, ["--netpol-cni has no effect: the firewall does not run."]);
    let with_file = |file: Option<&str>| {
        let cni_file = file.map(Into::into);
        let cni_list = Some("/etc/cni/net.d/10-kuberouter.conflist".into());
        let host_name = "node-1".to_owned();
        let environment = Environment { host_name, cni_file, cni_list, ..Environment::default() };
        Config::from_flags(&flags(&["--netpol-cni"]), 0, &environment)
    };
    let router = with_file(Some("/etc/cni/net.d/10-x.conflist")).expect("a list").router.expect("it runs");
    assert_eq!(router.cni_plugin, Some("/run/sluice/cni.sock".into()));
    let found = |words: &[&str]| {
        let cni_list = Some("/etc/cni/net.d/10-kuberouter.conflist".into());
        let environment = Environment { host_name: "node-1".to_owned(), cni_list, ..Environment::default() };
        Config::from_flags(&flags(words), 0, &environment).expect("sound flags").router.expect("it runs").cni_file
    };
    assert_eq!(found(&[]), Some("/etc/cni/net.d/10-kuberouter.conflist".into()), "an earlier run has left it");
    assert_eq!(found(&["--enable-cni=false"]), None);
    let refused = with_file(None).expect_err("one plugin has nobody behind it").to_string();
    assert!(
        refused.starts_with("--netpol-cni needs a CNI file that is a list of plugins: set the variable"),
        "{refused}"
    );
}

#[test]
fn sources_are_guarded_where_the_plugin_tells_of_ports() {
    let on = ["--netpol-source-guard", "--netpol-cni", "--run-firewall"];
    assert!(config(&on).source_guard && !config(&["--netpol-cni", "--run-firewall"]).source_guard);
    assert!(!config(&[&on[..], &["--cleanup-config"]].concat()).source_guard);
    check_mistakes(
        &["--netpol-source-guard", "--run-firewall"],
        &[
            "--netpol-source-guard needs --netpol-cni, by which the agent hears of the ports and addresses of pods: add --netpol-cni, \
           or remove --netpol-source-guard.",
        ],
    );
    let notices = config(&["--netpol-source-guard", "--netpol-cni"]).notices;
    assert!(
        notices.contains(&"--netpol-source-guard has no effect: the firewall does not run.".to_owned()),
        "{notices:?}"
    );
}

#[test]
fn direct_server_return_is_asked_for_by_its_own_flag_alone() {
    let endpoint = "--runtime-endpoint=unix:///run/containerd/containerd.sock";
    assert!(config(&["--enable-direct-server-return", endpoint]).direct_server_return);
    assert!(!config(&[endpoint]).direct_server_return);
    // The container runtime is looked for in its usual places.
    let found = config(&["--enable-direct-server-return"]);
    assert!(found.direct_server_return && found.runtime_endpoint.is_none());
}

#[test]
fn the_container_runtime_is_a_socket() {
    check_mistakes(&["--runtime-endpoint=unix:///run/containerd/containerd.sock"], &[]);
    for typed in ["/run/containerd/containerd.sock", "unix://", "unix://run/x", "tcp://127.0.0.1:1"] {
        let sentence = format!(
            "--runtime-endpoint must be a socket like unix:///run/containerd/containerd.sock; it is {typed:?}."
        );
        check_mistakes(&[&format!("--runtime-endpoint={typed}")], &[&sentence]);
    }
}
