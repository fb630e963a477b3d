//! Connections that a policy newly denies (`--netpol-flush-established`).
//!
//! Rules accept what belongs to a connection, so one that policies allowed when it began goes on after they have changed. With
//! the flag, a change of policies or of a pod of this node has the connections of the pods that it names judged anew, when the rules are in
//! place, and those that are refused now get a bit in their mark ([`ENDED`]). Rules before those that accept refuse packets of connections that have it,
//! of both directions. Deleting the entry would not do: the next packet of who answers would make a new one, the other way round,
//! which policies may allow. Where a later change allows such a connection again, the mark is taken off.
//!
//! What is concerned: pods of this node whose isolation, addresses or policies change, and addresses that leave a set (a peer that
//! has other labels) or, where ClusterNetworkPolicies may deny what a set holds, enter one; and connections that have the mark. A start marks
//! nothing: what has changed meanwhile is not known. [`apply`] lists and marks on a thread of its own; which are refused is decided here.

pub mod apply;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::FirewallConfig;
use crate::kernel::conntrack::Connection;
use crate::model::World;
use crate::net::Family;

use super::flows::verdict_on;
use super::plan::{Plan, RuleSetChanges};
use super::rules::{Contents, Direction, Element, Isolation, LocalPod, RuleSet};

/// The bit of a connection's mark by which rules refuse its packets. Few programs mark connections, and not with this bit: the CNI
/// plugin of AWS has 0x80, Tailscale 0xff0000. Kube-router and the service proxy mark packets only.
pub const ENDED: u32 = 0x0400_0000;

/// The connections that are to be judged.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Concerned {
    /// Those with an end at one of these addresses.
    addresses: BTreeSet<IpAddr>,
    /// Those that have the mark.
    pub marked: bool,
}

impl Concerned {
    /// Adds what a change of the rule set concerns.
    pub fn add(&mut self, plan: &Plan, changed: &RuleSetChanges) {
        let rules = plan.rules();
        let is_concerned = |pod: &LocalPod| {
            let of_policies = Direction::BOTH.into_iter().any(|direction| match pod.isolation(direction) {
                Isolation::Open => false,
                Isolation::Isolated { policies, .. } => {
                    let mut keys = changed.policies.iter().filter(|key| key.direction == direction);
                    keys.any(|key| policies.binary_search(&key.policy).is_ok())
                }
            });
            of_policies || pod.cluster_policies.iter().any(|key| changed.cluster_policies.contains(key))
        };
        let is_judged = |pod: &LocalPod| Direction::BOTH.into_iter().any(|direction| pod.is_judged(direction));
        for (name, pod) in &rules.pods {
            if is_judged(pod) && (changed.pods.contains(name) || is_concerned(pod)) {
                self.addresses.extend(pod.addresses.iter().copied());
            }
        }
        // Of NetworkPolicies only what leaves a set can be refused; rules that deny refuse what enters one.
        let only_leaving = rules.cluster_policies.is_empty();
        // An address that nobody has any more sends nothing.
        let is_gone = |element: &Element| plan.claims().of(element.address()).is_empty();
        let there = changed.elements.iter().filter(|(_, element)| !is_gone(element));
        let left = there.filter(|(set, element)| {
            let contents = rules.sets.get(set);
            let has = |contents: &Contents| contents.elements.of(element.family()).contains(element);
            contents.is_some_and(|contents| !only_leaving || !has(contents))
        });
        self.addresses.extend(left.map(|(_, element)| element.address()));
    }

    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && !self.marked
    }

    pub fn append(&mut self, mut other: Concerned) {
        self.addresses.append(&mut other.addresses);
        self.marked |= other.marked;
    }

    /// Returns whether there are addresses of this family.
    pub fn is_about(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| Family::from(*address) == family)
    }

    /// Returns whether a connection with this mark is to be judged.
    pub fn has(&self, connection: &Connection, mark: u32) -> bool {
        let Connection { source, replier, .. } = connection;
        mark & ENDED != 0 || self.addresses.contains(source) || self.addresses.contains(replier)
    }
}

impl FromIterator<IpAddr> for Concerned {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Concerned {
        Concerned { addresses: addresses.into_iter().collect(), ..Concerned::default() }
    }
}

/// Returns for each connection whether this node's policies refuse it, as it is asked for.
pub fn refused<'a>(
    rules: &'a RuleSet,
    world: &'a World,
    config: &'a FirewallConfig,
    connections: &'a [Connection],
) -> impl Iterator<Item = bool> + 'a {
    connections
        .iter()
        .map(move |connection| verdict_on(rules, world, config, connection).is_some_and(|verdict| !verdict.passes()))
}

#[cfg(test)]
mod tests {
    use super::super::given::{object, pod, pods, pods_in, policy, rule, selector};
    use super::*;
    use crate::model::{Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, NetworkPolicy, Subject, Tier};

    fn concerned(before: impl FnOnce(&mut World), change: impl FnOnce(&mut World)) -> Vec<String> {
        let mut world = World::empty();
        world.host = std::sync::Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        for (name, address, of) in [
            ("shop/web", "10.244.1.7", "app=web"),
            ("shop/db", "10.244.1.8", "app=db"),
            ("shop/none", "10.244.1.9", ""),
        ] {
            world.cluster.pods.insert(object(name), pod(address, of, ""));
        }
        let mut far = pod("10.244.2.9", "app=far", "");
        far.node = Some("node2".into());
        world.cluster.pods.insert(object("shop/far"), far);
        world.cluster.policies.insert(object("shop/web"), allowing("web", "far"));
        world.cluster.policies.insert(object("shop/db"), allowing("db", "web"));
        before(&mut world);
        let mut plan = Plan::new();
        plan.update(&world);
        change(&mut world);
        let changed = plan.update(&world);
        let mut concerned = Concerned::default();
        concerned.add(&plan, &changed);
        concerned.addresses.iter().map(IpAddr::to_string).collect()
    }

    fn allowing(of: &str, from: &str) -> NetworkPolicy {
        policy(&format!("app={of}"), Some(&[rule(&[pods(&format!("app={from}"))], &[])]), None)
    }

    #[test]
    fn a_change_concerns_the_pods_that_it_names_and_no_others() {
        let put = |world: &mut World, name: &str, policy| {
            assert!(world.cluster.policies.insert(object(name), policy));
        };
        assert_eq!(concerned(|_| {}, |_| {}), [""; 0]);
        assert_eq!(concerned(|_| {}, |world| put(world, "shop/web", allowing("web", "nobody"))), ["10.244.1.7"]);
        assert_eq!(
            concerned(|_| {}, |world| put(world, "shop/new", policy("", Some(&[]), None))),
            ["10.244.1.7", "10.244.1.8", "10.244.1.9"]
        );
        assert_eq!(
            concerned(|_| {}, |world| drop(world.cluster.policies.remove(&object("shop/db")))),
            [""; 0],
            "db is open now"
        );
    }

    #[test]
    fn a_cluster_policy_that_denies_concerns_its_pods_and_who_becomes_its_peer() {
        let denying = |world: &mut World| {
            let matches = rule(&[pods_in("", "app=bad")], &[]);
            let rules = [ClusterRule { name: "".into(), action: Action::Deny, matches }];
            let subject = Subject { namespaces: selector(""), pods: selector("app=db") };
            let policy = ClusterNetworkPolicy {
                tier: Tier::Admin,
                priority: 1,
                subject,
                ingress: rules.into(),
                egress: [].into(),
            };
            world.cluster.namespaces.insert("shop".into(), Namespace::default());
            world.cluster.cluster_policies.insert("guard".into(), policy);
        };
        assert_eq!(concerned(|_| {}, denying), ["10.244.1.8"]);
        let becomes_bad = |world: &mut World| {
            let mut far = pod("10.244.2.9", "app=bad", "");
            far.node = Some("node2".into());
            world.cluster.pods.insert(object("shop/far"), far);
        };
        let named = concerned(denying, becomes_bad);
        assert!(named.contains(&"10.244.2.9".to_owned()), "{named:?}");
    }

    #[test]
    fn a_peer_with_other_labels_is_concerned_and_a_new_one_is_not() {
        let relabel = |of: &'static str| {
            concerned(
                |_| {},
                move |world| {
                    let mut far = pod("10.244.2.9", of, "");
                    far.node = Some("node2".into());
                    world.cluster.pods.insert(object("shop/far"), far);
                },
            )
        };
        assert_eq!(relabel("app=other"), ["10.244.2.9"]);
        assert_eq!(relabel("app=far tier=new"), [""; 0]);
        let added = concerned(
            |_| {},
            |world| {
                let mut far = pod("10.244.2.10", "app=far", "");
                far.node = Some("node2".into());
                world.cluster.pods.insert(object("shop/far-2"), far);
            },
        );
        assert_eq!(added, [""; 0]);
        let gone = concerned(|_| {}, |world| drop(world.cluster.pods.remove(&object("shop/far"))));
        assert_eq!(gone, [""; 0], "nobody has its address any more");
    }
}
