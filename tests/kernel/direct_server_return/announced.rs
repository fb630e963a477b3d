//! A pod that the CNI plugin's word alone leads to: no container runtime answers on either node, and its network namespace has no name in
//! `/run/netns`.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::*;

/// A pod's network as a CNI plugin makes it, kept at a place of the test's own.
fn pod_kept_at(place: &Path) {
    run("ip link add pods type bridge");
    run("ip link set pods up");
    run("ip netns add web");
    run("ip -n web link set lo up");
    run("ip link add web-port master pods type veth peer name eth0 netns web");
    run("ip link set web-port up");
    run("ip -n web link set eth0 up");
    for (address, gateway, length) in [(ADDRESS, "10.244.1.1", 24), (ADDRESS_V6, "fd00:10:244:1::1", 64)] {
        run(&format!("ip address add {gateway}/{length} dev pods{}", nodad(gateway)));
        run(&format!("ip -n web address add {address}/{length} dev eth0{}", nodad(address)));
        run(&format!("ip -n web route add default via {gateway}"));
    }
    fs::write(place, "").expect("writable");
    run(&format!("mount --bind /run/netns/web {}", place.display()));
    run("umount /run/netns/web");
    fs::remove_file("/run/netns/web").expect("nothing is mounted there any more");
}

/// Calls the plugin for a pod that starts, as a container runtime does behind the others of its list; returns whether it succeeded and its answer.
fn called(nodes: &Nodes, place: &Path) -> (bool, String) {
    let input = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "sluice-cni", "socket": nodes.path("cni.sock"), "timeoutMs": 25_000,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": place}],
            "ips": [{"address": format!("{ADDRESS}/24"), "interface": 0}, {"address": format!("{ADDRESS_V6}/64"), "interface": 0}],
        },
    });
    let mut plugin = Command::new(nodes.path("sluice-cni"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "sandbox-web")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", place)
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    plugin.stdin.take().expect("a pipe").write_all(Value::to_string(&input).as_bytes()).expect("it reads");
    let output = plugin.wait_with_output().expect("it is ours");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts an agent that asks no container runtime, and is told of pods by the plugin.
fn start(nodes: &mut Nodes, number: usize) {
    let name = format!("node{}", number + 1);
    let replaced = ["--runtime-endpoint=", "--socket="];
    let mut flags = nodes.flags(number, SOCKET);
    flags.retain(|flag| !replaced.iter().any(|start| flag.starts_with(start)));
    // The socket for the plugin lies beside the other one.
    let socket = if number == POD_NODE { format!("{name}.sock") } else { format!("{name}/{name}.sock") };
    flags.extend(["--netpol-cni".to_owned(), format!("--socket={}", nodes.path(&socket).display())]);
    let log = File::options().create(true).append(true).open(nodes.log_of(number)).expect("writable");
    let mut command = if number == POD_NODE {
        Command::new(PROGRAM)
    } else {
        let mut command = Command::new("ip");
        let own = "mount -t tmpfs netns /run/netns && exec \"$0\" \"$@\"";
        command.args(["netns", "exec", "director", "sh", "-c", own, PROGRAM]);
        command
    };
    let agent = command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    nodes.agents[number] = Some(agent.expect("it starts"));
}

#[test]
fn a_pod_that_the_cni_plugin_names_is_set_up_without_a_container_runtime() {
    let _alone = alone();
    let _in_use = in_use();
    crate::namespace::in_new(|| {
        crate::namespace::own_run();
        ways();
        let mut nodes = Nodes::new("nftables");
        fs::create_dir(nodes.path("node2")).expect("writable");
        symlink(PROGRAM, nodes.path("sluice-cni")).expect("writable");
        let place = nodes.path("web-namespace");
        pod_kept_at(&place);
        let tunnels = || run(&format!("nsenter --net={} ip -o link show", place.display()));
        let server = Server::start(&place);
        start(&mut nodes, POD_NODE);
        start(&mut nodes, DIRECTOR);
        // Nobody has named the pod, so its own node leaves it out and serves it with NAT.
        let begun = Instant::now();
        while !nodes.path("cni.sock").exists() {
            assert!(begun.elapsed() < Duration::from_secs(180), "the plugin has nobody to tell: {}", nodes.shown());
            sleep(Duration::from_millis(100));
        }
        assert!(!tunnels().contains("kube-tunnel"), "nobody can know where the pod is: {}", tunnels());
        // The agent may not have all of its rules yet; a kubelet tries again as well.
        let tries: Vec<(bool, String)> =
            (0..6).map(|_| called(&nodes, &place)).take_while(|(is_done, _)| !is_done).collect();
        assert!(tries.len() < 6, "{tries:?}\n{}", nodes.shown());
        println!("served after {:?}", nodes.until("with direct server return", SERVICES));
        nodes.answers_pass_by();
        assert!(tunnels().contains("kube-tunnel"), "{}", tunnels());
        nodes.put_service(false);
        println!("with NAT after {:?}", nodes.until("without the annotation", PODS));
        let begun = Instant::now();
        while tunnels().contains("kube-tunnel") {
            assert!(begun.elapsed() < Duration::from_secs(180), "the tunnels stay: {}", nodes.shown());
            sleep(Duration::from_millis(100));
        }
        nodes.put_service(true);
        println!("through the tunnel after {:?}", nodes.until("with the annotation again", SERVICES));
        nodes.answers_pass_by();
        drop(server);
        run(&format!("umount {}", place.display()));
    });
}
