//! A pod that starts, and a kernel that differs from what is desired.

use super::super::super::given::{object, pod, pods, pods_in, policy, rule, selector};
use super::super::super::lost::LostChains;
use super::super::super::plan::Plan;
use super::super::desired::Lost;
use super::super::given::lowered;
use super::super::lowering::Lowering;
use super::super::overlay::Refusals;
use super::*;
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector, Subject, Tier,
    World,
};
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
    let (plan, lowering, _) = lowered(&world);
    Fixture { plan, lowering }
}

fn differing(kernel: &Desired, desired: &Desired) -> Differing<ElementKey> {
    let lacking = |one: &Desired, other: &Desired| {
        let lacks = |key: &&ElementKey| !other.elements.contains_key(*key);
        one.elements.keys().filter(lacks).cloned().collect()
    };
    Differing { missing: lacking(desired, kernel), surplus: lacking(kernel, desired) }
}

/// The state of a kernel in which every change was made.
fn applied<'a>(seen: Seen<'a>, overlay: &'a Overlay, differing: Differing<ElementKey>) -> Applied<'a> {
    Applied { seen, overlay, differing, failing: BTreeSet::new(), doubts: BTreeSet::new(), keeps_surplus: false }
}

/// Returns whether this pod is enforced by a kernel that differs from the desired state by `change`.
fn told(of: &str, change: impl FnOnce(&mut Desired)) -> Result<(), String> {
    let Fixture { plan, lowering } = given();
    let mut kernel = lowering.desired().clone();
    change(&mut kernel);
    let (refusals, overlay) = (Refusals::default(), Overlay::default());
    let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
    let differing = differing(&kernel, lowering.desired());
    let applied = applied(seen, &overlay, differing);
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
            kernel.rules.get_mut(&forward).expect("it is wanted").0.retain(|rule| pod_chain::jump(rule) != Some(&to));
        });
        assert_eq!(lacks, Err(format!("{forward} is not as it must be")));
        let own = names::local_pods(family);
        let lacks = told("shop/free", |kernel| {
            kernel.elements.retain(|key, ()| key.set != *own || !key.to_string().ends_with("10"));
        });
        assert!(lacks.as_ref().is_err_and(|words| words.starts_with(&format!("set {own} does not hold"))), "{lacks:?}");
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
        let is_denied = |key: &ElementKey| lowering.desired().denied.contains(&key.set) && key.entry.family() == family;
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
    let ruled = |kernel: &mut Desired, text: &str, piece: Piece| {
        kernel.rules.entry(piece).or_insert(Rules(Vec::new())).0.push(Rule::from(text));
    };
    let untidied = |kernel: &mut Desired| {
        abandoned(kernel);
        let accept = "-m set --match-set KUBE-SRC-GONE src -j ACCEPT";
        ruled(kernel, accept, chain(Family::V4, "KUBE-NWPLCY-GONE"));
    };
    assert_eq!(told("shop/free", BTreeSet::new(), false, &untidied), Ok(()), "nobody enters the chain");
    let entered = |kernel: &mut Desired| {
        untidied(kernel);
        ruled(kernel, "-j KUBE-NWPLCY-GONE", chain_of("shop/other", Family::V4));
    };
    assert_eq!(told("shop/free", BTreeSet::new(), false, &entered), anothers(&unnamed));
    let less = |kernel: &mut Desired| assert!(kernel.elements.remove(&denied).is_some());
    assert_eq!(told("shop/web", BTreeSet::new(), false, &less), anothers(&denied));
    assert_eq!(told("shop/other", BTreeSet::new(), false, &less), Ok(()), "the element is not about it");
}

#[test]
fn the_sets_of_a_cluster_policy_that_cannot_be_read_keep_no_pod_from_starting() {
    let Fixture { plan, lowering } = given();
    let desired = lowering.desired();
    let (policy, set) = ("KUBE-NWPLCY-0GONE", SetName("KUBE-SRC-GONE".into()));
    assert_eq!(names::kind(policy), Some(ChainKind::ClusterPolicy));
    let mut kernel = desired.clone();
    let denial = Rule::from("-m set --match-set KUBE-SRC-GONE src -j DROP");
    kernel.rules.insert(chain(Family::V4, policy), Rules(vec![denial]));
    let asking = kernel.rules.get_mut(&chain_of("shop/other", Family::V4)).expect("it is wanted");
    asking.0.push(Rule::from("-j KUBE-NWPLCY-0GONE"));
    let former = ElementKey { set, entry: Entry::Ip([10, 244, 1, 10].into()) };
    kernel.elements.insert(former.clone(), ());
    let (refusals, mut overlay) = (Refusals::default(), Overlay::default());
    let told = |overlay: &Overlay, rules: &BTreeMap<Piece, Rules>| {
        let seen = Seen { rules: Some(rules), elements: Some(&kernel.elements), refusals: &refusals };
        let (failing, doubts, differing) = (BTreeSet::new(), BTreeSet::new(), differing(&kernel, desired));
        let applied = Applied { seen, overlay, differing, failing, doubts, keeps_surplus: false };
        pod_enforced(plan.rules(), &object("shop/free"), desired, &applied)
    };
    assert!(told(&overlay, &kernel.rules).is_err(), "a policy that is gone may have accepted it");
    let lost = Lost { chains: LostChains::Any, pods: BTreeSet::new() };
    overlay.keep_cluster_policies(Some(&lost), &desired.rules, &kernel.rules);
    assert!(overlay.sets_of_kept().contains(&former.set));
    assert_eq!(told(&overlay, &overlay.over(&desired.rules)), Ok(()));
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
    let applied = applied(seen, &overlay, differing);
    assert_eq!(pod_enforced(plan.rules(), &object("shop/db"), lowering.desired(), &applied), Ok(()));
    let seen = Seen { rules: Some(&lowering.desired().rules), ..seen };
    let applied = Applied { seen, ..applied };
    assert!(pod_enforced(plan.rules(), &object("shop/db"), lowering.desired(), &applied).is_err());
}
