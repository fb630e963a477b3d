//! The rules of one more address of a pod that the kernel knows.
//!
//! After a restart while the API server is away the cluster is remembered, and the kernel's state is newer: nothing of it changes. A pod
//! of this node may get a new sandbox meanwhile (`--netpol-cni`), and starts where the kernel and the memory agree about it: the kernel judges
//! its former addresses as the memory says of the new one. Then the new address gets the same jumps, and becomes an element of the
//! sets in which both have it. Nothing else changes, and nothing is taken from an address: what was left to it by
//! another pod keeps the new one waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::kernel::ipset::{ElementKey, Entry};
use crate::kernel::iptables::{Match, Piece, Rule, Rules};
use crate::net::Family;

use super::super::backend::NewAddress;
use super::super::rules::Direction;
use super::desired::{Desired, Elements};
use super::dispatch::chain;
use super::enforced::Seen;
use super::names::{self, CHAIN_TAIL};
use super::pod_chain;
use super::turning::AllRules;

/// The rules and elements that the kernel lacks.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Additions {
    pub rules: AllRules,
    pub elements: BTreeMap<ElementKey, ()>,
}

impl Additions {
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.elements.is_empty()
    }
}

/// Returns what the kernel lacks of the address.
///
/// # Errors
/// Why the address has to wait until the cluster is known, as a sentence without its end.
pub fn additions(starting: &NewAddress<'_>, desired: &Desired, seen: Seen<'_>) -> Result<Additions, String> {
    let family = Family::from(starting.address);
    if !desired.rules.contains_key(&chain(family, CHAIN_TAIL)) {
        // This family is off.
        return Ok(Additions::default());
    }
    let (Some(rules), Some(elements)) = (seen.rules, seen.elements) else {
        return Err("what the kernel holds is not known at the moment".to_owned());
    };
    let additions = starting.agreed(|former| {
        let places = Places { former, new: starting.address };
        let (rules, elements) = (places.rules(&desired.rules, rules)?, places.elements(desired, elements)?);
        Ok(Additions { rules, elements })
    })?;
    for direction in Direction::BOTH {
        let own = chain(family, &names::pod_chain(starting.pod, direction));
        if asked(rules.get(&own)) != asked(desired.rules.get(&own)) {
            return Err(format!("{own} names other policies in the kernel than were remembered"));
        }
    }
    Ok(additions)
}

/// Returns the chains that a pod's chain enters; `None` without such a chain.
fn asked(chain: Option<&Rules>) -> Option<Vec<String>> {
    chain.map(|rules| rules.0.iter().filter_map(pod_chain::jump).map(ToString::to_string).collect())
}

struct Places {
    former: IpAddr,
    new: IpAddr,
}

impl Places {
    /// Returns the chains that have to name the new address too.
    fn rules(&self, desired: &AllRules, seen: &AllRules) -> Result<AllRules, String> {
        let family = Family::from(self.new);
        let pieces: BTreeSet<&Piece> =
            desired.keys().chain(seen.keys()).filter(|piece| piece.family() == family).collect();
        let mut changed = AllRules::new();
        for piece in pieces {
            let (wanted, found) = (of(desired.get(piece)), of(seen.get(piece)));
            let renamed: Vec<Rule> =
                found.iter().filter(|rule| is_about(rule, self.former)).map(|rule| self.renamed(rule)).collect();
            if !wanted.iter().filter(|rule| is_about(rule, self.new)).eq(&renamed) {
                return Err(format!("{piece} has other rules for {} than were remembered", self.former));
            }
            let there: Vec<&Rule> = found.iter().filter(|rule| is_about(rule, self.new)).collect();
            if there.is_empty() && !renamed.is_empty() {
                let with_new = |rule: &Rule| {
                    let renamed = is_about(rule, self.former).then(|| self.renamed(rule));
                    [rule.clone()].into_iter().chain(renamed)
                };
                changed.insert(piece.clone(), Rules(found.iter().flat_map(with_new).collect()));
            } else if !there.iter().copied().eq(&renamed) {
                return Err(format!("{piece} still has rules of another pod for {}", self.new));
            }
        }
        Ok(changed)
    }

    /// Returns the elements that have to come.
    fn elements(&self, desired: &Desired, seen: &Elements) -> Result<BTreeMap<ElementKey, ()>, String> {
        let is_needed = |key: &ElementKey| desired.closes(key) || key.set == *names::local_pods(key.entry.family());
        let mut additions = BTreeMap::new();
        for key in seen.keys().filter(|key| address(&key.entry) == Some(self.former)) {
            let new = with_address(key, self.new);
            if desired.elements.contains_key(&new) {
                additions.insert(new, ());
            } else if is_needed(key) || !desired.sets.contains_key(&key.set) {
                return Err(format!("set {} holds {}, which was not remembered", key.set, self.former));
            }
        }
        for key in desired.elements.keys().filter(|key| address(&key.entry) == Some(self.new)) {
            if is_needed(key) && !additions.contains_key(key) {
                return Err(format!("set {} does not hold {}, as was remembered", key.set, self.former));
            }
        }
        for key in seen.keys().filter(|key| address(&key.entry) == Some(self.new)) {
            if additions.remove(key).is_none() {
                return Err(format!("set {} still holds {} for another pod", key.set, self.new));
            }
        }
        Ok(additions)
    }

    /// Returns the same rule for the new address.
    fn renamed(&self, rule: &Rule) -> Rule {
        let (former, range) = (Family::host_prefix(self.former), Family::host_prefix(self.new));
        let matches: Vec<Match> = rule
            .matches()
            .iter()
            .map(|one| match one {
                Match::Source { range: of, negated } if *of == former => Match::Source { range, negated: *negated },
                Match::Destination { range: of, negated } if *of == former => {
                    Match::Destination { range, negated: *negated }
                }
                other => other.clone(),
            })
            .collect();
        rule.verdict().map_or_else(|| rule.clone(), |verdict| Rule::new(matches, verdict.clone()))
    }
}

fn of(rules: Option<&Rules>) -> &[Rule] {
    rules.map_or(&[], |rules| &rules.0)
}

/// Returns whether a rule is about what comes from or goes to this address.
fn is_about(rule: &Rule, address: IpAddr) -> bool {
    let range = Family::host_prefix(address);
    rule.matches().iter().any(
        |one| matches!(one, Match::Source { range: of, .. } | Match::Destination { range: of, .. } if *of == range),
    )
}

fn address(entry: &Entry) -> Option<IpAddr> {
    match entry {
        Entry::Ip(address) | Entry::IpPort(address, ..) => Some(*address),
        Entry::Net(_) | Entry::IpPortNet(_) => None,
    }
}

fn with_address(key: &ElementKey, new: IpAddr) -> ElementKey {
    let entry = match &key.entry {
        Entry::Ip(_) => Entry::Ip(new),
        Entry::IpPort(_, protocol, port) => Entry::IpPort(new, *protocol, *port),
        other => other.clone(),
    };
    ElementKey { set: key.set.clone(), entry }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::given::{object, pod, pods, policy, rule};
    use super::super::given::lowered;
    use super::super::overlay::Refusals;
    use super::*;
    use crate::model::{Host, Namespace, World};

    /// `db` takes from `web`; both have these last parts of addresses.
    fn desired(db: &[u8], web: &[u8]) -> Desired {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        for (name, places) in [("db", db), ("web", web)] {
            let addresses: Vec<String> =
                places.iter().map(|last| format!("10.244.1.{last} fd00:10:244:1::{last}")).collect();
            let labels = format!("app={name}");
            world.cluster.pods.insert(object(&format!("shop/{name}")), pod(&addresses.join(" "), &labels, ""));
        }
        let allows = [rule(&[pods("app=web")], &["tcp/5432"])];
        world.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        let (_, lowering, _) = lowered(&world);
        lowering.desired().clone()
    }

    fn address(last: u8, family: Family) -> IpAddr {
        match family {
            Family::V4 => format!("10.244.1.{last}"),
            Family::V6 => format!("fd00:10:244:1::{last}"),
        }
        .parse()
        .expect("an address")
    }

    /// Returns what the kernel lacks of the pod's address 70, which was known at 8 or 7.
    fn told(name: &str, kernel: &Desired, family: Family) -> Result<Additions, String> {
        let (wanted, former) = match name {
            "db" => (desired(&[8, 70], &[7]), 8),
            _ => (desired(&[8], &[7, 70]), 7),
        };
        let refusals = Refusals::default();
        let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
        let (pod, former) = (object(&format!("shop/{name}")), [address(former, family)]);
        additions(&NewAddress { pod: &pod, address: address(70, family), former: &former }, &wanted, seen)
    }

    fn with(kernel: &Desired, additions: Additions) -> Desired {
        let mut kernel = kernel.clone();
        kernel.rules.extend(additions.rules);
        kernel.elements.extend(additions.elements);
        kernel
    }

    #[test]
    fn a_pod_that_the_kernel_knows_gets_all_of_its_rules_at_a_new_address() {
        for (pod, whole) in [("db", desired(&[8, 70], &[7])), ("web", desired(&[8], &[7, 70]))] {
            let mut kernel = desired(&[8], &[7]);
            for family in Family::BOTH {
                let additions = told(pod, &kernel, family).expect("kernel and memory agree");
                assert!(!additions.is_empty());
                kernel = with(&kernel, additions);
                assert_eq!(told(pod, &kernel, family), Ok(Additions::default()), "nothing is left to do");
            }
            assert_eq!((kernel.rules, kernel.elements), (whole.rules, whole.elements), "{pod}");
        }
    }

    #[test]
    fn nothing_else_of_a_newer_kernel_changes() {
        for family in Family::BOTH {
            let mut kernel = desired(&[8], &[7, 9]);
            let stranger = address(99, family);
            kernel
                .elements
                .insert(ElementKey { set: names::local_pods(family).clone(), entry: Entry::Ip(stranger) }, ());
            let additions = told("db", &kernel, family).expect("kernel and memory agree about this pod");
            assert!(additions.elements.keys().all(|key| address_of(key) == Some(address(70, family))));
            let after = with(&kernel, additions);
            let kept = |rules: &Rules, of: &Piece| rules.0.iter().all(|rule| after.rules[of].0.contains(rule));
            assert!(kernel.rules.iter().all(|(piece, rules)| kept(rules, piece)));
        }
    }

    fn address_of(key: &ElementKey) -> Option<IpAddr> {
        super::address(&key.entry)
    }

    #[test]
    fn a_pod_that_kernel_and_memory_judge_in_different_ways_waits() {
        for family in Family::BOTH {
            let whole = desired(&[8], &[7]);
            let forward = chain(family, names::CHAIN_FORWARD);
            let own = chain(family, &names::pod_chain(&object("shop/db"), Direction::Ingress));
            let waits = |change: &dyn Fn(&mut Desired), pod: &str| {
                let mut kernel = whole.clone();
                change(&mut kernel);
                assert!(told(pod, &kernel, family).is_err());
            };
            let former = |last| move |rule: &Rule| !is_about(rule, address(last, family));
            waits(&|kernel| kernel.rules.get_mut(&forward).expect("it is there").0.retain(former(8)), "db");
            waits(&|kernel| kernel.rules.get_mut(&own).expect("it is there").0.clear(), "db");
            waits(&|kernel| kernel.elements.retain(|key, ()| address_of(key) != Some(address(7, family))), "web");
            // Isolated since, which the memory does not know.
            let jump = Places { former: address(8, family), new: address(7, family) };
            waits(
                &|kernel| {
                    let rules = &mut kernel.rules.get_mut(&forward).expect("it is there").0;
                    let more: Vec<Rule> = rules
                        .iter()
                        .filter(|rule| is_about(rule, jump.former))
                        .map(|rule| jump.renamed(rule))
                        .collect();
                    rules.extend(more);
                },
                "web",
            );
            // What another pod had at the address is there still.
            let left = ElementKey { set: names::local_pods(family).clone(), entry: Entry::Ip(address(70, family)) };
            let is_source = |key: &&ElementKey| key.set.0.contains("KUBE-SRC-") && key.entry.family() == family;
            let peers = whole.elements.keys().find(is_source).expect("web is a peer");
            let left_to_peer = with_address(peers, address(70, family));
            waits(&|kernel| kernel.elements.extend([(left_to_peer.clone(), ())]), "db");
            let mut kernel = whole.clone();
            kernel.elements.insert(left, ());
            assert!(told("web", &kernel, family).is_ok(), "this one it gets in any case");
        }
    }

    #[test]
    fn what_the_kernel_no_longer_allows_a_pod_it_is_not_allowed_at_a_new_address() {
        for family in Family::BOTH {
            let mut kernel = desired(&[8], &[7]);
            kernel.elements.retain(|key, ()| !key.set.0.contains("KUBE-SRC-"));
            let additions = told("web", &kernel, family).expect("it is judged by nothing");
            let local = ElementKey { set: names::local_pods(family).clone(), entry: Entry::Ip(address(70, family)) };
            assert_eq!(additions.elements.into_keys().collect::<Vec<_>>(), [local]);
        }
    }
}
