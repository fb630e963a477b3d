//! Annotations about external peers that cannot be read, from the Node to the neighbours that are desired.

use super::*;
use crate::model::{UnreadPeer, UnreadPeers};
use crate::net::{Password, Remote};

fn peer(text: &str, asn: u32, password: &str) -> ExternalPeer {
    let secret = Secret::from_base64(password).expect("sound");
    ExternalPeer { password: secret.map_or(Password::None, Password::Key), ..ExternalPeer::new(address(text), asn) }
}

/// Changes the annotations of our own Node as the World does.
fn annotate(world: &mut World, peers: &[ExternalPeer], unread_peers: UnreadPeers) {
    change_node(world, "node-1", |routing| {
        let before = routing.clone();
        (routing.peers, routing.unread_peers) = (peers.to_vec(), unread_peers);
        *routing = routing.clone().or_last_good(&before);
    });
}

#[test]
fn neighbours_stay_while_the_annotation_is_broken_change_when_it_is_good_and_go_when_it_is_deleted() {
    let mut world = three_nodes();
    let good = [peer("203.0.113.1", 65001, "b25l"), peer("2001:db8:1::1", 65002, "")];
    annotate(&mut world, &good, UnreadPeers::None);
    let mut plan = planned(&[], &world);
    let desired = plan.desired().peers.clone();
    assert!(desired.contains_key(&good[0].remote.address().expect("one")) && desired.len() == 4, "{desired:?}");
    assert_eq!(problems(&plan), NOTHING);
    // Not YAML; half of a change, with another system; one password that is not base64.
    let half = [peer("203.0.113.1", 65009, "dHdv")];
    let broken = UnreadPeer { remote: Remote::Address(address("203.0.113.1")), behind: 0 };
    for (read, unread, which) in [
        (&[][..], UnreadPeers::List, "the list in the annotations of the Node"),
        (&half, UnreadPeers::List, "the list in the annotations of the Node"),
        (&good[1..], UnreadPeers::These(vec![broken]), "what the annotations of the Node say of 203.0.113.1"),
    ] {
        annotate(&mut world, read, unread);
        let changed = plan.update(&world);
        assert!(changed.peers.is_empty(), "no session is touched");
        assert_eq!(plan.desired().peers, desired);
        let said = format!(
            "external peers: {which} cannot be read; what was read of it last stays in force (the log says what is wrong)"
        );
        assert_eq!(problems(&plan), std::slice::from_ref(&said));
        assert_eq!(plan.peer_problems().iter().map(ToString::to_string).collect::<Vec<_>>(), [said]);
    }
    annotate(&mut world, &half, UnreadPeers::None);
    plan.update(&world);
    assert_eq!(peers(&plan), ["10.0.0.3", "192.0.2.2", "203.0.113.1"]);
    assert_ne!(plan.desired().peers[&address("203.0.113.1")], desired[&address("203.0.113.1")]);
    assert_eq!(problems(&plan), NOTHING);
    annotate(&mut world, &[], UnreadPeers::None);
    plan.update(&world);
    assert_eq!(peers(&plan), ["10.0.0.3", "192.0.2.2"]);
}

#[test]
fn annotations_that_flags_replace_are_nobodys_problem() {
    let mut world = three_nodes();
    annotate(&mut world, &[], UnreadPeers::List);
    let plan = planned(&["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"], &world);
    assert_eq!(problems(&plan), NOTHING);
}

#[test]
fn of_peers_that_could_never_be_read_it_is_said_that_they_have_no_session() {
    let unread = |text| UnreadPeer { remote: Remote::Address(address(text)), behind: 0 };
    let mut world = three_nodes();
    annotate(&mut world, &[peer("203.0.113.1", 65001, "")], UnreadPeers::None);
    let these = vec![unread("203.0.113.1"), unread("203.0.113.2"), unread("2001:db8:1::2")];
    annotate(&mut world, &[], UnreadPeers::These(these));
    let said = "external peers: what the annotations of the Node say of 203.0.113.1 cannot be read; what was read of it last stays in \
                force; what the annotations of the Node say of 203.0.113.2 2001:db8:1::2 cannot be read; nothing of it could ever be \
                read, so there is no session (the log says what is wrong)";
    assert_eq!(problems(&planned(&[], &world)), [said]);
    let mut world = three_nodes();
    annotate(&mut world, &[], UnreadPeers::List);
    let said = "external peers: the list in the annotations of the Node cannot be read; nothing of it could ever be read (the log \
                says what is wrong)";
    assert_eq!(problems(&planned(&[], &world)), [said]);
}
