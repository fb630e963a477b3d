//! External peers in a Node's annotations that cannot be read, and the last good ones in their place.
//!
//! A slip of who edits a list, or a moment between two commands that change two lists, ends no session: only a peer that is no longer named goes. What is in force is
//! what [`Routing::or_last_good`] makes of what is read now and what was in force before, so all that is remembered is the Node itself.

use crate::net::{ExternalPeer, Password, Remote};

use super::node::Routing;

/// The external peers in the annotations of a Node that are there and cannot be read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum UnreadPeers {
    #[default]
    None,
    /// These; all others are as they are written.
    These(Vec<UnreadPeer>),
    /// The list makes no sense as a whole, or it has a peer of which cannot be told which it is. What can be read of it may be half of a change, so it counts
    /// only where no earlier list is known.
    List,
}

/// One that is known by its address, or its link, alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnreadPeer {
    pub remote: Remote,
    /// Number of peers in front of it that can be read.
    pub behind: usize,
}

impl Routing {
    /// The same annotations, with the external peers of before in the place of those that cannot be read.
    #[must_use]
    pub fn or_last_good(mut self, before: &Routing) -> Routing {
        match &self.unread_peers {
            UnreadPeers::None => {}
            UnreadPeers::These(unread) => {
                // From the end, so that the places of the others stay what they are.
                for one in unread.iter().rev() {
                    let is_it = |peer: &&ExternalPeer| peer.remote == one.remote;
                    let is_there = self.peers.iter().any(|peer| is_it(&peer));
                    let last = before.peers.iter().find(is_it).filter(|_| !is_there);
                    let place = one.behind.min(self.peers.len());
                    self.peers.splice(place..place, last.cloned());
                }
            }
            UnreadPeers::List if before.peers.is_empty() => {}
            UnreadPeers::List => {
                // The last known state on disk has no passwords: there a peer that can be read is the better version.
                let read = std::mem::replace(&mut self.peers, before.peers.clone());
                for last in self.peers.iter_mut().filter(|last| last.password == Password::Unknown) {
                    if let Some(peer) = read.iter().find(|peer| peer.remote == last.remote) {
                        last.clone_from(peer);
                    }
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Secret;

    fn peer(text: &str, asn: u32, password: &str) -> ExternalPeer {
        let password = match password {
            "" => Password::None,
            "?" => Password::Unknown,
            text => Password::Key(Secret::from_base64(text).expect("sound").expect("a secret")),
        };
        ExternalPeer { password, ..ExternalPeer::new(text.parse().expect("an address"), asn) }
    }

    fn unread(text: &str, behind: usize) -> UnreadPeer {
        UnreadPeer { remote: Remote::Address(text.parse().expect("an address")), behind }
    }

    fn routing(peers: &[ExternalPeer], unread_peers: UnreadPeers) -> Routing {
        Routing { peers: peers.to_vec(), unread_peers, ..Routing::default() }
    }

    fn three() -> [ExternalPeer; 3] {
        [peer("203.0.113.1", 65001, "b25l"), peer("2001:db8::1", 65002, ""), peer("203.0.113.3", 65003, "dGhyZWU=")]
    }

    #[test]
    fn a_peer_that_cannot_be_read_is_as_it_was_in_its_place_and_all_others_are_as_they_are_written() {
        let [one, two, three] = three();
        let before = routing(&[one.clone(), two.clone(), three.clone()], UnreadPeers::None);
        let changed = peer("203.0.113.3", 65033, "");
        let new = peer("203.0.113.4", 65004, "");
        let these = vec![unread("203.0.113.1", 0), unread("2001:db8::1", 0), unread("203.0.113.9", 1)];
        let now = routing(&[changed.clone(), new.clone()], UnreadPeers::These(these)).or_last_good(&before);
        assert_eq!(now.peers, [one, two.clone(), changed, new], "one that never was good is left out");
        // What is in force is the last good version of the next mistake.
        let again = routing(&[], UnreadPeers::These(vec![unread("2001:db8::1", 0)])).or_last_good(&now);
        assert_eq!(again.peers, [two]);
        assert_eq!(again.clone().or_last_good(&now), again, "nothing is there twice");
    }

    #[test]
    fn a_list_that_cannot_be_read_leaves_the_whole_one_of_before_and_half_of_a_change_does_not_count() {
        let all = three();
        let before = routing(&all, UnreadPeers::None);
        let other_password = peer("203.0.113.1", 65099, "b3RoZXI=");
        for read in [vec![], vec![other_password.clone()]] {
            let now = routing(&read, UnreadPeers::List);
            assert_eq!(now.clone().or_last_good(&before).peers, all);
            assert_eq!(now.clone().or_last_good(&Routing::default()), now, "nothing better is known");
        }
        assert_eq!(
            routing(&[], UnreadPeers::None).or_last_good(&before).peers,
            [],
            "a list that is gone is no mistake"
        );
    }

    #[test]
    fn a_password_that_the_disk_does_not_have_is_that_of_the_peer_that_can_be_read() {
        let before = routing(
            &[peer("203.0.113.1", 65001, "?"), peer("2001:db8::1", 65002, ""), peer("203.0.113.3", 65003, "?")],
            UnreadPeers::None,
        );
        let [one, two, _] = three();
        let now = routing(std::slice::from_ref(&one), UnreadPeers::List).or_last_good(&before);
        assert_eq!(now.peers, [one, two, peer("203.0.113.3", 65003, "?")]);
    }
}
