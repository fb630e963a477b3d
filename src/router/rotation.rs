//! The WireGuard key of this node changes without a lost packet (`--overlay-wireguard-rotate-key`).
//!
//! To the kernel a key is who somebody is: a device has one, and of a device's peers one alone may use an address. So who is to receive by the former and by
//! the next key at the same time needs two devices. While the key of any node changes, all nodes have a second one, `sluice-wg1`, at the next UDP port, with
//! all nodes as peers and the same ranges: that of a node whose key changes has the next key, that of the others the one that they have. Each node receives by both devices,
//! and decides for itself, for each other node, by which it sends: that is a change of routes. Nobody has to be told when another one does so.
//!
//! ```text
//! 1. wireguard.key.next is made (0600, renamed into place, on disk), and sluice-wg1 is made with that key
//! 2. the annotation kube-router.io/wireguard-next-public-key tells it; all nodes make sluice-wg1
//! 3. who has a session on sluice-wg1 with a node whose key changes sends there
//! 4. when no session with anybody is left on sluice-wg0, wireguard.key.next becomes wireguard.key by a rename, and sluice-wg0 gets the key
//! 5. the annotation kube-router.io/wireguard-public-key tells it; then the next one goes; who has a session on sluice-wg0 sends there again
//! 6. when no session is left on sluice-wg1, and the key of no node changes, it goes
//! ```
//!
//! **Who has done what is told by the kernel.** A session on `sluice-wg1` proves that the other node has that device and the next key, and that the network lets the port pass. One that
//! is used is agreed upon anew every two minutes, and may be used for three (`kernel::wireguard::Session`); packets every five seconds keep alive those that are used, and nothing else
//! does. So where no session is left on a device nobody sends by it, whether or not an agent runs there. A node whose key changes sends such packets by `sluice-wg0` to all nodes that have no session on `sluice-wg1`:
//! so there is a session with each that can be reached, also with one that had nothing to send, and step 4 waits for it. A session is kept alive until all routes have left it.
//!
//! **Nothing is remembered.** Files, devices, sessions and annotations say where a change stands: a process that is killed anywhere is followed by one that goes on, and an API server that
//! does not answer makes it wait: other nodes know both keys as the annotations had them, and the second device stays while they do. The second device
//! keeps the key that it has as long as it is there, so a key whose time comes in the middle of another node's change waits for the end of that. Keys that are half as
//! old as they may become change together with those of others: so a cluster has few such times.
//!
//! **Limits.** A node that has no session by the next key, but one by the former, holds up the change, and is named: one of a version that knows nothing of this, one whose agent does not run,
//! and one to which the second port is closed. Others whose keys are to change wait meanwhile. Who cannot be reached at all is not waited for. A machine that is known by two Nodes keeps its
//! key until one of them is deleted, and all do while not all Nodes could be read. A next key that another Node copies is received with the ranges of both, and
//! sent to where its packets come from, whatever either Node has as its address; nobody begins to send by it but an agent that has just started, and both Nodes are named.
//! To a Node of which another one with the same first key, and another key of the second device, says that an address or a range is its own, everything is sent by the first
//! device, and so does it: a change waits until one of the two is gone or has another key.
//!
//! **What else could do.** With one device on each side the receiver has to move the addresses of a node from one key to the other at the moment at which that node begins to send with the
//! next one, of which the kernel tells nobody; that loses packets for as long as it takes to notice, or for as long as an agent is away. With a second device on the node whose key
//! changes alone the same holds in one direction. A device for each pair of keys would let all nodes change at all times, and takes four ports.

use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::plan::OwnKeys;
use crate::model::WIREGUARD_NEXT_KEY_ANNOTATION as NEXT_KEY_ANNOTATION;
use crate::net::PublicKey;

/// Time that an annotation has to follow what it is about before other nodes are said not to know it.
pub const UNTOLD: Duration = Duration::from_secs(15);
/// Time that other nodes have to hear of the next key, and that a node has to answer, before it counts as out of reach.
const GRACE: Duration = Duration::from_secs(30);
/// Time after which those are named, too, that have the next key and use the first one still: their agents may have gone in between.
const LATE: Duration = Duration::from_secs(600);
/// Maximum number of nodes that are named.
const NAMED: usize = 5;

/// How this node's key stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Its time is over, or it may be soon and another node's key changes; there is no key yet that follows.
    pub is_due: bool,
    /// The second device has that key.
    pub is_changing: bool,
    /// There is a key that follows, and the second device has another one.
    pub is_held_up: bool,
    /// Our Node tells both keys.
    pub is_told: bool,
    /// The next key, where our Node does not tell it.
    pub untold: Option<PublicKey>,
    /// The kernel has just told the sessions.
    pub is_seen: bool,
    /// There is a second device, for the change of another node's key or for the last one of this node's.
    pub has_second: bool,
    /// Other Nodes that say that our key is theirs.
    pub namesakes: Vec<CompactString>,
    /// The nodes with which there is a session by the first key, each with whether there is one by the next.
    pub by_first_key: Vec<(CompactString, bool)>,
    /// Nodes of which several machines say that one key of a second device is theirs.
    pub disputed: Vec<CompactString>,
    /// Other nodes whose keys change.
    pub others: Vec<CompactString>,
}

/// One step of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next key is made, with which the second device is made then.
    Make,
    /// It takes the place of the first.
    Take,
}

/// The change of this node's key, as far as time matters.
#[derive(Default, Debug)]
pub struct Rotation {
    /// Since when other nodes can know the next key, as far as this process has seen.
    told: Option<Instant>,
    /// Since when they cannot, while the key changes: the annotation is not written, or has gone.
    untold: Option<Instant>,
    note: Option<String>,
}

/// The keys of our own Node, as others know them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Told {
    pub first: Option<PublicKey>,
    pub next: Option<PublicKey>,
}

/// Returns the next key as the annotation shall have it; `next` is `None` while this process does not know it, because it has just started or the device is gone, which
/// comes back with it. It stays until others know it as the first one: they would take the former one for that of the second device.
pub fn next_to_tell(own: OwnKeys, next: Option<PublicKey>, told: Told) -> Option<PublicKey> {
    match own.has_next {
        true => next.or(told.next),
        false => told.next.filter(|_| own.first == told.next && told.first != told.next),
    }
}

/// Returns whether a key of this age is to change; `others` says whether that of another node does.
pub fn is_due(age: Option<Duration>, period: Option<Duration>, others: bool) -> bool {
    let due = |(age, period): (Duration, Duration)| age >= if others { period / 2 } else { period };
    age.zip(period).is_some_and(due)
}

impl Rotation {
    /// Returns the next step; `None` where there is nothing to do, or something to wait for.
    pub fn step(&mut self, standing: &Standing, now: Instant) -> Option<Step> {
        self.told =
            self.told.filter(|_| standing.is_changing).or((standing.is_changing && standing.is_told).then_some(now));
        let waited = self.told.map(|told| now.saturating_duration_since(told)).unwrap_or_default();
        let is_untold = standing.is_changing && standing.untold.is_some();
        self.untold = self.untold.filter(|_| is_untold).or(is_untold.then_some(now));
        let untold = standing.untold.filter(|_| self.untold.is_some_and(|since| since + UNTOLD <= now));
        self.note = note(standing, waited, untold);
        if standing.is_changing {
            return (waited >= GRACE && standing.is_seen && standing.by_first_key.is_empty()).then_some(Step::Take);
        }
        (standing.is_due && !standing.has_second && standing.namesakes.is_empty()).then_some(Step::Make)
    }

    /// Returns what a change waits for, in words for the administrator.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// `waited`: since other nodes can know the next key. `untold`: that key, where they have not been able to for a while.
fn note(standing: &Standing, waited: Duration, untold: Option<PublicKey>) -> Option<String> {
    let named = |nodes: &mut dyn Iterator<Item = &CompactString>| {
        nodes.take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if standing.is_changing && !standing.disputed.is_empty() {
        let nodes = named(&mut standing.disputed.iter());
        return Some(format!(
            "the WireGuard key of this node changes when no key is that of several machines any more; those of Nodes {nodes} are, by their annotations"
        ));
    }
    if standing.is_changing && !standing.namesakes.is_empty() {
        let nodes = named(&mut standing.namesakes.iter());
        return Some(format!(
            "the WireGuard key of this node changes, and is that of Node {nodes} too, by its annotation: what either Node has may not be reached, and the change may not end, before one of \
             them is gone or has another key"
        ));
    }
    if let Some(key) = untold {
        return Some(format!(
            "the WireGuard key of this node changes when other nodes know the next one: the annotation {NEXT_KEY_ANNOTATION} of its Node is not {key}; the agent writes it \
             where it has the right to patch nodes, and with --manifests whoever writes them"
        ));
    }
    if standing.is_changing {
        let is_lacking = |(_, has_next): &&(CompactString, bool)| !has_next || waited >= LATE;
        let lacking = || standing.by_first_key.iter().filter(is_lacking).map(|(node, _)| node);
        let count = lacking().count();
        return (count > 0 && waited >= GRACE).then(|| {
            format!(
                "the WireGuard key of this node changes when {count} nodes have taken the next one, among them {}: their agents do not run or are of a version \
                 that does not know it, or the second UDP port is closed on the way",
                named(&mut lacking())
            )
        });
    }
    if standing.is_held_up {
        return Some("the WireGuard key of this node changes when all nodes are done with the last change: the next one is there, and the second device has another one".to_owned());
    }
    if !standing.is_due {
        return None;
    }
    if !standing.namesakes.is_empty() {
        let nodes = named(&mut standing.namesakes.iter());
        return Some(format!("the WireGuard key of this node does not change, because it is that of Node {nodes} too"));
    }
    standing.has_second.then(|| match standing.others.is_empty() {
        true => "the WireGuard key of this node changes when all nodes are done with the last change".to_owned(),
        false => {
            let nodes = named(&mut standing.others.iter());
            format!("the WireGuard key of this node changes when those of other nodes have, among them {nodes}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_key_changes_at_its_age_and_at_half_of_it_beside_others() {
        let days = |days: u64| Some(Duration::from_secs(days * 86400));
        for (age, period, others, expected) in [
            (days(29), days(30), false, false),
            (days(30), days(30), false, true),
            (days(14), days(30), true, false),
            (days(15), days(30), true, true),
            (days(99), None, true, false),
            (None, days(30), true, false),
        ] {
            assert_eq!(is_due(age, period, others), expected, "{age:?} {others}");
        }
    }

    #[test]
    fn the_next_key_is_told_until_it_is_known_as_the_first() {
        let key = |number: u8| PublicKey::new(&[number; 32]);
        let own = |first, has_next| OwnKeys { first: key(first), has_next, ..OwnKeys::default() };
        let told = |first, next| Told { first: key(first), next: key(next) };
        for (own, next, told, expected) in [
            (own(1, true), key(2), told(1, 0), key(2)),
            // The device is not made yet.
            (own(1, true), None, told(1, 0), None),
            // A process that has just started: others send with it.
            (own(1, true), None, told(1, 2), key(2)),
            (own(2, false), None, told(1, 2), key(2)),
            (own(2, false), None, told(2, 2), None),
            (own(1, false), None, told(1, 3), None),
        ] {
            assert_eq!(next_to_tell(own, next, told), expected, "{own:?} {told:?}");
        }
    }

    #[test]
    fn the_next_key_is_made_when_there_is_no_second_device_and_one_machine_has_one_node() {
        let now = Instant::now();
        let due = Standing { is_due: true, ..Standing::default() };
        let mut rotation = Rotation::default();
        assert_eq!((rotation.step(&Standing::default(), now), rotation.note()), (None, None));
        assert_eq!((rotation.step(&due, now), rotation.note()), (Some(Step::Make), None));
        let others = Standing { has_second: true, others: vec!["node-7".into()], ..due.clone() };
        assert_eq!(rotation.step(&others, now), None);
        assert!(rotation.note().is_some_and(|note| note.ends_with("among them node-7")));
        let last = Standing { has_second: true, ..due.clone() };
        assert_eq!(rotation.step(&last, now), None);
        assert!(rotation.note().is_some_and(|note| note.ends_with("done with the last change")));
        let held_up = Standing { is_held_up: true, has_second: true, ..Standing::default() };
        assert_eq!(rotation.step(&held_up, now), None);
        assert!(rotation.note().is_some_and(|note| note.contains("the next one is there")));
        let doubled = Standing { namesakes: vec!["node-9".into()], ..due };
        assert_eq!(rotation.step(&doubled, now), None);
        assert!(rotation.note().is_some_and(|note| note.ends_with("of Node node-9 too")));
    }

    #[test]
    fn a_next_key_that_the_node_does_not_tell_is_named_so_that_somebody_else_can_write_it() {
        let start = Instant::now();
        let key = PublicKey::new(&[7; 32]).expect("a key");
        let told = Standing { is_changing: true, has_second: true, is_told: true, ..Standing::default() };
        let untold = Standing { is_told: false, untold: Some(key), ..told.clone() };
        let mut rotation = Rotation::default();
        let mut is_named = |standing: &Standing, seconds: u64| {
            assert_eq!(rotation.step(standing, after(start, seconds)), None);
            let named = format!("the annotation kube-router.io/wireguard-next-public-key of its Node is not {key};");
            rotation.note().is_some_and(|note| note.contains(&named))
        };
        assert_eq!([0, 14, 15, 600].map(|seconds| is_named(&untold, seconds)), [false, false, true, true]);
        assert!(!is_named(&told, 601), "somebody has written it");
        // It is taken away, and has the same time as at first.
        assert_eq!([602, 616, 617].map(|seconds| is_named(&untold, seconds)), [false, false, true]);
        // What is not there yet is not to be told: the second device has another key.
        let held_up = Standing { is_changing: false, is_held_up: true, ..untold };
        assert_eq!([618, 700].map(|seconds| is_named(&held_up, seconds)), [false, false]);
    }

    #[test]
    fn the_next_key_is_taken_when_all_nodes_were_told_and_no_session_by_the_first_one_is_left() {
        let start = Instant::now();
        let changing = Standing { is_changing: true, has_second: true, ..Standing::default() };
        let told = Standing { is_told: true, is_seen: true, ..changing.clone() };
        let mut rotation = Rotation::default();
        assert_eq!(rotation.step(&changing, start), None);
        assert_eq!(rotation.step(&told, after(start, 40)), None, "the time begins when it is told");
        let old = Standing { by_first_key: vec![("node-2".into(), true), ("node-3".into(), false)], ..told.clone() };
        assert_eq!((rotation.step(&old, after(start, 60)), rotation.note()), (None, None));
        assert_eq!(rotation.step(&old, after(start, 71)), None);
        assert!(
            rotation.note().is_some_and(|note| note.contains("when 1 nodes have") && note.contains("them node-3: "))
        );
        assert_eq!(rotation.step(&old, after(start, 641)), None);
        let late = rotation.note().unwrap_or_default();
        assert!(late.contains("when 2 nodes have") && late.contains("them node-2, node-3: "), "{late}");
        assert_eq!((rotation.step(&told, after(start, 642)), rotation.note()), (Some(Step::Take), None));
        let copied = Standing { disputed: vec!["node-1".into(), "node-8".into()], ..old.clone() };
        assert_eq!(rotation.step(&copied, after(start, 641)), None);
        assert!(rotation.note().is_some_and(|note| note.contains("those of Nodes node-1, node-8 are")));
        let namesake = Standing { namesakes: vec!["node-9".into()], ..old.clone() };
        assert_eq!(rotation.step(&namesake, after(start, 641)), None);
        assert!(rotation.note().is_some_and(|note| note.contains("that of Node node-9 too")));
        let blind = Standing { is_seen: false, ..told.clone() };
        assert_eq!(rotation.step(&blind, after(start, 642)), None);
        // The next process waits anew: it does not know what nodes have had time for.
        let mut rotation = Rotation::default();
        assert_eq!(rotation.step(&told, after(start, 643)), None);
        assert_eq!(rotation.step(&told, after(start, 674)), Some(Step::Take));
        // The change after that begins with its own time.
        assert_eq!(rotation.step(&Standing::default(), after(start, 675)), None);
        assert_eq!(rotation.step(&told, after(start, 676)), None);
    }
}
