//! `podSelector` and `namespaceSelector`: the pods that a peer selects.
//!
//! Kubernetes: `NetworkPolicyPeer { podSelector, namespaceSelector }`. With the first alone, pods of the policy's own
//! namespace; with the second alone, all pods of the selected namespaces; with both, the selected pods of the selected
//! namespaces. An empty selector selects all. Pods that have finished, that use their node's network or that have no
//! address are nobody's peers (`model::Pod::takes_part`).
//!
//! A `namespaceSelector` selects Namespace objects: if the object is not known, its pods are not selected, whatever the
//! selector; what is to be denied is denied to them (`membership`).

use crate::model::{Labels, Namespaces, ObjectName, Pod, Selector};

use super::rules::{Scope, Selection};

/// Returns the selection of one peer of a policy in this namespace.
pub fn selection(own: &str, namespaces: &Namespaces, pods: &Selector) -> Selection {
    let namespaces = match namespaces {
        Namespaces::Own => Scope::Named(own.into()),
        Namespaces::Selected(selector) => Scope::Selected(selector.clone()),
    };
    Selection { namespaces, pods: pods.clone() }
}

/// Returns whether a pod subject to policies is selected. `namespace`: the labels of its namespace, if known.
pub fn selects(selection: &Selection, name: &ObjectName, pod: &Pod, namespace: Option<&Labels>) -> bool {
    looks_into(&selection.namespaces, &name.namespace, namespace) && selection.pods.selects(&pod.labels)
}

/// Returns whether pods of a namespace can be selected at all.
pub fn looks_into(scope: &Scope, name: &str, labels: Option<&Labels>) -> bool {
    match scope {
        Scope::Named(namespace) => namespace == name,
        Scope::Selected(selector) => labels.is_some_and(|labels| selector.selects(labels)),
    }
}

/// Returns whether pods of a namespace may be selected that is not known.
pub fn may_look_into(scope: &Scope) -> bool {
    matches!(scope, Scope::Selected(_))
}

#[cfg(test)]
mod tests {
    use crate::model::{Operator, Requirement};

    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).collect()
    }

    fn is(text: &str) -> Selector {
        let requirement = |(key, value): (&str, &str)| Requirement {
            key: key.into(),
            operator: Operator::In(Box::new([value.into()])),
        };
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(requirement).collect()
    }

    fn check(selection: &Selection, namespace: (&str, Option<&str>), pod: &str, expected: bool) {
        let pod = Pod {
            uid: None,
            labels: labels(pod),
            addresses: ["10.244.1.7".parse().unwrap()].into(),
            node: None,
            host_network: false,
            finished: false,
            ports: [].into(),
        };
        let (name, of_namespace) = (ObjectName::new(namespace.0, "pod"), namespace.1.map(labels));
        assert_eq!(selects(selection, &name, &pod, of_namespace.as_ref()), expected, "{selection:?} {name}");
    }

    #[test]
    fn a_pod_selector_alone_looks_into_the_own_namespace() {
        let web = selection("shop", &Namespaces::Own, &is("app=web"));
        check(&web, ("shop", Some("")), "app=web", true);
        check(&web, ("shop", None), "app=web", true);
        check(&web, ("shop", Some("")), "app=db", false);
        check(&web, ("other", Some("")), "app=web", false);
    }

    #[test]
    fn a_namespace_selector_alone_selects_all_pods_of_its_namespaces() {
        let team = selection("shop", &Namespaces::Selected(is("team=red")), &Selector::everything());
        check(&team, ("other", Some("team=red")), "app=db", true);
        check(&team, ("shop", Some("team=blue")), "app=db", false);
    }

    #[test]
    fn both_selectors_hold_together() {
        let both = selection("shop", &Namespaces::Selected(is("team=red")), &is("app=web"));
        check(&both, ("other", Some("team=red")), "app=web", true);
        check(&both, ("other", Some("team=red")), "app=db", false);
        check(&both, ("other", Some("team=blue")), "app=web", false);
    }

    #[test]
    fn all_namespaces_are_all_that_are_known() {
        let all = selection("shop", &Namespaces::Selected(Selector::everything()), &Selector::everything());
        check(&all, ("other", Some("")), "", true);
        check(&all, ("other", None), "", false);
    }
}
