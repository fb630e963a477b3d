//! Unreachable next hops of learned routes, which are not used.
//!
//! RFC 4271 9.1.2.1: a route whose next hop cannot be resolved is not used. The kernel is queried for the route to each
//! next hop when it is first seen, and again when links, addresses or routes change. A next hop is lost when the kernel
//! has no route to it, when its link has no carrier, or when it was on one of our links and is now behind a gateway
//! without being a node: that path leads to another router.
//!
//! Late detection is better than false detection:
//! - A next hop counts as reachable until it has been lost for three seconds. It becomes reachable again at once.
//! - While no next hop is reachable at all, none is lost: we are cut off ourselves, there is no better path, and no
//!   peer to tell. So our own NIC may flap.
//! - An inconclusive answer, and a route that we created from learned routes, change nothing: routes of ours must
//!   neither keep each other up, nor bring each other down.
//! - A new speaker starts with all next hops reachable.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::bgp::rib::{PeerId, RouteChange};

/// Time for which a next hop has to be lost before that counts.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of lost next hops; any beyond these are left unchanged.
const MOST: usize = 1024;

/// Number of next hops that are known beyond twice those of the last look through all of them.
const SPARE: usize = 1024;

/// The kernel's answer about a next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lead {
    /// On one of our links.
    Direct,
    /// Behind a gateway.
    Onwards,
    Nowhere,
    Unknown,
}

/// All next hops that are or were used.
#[derive(Default, Debug)]
pub struct Reachable {
    known: BTreeMap<IpAddr, Known>,
    /// Next hops to be queried.
    due: BTreeSet<IpAddr>,
    /// Those that are lost and not reported yet. At rest there are none, and nothing is looked through.
    doubtful: BTreeSet<IpAddr>,
    /// Some reported next hops became reachable again, or were forgotten.
    returned: bool,
    /// Number of those that were known when what no route uses was forgotten last.
    kept: usize,
}

#[derive(Clone, Copy, Default, Debug)]
struct Known {
    /// It was on one of our links when it was last reachable.
    direct: bool,
    /// It was reachable by the kernel's last answer.
    reached: bool,
    lost: Option<Instant>,
    /// The speaker has been told that it is lost.
    told: bool,
}

impl Reachable {
    /// Queues the next hops of routes just learned, if they are new and the routes come from peers.
    pub fn look_at(&mut self, changes: &[RouteChange]) {
        let foreign = |change: &&RouteChange| change.best.as_ref().is_some_and(|best| best.source != PeerId::LOCAL);
        let next_hops = changes.iter().filter(foreign).flat_map(|change| &change.next_hops);
        self.due.extend(next_hops.filter(|next_hop| !self.known.contains_key(next_hop)));
    }

    /// Queues all next hops after a change of links, addresses or routes. `used`: the next hops of all used routes;
    /// lost ones are queried too.
    pub fn look_at_all(&mut self, used: BTreeSet<IpAddr>) {
        self.forget_unused(&used);
        self.due = used;
        self.due.extend(self.known.keys());
    }

    /// Returns whether most of what is known may be unused: routes come and go with new next hops, and nothing that looks at all of them happens.
    pub fn is_crowded(&self) -> bool {
        self.known.len() > 2 * self.kept + SPARE
    }

    /// Forgets the next hops that no route uses, but for those that the speaker has been told of.
    pub fn forget_unused(&mut self, used: &BTreeSet<IpAddr>) {
        self.known.retain(|next_hop, known| known.told || used.contains(next_hop));
        self.doubtful.retain(|next_hop| self.known.contains_key(next_hop));
        self.kept = self.known.len();
    }

    /// Takes the next hops to be queried now.
    pub fn take_due(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.due)
    }

    /// Records the kernel's answer. A node that was on a link may be behind a gateway now.
    pub fn note(&mut self, next_hop: IpAddr, lead: Lead, is_node: bool, now: Instant) {
        let known = self.known.entry(next_hop).or_default();
        let lost = match lead {
            Lead::Unknown => return,
            Lead::Nowhere => true,
            Lead::Onwards => known.direct && !is_node,
            Lead::Direct => false,
        };
        if lost {
            known.reached = false;
            known.lost.get_or_insert(now);
            if !known.told {
                self.doubtful.insert(next_hop);
            }
            return;
        }
        self.doubtful.remove(&next_hop);
        self.returned |= known.told;
        *known = Known { direct: lead == Lead::Direct, reached: true, lost: None, told: false };
    }

    /// Applies losses that have lasted long enough, unless we are cut off. Returns all lost next hops if the speaker
    /// has to be told.
    pub fn settle(&mut self, now: Instant) -> Option<BTreeSet<IpAddr>> {
        if self.doubtful.is_empty() && !self.returned {
            return None;
        }
        let connected = self.known.values().any(|known| known.reached);
        let mut changed = std::mem::take(&mut self.returned);
        let mut told = self.told();
        let Reachable { known, doubtful, .. } = self;
        doubtful.retain(|next_hop| {
            let Some(known) = known.get_mut(next_hop) else { return false };
            if !connected {
                known.lost = Some(now);
            } else if known.lost.is_some_and(|lost| now >= lost + PATIENCE) && told < MOST {
                known.told = true;
                told += 1;
                changed = true;
            }
            !known.told
        });
        let lost = self.known.iter().filter(|(_, known)| known.told).map(|(next_hop, _)| *next_hop);
        changed.then(|| lost.collect())
    }

    /// Number of next hops that the speaker has been told of.
    fn told(&self) -> usize {
        self.known.values().filter(|known| known.told).count()
    }

    /// Returns when it has to be called again. While no more can be told, only another answer of the kernel changes anything.
    pub fn deadline(&self) -> Option<Instant> {
        if self.doubtful.is_empty() || self.told() >= MOST {
            return None;
        }
        let lost = self.doubtful.iter().filter_map(|next_hop| self.known.get(next_hop)?.lost);
        lost.min().map(|lost| lost + PATIENCE)
    }

    /// Forgets everything for a new speaker: all next hops are reachable.
    pub fn forget(&mut self) {
        *self = Reachable::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hop(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn set(numbers: &[u8]) -> BTreeSet<IpAddr> {
        numbers.iter().copied().map(hop).collect()
    }

    /// Queries all next hops, with these answers.
    fn round(reachable: &mut Reachable, answers: &[(u8, Lead)], now: Instant) {
        reachable.look_at_all(answers.iter().map(|(number, _)| hop(*number)).collect());
        for next_hop in reachable.take_due() {
            let answer = answers.iter().find(|(number, _)| hop(*number) == next_hop);
            reachable.note(next_hop, answer.map_or(Lead::Unknown, |(_, lead)| *lead), false, now);
        }
    }

    #[test]
    fn a_next_hop_is_lost_after_a_while_and_is_back_at_once() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        round(&mut reachable, &[(1, Lead::Direct), (2, Lead::Onwards)], now);
        assert_eq!((reachable.settle(now), reachable.deadline()), (None, None));
        round(&mut reachable, &[(1, Lead::Nowhere), (2, Lead::Onwards)], now);
        assert_eq!(reachable.settle(now), None);
        let later = reachable.deadline().expect("it is looked at again");
        assert_eq!(reachable.settle(later), Some(set(&[1])));
        assert_eq!((reachable.settle(later), reachable.deadline()), (None, None), "it is said once");
        // No route uses it any more, but it is still queried.
        reachable.look_at_all(set(&[2]));
        assert_eq!(reachable.take_due(), set(&[1, 2]));
        reachable.note(hop(1), Lead::Direct, false, later);
        assert_eq!(reachable.settle(later), Some(set(&[])));
    }

    #[test]
    fn where_more_are_lost_than_can_be_told_nothing_is_due_until_one_of_those_is_back() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        reachable.note(hop(1), Lead::Direct, true, now);
        let lost: Vec<IpAddr> = (0..MOST as u32 + 2).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
        lost.iter().for_each(|next_hop| reachable.note(*next_hop, Lead::Nowhere, false, now));
        let later = reachable.deadline().expect("it is looked at again");
        assert_eq!(reachable.settle(later).map(|told| told.len()), Some(MOST));
        assert_eq!((reachable.settle(later), reachable.deadline()), (None, None));
        reachable.note(lost[0], Lead::Direct, false, later);
        let told = reachable.settle(later).expect("another one takes its place");
        assert!(told.len() == MOST && !told.contains(&lost[0]));
        assert_eq!(reachable.deadline(), None);
    }

    #[test]
    fn next_hops_that_come_and_go_with_routes_alone_are_forgotten() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        reachable.note(hop(1), Lead::Direct, true, now);
        for number in 0..100_000_u32 {
            let next_hop = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            reachable.note(next_hop, [Lead::Direct, Lead::Nowhere][usize::from(number % 2 == 1)], true, now);
            if reachable.is_crowded() {
                reachable.forget_unused(&BTreeSet::from([hop(1), next_hop]));
            }
        }
        assert!(reachable.known.len() <= 2 * SPARE && reachable.doubtful.len() <= SPARE, "{}", reachable.known.len());
        assert!(reachable.known.contains_key(&hop(1)), "a route uses it");
    }

    #[test]
    fn a_flap_is_not_noticed() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        round(&mut reachable, &[(1, Lead::Nowhere), (2, Lead::Direct)], now);
        round(&mut reachable, &[(1, Lead::Direct), (2, Lead::Direct)], now + PATIENCE / 2);
        assert_eq!(reachable.settle(now + PATIENCE), None);
    }

    #[test]
    fn while_we_are_cut_off_nothing_is_lost_nor_right_after_it() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        round(&mut reachable, &[(1, Lead::Nowhere), (2, Lead::Nowhere)], now);
        let later = now + 10 * PATIENCE;
        assert_eq!(reachable.settle(later), None);
        // The link is up again; its routes follow a little later.
        reachable.note(hop(3), Lead::Direct, false, later);
        assert_eq!(reachable.settle(later), None);
        assert_eq!(reachable.settle(later + PATIENCE), Some(set(&[1, 2])));
    }

    #[test]
    fn who_was_on_our_link_and_is_behind_a_gateway_is_lost_unless_it_is_a_node() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        round(&mut reachable, &[(1, Lead::Direct), (2, Lead::Direct), (3, Lead::Onwards)], now);
        reachable.note(hop(1), Lead::Onwards, false, now);
        reachable.note(hop(2), Lead::Onwards, true, now);
        reachable.note(hop(3), Lead::Onwards, false, now);
        assert_eq!(reachable.settle(now + PATIENCE), Some(set(&[1])));
    }

    #[test]
    fn an_answer_that_says_nothing_changes_nothing() {
        let (mut reachable, now) = (Reachable::default(), Instant::now());
        round(&mut reachable, &[(1, Lead::Unknown), (2, Lead::Nowhere), (3, Lead::Onwards)], now);
        reachable.note(hop(2), Lead::Unknown, false, now);
        assert_eq!(reachable.settle(now + PATIENCE), Some(set(&[2])));
        reachable.note(hop(2), Lead::Unknown, false, now);
        assert_eq!(reachable.settle(now + 2 * PATIENCE), None);
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_was_lost_last(answers in proptest::collection::vec((1_u8..5, 0_u8..4), 0..60)) {
            let (mut reachable, mut now, mut told) = (Reachable::default(), Instant::now(), BTreeSet::new());
            reachable.note(hop(9), Lead::Direct, true, now);
            let mut last: BTreeMap<u8, Lead> = BTreeMap::new();
            for (number, lead) in answers {
                let lead = [Lead::Direct, Lead::Onwards, Lead::Nowhere, Lead::Unknown][usize::from(lead)];
                reachable.note(hop(number), lead, true, now);
                if lead != Lead::Unknown {
                    last.insert(number, lead);
                }
                now += PATIENCE;
                told = reachable.settle(now).unwrap_or(told);
                let lost = last.iter().filter(|(_, lead)| **lead == Lead::Nowhere).map(|(number, _)| hop(*number));
                prop_assert_eq!(&told, &lost.collect::<BTreeSet<_>>());
            }
        }
    }
}
