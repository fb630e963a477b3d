//! The elements of one more address of a pod that the kernel knows.
//!
//! After a restart while the API server is away the cluster is remembered, and the kernel's state is newer: nothing of it changes. A pod
//! of this node may get a new sandbox meanwhile (`--netpol-cni`), and starts where the kernel and the memory agree about it: the kernel judges
//! its former addresses as the memory says of the new one. Then the new address leads to the same chains, and becomes an element
//! of the sets in which both have it. Nothing else changes, and nothing is taken from an address: what was left to it by
//! another pod keeps the new one waiting.
//!
//! That nothing judges an address is no proof that its pod is open: the pod may have moved since, and be isolated elsewhere. So the table says whose an
//! address is ([`names::pod_ids`]), and has to say it of the former ones. One that an earlier version wrote does not: there a pod that no policy selects waits.
//! And what it says of a former address may be stale: while the cluster was known in part the pod may have got another address, and kept this one in the kernel.
//! So each address that the table gives to the pod counts as a former one, and all of them have to agree.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Content, Key, Object, Verdict};
use crate::net::Family;

use super::super::backend::NewAddress;
use super::desired::{Table, elements_of};
use super::names;

/// Objects that the kernel lacks.
pub type Additions = BTreeMap<Object, Content>;

/// Returns what the kernel lacks of the address.
///
/// # Errors
/// Why the address has to wait until the cluster is known, as a sentence without its end.
pub fn additions(starting: &NewAddress<'_>, desired: &Table, seen: Option<&Table>) -> Result<Additions, String> {
    let seen = seen.ok_or_else(|| "what the kernel holds is not known at the moment".to_owned())?;
    let former = former_addresses(starting, seen);
    let starting = NewAddress { pod: starting.pod, address: starting.address, former: &former };
    starting.agreed(|former| Places { former, new: starting.address }.additions(desired, seen))
}

/// Returns the former addresses that are remembered, and where there are any, those at which the kernel knows the pod besides. A pod that has the number of another one by
/// chance, or by a name that was chosen for it, can only wait for that.
fn former_addresses(starting: &NewAddress<'_>, seen: &Table) -> Vec<IpAddr> {
    let mut former = starting.former.to_vec();
    if former.is_empty() {
        return former;
    }
    let (ids, own) = (names::pod_ids(Family::from(starting.address)), Content::Mark(names::pod_id(starting.pod)));
    let known = elements_of(seen, &ids).filter(|(_, content)| **content == own);
    let known = known.filter_map(|(object, _)| match object {
        Object::Element(_, key) => address(key),
        _ => None,
    });
    let more: Vec<IpAddr> =
        known.filter(|known| *known != starting.address && !starting.former.contains(known)).collect();
    former.extend(more);
    former
}

struct Places {
    former: IpAddr,
    new: IpAddr,
}

impl Places {
    fn additions(&self, desired: &Table, seen: &Table) -> Result<Additions, String> {
        let mut additions = Additions::new();
        let family = Family::from(self.new);
        let (pods, ids) = (names::pods(family), names::pod_ids(family));
        let says_whose = seen.contains_key(&Object::Set(ids.clone()));
        let is_needed = |object: &Object| {
            let is_of_pod = matches!(object, Object::Element(set, _) if *set == pods || *set == ids && says_whose);
            names::closes(object) || is_of_pod
        };
        for (object, content) in seen.iter() {
            let Some(new) = self.renamed(object) else { continue };
            let content = self.content(content);
            match desired.get(&new) {
                Some(wanted) if *wanted == content => drop(additions.insert(new, content)),
                None if !is_needed(object) && is_known_set(object, desired) => {}
                _ => return Err(format!("{object} is not what was remembered")),
            }
        }
        for object in desired.keys().filter(|object| is_at(object, self.new)) {
            let is_chain = matches!(object, Object::Chain(_));
            if (is_chain || is_needed(object)) && !additions.contains_key(object) {
                return Err(format!("{object} was remembered, and the kernel has nothing like it for {}", self.former));
            }
        }
        if additions.is_empty() {
            // A table of an earlier version.
            return Err(format!("the kernel has nothing at {}, which proves nothing", self.former));
        }
        for (object, content) in seen.iter().filter(|(object, _)| is_at(object, self.new)) {
            if additions.remove(object).as_ref() != Some(content) {
                return Err(format!("{object} still is that of another pod"));
            }
        }
        Ok(additions)
    }

    /// Returns the same object for the new address; `None` if it is not about the former one.
    fn renamed(&self, object: &Object) -> Option<Object> {
        match object {
            Object::Element(set, key) if address(key) == Some(self.former) => {
                Some(Object::Element(set.clone(), with_address(key, self.new)))
            }
            Object::Chain(chain) if *chain == names::refused_services(self.former) => {
                Some(Object::Chain(names::refused_services(self.new)))
            }
            _ => None,
        }
    }

    /// Returns the same content for the new address: the chain that refuses Services is that of an address.
    fn content(&self, content: &Content) -> Content {
        match content {
            Content::Verdict(verdict) if **verdict == Verdict::Jump(names::refused_services(self.former)) => {
                Content::Verdict(Arc::new(Verdict::Jump(names::refused_services(self.new))))
            }
            other => other.clone(),
        }
    }
}

/// Returns whether the memory has the set of an element.
fn is_known_set(object: &Object, desired: &Table) -> bool {
    matches!(object, Object::Element(set, _) if desired.contains_key(&Object::Set(set.clone())))
}

fn is_at(object: &Object, at: IpAddr) -> bool {
    match object {
        Object::Element(_, key) => address(key) == Some(at),
        Object::Chain(chain) => *chain == names::refused_services(at),
        _ => false,
    }
}

fn address(key: &Key) -> Option<IpAddr> {
    match key {
        Key::Address(address) | Key::Itself(address) | Key::Service(address, ..) => Some(*address),
        _ => None,
    }
}

fn with_address(key: &Key, new: IpAddr) -> Key {
    match key {
        Key::Address(_) => Key::Address(new),
        Key::Itself(_) => Key::Itself(new),
        Key::Service(_, protocol, port) => Key::Service(new, *protocol, *port),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::given::{config, object, pod, pods, policy, rule};
    use super::super::super::plan::Plan;
    use super::super::lowering::Lowering;
    use super::*;
    use crate::model::{Host, Namespace, World};
    use crate::net::PerFamily;

    /// `db` takes from `web`; both have these last parts of addresses.
    fn desired(db: &[u8], web: &[u8]) -> Table {
        desired_with(db, web, &[])
    }

    /// The same with a pod that no policy selects or names.
    fn desired_with(db: &[u8], web: &[u8], free: &[u8]) -> Table {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        for (name, places) in [("db", db), ("web", web), ("free", free)] {
            let addresses: Vec<String> =
                places.iter().map(|last| format!("10.244.1.{last} fd00:10:244:1::{last}")).collect();
            let labels = format!("app={name}");
            world.cluster.pods.insert(object(&format!("shop/{name}")), pod(&addresses.join(" "), &labels, ""));
        }
        let allows = [rule(&[pods("app=web")], &["tcp/5432"])];
        world.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        let (mut plan, mut lowering) =
            (Plan::new(), Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true }));
        let changed = plan.update(&world);
        lowering.update(plan.rules(), &world, &changed);
        lowering.desired().table.clone()
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
    fn told(name: &str, kernel: &Table, family: Family) -> Result<Additions, String> {
        let (wanted, former) = match name {
            "db" => (desired(&[8, 70], &[7]), 8),
            _ => (desired(&[8], &[7, 70]), 7),
        };
        let (pod, former) = (object(&format!("shop/{name}")), [address(former, family)]);
        additions(&NewAddress { pod: &pod, address: address(70, family), former: &former }, &wanted, Some(kernel))
    }

    fn id(last: u8, family: Family) -> Object {
        Object::Element(names::pod_ids(family), Key::Address(address(last, family)))
    }

    fn judging(last: u8, family: Family) -> Object {
        let map = names::isolated(super::super::super::rules::Direction::Ingress, family);
        Object::Element(map, Key::Address(address(last, family)))
    }

    #[test]
    fn a_pod_that_the_kernel_knows_is_judged_in_the_same_way_at_a_new_address() {
        for (pod, whole) in [("db", desired(&[8, 70], &[7])), ("web", desired(&[8], &[7, 70]))] {
            let mut kernel = desired(&[8], &[7]);
            for family in Family::BOTH {
                let additions = told(pod, &kernel, family).expect("kernel and memory agree");
                assert!(!additions.is_empty());
                kernel.extend(additions);
                assert_eq!(told(pod, &kernel, family), Ok(Additions::new()), "nothing is left to do");
            }
            assert_eq!(kernel, whole, "{pod}");
        }
    }

    #[test]
    fn a_pod_that_kernel_and_memory_judge_in_different_ways_waits() {
        for family in Family::BOTH {
            let whole = desired(&[8], &[7]);
            let mut kernel = whole.clone();
            let verdict = kernel.remove(&judging(8, family)).expect("db is isolated");
            assert!(told("db", &kernel, family).is_err(), "isolated no longer, or at another address");
            kernel.insert(judging(7, family), verdict.clone());
            assert!(told("web", &kernel, family).is_err(), "isolated since");
            let mut kernel = whole.clone();
            kernel.insert(judging(70, family), verdict);
            assert!(told("web", &kernel, family).is_err(), "the address is judged as that of another pod");
            assert_eq!(
                told("db", &kernel, family).map(|additions| additions.contains_key(&judging(70, family))),
                Ok(false)
            );
        }
    }

    #[test]
    fn a_pod_of_whose_address_the_kernel_has_nothing_waits() {
        for family in Family::BOTH {
            let mut kernel = desired(&[8], &[7]);
            kernel.retain(|object, _| !is_at(object, address(7, family)));
            assert!(told("web", &kernel, family).is_err(), "it may be isolated at another address since");
        }
    }

    /// `free` is neither isolated nor named by a policy.
    #[test]
    fn a_pod_that_no_policy_selects_is_open_at_a_new_address_where_the_kernel_says_that_the_former_one_was_its_own() {
        let table = |free: &[u8]| desired_with(&[8], &[7], free);
        let told = |kernel: &Table, family| {
            let (pod, former) = (object("shop/free"), [address(9, family)]);
            let starting = NewAddress { pod: &pod, address: address(70, family), former: &former };
            additions(&starting, &table(&[9, 70]), Some(kernel))
        };
        for family in Family::BOTH {
            let mut kernel = table(&[9]);
            let additions = told(&kernel, family).expect("kernel and memory agree");
            assert_eq!(additions.keys().collect::<Vec<_>>(), [&id(70, family)], "no packet is looked up there");
            kernel.extend(additions);
            assert_eq!(told(&kernel, family), Ok(Additions::new()));

            let waits = |change: &dyn Fn(&mut Table)| {
                let mut kernel = table(&[9]);
                change(&mut kernel);
                assert!(told(&kernel, family).is_err());
            };
            let others = || Content::Mark(names::pod_id(&object("shop/other")));
            waits(&|kernel| drop(kernel.remove(&id(9, family))));
            waits(&|kernel| drop(kernel.insert(id(9, family), others())));
            waits(&|kernel| drop(kernel.insert(id(70, family), others())));
            // Isolated since.
            let isolated = Content::Verdict(Arc::new(Verdict::Jump("in_shop_free_X".into())));
            waits(&|kernel| drop(kernel.insert(judging(9, family), isolated.clone())));
            waits(&|kernel| drop(kernel.insert(judging(70, family), isolated.clone())));
        }
    }

    /// While the cluster was known in part the pod was made anew at 60 and is isolated there; the memory is older, and its former address stayed in the kernel.
    #[test]
    fn a_pod_that_the_kernel_isolates_at_an_address_that_is_not_remembered_does_not_start_as_an_open_one() {
        for family in Family::BOTH {
            let (pod, former) = (object("shop/free"), [address(9, family)]);
            let starting = NewAddress { pod: &pod, address: address(70, family), former: &former };
            let told = |kernel: &Table| additions(&starting, &desired_with(&[8], &[7], &[9, 70]), Some(kernel));
            // An earlier sandbox of the same outage.
            let mut kernel = desired_with(&[8], &[7], &[9, 60]);
            let additions = told(&kernel).expect("all addresses of the pod agree");
            assert_eq!(additions.keys().collect::<Vec<_>>(), [&id(70, family)]);
            let isolated = Content::Verdict(Arc::new(Verdict::Jump("in_shop_free_X".into())));
            kernel.insert(judging(60, family), isolated);
            let waits = format!("{} is not what was remembered", judging(60, family));
            assert_eq!(told(&kernel), Err(waits));
            kernel.insert(id(60, family), Content::Mark(names::pod_id(&object("shop/other"))));
            assert!(told(&kernel).is_ok(), "that of another pod does not count");
        }
    }

    #[test]
    fn a_pod_that_policies_judge_gets_a_third_sandbox_in_an_outage_as_it_got_the_second() {
        for (pod, kernel) in [("db", desired(&[8, 60], &[7])), ("web", desired(&[8], &[7, 60]))] {
            for family in Family::BOTH {
                let additions = told(pod, &kernel, family).expect("all addresses of the pod agree");
                assert!(additions.contains_key(&id(70, family)), "{pod}: {additions:?}");
            }
        }
    }

    #[test]
    fn what_the_kernel_says_of_another_pod_does_not_go_for_a_pod_that_had_the_address_before() {
        for (pod, last) in [("db", 8), ("web", 7)] {
            for family in Family::BOTH {
                let mut kernel = desired(&[8], &[7]);
                kernel.insert(id(last, family), Content::Mark(names::pod_id(&object("shop/other"))));
                assert!(told(pod, &kernel, family).is_err());
            }
        }
    }

    /// An earlier version of the program wrote it.
    #[test]
    fn by_a_table_that_does_not_say_whose_addresses_are_a_pod_starts_that_is_in_it_and_no_other() {
        for family in Family::BOTH {
            let of_ids = |object: &Object| match object {
                Object::Set(set) | Object::Element(set, _) => *set == names::pod_ids(family),
                _ => false,
            };
            let mut kernel = desired_with(&[8], &[7], &[9]);
            kernel.retain(|object, _| !of_ids(object));
            for pod in ["db", "web"] {
                let additions = told(pod, &kernel, family).expect("kernel and memory agree");
                assert!(!additions.is_empty() && !additions.keys().any(of_ids), "{pod}: {additions:?}");
            }
            let (pod, former) = (object("shop/free"), [address(9, family)]);
            let starting = NewAddress { pod: &pod, address: address(70, family), former: &former };
            let waits = additions(&starting, &desired_with(&[8], &[7], &[9, 70]), Some(&kernel));
            assert!(waits.as_ref().is_err_and(|why| why.ends_with("which proves nothing")), "{waits:?}");
        }
    }

    #[test]
    fn a_pod_without_a_former_address_waits() {
        let pod = object("shop/db");
        let starting = NewAddress { pod: &pod, address: address(70, Family::V4), former: &[] };
        assert!(additions(&starting, &desired(&[70], &[7]), Some(&desired(&[], &[7]))).is_err());
    }
}
