//! The sandboxes of a real containerd, as our client is told of them.

use std::net::IpAddr;

use sluice::container_runtime::{PodName, Sought};
use sluice::kernel::address::host_addresses;
use sluice::kernel::namespace::Namespace;

use crate::containerd::{address, beside_containerd};

fn named(name: &str) -> Sought {
    Sought::Of([PodName { namespace: "shop".into(), name: name.into() }].into())
}

#[test]
fn a_sandbox_of_containerd_leads_to_the_network_namespace_of_its_pod() {
    beside_containerd(|runtime| {
        assert_eq!(runtime.sandboxes(&Sought::All), []);
        let id = runtime.start_sandbox("web", false, "");
        let hosts = runtime.start_sandbox("agent", true, "");
        let found = runtime.sandboxes(&named("web"));
        let [sandbox] = found.as_slice() else { panic!("one sandbox: {found:?}") };
        assert_eq!(
            (sandbox.id.as_str(), sandbox.pod.name.as_str(), sandbox.pod.namespace.as_str()),
            (&*id, "web", "shop")
        );
        assert_eq!((&*sandbox.addresses, sandbox.host_network), (&[address()][..], false));
        assert_eq!(sandbox.uid, "00000003-55c4-4d3e-9b0a-0242ac120002");
        // Either place leads there: the path for who sees the host's /run/netns, the process for who sees its processes.
        assert_eq!(sandbox.places.len(), 2, "{:?}", sandbox.places);
        for place in &sandbox.places {
            let inside = Namespace::open(place).expect("it is there").run(host_addresses).expect("root may enter it");
            let inside: Vec<IpAddr> = inside.expect("it has some").iter().map(|one| one.address.addr()).collect();
            assert!(inside.contains(&address()), "{} {inside:?}", place.display());
        }
        let agents = runtime.sandboxes(&named("agent"));
        assert!(matches!(agents.as_slice(), [one] if one.host_network && one.id == hosts), "{agents:?}");
        assert_eq!(runtime.sandboxes(&Sought::All).len(), 2);
        assert_eq!(runtime.sandboxes(&named("other")), []);
        runtime.end_sandbox(&id);
        assert_eq!(runtime.sandboxes(&named("web")), []);
        runtime.end_sandbox(&hosts);
    });
}

#[test]
fn a_list_of_sandboxes_with_large_annotations_is_read() {
    beside_containerd(|runtime| {
        let note = "x".repeat(1_000_000);
        let pods: Vec<String> = (0..5).map(|number| format!("agent-{number}")).collect();
        let ids: Vec<String> = pods.iter().map(|pod| runtime.start_sandbox(pod, true, &note)).collect();
        assert_eq!(runtime.sandboxes(&Sought::All).len(), 5, "5 MB");
        ids.iter().for_each(|id| runtime.end_sandbox(id));
    });
}
