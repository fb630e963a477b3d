//! The agent of the pod's node in a container, with the folders of the host that the chart's value `directServerReturn` gives to it: privileged, and with single
//! capabilities.

use super::*;

/// Where the chart has the socket, in the container; on this host it lies in `/run`.
const ITS_SOCKET: &str = "/run/containerd/containerd.sock";
const ID: &str = "agent";

/// What a container has unless it is said otherwise, and the agent without privileges has not (`daemonset/kube-router-unprivileged.yaml`).
const DROPPED: &str = "CHOWN FSETID FOWNER MKNOD SETGID SETUID SETFCAP SETPCAP SYS_CHROOT KILL AUDIT_WRITE";

/// How much the container may do.
#[derive(Clone, Copy, Debug)]
enum Rights {
    Privileged,
    /// The capabilities of the manifest without privileges, and `SYS_ADMIN`, by which namespaces are entered.
    Capabilities,
}

impl Rights {
    fn words(self) -> String {
        match self {
            Rights::Privileged => "--privileged".to_owned(),
            Rights::Capabilities => {
                let drops: String = DROPPED.split(' ').map(|name| format!(" --cap-drop CAP_{name}")).collect();
                let settings = "--mount type=bind,src=/proc/sys/net,dst=/host/proc/sys/net,options=rbind:rw";
                format!("--read-only --cap-add CAP_NET_ADMIN --cap-add CAP_SYS_ADMIN{drops} {settings}")
            }
        }
    }
}

/// Starts the agent in a container, in the host's network and with processes of its own.
fn start_in_container(nodes: &Nodes, rights: Rights) {
    let root = nodes.path("root");
    for folder in ["proc", "sys", "dev", "run", "tmp", "var", "etc"] {
        fs::create_dir_all(root.join(folder)).expect("writable");
    }
    let _ = std::os::unix::fs::symlink("/run", root.join("var/run"));
    let programs = Path::new(PROGRAM).parent().expect("a folder").display().to_string();
    let here = nodes.path("").display().to_string();
    let bind = |from: &str, to: &str, how: &str| format!(" --mount type=bind,src={from},dst={to},options=rbind:{how}");
    let mut words = format!("run --detach --net-host --log-uri file://{} ", nodes.log_of(POD_NODE).display());
    words += &rights.words();
    for folder in ["/usr", "/bin", "/sbin", "/lib", "/lib64", &programs] {
        words += &bind(folder, folder, "ro");
    }
    words += &bind(here.trim_end_matches('/'), here.trim_end_matches('/'), "rw");
    words += &bind("/run", "/run/containerd", "rslave:rw");
    words += &bind("/run/netns", "/run/netns", "rslave:rw");
    words += &format!(" --rootfs {} {ID} {PROGRAM} {}", root.display(), nodes.flags(POD_NODE, ITS_SOCKET).join(" "));
    let (is_started, out, error) = containerd::ctr(&words);
    assert!(is_started, "{words}: {out} {error}");
}

fn end_container(runtime: &Containerd) {
    let _ = containerd::ctr(&format!("task kill -s SIGTERM {ID}"));
    runtime.wait("the container ends", || containerd::ctr(&format!("task delete {ID}")).0);
    let (is_gone, out, error) = containerd::ctr(&format!("container delete {ID}"));
    assert!(is_gone, "{out} {error}");
}

#[test]
fn an_agent_in_a_container_finds_sandboxes_also_later_ones_and_enters_them_with_privileges_or_capabilities() {
    let _alone = alone();
    for rights in [Rights::Privileged, Rights::Capabilities] {
        let _in_use = in_use();
        beside_containerd_of_both_families(|runtime| {
            ways();
            let mut nodes = Nodes::new("nftables");
            let (first, _, server) = start_pod(runtime);
            start_in_container(&nodes, rights);
            nodes.start(DIRECTOR);
            println!("{rights:?}: served after {:?}", nodes.until("a sandbox of before", SERVICES));
            nodes.answers_pass_by();
            drop(server);
            runtime.end_sandbox(&first);
            let (second, place, server) = start_pod(runtime);
            let took = nodes.until("a sandbox that came later", SERVICES);
            println!("{rights:?}: served again after {took:?}");
            assert!(took < Duration::from_secs(8), "2 s, and the emulator's share: {took:?}");
            // In a container the agent also takes away what it has made.
            nodes.put_service(false);
            nodes.until("without the annotation", PODS);
            runtime.wait("the tunnels go", || !containerd::inside(&place, "ip -o link show").contains("kube-tunnel"));
            end_container(runtime);
            drop(server);
            runtime.end_sandbox(&second);
        });
    }
}
