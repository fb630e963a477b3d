//! Checks whether the kernel judges one pod's packets as the rule set says: what a pod that starts waits for.
//!
//! Only that pod's objects count: its addresses in the set of local pods, the jumps to its chains, these chains, those of the
//! policies that isolate it and of the ClusterNetworkPolicies that select it, the sets that they use, and the fixed chains. What the kernel refuses does not count
//! (`overlay`): it closes more than is desired, and may be refused for ever. Neither do elements that it does not take, where
//! they only open a path. What is desired of other pods may be late or fail, but for what their rules hold of the addresses of one that starts, where it lets the pod
//! do more than it may ([`favouring`]): whoever had the address before may have been allowed, or not denied, what this pod is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::kernel::ipset::{ElementKey, Entry, SetName};
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::model::ObjectName;
use crate::net::Family;
use crate::reconcile::Differing;

use super::super::rules::{Direction, Isolation, PolicyKey, RuleSet};
use super::desired::Desired;
use super::dispatch::{self, chain};
use super::enforced::Seen;
use super::names::{
    self, CHAIN_COMMON, CHAIN_DEFAULT, CHAIN_FORWARD, CHAIN_HOST_ENDPOINTS, CHAIN_INPUT, CHAIN_LINK_LOCAL,
    CHAIN_MULTICAST, CHAIN_OUTPUT, CHAIN_TAIL, ChainKind,
};
use super::overlay::Overlay;
use super::pod_chain;

/// State of the kernel, and what is currently not applied to it.
pub struct Applied<'a> {
    pub seen: Seen<'a>,
    pub overlay: &'a Overlay,
    /// By what the elements differ from the desired ones, apart from those in doubt. Costs what differs, however many there are.
    pub differing: Differing<ElementKey>,
    /// Elements that could not be added when that was tried the last time.
    pub failing: BTreeSet<&'a ElementKey>,
    /// Elements that may be in the kernel or not: the last attempt to change them failed.
    pub doubts: BTreeSet<&'a ElementKey>,
    /// The cluster is known in part, so that elements stay although they are not desired.
    pub keeps_surplus: bool,
}

/// Returns what the kernel lacks of this pod's rules, as a sentence without its end; the first of several.
///
/// # Errors
/// That sentence.
pub fn pod_enforced(
    rules: &RuleSet,
    name: &ObjectName,
    desired: &Desired,
    applied: &Applied<'_>,
) -> Result<(), String> {
    let Some(pod) = rules.pods.get(name) else { return Err(format!("{name} is no pod of this node")) };
    let (Some(seen_rules), Some(seen_elements)) = (applied.seen.rules, applied.seen.elements) else {
        return Err("what the kernel holds is not known at the moment".to_owned());
    };
    // A family that is off has no rules.
    let is_on = |family: Family| desired.rules.contains_key(&chain(family, CHAIN_TAIL));
    for family in Family::BOTH.into_iter().filter(|family| is_on(*family)) {
        let addresses: Vec<IpAddr> =
            pod.addresses.iter().copied().filter(|address| Family::from(*address) == family).collect();
        if addresses.is_empty() {
            continue;
        }
        let set = names::local_pods(family);
        let is_open = |address: &&IpAddr| {
            !seen_elements.contains_key(&ElementKey { set: set.clone(), entry: Entry::Ip(**address) })
        };
        if let Some(address) = addresses.iter().find(is_open) {
            return Err(format!("set {set} does not hold {address}"));
        }
        // All pods that have one of its addresses have to allow its packets.
        let pods: BTreeSet<&ObjectName> =
            addresses.iter().flat_map(|address| rules.local_pods_at(*address)).map(|(name, _)| name).collect();
        let own = Own::of(rules, &pods, family);
        let mut sets: BTreeSet<&SetName> = BTreeSet::new();
        for piece in own.pieces(desired) {
            let Some(wanted) = desired.rules.get(&piece) else { continue };
            let Some(for_now) = applied.overlay.over_piece(&piece, wanted) else { continue };
            if seen_rules.get(&piece).map(|rules| own.of_pods(rules)) != Some(own.of_pods(&for_now)) {
                return Err(format!("{piece} is not as it must be"));
            }
            sets.extend(own.of_pods(wanted).into_iter().flat_map(Rule::sets));
        }
        sets.remove(set);
        for set in sets {
            if !has_elements(set, desired, applied) {
                return Err(format!("set {set} does not hold what it must"));
            }
        }
    }
    let addresses: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
    let favouring = favouring(&addresses, desired, applied, seen_rules);
    favouring.map_or(Ok(()), |element| Err(format!("{element} is still that of another pod")))
}

/// Returns an element by which the kernel may allow one of these addresses more than it may, in whatever set: one that is too much where it opens, one that is missing
/// where it closes. A set that no rule names allows nothing.
fn favouring<'a>(
    addresses: &BTreeSet<IpAddr>,
    desired: &Desired,
    applied: &'a Applied<'_>,
    seen_rules: &BTreeMap<Piece, Rules>,
) -> Option<&'a ElementKey> {
    let Applied { differing, failing, doubts, keeps_surplus, .. } = applied;
    let is_there = |key: &ElementKey| applied.seen.elements.is_some_and(|seen| seen.contains_key(key));
    let is_named = |key: &ElementKey| {
        let names_it = |rule: &Rule| rule.sets().any(|set| *set == key.set);
        desired.sets.contains_key(&key.set) || seen_rules.values().any(|rules| rules.0.iter().any(names_it))
    };
    let is_concerned = |key: &&ElementKey| {
        let is_its = match &key.entry {
            Entry::Ip(address) | Entry::IpPort(address, ..) => addresses.contains(address),
            _ => false,
        };
        is_its && key.set != *names::local_pods(key.entry.family())
    };
    let all = || differing.missing.iter().chain(failing.iter().copied()).chain(doubts.iter().copied());
    let lacks = |key: &&ElementKey| {
        desired.closes(key) && desired.elements.contains_key(*key) && (!is_there(key) || doubts.contains(*key))
    };
    let may_be_left = |key: &&ElementKey| !desired.elements.contains_key(*key) && !desired.closes(key) && is_named(key);
    let surplus = differing.surplus.iter().filter(|_| !keeps_surplus);
    let left = || surplus.chain(doubts.iter().copied()).filter(is_concerned).find(may_be_left);
    all().filter(is_concerned).find(lacks).or_else(left)
}

/// The chains of pods that share an address.
struct Own {
    family: Family,
    /// Those of the pods, in both directions, and of what they are refused of Services.
    of_pods: BTreeSet<String>,
    of_policies: BTreeSet<String>,
}

impl Own {
    fn of(rules: &RuleSet, pods: &BTreeSet<&ObjectName>, family: Family) -> Own {
        let mut own = Own { family, of_pods: BTreeSet::new(), of_policies: BTreeSet::new() };
        for (name, pod) in pods.iter().filter_map(|name| rules.pods.get_key_value(*name)) {
            own.of_pods.insert(names::refusal_chain(name).to_string());
            for direction in Direction::BOTH {
                own.of_pods.insert(names::pod_chain(name, direction).to_string());
                let of_cluster = pod.cluster_policies.iter().map(names::cluster_policy_chain);
                own.of_policies.extend(of_cluster.map(|chain| chain.to_string()));
                let Isolation::Isolated { policies, .. } = pod.isolation(direction) else { continue };
                let chain = |policy: &ObjectName| names::policy_chain(&PolicyKey { policy: policy.clone(), direction });
                own.of_policies.extend(policies.iter().map(|policy| chain(policy).to_string()));
            }
        }
        own
    }

    /// Returns all chains and jumps that their packets meet.
    fn pieces(&self, desired: &Desired) -> Vec<Piece> {
        let fixed = [
            CHAIN_INPUT,
            CHAIN_FORWARD,
            CHAIN_OUTPUT,
            CHAIN_COMMON,
            CHAIN_DEFAULT,
            CHAIN_HOST_ENDPOINTS,
            CHAIN_LINK_LOCAL,
            CHAIN_MULTICAST,
            CHAIN_TAIL,
        ];
        let own = self.of_pods.iter().chain(&self.of_policies).map(String::as_str);
        let chains = fixed.into_iter().chain(own).map(|name| chain(self.family, name));
        let jumps = dispatch::entrances(self.family).map(|(jump, ..)| jump);
        let deciding = dispatch::deciding(self.family).map(|(chain, _)| chain);
        chains.chain(jumps).chain(deciding).filter(|piece| desired.rules.contains_key(piece)).collect()
    }

    /// Returns the rules of a chain without the jumps to chains of other pods.
    fn of_pods<'a>(&self, rules: &'a Rules) -> Vec<&'a Rule> {
        let is_others = |rule: &&Rule| {
            let to = pod_chain::jump(rule).filter(|to| names::kind(to) == Some(ChainKind::Pod));
            to.is_some_and(|to| !self.of_pods.contains(to.as_str()))
        };
        rules.0.iter().filter(|rule| !is_others(rule)).collect()
    }
}

/// Returns whether a set holds what it must, but for what the kernel does not take and what closes more than is desired.
fn has_elements(set: &SetName, desired: &Desired, applied: &Applied<'_>) -> bool {
    let Some(seen) = applied.seen.elements else { return false };
    let Applied { differing, failing, doubts, .. } = applied;
    let is_of_set = |key: &&ElementKey| key.set == *set;
    let mut missing = differing.missing.iter().filter(is_of_set);
    if desired.closing.contains(set) || desired.denied.contains(set) {
        let mut failing = failing.iter().copied().filter(is_of_set);
        let is_missing = |key: &ElementKey| desired.elements.contains_key(key) && !seen.contains_key(key);
        return missing.next().is_none() && !failing.any(is_missing);
    }
    // One that had to be deleted and could not be opens a path until it is read back or deleted.
    let is_left = |key: &&ElementKey| key.set == *set && !desired.elements.contains_key(*key);
    if doubts.iter().copied().any(|key| is_left(&key)) {
        return false;
    }
    let mut surplus = differing.surplus.iter().filter(is_of_set);
    missing.all(|key| failing.contains(key)) && (applied.keeps_surplus || surplus.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::super::super::given::{object, pod, pods, pods_in, policy, rule, selector};
    use super::super::super::plan::Plan;
    use super::super::lowering::Lowering;
    use super::super::overlay::Refusals;
    use super::*;
    use crate::config::{Config, Environment, Request, request};
    use crate::model::{
        Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector, Subject, Tier,
        World,
    };
    use crate::net::PerFamily;
    use std::sync::Arc;

    struct Fixture {
        plan: Plan,
        lowering: Lowering,
    }

    /// `db` takes from `web`, `other` from nobody; all in both families.
    fn given() -> Fixture {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        let cluster = &mut world.cluster;
        cluster.namespaces.insert("shop".into(), Namespace::default());
        for (last, name) in [(7, "web"), (8, "db"), (9, "other"), (10, "free")] {
            let addresses = format!("10.244.1.{last} fd00:10:244:1::{last}");
            cluster.pods.insert(object(&format!("shop/{name}")), pod(&addresses, &format!("app={name}"), ""));
        }
        let allows = [rule(&[pods("app=web")], &["tcp/5432"])];
        cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        cluster.policies.insert(object("shop/other"), policy("app=other", Some(&[]), None));
        let deny = ClusterRule {
            name: "".into(),
            action: Action::Deny,
            matches: PolicyRule { peers: Peers::Of([pods_in("", "app=web")].into()), ports: Ports::Any },
        };
        let subject = Subject { namespaces: Selector::everything(), pods: selector("app=free") };
        let guard =
            ClusterNetworkPolicy { tier: Tier::Admin, priority: 1, subject, ingress: [deny].into(), egress: [].into() };
        cluster.cluster_policies.insert("guard".into(), guard);
        let words = ["sluice", "--run-router=false", "--hostname-override=node1"].map(std::ffi::OsString::from);
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let config = Config::from_flags(&flags, verbosity, &Environment::default()).expect("the flags are sound");
        let config = Arc::new(config.firewall.expect("the firewall runs"));
        let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config, PerFamily { v4: true, v6: true }));
        let changed = plan.update(&world);
        lowering.update(plan.rules(), &world, &changed);
        Fixture { plan, lowering }
    }

    fn differing(kernel: &Desired, desired: &Desired) -> Differing<ElementKey> {
        let lacking = |one: &Desired, other: &Desired| {
            let lacks = |key: &&ElementKey| !other.elements.contains_key(*key);
            one.elements.keys().filter(lacks).cloned().collect()
        };
        Differing { missing: lacking(desired, kernel), surplus: lacking(kernel, desired) }
    }

    /// Returns whether this pod is enforced by a kernel that differs from the desired state by `change`.
    fn told(of: &str, change: impl FnOnce(&mut Desired)) -> Result<(), String> {
        let Fixture { plan, lowering } = given();
        let mut kernel = lowering.desired().clone();
        change(&mut kernel);
        let (refusals, overlay) = (Refusals::default(), Overlay::default());
        let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
        let differing = differing(&kernel, lowering.desired());
        let applied = Applied {
            seen,
            overlay: &overlay,
            differing,
            failing: BTreeSet::new(),
            doubts: BTreeSet::new(),
            keeps_surplus: false,
        };
        pod_enforced(plan.rules(), &object(of), lowering.desired(), &applied)
    }

    fn chain_of(pod: &str, family: Family) -> Piece {
        chain(family, &names::pod_chain(&object(pod), Direction::Ingress))
    }

    #[test]
    fn a_pod_is_enforced_where_the_kernel_holds_all_of_it_and_a_pod_of_elsewhere_never() {
        for pod in ["shop/web", "shop/db", "shop/other", "shop/free"] {
            assert_eq!(told(pod, |_| {}), Ok(()), "{pod}");
        }
        assert_eq!(told("shop/far", |_| {}), Err("shop/far is no pod of this node".to_owned()));
    }

    #[test]
    fn each_of_its_objects_counts_in_either_family() {
        for family in Family::BOTH {
            for piece in [chain_of("shop/db", family), chain(family, CHAIN_TAIL)] {
                let lacks = told("shop/db", |kernel| drop(kernel.rules.remove(&piece).expect("it is wanted")));
                assert_eq!(lacks, Err(format!("{piece} is not as it must be")));
            }
            let forward = chain(family, CHAIN_FORWARD);
            let to = names::pod_chain(&object("shop/db"), Direction::Ingress);
            let lacks = told("shop/db", |kernel| {
                kernel
                    .rules
                    .get_mut(&forward)
                    .expect("it is wanted")
                    .0
                    .retain(|rule| pod_chain::jump(rule) != Some(&to));
            });
            assert_eq!(lacks, Err(format!("{forward} is not as it must be")));
            let own = names::local_pods(family);
            let lacks = told("shop/free", |kernel| {
                kernel.elements.retain(|key, ()| key.set != *own || !key.to_string().ends_with("10"));
            });
            assert!(
                lacks.as_ref().is_err_and(|words| words.starts_with(&format!("set {own} does not hold"))),
                "{lacks:?}"
            );
        }
    }

    #[test]
    fn what_cluster_policies_deny_a_pod_counts_in_either_family() {
        let Fixture { lowering, .. } = given();
        for family in Family::BOTH {
            let is_guard = |piece: &&Piece| names::kind_of(piece) == Some(ChainKind::ClusterPolicy);
            let mut own = lowering.desired().rules.keys().filter(|piece| piece.family() == family);
            let guard = own.find(is_guard).expect("it is wanted").clone();
            let deciding = dispatch::deciding(family).map(|(piece, _)| piece);
            for piece in [guard].into_iter().chain(deciding) {
                let lacks = |kernel: &mut Desired| drop(kernel.rules.remove(&piece).expect("it is wanted"));
                assert_eq!(told("shop/free", lacks), Err(format!("{piece} is not as it must be")));
            }
            let is_denied =
                |key: &ElementKey| lowering.desired().denied.contains(&key.set) && key.entry.family() == family;
            let lacks = told("shop/free", |kernel| kernel.elements.retain(|key, ()| !is_denied(key)));
            assert!(lacks.as_ref().is_err_and(|words| words.contains("does not hold what it must")), "{lacks:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_other_pods_does_not_hold_it_up() {
        for family in Family::BOTH {
            let others = chain_of("shop/other", family);
            let to = names::pod_chain(&object("shop/other"), Direction::Ingress);
            let unfinished = |kernel: &mut Desired| {
                kernel.rules.remove(&others).expect("it is wanted");
                let forward = kernel.rules.get_mut(&chain(family, CHAIN_FORWARD)).expect("it is wanted");
                forward.0.retain(|rule| pod_chain::jump(rule) != Some(&to));
                kernel.elements.retain(|key, ()| !key.to_string().ends_with('9'));
            };
            for pod in ["shop/db", "shop/free"] {
                assert_eq!(told(pod, unfinished), Ok(()), "{pod}");
            }
            assert!(told("shop/other", unfinished).is_err());
        }
    }

    #[test]
    fn an_address_that_may_do_more_than_policies_say_counts_and_one_that_the_kernel_does_not_take_does_not() {
        let Fixture { plan, lowering } = given();
        let is_peer = |key: &&ElementKey| key.set.0.starts_with("KUBE-SRC-");
        let peer = lowering.desired().elements.keys().find(is_peer).expect("web is a peer").clone();
        let stranger = ElementKey { entry: Entry::Ip("10.244.9.9".parse().expect("an address")), ..peer.clone() };
        let (refusals, overlay) = (Refusals::default(), Overlay::default());
        let told_of = |change: &dyn Fn(&mut Desired),
                       failing: BTreeSet<&ElementKey>,
                       doubts: BTreeSet<&ElementKey>,
                       keeps_surplus| {
            let mut kernel = lowering.desired().clone();
            change(&mut kernel);
            let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
            let differing = differing(&kernel, lowering.desired());
            let applied = Applied { seen, overlay: &overlay, differing, failing, doubts, keeps_surplus };
            pod_enforced(plan.rules(), &object("shop/db"), lowering.desired(), &applied).is_ok()
        };
        let told = |change: &dyn Fn(&mut Desired), failing, keeps| told_of(change, failing, BTreeSet::new(), keeps);
        for keeps_surplus in [false, true] {
            assert!(!told_of(&|_| {}, BTreeSet::new(), [&stranger].into(), keeps_surplus), "it could not be deleted");
            assert!(told_of(&|_| {}, BTreeSet::new(), [&peer].into(), keeps_surplus), "a peer in any case");
        }
        let more = |kernel: &mut Desired| {
            kernel.elements.insert(stranger.clone(), ());
        };
        let less = |kernel: &mut Desired| {
            kernel.elements.remove(&peer);
        };
        assert!(!told(&more, BTreeSet::new(), false) && told(&more, BTreeSet::new(), true));
        assert!(!told(&less, BTreeSet::new(), false) && told(&less, [&peer].into(), false));
    }

    #[test]
    fn a_pod_does_not_start_while_the_rules_of_another_pod_take_it_for_its_predecessor() {
        let Fixture { plan, lowering } = given();
        let desired = lowering.desired();
        let at_free = |set: &SetName| ElementKey { set: set.clone(), entry: Entry::Ip([10, 244, 1, 10].into()) };
        let mut sets = desired.elements.keys().map(|key| &key.set);
        let opens = |set: &&SetName| set.0.starts_with("KUBE-SRC-") && !desired.denied.contains(*set);
        let admitted = at_free(sets.find(opens).expect("`db` admits `web`"));
        let denied = ElementKey {
            entry: Entry::Ip([10, 244, 1, 7].into()),
            ..at_free(desired.denied.first().expect("`free` denies `web`"))
        };
        assert!(desired.elements.contains_key(&denied) && !desired.elements.contains_key(&admitted));
        let (refusals, overlay) = (Refusals::default(), Overlay::default());
        let told = |of: &str, doubts: BTreeSet<&ElementKey>, keeps_surplus, change: &dyn Fn(&mut Desired)| {
            let mut kernel = desired.clone();
            change(&mut kernel);
            let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
            let (differing, failing) = (differing(&kernel, desired), BTreeSet::new());
            let applied = Applied { seen, overlay: &overlay, differing, failing, doubts, keeps_surplus };
            pod_enforced(plan.rules(), &object(of), desired, &applied)
        };
        let anothers = |key: &ElementKey| Err(format!("{key} is still that of another pod"));
        let more = |kernel: &mut Desired| assert!(kernel.elements.insert(admitted.clone(), ()).is_none());
        assert_eq!(told("shop/free", BTreeSet::new(), false, &more), anothers(&admitted));
        assert_eq!(told("shop/free", BTreeSet::new(), true, &more), Ok(()), "while the cluster is known in part");
        assert_eq!(told("shop/free", [&admitted].into(), true, &|_| {}), anothers(&admitted), "it was not deleted");
        let unnamed = ElementKey { set: SetName("KUBE-SRC-GONE".into()), ..admitted.clone() };
        let abandoned = |kernel: &mut Desired| assert!(kernel.elements.insert(unnamed.clone(), ()).is_none());
        assert_eq!(told("shop/free", BTreeSet::new(), false, &abandoned), Ok(()), "no rule names the set");
        let less = |kernel: &mut Desired| assert!(kernel.elements.remove(&denied).is_some());
        assert_eq!(told("shop/web", BTreeSet::new(), false, &less), anothers(&denied));
        assert_eq!(told("shop/other", BTreeSet::new(), false, &less), Ok(()), "the element is not about it");
    }

    #[test]
    fn what_the_kernel_refuses_for_ever_does_not_keep_a_pod_from_starting() {
        let Fixture { plan, lowering } = given();
        let at = crate::reconcile::Moment { now: std::time::Instant::now(), jitter: 0 };
        let mut refusals = Refusals::default();
        let policy = PolicyKey { policy: object("shop/db"), direction: Direction::Ingress };
        let refused = chain(Family::V4, &names::policy_chain(&policy));
        refusals.note(&refused, "no module".to_owned(), at);
        let overlay = refusals.overlay(at.now);
        let kernel = overlay.over(&lowering.desired().rules);
        assert!(!kernel.contains_key(&refused));
        let seen = Seen { rules: Some(&kernel), elements: Some(&lowering.desired().elements), refusals: &refusals };
        let differing = Differing { missing: Vec::new(), surplus: Vec::new() };
        let applied = Applied {
            seen,
            overlay: &overlay,
            differing,
            failing: BTreeSet::new(),
            doubts: BTreeSet::new(),
            keeps_surplus: false,
        };
        assert_eq!(pod_enforced(plan.rules(), &object("shop/db"), lowering.desired(), &applied), Ok(()));
        let seen = Seen { rules: Some(&lowering.desired().rules), ..seen };
        let applied = Applied { seen, ..applied };
        assert!(pod_enforced(plan.rules(), &object("shop/db"), lowering.desired(), &applied).is_err());
    }
}
