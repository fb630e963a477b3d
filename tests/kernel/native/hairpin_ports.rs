//! Hairpin mode of the ports of pods.

use std::collections::BTreeMap;

use sluice::kernel::bridge::{Hairpin, HairpinPorts};
use sluice::kernel::link::LinkName;
use sluice::kernel::monitor::{Monitor, Watched};
use sluice::reconcile::{Growth, Mirror, Reflection, audit};

use super::moment;
use crate::namespace::{in_new, own_run, run};

fn name() -> LinkName {
    LinkName("kube-bridge".into())
}

/// Whether the kernel says that a port has the option.
fn has(port: &str) -> bool {
    run(&format!("ip -d link show {port}")).contains("hairpin on")
}

#[test]
fn ports_of_pods_on_the_bridge_get_hairpin_mode_and_no_others() {
    in_new(|| {
        let wanted = BTreeMap::from([(name(), Hairpin)]);
        let mut ports = Mirror::new(HairpinPorts::open([name()]).expect("a socket"));
        // A bridge that does not exist lacks nothing.
        assert!(ports.grow(&wanted, Growth::Full, moment()).is_empty() && ports.is_settled());

        run("ip link add kube-bridge type bridge");
        run("ip link add docker0 type bridge");
        let mut monitor = Monitor::open(Watched { bridges: vec![name()], ..Watched::default() }).expect("a monitor");
        let before = monitor.hear().ports;
        own_run();
        std::fs::create_dir_all("/run/netns").expect("a directory of names");
        ["pod1", "pod2", "other"].iter().for_each(|port| drop(run(&format!("ip netns add pods-{port}"))));
        for (port, bridge) in [("pod1", "kube-bridge"), ("pod2", "kube-bridge"), ("other", "docker0")] {
            run(&format!("ip link add {port} type veth peer name eth0 netns pods-{port}"));
            run(&format!("ip link set {port} master {bridge}"));
        }
        // A pair of which both ends are here leads to another bridge.
        run("ip link add patch type veth peer name patched");
        run("ip link set patch master kube-bridge");
        run("ip link set patched master docker0");
        // A device that leads to the network outside would get back what it sent.
        run("ip link add uplink type vxlan id 7 dstport 4789");
        run("ip link set uplink master kube-bridge");
        run("ip link set pod2 type bridge_slave hairpin on");
        assert!(monitor.hear().ports > before, "a port is a reason to look");
        ports.forget();
        ports.grow(&wanted, Growth::Full, moment());
        assert!(ports.is_settled());
        assert_eq!(["pod1", "pod2", "uplink", "patch", "other"].map(has), [true, true, false, false, false]);

        let before = monitor.hear().ports;
        // As CNI plugins do it.
        run("bridge link set dev pod1 hairpin off");
        assert!(monitor.hear().ports > before, "so is one that somebody switched it off for");
        let (found, _) = audit(&mut ports, moment());
        assert_eq!(found.len(), 1, "{found:?}");
        ports.grow(&wanted, Growth::Full, moment());
        assert!(has("pod1") && ports.is_settled());
        let (found, _) = audit(&mut ports, moment());
        assert!(found.is_empty(), "{found:?}");
    });
}
