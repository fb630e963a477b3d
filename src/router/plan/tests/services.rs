//! Service addresses that are announced.

use super::*;

#[test]
fn a_speaker_that_awaited_services_in_vain_runs_and_announces_them_when_they_are_known() {
    let mut world = three_nodes();
    world.cluster.services.insert(ObjectName::new("default", "a"), service(&["10.96.0.9", "fd00:96::9"]));
    world.authority.proxy = Authority::Nothing;
    let mut plan = planned(&["--advertise-cluster-ip"], &world);
    assert!(plan.desired().speaker.is_none());
    assert!(plan.go_without_services().speaker);
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 2), "the ranges of its own pods");
    world.authority.proxy = Authority::Complete;
    let changed = plan.update(&world);
    assert!(!changed.speaker && changed.peers.is_empty(), "sessions stand: {changed:?}");
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 2), "nobody serves them yet");
    let changed = plan.announce_services();
    assert!(!changed.speaker && changed.peers.is_empty(), "sessions stand: {changed:?}");
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 4));
}

#[test]
fn an_address_that_two_services_share_is_announced_until_the_last_of_them_goes() {
    let mut world = three_nodes();
    let name = |name| ObjectName::new("default", name);
    world.cluster.services.insert(name("a"), service(&["10.96.0.9"]));
    world.cluster.services.insert(name("b"), service(&["10.96.0.9", "10.96.0.10"]));
    let mut plan = planned(&["--advertise-cluster-ip"], &world);
    assert_eq!(announcements(&plan).len(), 4);
    world.cluster.services.remove(&name("a"));
    let changed = plan.update(&world);
    assert_eq!((changed.services_computed, changed.announcements.len(), changed.policies), (1, 0, false));
    world.cluster.services.remove(&name("b"));
    let changed = plan.update(&world);
    assert_eq!((changed.announcements.len(), changed.policies), (2, true));
    assert_eq!(announcements(&plan).len(), 2);
}

#[test]
fn the_address_of_a_node_is_nobodys_service_address() {
    let mut world = three_nodes();
    let words = ["--advertise-cluster-ip"];
    world.cluster.services.insert(ObjectName::new("default", "a"), service(&["192.0.2.2", "192.0.2.77"]));
    let mut plan = planned(&words, &world);
    assert_eq!(announcements(&plan)[1..], ["192.0.2.77/32 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1"]);
    assert_eq!(problems(&plan), ["service address 192.0.2.2: it is an address of a node; it is not announced"]);
    world.cluster.nodes.remove(&"node-2".into());
    let changed = plan.update(&world);
    assert_eq!(changed.announcements, [prefix("192.0.2.2/32")].into());
    assert_eq!(problems(&plan), NOTHING);
}
