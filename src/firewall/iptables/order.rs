//! Order of changes: what precedes the rules, what accompanies them, and what follows.
//!
//! Elements and rules cannot be changed atomically, so a packet may meet rules and sets of different moments. The
//! consequences follow from one property: nearly every match of ours on a set is positive, so with unchanged rules an added
//! element only ever opens paths, and a deleted one only ever closes them.
//!
//! - *Removed first, added last*: the old rules with elements that are in a set before and after, the new rules with
//!   the same, then the new elements. Whatever has changed at once, nothing is open that was not open before and shall
//!   not be open afterwards. The price: new connections of pods that moved between sets may be refused meanwhile.
//! - *Added first, removed last*, where the rules stay and one pod has moved: for all its packets, only the match at
//!   the other end changes, so nothing is closed that was and shall be open either. The same holds where no pod of this
//!   node moved: none of its packets is judged at two ends that changed.
//! - *In three acts* (`turning`), where the rules change too, but only those of the one pod that moved.
//!
//! The sets of what pods are refused of Services (`host_endpoints`), and those of rules of ClusterNetworkPolicies that deny
//! (`rules::SetKey::Denied`), are the exception: an added element closes a path. They stand apart: their elements are added before all other changes, and deleted when the rules are as desired.
//!
//! Sets that no rule uses yet are separate: they are filled before rules use them, and leftover elements are deleted
//! before that, too. So are the sets of local pods, which `apply` handles.
//!
//! Computed by comparing the seen with the desired state, so it holds across a restart, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use crate::kernel::ipset::{ElementKey, Entry, SetName};
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::net::{Family, PerFamily};
use crate::reconcile::Differing;

use super::desired::Desired;
use super::dispatch;
use super::names::{self, ChainKind, kind};
use super::turning::{AllRules, Turning, chains_of, jump_of};

/// Elements that may only be added or deleted at certain points of a round.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Order {
    /// Deleted before the rules change, and before anything is added.
    pub early: BTreeSet<ElementKey>,
    /// Deleted likewise, without effect on packets: no rule uses their set yet.
    pub unnamed: BTreeSet<ElementKey>,
    /// Added once the rules are as desired.
    pub late: BTreeSet<ElementKey>,
    pub turning: Turning,
    /// Families whose rules in the kernel are unknown: their elements cannot be ordered.
    pub unknown: PerFamily<bool>,
}

/// Inputs of an order.
pub struct OrderInputs<'a> {
    /// The rules last seen.
    pub seen: &'a AllRules,
    /// The rules desired for now.
    pub want: &'a AllRules,
    pub desired: &'a Desired,
    /// Elements to be added and to be deleted.
    pub differing: Differing<ElementKey>,
    pub unknown: PerFamily<bool>,
    /// The rules are as desired, in both families.
    pub rules_stay: bool,
}

impl Order {
    /// Returns the order of changes from the seen to the desired state.
    pub fn between(between: OrderInputs<'_>) -> Order {
        let mut order = Order { unknown: between.unknown, ..Order::default() };
        let is_apart =
            |key: &ElementKey| key.set == *names::local_pods(key.entry.family()) || between.desired.closes(key);
        for family in Family::BOTH.into_iter().filter(|family| !*between.unknown.of(*family)) {
            let of_family = |keys: &[ElementKey]| -> BTreeSet<ElementKey> {
                keys.iter().filter(|key| key.entry.family() == family && !is_apart(key)).cloned().collect()
            };
            let mut moves =
                Moves { come: of_family(&between.differing.missing), go: of_family(&between.differing.surplus) };
            moves.go.retain(|key| between.desired.sets.contains_key(&key.set));
            if !moves.is_empty() {
                order.of_family(&between, family, moves);
            }
        }
        order
    }

    fn of_family(&mut self, between: &OrderInputs<'_>, family: Family, mut moves: Moves) {
        let differs =
            |(piece, rules): (&Piece, &Rules)| piece.family() == family && between.seen.get(piece) != Some(rules);
        if between.rules_stay || !between.want.iter().any(differs) {
            let is_one = moves.of_one_pod(between.desired).is_some();
            if !is_one && !moves.come.is_empty() && !moves.go.is_empty() && moves.concern_pods_here(between.desired) {
                self.early.extend(moves.go);
                self.late.extend(moves.come);
            }
            return;
        }
        let named: BTreeSet<&SetName> = named(between.seen, family);
        let is_named = |key: &ElementKey| named.contains(&key.set);
        self.unnamed.extend(moves.go.iter().filter(|key| !is_named(key)).cloned());
        moves.come.retain(is_named);
        moves.go.retain(is_named);
        match moves.of_one_pod(between.desired) {
            _ if moves.is_empty() => {}
            Some(address) if only_concerns(address, between.seen, between.want, family) => {
                self.turning.addresses.insert(address);
                self.turning.elements.extend(moves.come.into_iter().chain(moves.go));
            }
            _ => {
                self.early.extend(moves.go);
                self.late.extend(moves.come);
            }
        }
    }
}

/// Elements of one family to be added to and deleted from sets that rules use.
struct Moves {
    come: BTreeSet<ElementKey>,
    go: BTreeSet<ElementKey>,
}

impl Moves {
    fn is_empty(&self) -> bool {
        self.come.is_empty() && self.go.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &ElementKey> {
        self.come.iter().chain(&self.go)
    }

    /// Returns the single address that all moves are about, if there is one and its pod's named ports stay.
    fn of_one_pod(&self, desired: &Desired) -> Option<IpAddr> {
        let first = address(&self.all().next()?.entry)?;
        let is_its = |key: &ElementKey| address(&key.entry) == Some(first) && !desired.ports_here.contains(&key.set);
        self.all().all(is_its).then_some(first)
    }

    fn concern_pods_here(&self, desired: &Desired) -> bool {
        self.all().any(|key| {
            let set = names::local_pods(key.entry.family()).clone();
            let is_here = |address| desired.elements.contains_key(&ElementKey { set, entry: Entry::Ip(address) });
            desired.ports_here.contains(&key.set) || address(&key.entry).is_none_or(is_here)
        })
    }
}

/// Returns whether the rules differ only in those that judge this address.
fn only_concerns(address: IpAddr, seen: &AllRules, want: &AllRules, family: Family) -> bool {
    let owners = |rules| -> BTreeMap<CompactString, BTreeSet<IpAddr>> {
        let mut owners: BTreeMap<CompactString, BTreeSet<IpAddr>> = BTreeMap::new();
        for (owner, chains) in chains_of(rules, family) {
            for chain in chains {
                owners.entry(chain.into()).or_default().insert(owner);
            }
        }
        owners
    };
    let (before, after) = (owners(seen), owners(want));
    let is_its = |chain: &str| {
        let mut all = before.get(chain).into_iter().chain(after.get(chain)).flatten();
        all.all(|owner| *owner == address)
    };
    let judges_others = |rules: &Rules| -> Vec<Rule> {
        let concerns = |rule: &Rule| jump_of(rule).is_some_and(|(_, own)| own.iter().all(|one| *one == address));
        // Bridges are closed as soon as any pod is isolated. That depends on no element.
        rules.0.iter().filter(|rule| !concerns(rule) && !dispatch::is_of_bridge(rule)).cloned().collect()
    };
    want.iter().filter(|(piece, _)| piece.family() == family).all(|(piece, new)| {
        let (old, Piece::Chain { chain, .. }) = (seen.get(piece), piece) else { return seen.get(piece) == Some(new) };
        old == Some(new)
            || match kind(chain) {
                Some(ChainKind::Dispatch) => old.is_some_and(|old| judges_others(old) == judges_others(new)),
                Some(ChainKind::Pod) => is_its(chain),
                // Pod chains that enter a new policy chain are compared above.
                Some(ChainKind::Policy | ChainKind::ClusterPolicy) => old.is_none(),
                // Neither what is closed on bridges nor what pods are refused of Services depends on these elements.
                Some(ChainKind::Bridge | ChainKind::HostEndpoints) => true,
                Some(ChainKind::Fixed) | None => false,
            }
    })
}

/// Returns the sets that rules of this family use.
fn named(rules: &AllRules, family: Family) -> BTreeSet<&SetName> {
    let of_family = rules.iter().filter(|(piece, _)| piece.family() == family);
    of_family.flat_map(|(_, rules)| &rules.0).flat_map(Rule::sets).collect()
}

fn address(entry: &Entry) -> Option<IpAddr> {
    match entry {
        Entry::Ip(address) | Entry::IpPort(address, ..) => Some(*address),
        Entry::Net(_) | Entry::IpPortNet(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::iptables::names::CHAIN_FORWARD;
    use crate::kernel::ipset::{SetKind, SetName, SetSpec};

    const PEERS: (&str, &[&str]) = (
        "KUBE-NWPLCY-PEERS",
        &[
            "-m set --match-set PEERS src -g KUBE-NWPLCY-DEFAULT",
            "-m set --match-set OTHERS src -g KUBE-NWPLCY-DEFAULT",
        ],
    );
    const TAIL: &str = "-j TAIL";

    fn jump(pod: u8) -> String {
        format!(
            "-s 10.244.1.{pod}/32 ! -d 10.244.1.{pod}/32 -m comment --comment \"shop/p {pod}\" -j KUBE-POD-FW-{pod}"
        )
    }

    fn rules(isolated: &[u8], chains: &[(&str, &[&str])]) -> AllRules {
        let rule = |rules: &[&str]| Rules(rules.iter().map(|rule| Rule::from(*rule)).collect());
        let mut all: AllRules =
            chains.iter().map(|(name, rules)| (dispatch::chain(Family::V4, name), rule(rules))).collect();
        let jumps = isolated.iter().map(|pod| jump(*pod)).chain([TAIL.to_owned()]);
        let forward = Rules(jumps.map(Rule::from).collect());
        all.insert(dispatch::chain(Family::V4, CHAIN_FORWARD), forward);
        all
    }

    fn elements(words: &[&str]) -> BTreeSet<ElementKey> {
        let element = |word: &&str| {
            let (set, address) = word.split_once(' ').unwrap();
            ElementKey { set: SetName(set.into()), entry: Entry::Ip(address.parse().unwrap()) }
        };
        words.iter().map(element).collect()
    }

    /// Pods 1 and 2 are pods of this node.
    fn desired() -> Desired {
        let spec = SetSpec { kind: SetKind::HashIp, family: Family::V4, max_elements: 65_536, timeout: false };
        let sets = ["PEERS", "OTHERS", "NEW"].map(|name| (SetName(name.into()), spec)).into();
        let here = elements(&["kube-router-local-pods 10.244.1.1", "kube-router-local-pods 10.244.1.2"]);
        Desired { sets, elements: here.into_iter().map(|key| (key, ())).collect(), ..Desired::default() }
    }

    fn order(seen: &AllRules, want: &AllRules, come: &[&str], go: &[&str]) -> Order {
        let list = |words| elements(words).into_iter().collect();
        let differing = Differing { missing: list(come), surplus: list(go) };
        let (desired, unknown) = (desired(), PerFamily::default());
        Order::between(OrderInputs { seen, want, desired: &desired, differing, unknown, rules_stay: false })
    }

    #[test]
    fn a_pod_that_becomes_isolated_and_a_peer_is_isolated_first() {
        let (seen, want) = (rules(&[], &[PEERS]), rules(&[1], &[PEERS, ("KUBE-POD-FW-1", &["-j REJECT"])]));
        let order = order(&seen, &want, &["PEERS 10.244.1.1"], &[]);
        assert_eq!(order.turning.elements, elements(&["PEERS 10.244.1.1"]));
        assert_eq!((order.early, order.late), (BTreeSet::new(), BTreeSet::new()));
        assert_eq!(order.turning.stricter(&seen, &want, |_| false), want, "what is wanted is stricter");
    }

    #[test]
    fn one_pod_that_moves_between_sets_comes_before_it_goes() {
        let same = rules(&[1, 2], &[PEERS]);
        assert_eq!(order(&same, &same, &["PEERS 10.244.1.1"], &["OTHERS 10.244.1.1"]), Order::default());
    }

    #[test]
    fn pods_that_move_together_go_before_they_come_where_one_of_them_is_here() {
        let same = rules(&[1, 2], &[PEERS]);
        let here = order(&same, &same, &["PEERS 10.244.1.1"], &["OTHERS 10.244.9.9"]);
        assert_eq!(here.early, elements(&["OTHERS 10.244.9.9"]));
        assert_eq!(here.late, elements(&["PEERS 10.244.1.1"]));
        let far = order(&same, &same, &["PEERS 10.244.9.8"], &["OTHERS 10.244.9.9"]);
        assert_eq!(far, Order::default());
    }

    #[test]
    fn where_a_policy_changes_too_peers_go_before_and_come_behind() {
        let other: (&str, &[&str]) = (PEERS.0, &["-m set --match-set PEERS src -g KUBE-NWPLCY-DEFAULT"]);
        let (seen, want) = (rules(&[1], &[PEERS]), rules(&[1], &[other]));
        let order = order(&seen, &want, &["PEERS 10.244.1.1"], &["PEERS 10.244.9.9"]);
        assert_eq!(order.early, elements(&["PEERS 10.244.9.9"]));
        assert_eq!(order.late, elements(&["PEERS 10.244.1.1"]));
        assert_eq!(order.turning, Turning::default());
    }

    #[test]
    fn where_another_pods_rules_change_too_nothing_turns() {
        let chains: &[(&str, &[&str])] = &[PEERS, ("KUBE-POD-FW-1", &["-j REJECT"]), ("KUBE-POD-FW-2", &["-j REJECT"])];
        let (seen, want) = (rules(&[], &[PEERS]), rules(&[1, 2], chains));
        let order = order(&seen, &want, &["PEERS 10.244.1.1"], &[]);
        assert_eq!((order.turning, order.late), (Turning::default(), elements(&["PEERS 10.244.1.1"])));
    }

    #[test]
    fn a_set_that_no_rule_names_yet_is_cleaned_before_it_is_named() {
        let new: (&str, &[&str]) = ("KUBE-NWPLCY-NEW", &["-m set --match-set NEW src -g KUBE-NWPLCY-DEFAULT"]);
        let (seen, want) = (rules(&[1], &[PEERS]), rules(&[1], &[PEERS, new]));
        let order = order(&seen, &want, &["NEW 10.244.1.1"], &["NEW 10.244.9.9", "GONE 10.244.9.9"]);
        assert_eq!(order, Order { unnamed: elements(&["NEW 10.244.9.9"]), ..Order::default() });
    }
}
