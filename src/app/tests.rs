use std::ffi::OsString;
use std::fs;

use super::*;
use crate::config::{Environment, Mistakes, Request, request};

#[tokio::test]
async fn nothing_is_said_to_be_ready_while_subsystems_are_still_being_started() {
    let config = ObserveConfig { health: Some(([127, 0, 0, 1], 0).into()), metrics: None };
    let health = Health::default();
    let main = listen(&config, &health, &Registry::new("1", "1")).await.expect("loopback has a free port");
    assert_eq!(health.unready(Instant::now()).len(), 1, "the listeners answer already");
    main.ready(true);
    assert!(health.unready(Instant::now()).is_empty());
}

#[test]
fn only_what_a_running_subsystem_needs_is_asked_for() {
    let words = ["sluice", "--run-router=false", "--run-firewall=false"].map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let environment =
        Environment { node_name: Some("node-1".to_owned()), host_name: "node-1".to_owned(), ..Environment::default() };
    let proxy = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
    let guarded = [Wanted::Services, Wanted::EndpointSlices, Wanted::ServiceCidrs];
    assert_eq!(wanted(&proxy), [&[Wanted::Node("node-1".into())][..], &guarded].concat());
    let words = ["sluice", "--run-router=false", "--run-firewall=false", "--ipvs-permit-all=false"].map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let proxy = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
    assert_eq!(wanted(&proxy), [Wanted::Node("node-1".into()), Wanted::Services, Wanted::EndpointSlices]);
    for flag in ["--strict-external-ip-validation=false", "--service-external-ip-range=203.0.113.0/24"] {
        let guard = "--ipvs-permit-all=false";
        let words = ["sluice", "--run-router=false", "--run-firewall=false", guard, flag].map(OsString::from);
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let proxy = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
        let mut all = vec![Wanted::Nodes, Wanted::Services, Wanted::EndpointSlices];
        // Where all are allowed, no range speaks against one.
        all.extend(flag.contains("range").then_some(Wanted::ServiceCidrs));
        assert_eq!(wanted(&proxy), all, "{flag}");
    }
    let words = ["sluice", "--run-router=false", "--run-service-proxy=false"].map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let firewall = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
    let policies = [Wanted::NetworkPolicies, Wanted::ClusterNetworkPolicies, Wanted::ServiceCidrs];
    assert_eq!(wanted(&firewall), [&[Wanted::Nodes, Wanted::Pods, Wanted::Namespaces][..], &policies].concat());
    let words = [
        "sluice",
        "--run-router=false",
        "--run-firewall=false",
        "--run-loadbalancer",
        "--run-service-proxy=false",
        "--loadbalancer-ip-range=203.0.113.0/24",
    ]
    .map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let allocator = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
    assert_eq!(wanted(&allocator), [Wanted::Nodes, Wanted::ServiceCidrs], "whose addresses no Service may have");
    let words = ["sluice", "--run-firewall=false", "--run-service-proxy=false"].map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let router = Config::meant(&flags, verbosity, &environment, &mut Mistakes::default());
    let all = [Wanted::Nodes, Wanted::Services, Wanted::EndpointSlices, Wanted::ServiceCidrs];
    assert_eq!(wanted(&router), all);
}

#[tokio::test]
async fn a_start_without_the_cni_plugin_forgets_what_was_announced_to_an_earlier_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let environment = Environment {
        host_name: "node-1".to_owned(),
        cni_file: Some(path("net.d/10-kuberouter.conflist")),
        ..Environment::default()
    };
    for (flag, stays) in [("--netpol-cni=true", true), ("--netpol-cni=false", false)] {
        fs::write(path("attachments.json"), "[]").expect("writable");
        let socket = format!("--socket={}", path("sluice.sock").display());
        let words = ["sluice", "--run-router=false", flag, &socket].map(OsString::from);
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let config = Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound");
        let started =
            start_cni(&config, &Registry::new("1", "1"), &Health::default(), mpsc::channel(1).0, mpsc::channel(1).0)
                .expect("it starts");
        assert_eq!((started.0.is_some(), path("attachments.json").exists()), (stays, stays), "{flag}");
    }
}
