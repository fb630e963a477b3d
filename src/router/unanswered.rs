//! Nodes that do not answer over WireGuard: packets are sent to them, and no session comes about.
//!
//! The kernel says nothing of it: a handshake is sent every five seconds while there are packets (`REKEY_TIMEOUT`), and given up after ninety. Where the UDP port is closed
//! between two hosts, or the other one has not our key, that is all that shows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use crate::kernel::wireguard::{Contact, PeerKey, Session};

/// Interval of looks at what is sent.
pub const LOOK: Duration = Duration::from_secs(15);
/// Time for which packets are sent without an answer before that is told: six handshakes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many nodes are named.
const NAMED: usize = 3;

/// Peers without a session.
#[derive(Default, Debug)]
pub struct Unanswered(BTreeMap<PeerKey, Waiting>);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    /// Bytes that were sent to the peer, as of the last look.
    sent: u64,
    /// Some were between the last two looks.
    is_sending: bool,
}

impl Unanswered {
    /// Takes a look at all peers. One to which nothing is sent is not waited for.
    pub fn look(&mut self, contacts: &BTreeMap<PeerKey, Contact>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        let over = contacts.iter().filter(|(_, contact)| contact.session == Session::Over);
        let waiting = over.map(|(key, contact)| {
            // A counter that is smaller is that of a new peer.
            let known = before.get(key).filter(|known| known.sent <= contact.sent);
            let is_sending = known.is_some_and(|known| known.sent < contact.sent);
            let since = known.filter(|known| known.is_sending || is_sending).map_or(now, |known| known.since);
            (key.clone(), Waiting { since, sent: contact.sent, is_sending })
        });
        self.0 = waiting.collect();
    }

    /// Peers that have not answered for long enough.
    pub fn silent(&self, now: Instant) -> impl Iterator<Item = &PeerKey> {
        let is_silent = move |waiting: &Waiting| waiting.is_sending && now >= waiting.since + PATIENCE;
        self.0.iter().filter(move |(_, waiting)| is_silent(waiting)).map(|(key, _)| key)
    }
}

/// Returns what to tell of these nodes, whose keys are sent to at this UDP port; `None` without any.
pub fn note(nodes: &[&CompactString], port: u16) -> Option<String> {
    let named = nodes.iter().take(NAMED).map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
    let (who, more) = match nodes.len() {
        0 => return None,
        1 => ("Node", String::new()),
        many if many > NAMED => ("Nodes", format!(" and {} more", many - NAMED)),
        _ => ("Nodes", String::new()),
    };
    Some(format!(
        "{who} {named}{more}: no answer over WireGuard. Packets are sent and no handshake comes about: UDP port {port} must be open between the hosts in both directions, \
         and the agent there must have read this node's key"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link::LinkName;
    use crate::net::PublicKey;

    fn key(number: u8) -> PeerKey {
        PeerKey { link: LinkName("sluice-wg0".into()), key: PublicKey::new(&[number; 32]).expect("a key") }
    }

    /// Looks every 15 s at one peer, with a session or without, to which so many bytes were sent; returns after which looks it is silent.
    fn silent_after(looks: &[(Session, u64)]) -> Vec<usize> {
        let (mut unanswered, start) = (Unanswered::default(), Instant::now());
        let mut found = Vec::new();
        for (number, (session, sent)) in looks.iter().enumerate() {
            let now = start + LOOK * u32::try_from(number).expect("few");
            unanswered.look(&BTreeMap::from([(key(1), Contact { session: *session, sent: *sent })]), now);
            found.extend(unanswered.silent(now).map(|_| number));
        }
        found
    }

    #[test]
    fn a_peer_is_silent_when_packets_are_sent_to_it_for_half_a_minute_and_no_session_comes_about() {
        use Session::{Live, Over, Uncertain};
        for (looks, silent, why) in [
            (vec![(Over, 0), (Over, 148), (Over, 592), (Over, 900)], vec![2, 3], "handshakes alone are sent"),
            (vec![(Over, 500); 6], vec![], "nothing is sent"),
            (vec![(Over, 0), (Over, 148), (Live, 592), (Live, 9000), (Over, 9000)], vec![], "it answers"),
            (vec![(Uncertain, 0), (Uncertain, 148), (Uncertain, 300), (Uncertain, 400)], vec![], "it may have one"),
            (
                vec![
                    (Over, 0),
                    (Over, 148),
                    (Over, 592),
                    (Over, 592),
                    (Over, 592),
                    (Over, 700),
                    (Over, 800),
                    (Over, 900),
                ],
                vec![2, 6, 7],
                "who sends again after a pause is waited for anew",
            ),
            (
                vec![(Over, 0), (Over, 0), (Over, 0), (Over, 0), (Over, 148), (Over, 300), (Over, 400)],
                vec![5, 6],
                "the time counts from the look before the first packet",
            ),
            (vec![(Over, 900), (Over, 1000), (Over, 50), (Over, 90), (Over, 200)], vec![4], "the peer was made anew"),
        ] {
            assert_eq!(silent_after(&looks), silent, "{why}");
        }
    }

    #[test]
    fn peers_that_are_gone_are_forgotten() {
        let (mut unanswered, now) = (Unanswered::default(), Instant::now());
        unanswered.look(&BTreeMap::from([(key(1), Contact { session: Session::Over, sent: 0 })]), now);
        unanswered.look(&BTreeMap::new(), now);
        assert!(unanswered.0.is_empty());
    }

    #[test]
    fn a_note_names_some_nodes_and_the_port() {
        let names: Vec<CompactString> = (1..=5).map(|number| format!("node{number}").into()).collect();
        let names: Vec<&CompactString> = names.iter().collect();
        assert_eq!(note(&[], 51820), None);
        let said = |count: usize| note(&names[..count], 51821).expect("there are some");
        assert!(said(1).starts_with("Node node1: no answer over WireGuard. ") && said(1).contains("UDP port 51821"));
        assert!(said(3).starts_with("Nodes node1, node2, node3: "));
        assert!(said(5).starts_with("Nodes node1, node2, node3 and 2 more: "));
    }
}
