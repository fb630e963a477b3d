//! Nodes that do not answer over WireGuard: packets are sent to them, and no session comes about.
//!
//! The kernel says nothing of it: a handshake is sent every five seconds while there are packets (`REKEY_TIMEOUT`), and given up after ninety. Where the UDP port is closed
//! between two hosts, or the other one has not our key, that is all that shows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use crate::kernel::wireguard::{Contact, PeerKey};

/// Interval of looks at what is sent.
pub const LOOK: Duration = Duration::from_secs(15);
/// Time for which packets are sent without an answer before that is told: six handshakes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for which a handshake serves (`REJECT_AFTER_TIME`, and some for those on their way). It is counted here: the clock by which the kernel tells it may be set.
const SERVES: Duration = Duration::from_secs(200);
/// Time without a packet after which it is open again whether the peer answers. The kernel ceases after 95 s, and who sends may wait for longer than that.
const QUIET: Duration = Duration::from_secs(180);
/// How many nodes are named.
const NAMED: usize = 3;

/// Traffic to peers, as of the last look.
#[derive(Default, Debug)]
pub struct Unanswered(BTreeMap<PeerKey, Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When the last handshake was, by the kernel's clock; zero for never.
    handshake: Duration,
    /// Since when it has been the last one.
    since: Instant,
    /// Bytes that were sent to the peer.
    sent: u64,
    /// Since when packets are sent in this time, and when some were last seen to be; `None` where none are.
    sending: Option<(Instant, Instant)>,
}

impl Unanswered {
    /// Takes a look at all peers.
    pub fn look(&mut self, contacts: &BTreeMap<PeerKey, Contact>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        let seen = contacts.iter().map(|(key, contact)| {
            // A counter that is smaller is that of a new peer.
            let known = before.get(key).filter(|known| known.sent <= contact.sent);
            let known = known.filter(|known| known.handshake == contact.handshake);
            let is_sending = known.is_some_and(|known| known.sent < contact.sent);
            let sending = known.and_then(|known| known.sending).filter(|(_, last)| now < *last + QUIET);
            let since = known.map_or(now, |known| known.since);
            // What was sent while the last handshake served may have been answered all.
            let may_serve = !contact.handshake.is_zero() && now < since + SERVES;
            let sending = match (sending, is_sending) {
                _ if may_serve => None,
                (Some((since, _)), true) => Some((since, now)),
                (None, true) => Some((now, now)),
                (sending, false) => sending,
            };
            (key.clone(), Seen { handshake: contact.handshake, since, sent: contact.sent, sending })
        });
        self.0 = seen.collect();
    }

    /// Returns whether packets are sent to a peer and it does not answer.
    pub fn is_silent(&self, peer: &PeerKey, now: Instant) -> bool {
        let sending = self.0.get(peer).and_then(|seen| seen.sending);
        sending.is_some_and(|(since, _)| now >= since + PATIENCE)
    }
}

/// Returns what to tell of these nodes, which receive at these UDP ports, of which the second one is there while a key changes; `None` without any.
pub fn note(nodes: &[&CompactString], ports: (u16, Option<u16>)) -> Option<String> {
    let named = nodes.iter().take(NAMED).map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
    let (who, more) = match nodes.len() {
        0 => return None,
        1 => ("Node", String::new()),
        many if many > NAMED => ("Nodes", format!(" and {} more", many - NAMED)),
        _ => ("Nodes", String::new()),
    };
    let ports = match ports {
        (port, None) => format!("UDP port {port}"),
        (port, Some(second)) => format!("UDP ports {port} and {second}"),
    };
    Some(format!(
        "{who} {named}{more}: no answer over WireGuard. Packets are sent and no handshake comes about: {ports} must be open between the hosts in both directions, \
         and the agent there must have read this node's key"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link::LinkName;
    use crate::kernel::wireguard::Session;
    use crate::net::PublicKey;

    fn key(number: u8) -> PeerKey {
        PeerKey { link: LinkName("sluice-wg0".into()), key: PublicKey::new(&[number; 32]).expect("a key") }
    }

    /// Looks every 15 s at one peer, whose last handshake was then, and to which so many bytes were sent; returns after which looks it is silent.
    fn silent_after(looks: impl IntoIterator<Item = (u64, u64)>) -> Vec<usize> {
        let (mut unanswered, start) = (Unanswered::default(), Instant::now());
        let mut found = Vec::new();
        for (number, (handshake, sent)) in looks.into_iter().enumerate() {
            let now = start + LOOK * u32::try_from(number).expect("few");
            let handshake = Duration::from_secs(handshake);
            let contact = Contact { session: Session::Over, handshake, sent };
            unanswered.look(&BTreeMap::from([(key(1), contact)]), now);
            found.extend(unanswered.is_silent(&key(1), now).then_some(number));
        }
        found
    }

    #[test]
    fn a_peer_is_silent_when_packets_are_sent_to_it_for_half_a_minute_and_no_handshake_comes_about() {
        let never = |sent: &[u64]| silent_after(sent.iter().map(|sent| (0, *sent)));
        assert_eq!(never(&[0, 148, 592, 900, 1200]), [3, 4], "handshakes alone are sent");
        assert_eq!(never(&[500; 20]), [0; 0], "nothing is sent");
        assert_eq!(never(&[0, 0, 0, 148, 300, 400]), [5], "the time counts from the first packet");
        assert_eq!(never(&[900, 1000, 50, 90, 200, 300]), [5], "the peer was made anew");
        let paused: Vec<u64> = [0, 148, 592, 900].into_iter().chain([900; 11]).chain([900, 1000, 1100, 1200]).collect();
        assert_eq!(
            never(&paused),
            (3..15).chain([18]).collect::<Vec<_>>(),
            "who sends again after a long pause is waited for anew"
        );
    }

    #[test]
    fn a_peer_that_has_answered_is_silent_when_its_last_handshake_serves_no_more_whatever_the_clock_says() {
        let busy = |handshake: fn(u64) -> u64| silent_after((0..30).map(move |look| (handshake(look), 1000 * look)));
        assert_eq!(busy(|_| 7), (16..30).collect::<Vec<_>>(), "half a minute and 200 s after it was first seen");
        let until = |last: u64| silent_after((0..40).map(move |look| (7, 1000 * look.min(last))));
        assert_eq!(until(5), [0; 0], "nothing more was sent");
        assert_eq!(until(13), [0; 0], "nothing was sent any more when it served no more");
        assert_eq!(busy(|look| 7 + look / 8), [0; 0], "there is a new one every two minutes");
    }

    #[test]
    fn peers_that_are_gone_are_forgotten() {
        let (mut unanswered, now) = (Unanswered::default(), Instant::now());
        let contact = Contact { session: Session::Over, handshake: Duration::ZERO, sent: 0 };
        unanswered.look(&BTreeMap::from([(key(1), contact)]), now);
        unanswered.look(&BTreeMap::new(), now);
        assert!(unanswered.0.is_empty() && !unanswered.is_silent(&key(1), now));
    }

    #[test]
    fn a_note_names_some_nodes_and_the_port() {
        let names: Vec<CompactString> = (1..=5).map(|number| format!("node{number}").into()).collect();
        let names: Vec<&CompactString> = names.iter().collect();
        assert_eq!(note(&[], (51820, None)), None);
        let said = |count: usize| note(&names[..count], (51820, (count > 1).then_some(51821))).expect("there are some");
        assert!(
            said(1).starts_with("Node node1: no answer over WireGuard. ") && said(1).contains("UDP port 51820 must")
        );
        assert!(said(2).contains("UDP ports 51820 and 51821 must"));
        assert!(said(3).starts_with("Nodes node1, node2, node3: "));
        assert!(said(5).starts_with("Nodes node1, node2, node3 and 2 more: "));
    }
}
