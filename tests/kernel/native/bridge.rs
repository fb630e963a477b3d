//! The bridge that pods are on.

use std::collections::BTreeMap;

use sluice::kernel::bridge::{Bridge, Bridges};
use sluice::kernel::link::LinkName;
use sluice::reconcile::{Growth, Mirror, Phase, Reflection, Step, Target, audit};

use super::moment;
use crate::namespace::{in_new, run};

fn name() -> LinkName {
    LinkName("kube-bridge".into())
}

#[test]
fn the_bridge_is_made_adopted_put_right_and_kept_while_pods_are_on_it() {
    in_new(|| {
        let mut bridges = Bridges::open(name(), true).expect("a socket");
        assert!(bridges.read().expect("a reading").is_empty());
        let (name, want) = (name(), Bridge { mtu: Some(1480), up: true });
        assert!(bridges.apply(Phase::Grow, &[Step { key: &name, have: None, want: Some(&want) }]).is_empty());
        let shown = run("ip -d link show kube-bridge up");
        assert!(shown.contains("mtu 1480") && shown.contains("bridge"), "{shown}");
        run("ip address add 10.244.1.1/24 dev kube-bridge");
        run("ip link set kube-bridge down mtu 1400");
        let have = Bridge { mtu: Some(1400), up: false };
        assert_eq!(bridges.read().expect("a reading"), BTreeMap::from([(name.clone(), have)]));
        assert!(bridges.apply(Phase::Grow, &[Step { key: &name, have: Some(&have), want: Some(&want) }]).is_empty());
        assert_eq!(bridges.read().expect("a reading"), BTreeMap::from([(name.clone(), want)]));
        assert!(run("ip address show kube-bridge").contains("10.244.1.1/24"));

        run("ip link add pod type veth peer name eth0");
        run("ip link set pod master kube-bridge");
        let delete = [Step { key: &name, have: Some(&want), want: None }];
        let failures = bridges.apply(Phase::Shrink, &delete);
        assert!(failures.len() == 1 && failures[0].error.to_string().contains("pods are on it"), "{failures:?}");
        run("ip link delete pod");
        assert!(bridges.apply(Phase::Shrink, &delete).is_empty());
        assert!(bridges.read().expect("a reading").is_empty());
    });
}

#[test]
fn an_mtu_that_nobody_decides_is_left_alone() {
    in_new(|| {
        run("ip link add kube-bridge type bridge");
        run("ip link set kube-bridge up mtu 9000");
        let mut bridges = Bridges::open(name(), false).expect("a socket");
        let want = Bridge { mtu: None, up: true };
        assert_eq!(bridges.read().expect("a reading"), BTreeMap::from([(name(), want)]));
    });
}

#[test]
fn an_mtu_that_is_not_known_yet_is_no_difference_until_it_is() {
    in_new(|| {
        run("ip link add kube-bridge type bridge");
        run("ip link set kube-bridge up mtu 9000");
        let mut bridges = Mirror::new(Bridges::open(name(), true).expect("a socket"));
        for (mtu, shown) in [(None, 9000), (Some(1480), 1480), (None, 1480)] {
            let want = BTreeMap::from([(name(), Bridge { mtu, up: true })]);
            bridges.mark(name());
            bridges.grow(&want, Growth::Full, moment());
            let (found, _) = audit(&mut bridges, moment());
            assert!(found.is_empty() && bridges.is_settled(), "{mtu:?}: {found:?}");
            assert!(run("ip link show kube-bridge").contains(&format!("mtu {shown} ")));
        }
    });
}

#[test]
fn a_device_of_another_type_under_the_name_is_reported() {
    in_new(|| {
        run("ip link add kube-bridge type veth peer name other");
        let mut bridges = Bridges::open(name(), true).expect("a socket");
        let error = bridges.read().expect_err("it is no bridge");
        assert!(error.to_string().contains("of type \"veth\""), "{error}");
    });
}
