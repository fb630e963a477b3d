//! Checks whether the kernel enforces an answer, and whether it judges a pod that starts as it must.
//!
//! A verdict is traced through the rule set; the kernel does the same if it holds the base chains, and what the addresses of the
//! pods concerned lead to, as it is desired. What was last seen is compared with the desired table, where it may differ: a pod costs
//! its own chains and what is not applied yet, whatever its sets hold. Objects of other pods do not count, but what their rules hold of the addresses of one
//! that starts does, where it lets the pod do more than it may ([`favours`]): whoever had the address before may have been allowed, or not denied, what this
//! pod is. What judges no packet counts nothing ([`names::pod_ids`]): a pod that is judged as it must be starts also while nothing more can be written.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kernel::nftables::{self, Content, Key, Name, Object};
use crate::model::ObjectName;
use crate::net::Family;

use super::super::rules::{Direction, RuleSet};
use super::super::verdict::Verdict;
use super::desired::Table;
use super::kept::Kept;
use super::lowering::Lowering;
use super::names::{self, ChainKind};
use super::parts::Part;
use super::refused::Refused;

/// State of the kernel, and what of it is not desired and stays.
pub struct Applied<'a> {
    /// The last seen table; `None` where it is not known.
    pub seen: Option<&'a Table>,
    /// The objects in which it may differ from the desired one; `None` if in any.
    pub unsettled: Option<&'a BTreeSet<Object>>,
    /// Objects that may be there or not: the last attempt to change them failed.
    pub doubts: BTreeSet<&'a Object>,
    pub kept: &'a Kept,
    pub refused: &'a Refused,
    /// The last round was one in which absence proves nothing.
    pub keeps_surplus: bool,
}

/// Returns what the kernel lacks of this verdict's rules, as a sentence without its end; the first of several.
///
/// # Errors
/// That sentence.
pub fn enforced(
    rules: &RuleSet,
    verdict: &Verdict,
    family: Family,
    lowering: &Lowering,
    applied: &Applied<'_>,
) -> Result<(), String> {
    let pods = Direction::BOTH.into_iter().filter_map(|direction| verdict.of(direction).pod());
    let addresses = pods.flat_map(|pod| addresses(rules, pod)).filter(|address| Family::from(*address) == family);
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    let concerned = concerned(&addresses, lowering);
    if let Some((object, reason)) = applied.refused.objects().iter().find(|(object, _)| concerned.has(object)) {
        return Err(format!("the kernel refuses {object}: {reason}"));
    }
    check(&concerned, lowering, applied)
}

/// The same of everything that this pod sends and gets, where it is not closed in place of what the kernel refuses.
///
/// # Errors
/// As [`enforced`].
pub fn pod_enforced(
    rules: &RuleSet,
    pod: &ObjectName,
    lowering: &Lowering,
    applied: &Applied<'_>,
) -> Result<(), String> {
    let addresses = addresses(rules, pod).collect();
    check(&concerned(&addresses, lowering), lowering, applied)?;
    let desired = &lowering.desired().table;
    let seen = applied.seen.into_iter().flat_map(|seen| seen.keys());
    let favours = |object: &&Object| favours(object, &addresses, desired, applied);
    let first = match applied.unsettled {
        Some(unsettled) => unsettled.iter().find(favours),
        None => desired.keys().chain(seen).chain(applied.doubts.iter().copied()).find(favours),
    };
    first.map_or(Ok(()), |object| Err(format!("{object} is still that of another pod")))
}

/// Returns whether the kernel may go by an element, in sets of other pods' rules, that allows one of these addresses more than it may: one that is too much where it
/// opens, one that is missing where it closes.
fn favours(object: &Object, addresses: &BTreeSet<IpAddr>, desired: &Table, applied: &Applied<'_>) -> bool {
    let Object::Element(set, Key::Address(address) | Key::Service(address, ..)) = object else { return false };
    if !addresses.contains(address) || names::is_of_base(set) || Family::BOTH.map(names::pod_ids).contains(set) {
        return false;
    }
    let is_there = applied.seen.is_some_and(|seen| seen.contains_key(object));
    let is_in_doubt = applied.doubts.contains(object);
    let wanted = applied.kept.get(object).or_else(|| desired.get(object));
    let wanted = applied.refused.substitutes().get(object).unwrap_or(wanted);
    match names::closes(object) {
        true => wanted.is_some() && (!is_there || is_in_doubt),
        false => wanted.is_none() && (is_in_doubt || is_there && !applied.keeps_surplus),
    }
}

fn addresses(rules: &RuleSet, pod: &ObjectName) -> impl Iterator<Item = IpAddr> {
    rules.pods.get(pod).into_iter().flat_map(|pod| pod.addresses.iter().copied())
}

fn check(concerned: &Concerned<'_>, lowering: &Lowering, applied: &Applied<'_>) -> Result<(), String> {
    let seen = applied.seen.ok_or_else(|| "what the kernel holds is not known at the moment".to_owned())?;
    let desired = &lowering.desired().table;
    let is_other = |object: &&Object| is_another_verdict(applied.kept.get(object), desired.get(*object));
    if let Some(object) = concerned.objects.iter().find(is_other) {
        return Err(format!("{object} is not as it must be: it stays as it was while the cluster is known in part"));
    }
    let differs = |object: &&Object| {
        let wanted = applied.kept.get(object).or_else(|| desired.get(*object));
        let wanted = applied.refused.substitutes().get(object).unwrap_or(wanted);
        let is_surplus = wanted.is_none() && applied.keeps_surplus;
        seen.get(*object) != wanted && !is_surplus && concerned.has(object)
    };
    let first = match applied.unsettled {
        Some(unsettled) => unsettled.iter().find(differs),
        None => desired.keys().chain(seen.keys()).find(differs),
    };
    first.map_or(Ok(()), |object| Err(format!("{object} is not as it must be")))
}

/// The objects by which the kernel judges some addresses.
struct Concerned<'a> {
    objects: BTreeSet<Object>,
    /// The sets and maps of which every element counts.
    sets: BTreeSet<&'a Name>,
}

impl Concerned<'_> {
    fn has(&self, object: &Object) -> bool {
        let is_element = matches!(object, Object::Element(set, _) if self.sets.contains(set));
        is_element || self.objects.contains(object)
    }
}

fn concerned<'a>(addresses: &BTreeSet<IpAddr>, lowering: &'a Lowering) -> Concerned<'a> {
    let mut concerned = Concerned { objects: BTreeSet::new(), sets: BTreeSet::new() };
    let of_addresses = addresses.iter().flat_map(|address| [Part::Address(*address), Part::RefusedServices(*address)]);
    let ids = Family::BOTH.map(names::pod_ids);
    lowering.reached([Part::Base].into_iter().chain(of_addresses), |part, object| {
        if matches!(object, Object::Set(set) | Object::Element(set, _) if ids.contains(set)) {
            return;
        }
        concerned.objects.insert(object.clone());
        match object {
            Object::Set(set) if part.fills_its_sets() => drop(concerned.sets.insert(set)),
            _ => {}
        }
    });
    concerned.objects.extend(addresses.iter().copied().flat_map(of_address));
    concerned
}

/// Returns whether a verdict that stays judges otherwise than the desired one, and not by more than this.
fn is_another_verdict(kept: Option<&Content>, desired: Option<&Content>) -> bool {
    let (Some(Content::Verdict(kept)), Some(desired)) = (kept, desired) else { return false };
    let asks_both = matches!(&**kept, nftables::Verdict::Jump(to) if names::kind(to) == Some(ChainKind::Kept));
    !asks_both && Content::Verdict(kept.clone()) != *desired
}

/// Returns the elements by which an address is judged, whether they shall exist or not.
fn of_address(address: IpAddr) -> impl Iterator<Item = Object> {
    let family = Family::from(address);
    let of = move |direction| [names::admin(direction, family), names::isolated(direction, family)];
    let maps = Direction::BOTH.into_iter().flat_map(of).chain([names::host_endpoints(family)]);
    maps.map(move |map| Object::Element(map, Key::Address(address)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::given::{config, labels, object, pod, pods, pods_in, policy, rule, selector};
    use super::super::super::plan::Plan;
    use super::*;
    use crate::model::{
        Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector, Subject, Tier,
        World,
    };
    use crate::net::PerFamily;

    /// Returns whether the pod that one policy isolates is judged as it must be by a kernel that differs by `change`.
    fn told(change: impl FnOnce(&mut Table)) -> Result<(), String> {
        told_of("shop/db", &[], change)
    }

    /// The same of one of the pods, where these objects are in doubt. A policy of the cluster keeps `other` from `db`.
    fn told_of(of: &str, doubts: &[Object], change: impl FnOnce(&mut Table)) -> Result<(), String> {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: false });
        world.cluster.pods.insert(object("shop/web"), pod("10.244.1.7", "app=web", ""));
        world.cluster.pods.insert(object("shop/db"), pod("10.244.1.8", "app=db", ""));
        world.cluster.pods.insert(object("shop/other"), pod("10.244.1.9", "app=other", ""));
        let allows = [rule(&[pods("app=web")], &["tcp/5432"])];
        world.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        world.cluster.policies.insert(object("shop/other"), policy("app=other", Some(&[]), None));
        let matches = PolicyRule { peers: Peers::Of([pods_in("", "app=other")].into()), ports: Ports::Any };
        let deny = ClusterRule { name: "".into(), action: Action::Deny, matches };
        let subject = Subject { namespaces: Selector::everything(), pods: selector("app=db") };
        let guard =
            ClusterNetworkPolicy { tier: Tier::Admin, priority: 1, subject, ingress: [deny].into(), egress: [].into() };
        world.cluster.cluster_policies.insert("guard".into(), guard);
        let mut lowering = Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true });
        let mut plan = Plan::new();
        let changed = plan.update(&world);
        lowering.update(plan.rules(), &world, &changed);
        let mut seen = lowering.desired().table.clone();
        change(&mut seen);
        let (kept, refused) = (Kept::default(), Refused::default());
        let different = |object: &&Object| seen.get(*object) != lowering.desired().table.get(*object);
        let unsettled: BTreeSet<Object> =
            seen.keys().chain(lowering.desired().table.keys()).filter(different).chain(doubts).cloned().collect();
        // Also where it is not known what differs.
        let [told, also] = [Some(&unsettled), None].map(|unsettled| {
            let applied = Applied {
                seen: Some(&seen),
                unsettled,
                doubts: doubts.iter().collect(),
                kept: &kept,
                refused: &refused,
                keeps_surplus: false,
            };
            pod_enforced(plan.rules(), &object(of), &lowering, &applied)
        });
        assert_eq!(told, also);
        told
    }

    fn at(map: &str, last: u8) -> Object {
        Object::Element(Name::from(map), Key::Address([10, 244, 1, last].into()))
    }

    #[test]
    fn what_the_kernel_holds_is_enforced() {
        assert_eq!(told(|_| {}), Ok(()));
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_named() {
        let lacks = |object: Object| Err(format!("{object} is not as it must be"));
        let judged = at("ingress4", 8);
        assert_eq!(told(|table| drop(table.remove(&judged).expect("it is there"))), lacks(judged.clone()));
        let base = Object::Chain("forward_ingress".into());
        assert_eq!(told(|table| drop(table.remove(&base).expect("it is there"))), lacks(base.clone()));
        let more = told(|table| {
            let peers = table.keys().find_map(|object| match object {
                Object::Set(set) if set.as_str().starts_with("pods_shop_") && set.as_str().ends_with("_4") => {
                    Some(set.clone())
                }
                _ => None,
            });
            let element = Object::Element(peers.expect("a set of peers"), Key::Address([10, 244, 1, 99].into()));
            table.insert(element, Content::Element);
        });
        assert!(more.as_ref().is_err_and(|words| words.contains("10.244.1.99")), "{more:?}");
    }

    #[test]
    fn a_pod_does_not_wait_for_an_element_that_judges_no_packet() {
        let says_whose = at("pod_ids4", 8);
        assert_eq!(told(|table| drop(table.remove(&says_whose).expect("it is there"))), Ok(()));
        let of_ids = |object: &Object| matches!(object, Object::Set(set) | Object::Element(set, _) if set.as_str() == "pod_ids4");
        assert_eq!(told(|table| table.retain(|object, _| !of_ids(object))), Ok(()), "a table of an earlier version");
    }

    #[test]
    fn what_concerns_other_pods_does_not_count() {
        assert_eq!(told(|table| drop(table.remove(&at("ingress4", 9)).expect("it is there"))), Ok(()));
    }
    /// The set whose name begins so, of IPv4.
    fn set(table: &Table, head: &str) -> Name {
        let is_it = |name: &Name| name.as_str().starts_with(head) && name.as_str().ends_with("_4");
        let mut sets = table.keys().filter_map(|object| match object {
            Object::Set(set) if is_it(set) => Some(set.clone()),
            _ => None,
        });
        sets.next().unwrap_or_else(|| panic!("a set of {head}"))
    }

    #[test]
    fn a_pod_does_not_start_while_its_address_is_in_the_set_of_another_pods_peers() {
        let mut found = None;
        let left = told_of("shop/other", &[], |table| {
            let element = Object::Element(set(table, "pods_shop"), Key::Address([10, 244, 1, 9].into()));
            assert!(table.insert(element.clone(), Content::Element).is_none(), "`db` admits `web` alone");
            found = Some(element);
        });
        let element = found.expect("it was put there");
        assert_eq!(left, Err(format!("{element} is still that of another pod")));
        let in_doubt = told_of("shop/other", std::slice::from_ref(&element), |_| {});
        assert_eq!(in_doubt, left, "the kernel has refused to delete it, so it may be there");
        assert_eq!(told_of("shop/web", &[], |table| drop(table.insert(element, Content::Element))), Ok(()));
    }

    #[test]
    fn a_pod_does_not_start_while_its_address_is_missing_in_the_set_of_those_whom_another_pod_denies() {
        let missing = told_of("shop/other", &[], |table| {
            let element = Object::Element(set(table, "denied_"), Key::Address([10, 244, 1, 9].into()));
            table.remove(&element).expect("`db` denies `other`");
        });
        assert!(missing.as_ref().is_err_and(|words| words.contains("10.244.1.9")), "{missing:?}");
    }

    #[test]
    fn a_pod_starts_although_another_one_does_not_admit_it_yet() {
        let less = told_of("shop/web", &[], |table| {
            let element = Object::Element(set(table, "pods_shop"), Key::Address([10, 244, 1, 7].into()));
            table.remove(&element).expect("`db` admits `web`");
        });
        assert_eq!(less, Ok(()));
    }
}
