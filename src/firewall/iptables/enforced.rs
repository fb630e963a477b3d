//! Checks whether the kernel enforces an answer.
//!
//! A verdict is traced through the rule set; the kernel does the same if it holds the dispatch chains with the jumps to
//! them, the chains of the isolated pods at both ends and of the policies that isolate them, and every element of the
//! sets that those use. The last seen state of the kernel is compared with the desired state.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::ipset::SetName;
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::net::Family;

use super::super::rules::{Direction, Isolation, PolicyKey, RuleSet};
use super::super::verdict::{Decision, Verdict};
use super::desired::{Desired, Elements};
use super::dispatch::chain;
use super::lowering::elements_of;
use super::names::{
    self, CHAIN_COMMON, CHAIN_DEFAULT, CHAIN_DENY, CHAIN_FORWARD, CHAIN_HOST_ENDPOINTS, CHAIN_INPUT, CHAIN_LINK_LOCAL,
    CHAIN_MULTICAST, CHAIN_OUTPUT, CHAIN_PASS, CHAIN_TAIL,
};
use super::overlay::Refusals;

/// Last seen state of the kernel; `None` where it is not known.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub rules: Option<&'a BTreeMap<Piece, Rules>>,
    pub elements: Option<&'a Elements>,
    pub refusals: &'a Refusals,
}

/// Returns what the kernel lacks of this verdict's rules, as a sentence without its end; the first of several.
///
/// # Errors
/// That sentence.
pub fn enforced(
    rules: &RuleSet,
    verdict: &Verdict,
    family: Family,
    desired: &Desired,
    seen: Seen<'_>,
) -> Result<(), String> {
    let (Some(seen_rules), Some(seen_elements)) = (seen.rules, seen.elements) else {
        return Err("what the kernel holds is not known at the moment".to_owned());
    };
    let mut pieces = pieces(rules, verdict, family);
    let refusing = verdict.egress.pod().map(|pod| chain(family, &names::refusal_chain(pod)));
    pieces.extend(refusing.filter(|piece| desired.rules.contains_key(piece)));
    let is_jump = |piece: &&Piece| matches!(piece, Piece::Jump { .. }) && piece.family() == family;
    pieces.extend(desired.rules.keys().filter(is_jump).cloned());
    for piece in &pieces {
        if let Some(refused) = seen.refusals.all().get(piece) {
            return Err(format!("the kernel refuses {piece}: {}", refused.reason));
        }
        if seen_rules.get(piece) != desired.rules.get(piece) {
            return Err(format!("{piece} is not as it must be"));
        }
    }
    let named = |piece: &Piece| desired.rules.get(piece).into_iter().flat_map(|rules| rules.0.iter());
    let sets: BTreeSet<&SetName> = pieces.iter().flat_map(named).flat_map(Rule::sets).collect();
    for set in sets {
        if !seen_elements.range(elements_of(set)).eq(desired.elements.range(elements_of(set))) {
            return Err(format!("set {set} does not hold what it must"));
        }
    }
    Ok(())
}

/// Returns the chains that a packet of this family with this verdict traverses.
fn pieces(rules: &RuleSet, verdict: &Verdict, family: Family) -> Vec<Piece> {
    let own = [CHAIN_INPUT, CHAIN_FORWARD, CHAIN_OUTPUT];
    let fixed = own.into_iter().chain([CHAIN_COMMON, CHAIN_DEFAULT, CHAIN_HOST_ENDPOINTS, CHAIN_TAIL]);
    let mut pieces: Vec<Piece> = fixed.map(|name| chain(family, name)).collect();
    if verdict.egress == Decision::LinkLocal {
        pieces.push(chain(family, CHAIN_LINK_LOCAL));
    }
    if verdict.ingress == Decision::Multicast {
        pieces.push(chain(family, CHAIN_MULTICAST));
    }
    for direction in Direction::BOTH {
        let Some((name, pod)) = verdict.of(direction).pod().and_then(|name| rules.pods.get_key_value(name)) else {
            continue;
        };
        if !pod.is_judged(direction) {
            continue;
        }
        pieces.push(chain(family, &names::pod_chain(name, direction)));
        let of_cluster = pod.cluster_policies.iter().filter(|key| key.direction == direction);
        let of_cluster = of_cluster.map(|key| chain(family, &names::cluster_policy_chain(key)));
        let deciding = [CHAIN_DENY, CHAIN_PASS].map(|name| chain(family, name));
        pieces.extend(of_cluster.flat_map(|own| [own].into_iter().chain(deciding.clone())));
        let Isolation::Isolated { policies, .. } = pod.isolation(direction) else { continue };
        let of_policy = |policy| names::policy_chain(&PolicyKey { policy, direction });
        pieces.extend(policies.iter().cloned().map(|policy| chain(family, &of_policy(policy))));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::super::explain::{Known, Question, explanation};
    use super::super::super::given::{labels, object, pod, pods, policy, rule};
    use super::super::super::plan::Plan;
    use super::super::given::lowered;
    use super::super::lowering::Lowering;
    use super::*;
    use crate::config::FirewallConfig;
    use crate::model::{Host, Namespace, World};
    use crate::reconcile::Moment;

    struct Fixture {
        world: World,
        plan: Plan,
        lowering: Lowering,
        config: Arc<FirewallConfig>,
    }

    fn given() -> Fixture {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        let cluster = &mut world.cluster;
        cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: false });
        cluster.pods.insert(object("shop/web"), pod("10.244.1.7", "app=web", ""));
        cluster.pods.insert(object("shop/db"), pod("10.244.1.8", "app=db", ""));
        let allows = [rule(&[pods("app=web")], &["tcp/5432"])];
        cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        let (plan, lowering, config) = lowered(&world);
        Fixture { world, plan, lowering, config }
    }

    /// Returns whether the answer for web → db is enforced by a kernel that differs from the desired state by `change`.
    fn told(change: impl FnOnce(&mut Desired, &mut Refusals)) -> Result<(), String> {
        let Fixture { world, plan, lowering, config } = given();
        let mut kernel = lowering.desired().clone();
        let mut refusals = Refusals::default();
        change(&mut kernel, &mut refusals);
        let question = Question::parse("shop/web", "shop/db:5432").expect("a question");
        let known = Known {
            rules: plan.rules(),
            world: &world,
            config: &config,
            closed: &[],
            bridges: lowering.closed_bridges(),
            claims: plan.claims(),
            host_endpoints: lowering.host_endpoints(),
        };
        let answers = explanation(known, &question).expect("an answer").answers;
        let seen = Seen { rules: Some(&kernel.rules), elements: Some(&kernel.elements), refusals: &refusals };
        enforced(plan.rules(), &answers[0].verdict, Family::V4, lowering.desired(), seen)
    }

    fn chain_of_policy() -> Piece {
        let key = PolicyKey { policy: object("shop/db"), direction: Direction::Ingress };
        chain(Family::V4, &names::policy_chain(&key))
    }

    #[test]
    fn what_the_kernel_holds_is_enforced() {
        assert_eq!(told(|_, _| {}), Ok(()));
    }

    #[test]
    fn a_missing_chain_a_missing_element_and_a_refused_chain_are_named() {
        let piece = chain_of_policy();
        let lacks = told(|kernel, _| drop(kernel.rules.remove(&piece).expect("it is wanted")));
        assert_eq!(lacks, Err(format!("{piece} is not as it must be")));
        let is_jump =
            |piece: &Piece| matches!(piece, Piece::Jump { family: Family::V4, from, .. } if from == "FORWARD");
        let lacks = told(|kernel, _| kernel.rules.retain(|piece, _| !is_jump(piece)));
        assert!(lacks.as_ref().is_err_and(|words| words.contains("FORWARD")), "{lacks:?}");
        let lacks = told(|kernel, _| kernel.elements.retain(|key, ()| !key.set.0.starts_with("KUBE-SRC-")));
        assert!(lacks.as_ref().is_err_and(|words| words.starts_with("set KUBE-SRC-")), "{lacks:?}");
        let at = Moment { now: Instant::now(), jitter: 0 };
        let lacks = told(|_, refusals| {
            refusals.note(&piece, "no module".to_owned(), at);
        });
        assert_eq!(lacks, Err(format!("the kernel refuses {piece}: no module")));
    }

    #[test]
    fn what_concerns_other_pods_or_the_other_family_does_not_count() {
        let other = |piece: &Piece| piece.family() == Family::V6;
        assert_eq!(told(|kernel, _| kernel.rules.retain(|piece, _| !other(piece))), Ok(()));
    }
}
