//! Ways to find pods: the flags, the socket of the container runtime that comes later, and the list of Pods.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_socket_that_comes_later_is_found_and_one_that_was_there_is_waited_for_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("runtime.sock");
    let config =
        config_of(&[&format!("--runtime-endpoint=unix://{}", path.display()), "--enable-direct-server-return"]);
    let health = Health::default();
    let (host_out, host) = watch::channel(Arc::new(Host { node_name: "node1".into(), ..Host::default() }));
    // A file that is no socket is none.
    std::fs::write(&path, "").expect("writable");
    let mut awaited = awaited::with_awaited(&config, host.clone(), &health);
    assert!(awaited.borrow_and_update().runtime_awaited);
    assert_eq!(health.notes().len(), 1);
    assert!(health.notes()[0].text.contains("it is no socket"), "{:?}", health.notes());
    // Other facts pass.
    host_out.send_replace(Arc::new(Host { node_name: "node2".into(), ..Host::default() }));
    awaited.changed().await.expect("it is told");
    let newest = awaited.borrow_and_update().clone();
    assert_eq!((newest.runtime_awaited, newest.node_name.as_str()), (true, "node2"));
    std::fs::remove_file(&path).expect("it is there");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    awaited.changed().await.expect("it is told");
    assert!(!awaited.borrow_and_update().runtime_awaited);
    assert!(health.notes().is_empty());
    // A runtime that starts again.
    drop(listener);
    std::fs::remove_file(&path).expect("it is there");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!awaited.has_changed().expect("it goes on"));
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let there = awaited::with_awaited(&config, host, &health);
    assert!(!there.borrow().runtime_awaited && health.notes().is_empty(), "it is there from the start");
}

#[tokio::test(start_paused = true)]
async fn without_an_endpoint_any_usual_socket_is_awaited_and_with_the_cni_plugin_none() {
    let (health, on) = (Health::default(), "--enable-direct-server-return");
    let (_host_out, host) = watch::channel(Arc::new(Host::default()));
    let is_awaited = |words: &[&str]| with_awaited_of(&config_of(words), &host, &health);
    let has_any = crate::container_runtime::DEFAULT_SOCKETS.iter().any(|path| std::path::Path::new(path).exists());
    if !has_any {
        assert!(is_awaited(&[on]));
        let notes = health.notes();
        let text = &notes.first().expect("it is noted").text;
        assert!(
            text.contains("in a usual place (--runtime-endpoint names another): /run/containerd/containerd.sock: "),
            "{text}"
        );
        assert!(text.contains("/var/run/crio/crio.sock: "), "{text}");
    }
    let absent = "--runtime-endpoint=unix:///nowhere/runtime.sock";
    assert!(is_awaited(&[on, absent]));
    // The plugin tells where pods are.
    assert!(!is_awaited(&[on, absent, "--netpol-cni"]) && !is_awaited(&[on, "--netpol-cni"]));
}

fn with_awaited_of(config: &Config, host: &watch::Receiver<Arc<Host>>, health: &Health) -> bool {
    awaited::with_awaited(config, host.clone(), health).borrow().runtime_awaited
}

#[test]
fn nothing_is_wanted_of_pods_while_the_container_runtime_is_awaited() {
    let (mut joined, mut world) = (joined(), with_pod());
    let awaited = |is| Arc::new(Host { node_name: "node1".into(), runtime_awaited: is, ..Host::default() });
    world.host = awaited(true);
    assert_eq!(joined.wanted(&world, &Wanted::default()), None, "what an earlier run set up stays");
    assert!(joined.problems(&Standing::default()).is_empty());
    world.host = awaited(false);
    assert_eq!(joined.wanted(&world, &Wanted::default()).expect("now it is").tunnels.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_that_cannot_be_listed_are_said_where_a_service_needs_them() {
    let (world_out, world_in) = watch::channel(World::empty());
    let health = Health::default();
    let out = Out {
        wanted: watch::channel(Arc::default()).0,
        problems: watch::channel(ServiceProblems::default()).0,
        tunnel_ends: watch::channel(Arc::default()).0,
        note: health.note(PODS),
    };
    let (_standing, standing_in) = watch::channel(Arc::default());
    let _following = tokio::spawn(follow(joined(), world_in, standing_in, out));
    let told = async |dsr: bool, authority: Authority, seconds: u64| {
        let mut world = world(dsr);
        world.authority.firewall = authority;
        world_out.send_replace(world);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        health.notes().len()
    };
    assert_eq!(told(false, Authority::Nothing, 60).await, 0, "nobody needs them");
    assert_eq!(told(true, Authority::Nothing, 5).await, 0, "they may be on their way");
    assert_eq!(told(true, Authority::Nothing, 6).await, 1);
    assert!(health.notes()[0].text.contains("list and watch for pods"), "{:?}", health.notes());
    assert_eq!(told(true, Authority::Complete, 1).await, 0);
    assert_eq!(told(true, Authority::Nothing, 60).await, 1);
    assert_eq!(told(false, Authority::Nothing, 1).await, 0);
}

#[test]
fn tunnels_are_used_where_they_are_asked_for_and_nothing_drops_answers_from_a_service_address() {
    let (endpoint, on) = ("--runtime-endpoint=unix:///run/runtime.sock", "--enable-direct-server-return");
    for (words, serves, judges) in [
        (&[][..], false, false),
        (&[endpoint], false, false),
        // The usual places are tried.
        (&[on], true, true),
        (&[endpoint, on], true, true),
        (&[endpoint, on, "--netpol-cni", "--netpol-source-guard"], false, false),
        // Another node takes no packet with a service address as source from this one.
        (&[endpoint, on, "--overlay-encap=wireguard"], false, false),
        (&[endpoint, on, "--overlay-encap=wireguard", "--enable-overlay=false"], true, true),
        (&[endpoint, on, "--overlay-encap=vxlan"], true, true),
        // The service proxy may run in another process of the node.
        (&[endpoint, on, "--run-service-proxy=false"], false, true),
        (&[endpoint, on, "--run-firewall=false"], true, false),
    ] {
        let config = config_of(words);
        assert_eq!(settings(&config).is_some(), serves, "{words:?}");
        assert_eq!(config.proxy.is_some_and(|proxy| proxy.tunnel_mode), serves, "{words:?}");
        assert_eq!(config.firewall.is_some_and(|firewall| firewall.tunnel_mode), judges, "{words:?}");
    }
}
