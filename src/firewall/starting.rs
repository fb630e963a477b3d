//! Check whether the rule set has a pod that starts, before the kernel is asked (`--netpol-cni`).
//!
//! The container runtime announces the pod with its addresses (`world`), and waits. The pod may start when the cluster is known, the
//! rule set has the pod with all of these addresses, and the kernel judges its packets by it ([`Backend`](super::backend::Backend)).

use std::net::IpAddr;

use crate::model::{Authority, ObjectName};

use super::plan::Plan;

/// Returns what is missing, as a sentence without its end; `None` if the rule set has the pod with these addresses.
pub fn missing(plan: &Plan, authority: Authority, pod: &ObjectName, addresses: &[IpAddr]) -> Option<String> {
    if authority == Authority::Nothing {
        return Some("the policies of the cluster are not known yet".to_owned());
    }
    let Some(local) = plan.rules().pods.get(pod) else {
        return Some(format!("the cluster does not tell yet that {pod} runs on this node"));
    };
    if plan.lacks_namespace(pod) {
        return Some(format!(
            "namespace {} is not known yet, which cluster network policies may select",
            pod.namespace
        ));
    }
    let unknown = addresses.iter().find(|address| !local.addresses.contains(address))?;
    Some(format!("{pod} is not known at {unknown} yet"))
}

#[cfg(test)]
mod tests {
    use super::super::given::{address, object, pod, selector};
    use super::*;
    use crate::model::{
        Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector, Subject, Tier,
        World,
    };

    #[test]
    fn a_pod_is_in_the_rule_set_when_policies_the_pod_and_all_its_addresses_are_known() {
        let mut world = World::empty();
        world.host = std::sync::Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        let mut plan = Plan::new();
        let both = ["10.244.1.7", "fd00::7"].map(address);
        let mut told = |pods: &str, authority| {
            world.cluster.pods.insert(object("shop/web"), pod(pods, "", ""));
            plan.update(&world);
            missing(&plan, authority, &object("shop/web"), &both)
        };
        let sentence = |text: &str| Some(text.to_owned());
        let not_yet = sentence("the cluster does not tell yet that shop/web runs on this node");
        assert_eq!(told("", Authority::Complete), not_yet);
        assert_eq!(told("10.244.1.7", Authority::Complete), sentence("shop/web is not known at fd00::7 yet"));
        let whole = "10.244.1.7 fd00::7";
        assert_eq!(told(whole, Authority::Nothing), sentence("the policies of the cluster are not known yet"));
        for authority in [Authority::Remembered, Authority::Partial, Authority::Complete] {
            assert_eq!(told(whole, authority), None);
        }
    }

    #[test]
    fn a_pod_waits_for_its_namespace_where_cluster_policies_may_select_it() {
        let mut world = World::empty();
        world.host = std::sync::Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.pods.insert(object("shop/web"), pod("10.244.1.7", "", ""));
        let subject = Subject { namespaces: selector("team=red"), pods: Selector::everything() };
        let deny = ClusterRule {
            name: "".into(),
            action: Action::Deny,
            matches: PolicyRule { peers: Peers::Any, ports: Ports::Any },
        };
        let ingress = [deny].into();
        let policy = ClusterNetworkPolicy { tier: Tier::Admin, priority: 1, subject, ingress, egress: [].into() };
        let mut plan = Plan::new();
        let mut told = |world: &World| {
            plan.update(world);
            missing(&plan, Authority::Complete, &object("shop/web"), &[address("10.244.1.7")])
        };
        assert_eq!(told(&world), None, "there are none");
        world.cluster.cluster_policies.insert("guard".into(), policy);
        let waits = told(&world);
        assert!(waits.as_ref().is_some_and(|text| text.starts_with("namespace shop is not known yet")), "{waits:?}");
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        assert_eq!(told(&world), None);
    }
}
