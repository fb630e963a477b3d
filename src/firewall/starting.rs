//! Check whether the rule set has a pod that starts, before the kernel is asked (`--netpol-cni`).
//!
//! The container runtime announces the pod with its addresses (`world`), and waits. The pod may start when the cluster is known, the
//! rule set has this pod, and not a former one of its name, with all of these addresses, and the kernel judges its packets by it ([`Backend`](super::backend::Backend)).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Authority, ObjectName, PodUid};

use super::plan::Plan;
use crate::net::{Family, PerFamily};

/// Returns what is missing, as a sentence without its end; `None` if the rule set has the pod with these addresses.
pub fn missing(
    plan: &Plan,
    authority: Authority,
    pod: &ObjectName,
    uid: Option<PodUid>,
    addresses: &[IpAddr],
) -> Option<String> {
    if authority == Authority::Nothing {
        return Some("the policies of the cluster are not known yet".to_owned());
    }
    let Some(local) = plan.rules().pods.get(pod) else {
        return Some(format!("the cluster does not tell yet that {pod} runs on this node"));
    };
    // The World may not have taken in yet that its addresses are those of this pod now.
    if uid.zip(local.uid).is_some_and(|(starting, known)| starting != known) {
        return Some(format!("the cluster still tells of a former pod {pod}, or tells of a later one already"));
    }
    if plan.lacks_namespace(pod) {
        return Some(format!(
            "namespace {} is not known yet, which cluster network policies may select",
            pod.namespace
        ));
    }
    let unknown = addresses.iter().find(|address| !local.addresses.contains(address))?;
    Some(format!("{pod} is not known at {unknown} yet"))
}

/// The addresses of pods that start while the cluster is remembered and the kernel's state is newer.
pub struct Places<'a> {
    pub plan: &'a Plan,
    pub families: &'a PerFamily<bool>,
    /// Announced since the cluster is remembered.
    pub announced: &'a BTreeSet<IpAddr>,
}

impl Places<'_> {
    /// Returns the new addresses of a pod, each with those of its family that the pod was known at before.
    pub fn of(&self, pod: &ObjectName, addresses: &[IpAddr]) -> impl Iterator<Item = (IpAddr, Vec<IpAddr>)> {
        let known = self.plan.rules().pods.get(pod).map(|pod| pod.addresses.to_vec()).unwrap_or_default();
        let is_on = |address: &IpAddr| *self.families.of(Family::from(*address));
        addresses.iter().copied().filter(is_on).map(move |address| {
            let is_former = |one: &&IpAddr| {
                Family::from(**one) == Family::from(address)
                    && !addresses.contains(*one)
                    && !self.announced.contains(*one)
            };
            (address, known.iter().filter(is_former).copied().collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::given::{address, object, pod, selector};
    use super::*;
    use crate::model::{
        Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, Pod, PolicyRule, Ports, Selector, Subject,
        Tier, World,
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
            missing(&plan, authority, &object("shop/web"), None, &both)
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
            missing(&plan, Authority::Complete, &object("shop/web"), None, &[address("10.244.1.7")])
        };
        assert_eq!(told(&world), None, "there are none");
        world.cluster.cluster_policies.insert("guard".into(), policy);
        let waits = told(&world);
        assert!(waits.as_ref().is_some_and(|text| text.starts_with("namespace shop is not known yet")), "{waits:?}");
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        assert_eq!(told(&world), None);
    }

    /// The firewall may be asked before the World has taken the announcement in.
    #[test]
    fn a_pod_that_is_made_anew_with_the_address_of_its_predecessor_does_not_start_by_the_rules_of_that_one() {
        let mut world = World::empty();
        world.host = std::sync::Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        let [old, new] = [1, 2].map(PodUid::from_number);
        let mut plan = Plan::new();
        let mut told = |told: Option<PodUid>, starting: Option<PodUid>| {
            world.cluster.pods.insert(object("shop/web-0"), Pod { uid: told, ..pod("10.244.1.7", "", "") });
            plan.update(&world);
            let name = object("shop/web-0");
            missing(&plan, Authority::Complete, &name, starting, &[address("10.244.1.7")])
        };
        assert!(told(old, new).is_some_and(|sentence| sentence.contains("a former pod shop/web-0")));
        assert_eq!(told(new, new), None, "nothing but the UID differs");
        assert_eq!((told(None, new), told(new, None)), (None, None), "one of the two is not known");
    }
}
