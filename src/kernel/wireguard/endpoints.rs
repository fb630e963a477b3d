//! Which endpoint of a peer counts: the one that was set, or the one that the kernel uses. One that is left to the kernel is none, whichever it uses.
//!
//! The kernel sends to where the last authenticated packet of a peer came from. That is no difference while packets come from there, nor while nothing is
//! sent: a node with several addresses sends from another one than the one in its Node each time. Only when something was sent since the last
//! reading, and no handshake was made for as long as one lasts, the kernel may be sending to where nobody is any more, or where somebody else had it send.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::PeerKey;
use super::wire::FoundPeer;

/// The kernel makes a new handshake after two minutes in which packets were sent (`REKEY_AFTER_TIME`), and gives up the last one after three
/// (`REJECT_AFTER_TIME`).
const FRESH: Duration = Duration::from_secs(180);

/// The endpoints that this process has set, or left to the kernel, of peers that the kernel has taken.
#[derive(Default, Debug)]
pub(super) struct Endpoints(BTreeMap<PeerKey, Set>);

#[derive(Clone, Copy, Debug)]
struct Set {
    /// `None` where it was left to the kernel.
    endpoint: Option<SocketAddr>,
    /// Bytes that were sent to the peer, as of the last reading.
    sent: Option<u64>,
}

impl Endpoints {
    /// Takes down that the kernel has taken a peer with this endpoint, or with the one that it has; `None` of a peer that was removed.
    pub(super) fn taken(&mut self, key: &PeerKey, peer: Option<Option<SocketAddr>>) {
        match peer {
            Some(endpoint) => drop(self.0.insert(key.clone(), Set { endpoint, sent: None })),
            None => drop(self.0.remove(key)),
        }
    }

    /// Returns the endpoint that counts of a peer that was read at this time since 1970.
    pub(super) fn counted(&mut self, key: &PeerKey, found: &FoundPeer, now: Duration) -> Option<SocketAddr> {
        let Some(set) = self.0.get_mut(key) else { return found.endpoint };
        let before = set.sent.replace(found.sent);
        // Nothing is sent without one, so only setting it again can mend that.
        found.endpoint.and(set.endpoint)?;
        // A handshake in the future was before the clock was set back, nobody knows for how long.
        let is_heard = now.checked_sub(found.last_handshake).is_some_and(|ago| ago < FRESH);
        let is_sending = before.is_some_and(|before| before != found.sent);
        if is_sending && !is_heard { found.endpoint } else { set.endpoint }
    }

    /// Forgets the peers that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&PeerKey) -> bool) {
        self.0.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link::LinkName;
    use crate::net::PublicKey;

    const NOW: Duration = Duration::from_secs(10_000);

    fn key() -> PeerKey {
        PeerKey { link: LinkName("sluice-wg0".into()), key: PublicKey::new(&[2; 32]).expect("a key") }
    }

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an endpoint"))
    }

    fn found(endpoint: &str, heard_before: u64, sent: u64) -> FoundPeer {
        FoundPeer {
            key: key().key,
            endpoint: address(endpoint),
            allowed: Vec::new(),
            keepalive: 0,
            is_plain: true,
            last_handshake: NOW - Duration::from_secs(heard_before),
            sent,
        }
    }

    const SET: &str = "192.0.2.2:51820";
    const OTHER: &str = "198.51.100.2:51820";

    #[test]
    fn a_node_that_sends_from_another_address_is_no_difference_however_long_it_is_silent() {
        for (set, other) in [(SET, OTHER), ("[2001:db8::2]:51820", "[2001:db8:9::2]:51820")] {
            let mut endpoints = Endpoints::default();
            endpoints.taken(&key(), Some(address(set)));
            for heard_before in [1, 179, 181, 4000, 9999] {
                assert_eq!(endpoints.counted(&key(), &found(other, heard_before, 1000), NOW), address(set));
            }
        }
    }

    #[test]
    fn what_is_sent_where_nobody_answers_counts_as_it_is() {
        let mut endpoints = Endpoints::default();
        endpoints.taken(&key(), Some(address(SET)));
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 500, 1000), NOW), address(SET), "the first look");
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 800, 1148), NOW), address(OTHER));
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 5, 5000), NOW), address(SET), "it answers");
    }

    #[test]
    fn a_peer_without_an_endpoint_counts_as_it_is_although_nothing_is_sent_to_it() {
        let mut endpoints = Endpoints::default();
        endpoints.taken(&key(), Some(address(SET)));
        let without = FoundPeer { endpoint: None, ..found(SET, 9999, 0) };
        assert_eq!([(); 2].map(|()| endpoints.counted(&key(), &without, NOW)), [None; 2]);
    }

    #[test]
    fn one_that_was_left_to_the_kernel_is_none_wherever_the_kernel_sends() {
        let mut endpoints = Endpoints::default();
        assert_eq!(endpoints.counted(&key(), &found(SET, 1, 1000), NOW), address(SET), "as an earlier process left it");
        endpoints.taken(&key(), Some(None));
        for (used, heard_before, sent) in [(SET, 1, 1000), (OTHER, 5, 2000), (OTHER, 800, 2148)] {
            assert_eq!(endpoints.counted(&key(), &found(used, heard_before, sent), NOW), None, "{used}");
        }
        endpoints.taken(&key(), Some(address(SET)));
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 1, 3000), NOW), address(SET));
    }

    #[test]
    fn a_handshake_in_the_future_says_nothing_of_where_a_node_is_now() {
        let mut endpoints = Endpoints::default();
        endpoints.taken(&key(), Some(address(SET)));
        let ahead = |sent| FoundPeer { last_handshake: NOW + Duration::from_secs(7200), ..found(OTHER, 0, sent) };
        assert_eq!(endpoints.counted(&key(), &ahead(1000), NOW), address(SET), "the first look");
        assert_eq!(endpoints.counted(&key(), &ahead(1148), NOW), address(OTHER));
    }

    #[test]
    fn without_an_endpoint_of_ours_the_kernels_counts() {
        let mut endpoints = Endpoints::default();
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 1, 1000), NOW), address(OTHER));
        endpoints.taken(&key(), Some(address(SET)));
        endpoints.taken(&key(), None);
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 1, 1000), NOW), address(OTHER));
        endpoints.taken(&key(), Some(address(SET)));
        endpoints.retain(|_| false);
        assert_eq!(endpoints.counted(&key(), &found(OTHER, 1, 1000), NOW), address(OTHER));
    }
}
