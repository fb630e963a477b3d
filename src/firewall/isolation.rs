//! Isolation and default deny: when a pod accepts, or sends, only what is allowed.
//!
//! Kubernetes: `spec.podSelector` and `spec.policyTypes`. A pod is isolated for ingress as soon as one policy of its
//! namespace selects it for ingress, likewise for egress; the two are independent. What several policies allow adds up.
//! A policy without rules is the API's default deny: it isolates and allows nothing.
//!
//! The older default deny is an annotation of the Namespace,
//! `net.beta.kubernetes.io/network-policy={"ingress":{"isolation":"DefaultDeny"}}`: it isolates all pods of the namespace
//! for ingress, as a policy without rules that selects all would.

use crate::model::{Namespace, NetworkPolicy, ObjectName};

use super::rules::{Direction, Isolation};

/// Returns the isolation of a pod that these policies, sorted by name, select.
pub fn isolation<'a>(
    direction: Direction,
    selecting: impl Iterator<Item = (&'a ObjectName, &'a NetworkPolicy)>,
    namespace: Option<&Namespace>,
) -> Isolation {
    let isolating = selecting.filter(|(_, policy)| isolates(policy, direction));
    let policies: Box<[ObjectName]> = isolating.map(|(name, _)| name.clone()).collect();
    let by_namespace = direction == Direction::Ingress && namespace.is_some_and(|namespace| namespace.isolated);
    of(policies, by_namespace)
}

/// Returns whether a policy isolates the pods that it selects in this direction.
pub fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.ingress.is_some(),
        Direction::Egress => policy.egress.is_some(),
    }
}

/// Adds or removes one policy that isolates a pod. Returns whether anything changed.
pub fn set_isolating(isolation: &mut Isolation, policy: &ObjectName, isolating: bool) -> bool {
    let (policies, by_namespace) = match isolation {
        Isolation::Open => (&mut Box::default(), false),
        Isolation::Isolated { policies, by_namespace } => (policies, *by_namespace),
    };
    let place = match (policies.binary_search(policy), isolating) {
        (Ok(_), true) | (Err(_), false) => return false,
        (Ok(place) | Err(place), _) => place,
    };
    let mut policies = std::mem::take(policies).into_vec();
    if isolating {
        policies.insert(place, policy.clone());
    } else {
        policies.remove(place);
    }
    *isolation = of(policies.into(), by_namespace);
    true
}

fn of(policies: Box<[ObjectName]>, by_namespace: bool) -> Isolation {
    if policies.is_empty() && !by_namespace { Isolation::Open } else { Isolation::Isolated { policies, by_namespace } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Selector;

    fn policy(ingress: bool, egress: bool) -> NetworkPolicy {
        let rules = |isolates: bool| isolates.then(|| [].into());
        NetworkPolicy { pods: Selector::everything(), ingress: rules(ingress), egress: rules(egress) }
    }

    fn isolated(policies: &[&str], by_namespace: bool) -> Isolation {
        let policies = policies.iter().map(|name| ObjectName::new("shop", name)).collect();
        Isolation::Isolated { policies, by_namespace }
    }

    fn check(policies: &[(&str, NetworkPolicy)], namespace: Option<bool>, [ingress, egress]: [Isolation; 2]) {
        let named: Vec<(ObjectName, &NetworkPolicy)> =
            policies.iter().map(|(name, policy)| (ObjectName::new("shop", name), policy)).collect();
        let selecting = || named.iter().map(|(name, policy)| (name, *policy));
        let namespace = namespace.map(|isolated| Namespace { isolated, ..Namespace::default() });
        assert_eq!(isolation(Direction::Ingress, selecting(), namespace.as_ref()), ingress);
        assert_eq!(isolation(Direction::Egress, selecting(), namespace.as_ref()), egress);
    }

    #[test]
    fn without_a_policy_a_pod_is_open() {
        check(&[], None, [Isolation::Open, Isolation::Open]);
        check(&[], Some(false), [Isolation::Open, Isolation::Open]);
    }

    #[test]
    fn a_policy_isolates_in_its_own_directions_only() {
        check(&[("in", policy(true, false))], None, [isolated(&["in"], false), Isolation::Open]);
        check(&[("out", policy(false, true))], None, [Isolation::Open, isolated(&["out"], false)]);
        check(&[("none", policy(false, false))], None, [Isolation::Open, Isolation::Open]);
    }

    #[test]
    fn every_policy_of_a_direction_counts() {
        let both = [("a", policy(true, true)), ("b", policy(true, false))];
        check(&both, None, [isolated(&["a", "b"], false), isolated(&["a"], false)]);
    }

    #[test]
    fn one_policy_comes_and_goes_among_the_others() {
        let mut isolation = Isolation::Open;
        let mut set = |name: &str, isolating| {
            let differs = set_isolating(&mut isolation, &ObjectName::new("shop", name), isolating);
            (differs, isolation.clone())
        };
        assert_eq!(set("b", true), (true, isolated(&["b"], false)));
        assert_eq!(set("b", true), (false, isolated(&["b"], false)));
        assert_eq!(set("a", true), (true, isolated(&["a", "b"], false)));
        assert_eq!(set("c", false), (false, isolated(&["a", "b"], false)));
        assert_eq!(set("b", false), (true, isolated(&["a"], false)));
        assert_eq!(set("a", false), (true, Isolation::Open));
        assert_eq!(set("a", false), (false, Isolation::Open));
        let mut isolation = isolated(&["a"], true);
        assert!(set_isolating(&mut isolation, &ObjectName::new("shop", "a"), false));
        assert_eq!(isolation, isolated(&[], true), "the annotation stays");
    }

    #[test]
    fn the_annotation_of_a_namespace_is_a_default_deny_for_ingress() {
        check(&[], Some(true), [isolated(&[], true), Isolation::Open]);
        check(&[("a", policy(true, true))], Some(true), [isolated(&["a"], true), isolated(&["a"], false)]);
    }
}
