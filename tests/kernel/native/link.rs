//! Devices, as far as any kernel has them; the device that is ours is in `dummy`.

use std::collections::BTreeMap;

use sluice::kernel::link::{Link, LinkKind, LinkName, Links};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{in_new, run};

fn bridge(up: bool) -> Link {
    Link { kind: LinkKind::Other("bridge".into()), up }
}

#[test]
fn only_the_named_devices_are_read() {
    in_new(|| {
        let name = LinkName("kube-dummy-if".into());
        let mut links = Links::open([name.clone(), LinkName("absent".into())]).expect("sockets");
        assert!(links.read().expect("a reading").is_empty());
        run("ip link add kube-dummy-if type bridge");
        run("ip link add foreign type bridge");
        assert_eq!(links.read().expect("a reading"), BTreeMap::from([(name.clone(), bridge(false))]));
        run("ip link set kube-dummy-if up");
        assert_eq!(links.read().expect("a reading"), BTreeMap::from([(name, bridge(true))]));
        assert!(links.read_some(&[LinkName("foreign".into())]).expect("a reading").is_empty());
    });
}

#[test]
fn a_device_of_another_type_is_set_up_but_neither_replaced_nor_deleted() {
    in_new(|| {
        run("ip link add kube-dummy-if type bridge");
        let name = LinkName("kube-dummy-if".into());
        let mut links = Links::open([name.clone()]).expect("sockets");
        let (down, up) = (bridge(false), bridge(true));
        let dummy = Link { kind: LinkKind::Dummy, up: true };
        let step = |have, want| [Step { key: &name, have, want }];
        assert!(links.apply(Phase::Grow, &step(Some(&down), Some(&up))).is_empty());
        assert!(run("ip link show kube-dummy-if").contains(",UP"));
        for want in [Some(&dummy), None] {
            let failures = links.apply(Phase::Shrink, &step(Some(&up), want));
            let [failure] = failures.as_slice() else { panic!("the step fails: {failures:?}") };
            assert!(failure.error.is_exists(), "{}", failure.error);
            assert!(failure.error.to_string().contains("of type bridge"), "{}", failure.error);
        }
        assert!(run("ip -d link show kube-dummy-if").contains("bridge"));
        let failures = links.apply(Phase::Grow, &step(None, Some(&down)));
        assert_eq!(failures.len(), 1, "a bridge is nothing that is made");
    });
}
