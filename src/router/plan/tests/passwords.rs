//! Passwords of sessions, which are read from files.

use super::*;

#[test]
fn passwords_of_a_file_are_used_when_they_have_been_read() {
    let words = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001", "--peer-router-passwords-file=/p"];
    let mut plan = planned(&words, &three_nodes());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let changed = plan.set_passwords(vec![Password::Key(secret)]);
    assert_eq!(changed.peers, [address("203.0.113.1")].into());
    assert!(changed.policies && changed.problems);
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_some());
    plan.set_passwords(vec![Password::None]);
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_none());
    plan.set_passwords(vec![Password::Unknown]);
    assert_eq!(peers(&plan).len(), 2);
}

#[test]
fn nodes_peer_when_the_password_of_their_sessions_is_known() {
    let mut plan = planned(&["--bgp-mesh-password-file=/mesh"], &three_nodes());
    assert_eq!(peers(&plan), NOTHING);
    let problem = "other nodes: the password of --bgp-mesh-password-file is not known (yet): the file must be there, with \
                   base64; there are no sessions with them";
    assert_eq!(problems(&plan), [problem], "one for all of them");
    assert!(plan.lacks_password());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let files = |mesh| FilePasswords { mesh, ..FilePasswords::default() };
    let nodes = ["10.0.0.3", "192.0.2.2"];
    for (mesh, has) in [(Password::None, false), (Password::Key(secret), true)] {
        let changed = plan.set_file_passwords(files(mesh));
        assert_eq!(changed.peers, nodes.map(address).into());
        assert!(!plan.lacks_password());
        assert_eq!((peers(&plan), problems(&plan)), (nodes.map(str::to_owned).to_vec(), vec![]));
        assert!(plan.desired().peers.values().all(|peer| peer.transport.password.is_some() == has));
    }
    let mut late = three_nodes();
    late.cluster.nodes.insert("node-4".into(), node("192.0.2.4", "10.244.4.0/24"));
    plan.update(&late);
    assert!(plan.desired().peers[&address("192.0.2.4")].transport.password.is_some());
    let mut none = planned(&[], &three_nodes());
    assert!(none.set_file_passwords(files(Password::Unknown)).peers.is_empty(), "without the flag no file counts");
}

#[test]
fn a_node_that_only_answers_others_tells_that_their_password_is_not_known_and_waits_for_nobody() {
    let plan = planned(&["--node-routes=api", "--bgp-mesh-password-file=/mesh"], &three_nodes());
    assert_eq!((peers(&plan), plan.lacks_password()), (vec![], false));
    let is_told = |problem: &str| problem.contains("--bgp-mesh-password-file is not known");
    assert!(problems(&plan).iter().any(|problem| is_told(problem)));
    assert!(
        plan.peer_problems().iter().any(|problem| is_told(&problem.to_string())),
        "who asks for neighbours hears it"
    );
}

#[test]
fn no_password_is_awaited_of_a_peer_with_which_there_would_be_no_session_anyway() {
    let with_file =
        |text: &str| ExternalPeer { password: Password::File("tor".into()), ..ExternalPeer::new(address(text), 65001) };
    let open = ExternalPeer::new(address("203.0.113.1"), 65001);
    // An address of this node; one with which there is a session by an earlier entry, or by a later one.
    for (peers, why) in [
        (vec![with_file("192.0.2.1")], "it is an address of this node"),
        (vec![open.clone(), with_file("203.0.113.1")], "it is named twice"),
        (vec![with_file("203.0.113.1"), open], "its password is not known"),
    ] {
        let mut world = three_nodes();
        change_node(&mut world, "node-1", |routing| routing.peers = peers.clone());
        let plan = planned(&["--peer-router-passwords-dir=/peers"], &world);
        assert!(plan.routers_without_password().is_empty() && !plan.lacks_password(), "{peers:?}");
        assert!(problems(&plan).iter().any(|problem| problem.contains(why)), "{peers:?}: {:?}", problems(&plan));
    }
}

#[test]
fn a_peer_with_its_password_in_a_file_waits_for_that_file() {
    let mut world = three_nodes();
    let peer =
        ExternalPeer { password: Password::File("tor".into()), ..ExternalPeer::new(address("203.0.113.1"), 65001) };
    change_node(&mut world, "node-1", |routing| routing.peers = vec![peer]);
    let mut plan = planned(&["--peer-router-passwords-dir=/peers"], &world);
    assert_eq!(peers(&plan).len(), 2);
    assert!(plan.lacks_password());
    assert_eq!(*plan.routers_without_password(), [address("203.0.113.1")].into(), "it is awaited");
    let nowhere = planned(&[], &world);
    assert!(!nowhere.lacks_password(), "without the directory it never is");
    assert_eq!(password_files::names(&plan.own().routing.peers), ["tor".into()].into());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let named = [("tor".into(), Password::Key(secret))].into();
    let changed = plan.set_file_passwords(FilePasswords { named, ..FilePasswords::default() });
    assert_eq!(changed.peers, [address("203.0.113.1")].into());
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_some() && !plan.lacks_password());
    let changed = plan.set_file_passwords(FilePasswords::default());
    assert_eq!((changed.peers.len(), peers(&plan).len()), (1, 2));
}

#[test]
fn a_peer_stays_desired_while_its_password_goes_to_another_place() {
    let secret = || Password::Key(Secret::from_base64("cGFzcw==").expect("base64").expect("a secret"));
    let with = |password: Password| {
        let mut world = three_nodes();
        let peer = ExternalPeer { password, ..ExternalPeer::new(address("203.0.113.1"), 65001) };
        change_node(&mut world, "node-1", |routing| routing.peers = vec![peer]);
        world
    };
    let all: FilePasswords = FilePasswords {
        named: [("tor".into(), secret()), ("tor2".into(), secret())].into(),
        ..FilePasswords::default()
    };
    for next in [Password::File("tor2".into()), secret(), Password::File("tor".into())] {
        let mut plan = planned(&["--peer-router-passwords-dir=/peers"], &with(Password::File("tor".into())));
        let mut only = all.clone();
        only.named.retain(|name, _| name == "tor");
        plan.set_file_passwords(only);
        let world = with(next.clone());
        let named =
            password_files::names(&world.cluster.nodes.get(&"node-1".into()).expect("it is there").routing().peers);
        let is_new = next == Password::File("tor2".into());
        let names = password_files::names_meanwhile(&plan.own().routing.peers, named);
        assert_eq!(names.is_some(), is_new, "{next:?}");
        if let Some(names) = names {
            let mut read = all.clone();
            read.named.retain(|name, _| names.contains(name));
            plan.set_file_passwords(read);
        }
        assert_eq!(peers(&plan).len(), 3, "before the World counts: {next:?}");
        plan.update(&world);
        assert_eq!(peers(&plan).len(), 3, "and then: {next:?}");
    }
}
