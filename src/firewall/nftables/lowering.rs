//! Lowers the rule set to the desired table, by parts: a changed pod or label changes elements, a changed policy the
//! chains and maps of the classes that it isolates.
//!
//! The result equals that of lowering everything at once, after any history (`tests/firewall/tables.rs`).
//!
//! A family that is off has no sets and no rules, but for what is closed on bridges (`bridges`), and what can have no
//! element in a family has no set there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{FirewallConfig, ServiceRanges};
use crate::kernel::nftables::{Content, Key, Name, Object, Verdict};
use crate::model::{ObjectName, UnreadPolicies, World};
use crate::net::{Family, PerFamily};

use super::super::bridges::{ClosedBridges, PodBridges};
use super::super::closed_ranges::closed_ranges;
use super::super::denials::{DenialChanges, Denials};
use super::super::host_endpoints::HostEndpoints;
use super::super::rules::{ClusterPolicyKey, Direction, Element, PolicyKey, RuleSet, SetKey};
use super::super::{frames, plan, settings};
use super::base::BaseChainInputs;
use super::class::{self, Class};
use super::desired::{Desired, Lost, LoweredChanges};
use super::left_addresses::LeftAddresses;
use super::parts::{Lowered, Part};
use super::sets::{self, Unions};
use super::tiers::{self, Judged};
use super::{host_endpoints, names, peers};

/// The desired table, kept up to date.
pub struct Lowering {
    config: Arc<FirewallConfig>,
    /// The ranges of the flags.
    flags: ServiceRanges,
    families: PerFamily<bool>,
    desired: Desired,
    parts: BTreeMap<Part, LoweredPart>,
    /// Parts that nothing needed at some moment of this update.
    idle: Vec<Part>,
    unions: Unions,
    /// The parts that each policy's rules are in.
    by_policy: BTreeMap<PolicyKey, BTreeSet<Part>>,
    by_cluster_policy: BTreeMap<ClusterPolicyKey, BTreeSet<Part>>,
    /// The parts that are there without being needed by another one.
    roots: BTreeSet<Part>,
    /// The addresses of each pod when it was last lowered.
    pods: BTreeMap<ObjectName, Box<[IpAddr]>>,
    /// The ranges in which only known pods may be reached; `None` before the first World.
    closed: Option<Vec<IpNet>>,
    bridges: PodBridges,
    denials: Denials,
    unread: UnreadPolicies,
    /// Addresses that a pod had and left since these policies cannot be read.
    left: LeftAddresses,
}

/// A part that exists.
struct LoweredPart {
    /// Number of parts and roots that need it.
    users: usize,
    /// Its objects, without the elements of sets that it fills.
    objects: Box<[Object]>,
    needs: Box<[Part]>,
}

impl Lowering {
    pub fn new(config: Arc<FirewallConfig>, families: PerFamily<bool>) -> Lowering {
        Lowering {
            flags: config.ranges.clone(),
            config,
            families,
            desired: Desired::default(),
            parts: BTreeMap::new(),
            idle: Vec::new(),
            unions: Unions::default(),
            by_policy: BTreeMap::new(),
            by_cluster_policy: BTreeMap::new(),
            roots: BTreeSet::new(),
            pods: BTreeMap::new(),
            closed: None,
            bridges: PodBridges::default(),
            denials: Denials::default(),
            unread: UnreadPolicies::None,
            left: LeftAddresses::default(),
        }
    }

    pub fn config(&self) -> &Arc<FirewallConfig> {
        &self.config
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Packs the desired table, which is filled one by one.
    pub fn pack(&mut self) {
        self.desired.table.pack();
    }

    /// Returns the ranges in which only known pods may be reached.
    pub fn closed(&self) -> &[IpNet] {
        self.closed.as_deref().unwrap_or_default()
    }

    /// Returns the bridges on which something is closed.
    pub fn closed_bridges(&self) -> &ClosedBridges {
        self.bridges.closed()
    }

    /// Returns all endpoints of Services on this node itself, denied or not.
    pub fn host_endpoints(&self) -> &HostEndpoints {
        self.denials.endpoints()
    }

    /// Updates from changes of the rule set and the facts of this node; returns what changed.
    pub fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::RuleSetChanges) -> LoweredChanges {
        let mut told = LoweredChanges::default();
        let before = self.bridges.closed().clone();
        self.bridges.update(rules, world, changed);
        self.lower_base(rules, world, before, &mut told);
        for (set, element) in &changed.elements {
            self.lower_element(set, *element, rules, &mut told);
        }
        for set in &changed.sets {
            for family in Family::BOTH {
                self.refresh(&Part::Set(set.clone(), family), rules, &mut told);
            }
            for union in self.unions.with(set).to_vec() {
                self.refresh(&Part::Union(union), rules, &mut told);
            }
        }
        let of_policies = changed.policies.iter().filter_map(|key| self.by_policy.get(key));
        let of_tiers = changed.cluster_policies.iter().filter_map(|key| self.by_cluster_policy.get(key));
        let parts: Vec<Part> = of_policies.chain(of_tiers).flatten().cloned().collect();
        for part in parts {
            self.refresh(&part, rules, &mut told);
        }
        let moved = self.note_addresses(rules, changed);
        let addresses: BTreeSet<IpAddr> = moved.iter().map(|(address, _)| *address).collect();
        for address in &addresses {
            let is_there = *self.families.of(Family::from(*address)) && rules.local_pods_at(*address).next().is_some();
            self.put_root(Part::Address(*address), is_there, rules, &mut told);
        }
        let denied = self.denials.update(rules, world, changed, &self.config);
        self.lower_denials(rules, addresses, &denied, &mut told);
        self.sweep(&mut told);
        told.kept = self.lower_kept(rules, world, &moved);
        let settings = settings::settings(self.bridges.is_any());
        told.settings = self.desired.settings != settings;
        self.desired.settings = settings;
        let frames = frames::frames(&self.bridges.closed().link_local);
        told.frames = self.desired.frames != frames;
        self.desired.frames = frames;
        told
    }

    /// Notes the addresses of changed pods. Returns those of before and of now, and whether all pods that had it have left it.
    fn note_addresses(&mut self, rules: &RuleSet, changed: &plan::RuleSetChanges) -> BTreeSet<(IpAddr, bool)> {
        let (mut moved, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for name in &changed.pods {
            let now = rules.pods.get(name).map(|pod| pod.addresses.clone());
            let before = match now.clone() {
                Some(now) => self.pods.insert(name.clone(), now),
                None => self.pods.remove(name),
            };
            let now = now.unwrap_or_default();
            for address in before.into_iter().flatten() {
                moved.insert((address, !now.contains(&address)));
                kept.extend(now.contains(&address).then_some(address));
            }
            moved.extend(now.iter().map(|address| (*address, false)));
        }
        let stays = |pod: &ObjectName| !changed.pods.contains(pod);
        let has_it = |at| kept.contains(&at) || rules.local_pods_at(at).any(|(pod, _)| stays(pod));
        moved.into_iter().map(|(address, left)| (address, left && !has_it(address))).collect()
    }

    /// Notes what makes former objects of the table stay: Services that are not known, and ClusterNetworkPolicies that may be in force
    /// without being known, with the addresses of the pods that they may judge. Returns whether it changed.
    fn lower_kept(&mut self, rules: &RuleSet, world: &World, moved: &BTreeSet<(IpAddr, bool)>) -> bool {
        let unsure = host_endpoints::unsure(rules, world, &self.config);
        let mut differs = unsure != self.desired.unsure;
        self.desired.unsure = unsure;
        if self.unread != world.unread {
            self.unread = world.unread.clone();
            self.desired.lost = Lost::of(&self.unread);
            (differs, self.left) = (true, LeftAddresses::default());
        } else if moved.is_empty() {
            return differs;
        }
        let Some(lost) = &mut self.desired.lost else { return differs };
        // What a pod was denied does not pass to the next one with its address.
        moved.iter().filter(|(_, left)| *left).for_each(|(address, _)| self.left.add(*address));
        let all = rules.pods.values().flat_map(|pod| pod.addresses.iter().copied());
        let addresses = all.filter(|address| !self.left.contains(*address)).collect();
        differs |= lost.addresses != addresses;
        lost.addresses = addresses;
        differs
    }

    /// Passes on the objects of these parts and of all that they need, each with its part, but not the elements of the sets that a
    /// part fills.
    pub fn reached<'a>(&'a self, from: impl Iterator<Item = Part>, mut pass: impl FnMut(&'a Part, &'a Object)) {
        let mut left: Vec<_> = from.filter_map(|part| self.parts.get_key_value(&part)).collect();
        let mut parts = BTreeSet::new();
        while let Some((part, held)) = left.pop() {
            if parts.insert(part) {
                held.objects.iter().for_each(|object| pass(part, object));
                left.extend(held.needs.iter().filter_map(|need| self.parts.get_key_value(need)));
            }
        }
    }

    /// Returns the classes in use.
    pub fn classes(&self) -> impl Iterator<Item = &Arc<Class>> {
        self.parts.keys().filter_map(|part| match part {
            Part::Counter(class) => Some(class),
            _ => None,
        })
    }

    /// Returns whether a class is in use.
    pub fn has_class(&self, class: &Arc<Class>) -> bool {
        self.parts.contains_key(&Part::Counter(class.clone()))
    }

    fn lower_base(&mut self, rules: &RuleSet, world: &World, before: ClosedBridges, told: &mut LoweredChanges) {
        let moves = FirewallConfig::follow(&mut self.config, self.flags.in_cluster(world.cluster.service_ranges()));
        let closed = closed_ranges(&self.config, world, self.closed());
        if !moves && self.closed.as_ref() == Some(&closed) && *self.bridges.closed() == before {
            return;
        }
        self.closed = Some(closed);
        if self.roots.contains(&Part::Base) {
            self.refresh(&Part::Base, rules, told);
        } else {
            self.put_root(Part::Base, true, rules, told);
        }
    }

    /// Lowers an element that was added to or removed from a set.
    fn lower_element(&mut self, set: &Arc<SetKey>, element: Element, rules: &RuleSet, told: &mut LoweredChanges) {
        let family = element.family();
        let Some(contents) = rules.sets.get(set) else { return };
        let is_there = contents.elements.of(family).contains(&element);
        let turned = self.unions.count(set, element, is_there);
        if !*self.families.of(family) {
            return;
        }
        let Some(key) = sets::key(set, element) else { return };
        let own = self.parts.contains_key(&Part::Set(set.clone(), family)).then(|| names::set(set, family));
        for name in own.into_iter().chain(turned) {
            let object = Object::Element(self.desired.known(name), key.clone());
            match is_there {
                true => self.put(object, Content::Element, told),
                false => self.remove(&object, told),
            }
        }
    }

    /// Lowers what pods are refused of Services. `addresses` are those whose pods changed.
    fn lower_denials(
        &mut self,
        rules: &RuleSet,
        mut addresses: BTreeSet<IpAddr>,
        denied: &DenialChanges,
        told: &mut LoweredChanges,
    ) {
        for endpoint in &denied.endpoints {
            self.refresh(&Part::Endpoint(*endpoint), rules, told);
        }
        addresses.extend(denied.pods.iter().filter_map(|name| self.pods.get(name)).flatten().copied());
        for address in addresses {
            let family = Family::from(address);
            let is_denied = |pod| self.denials.of(pod).any(|one| Family::from(one.address) == family);
            let any = rules.local_pods_at(address).any(|(pod, _)| is_denied(pod));
            self.put_root(Part::RefusedServices(address), any && *self.families.of(family), rules, told);
        }
    }

    /// Lowers a part that is there for its own sake, or removes it.
    fn put_root(&mut self, part: Part, is_there: bool, rules: &RuleSet, told: &mut LoweredChanges) {
        match (is_there, self.roots.contains(&part)) {
            (true, true) => self.refresh(&part, rules, told),
            (true, false) => {
                let part = self.retain(part, rules, told);
                self.roots.insert(part);
            }
            (false, true) => {
                self.roots.remove(&part);
                self.release(&part);
            }
            (false, false) => {}
        }
    }

    /// Lowers a part anew, if it exists.
    fn refresh(&mut self, part: &Part, rules: &RuleSet, told: &mut LoweredChanges) {
        if !self.parts.contains_key(part) {
            return;
        }
        let Lowered { objects, needs } = self.lower(part, rules);
        let needs: Box<[Part]> = needs.into_iter().map(|need| self.retain(need, rules, told)).collect();
        let Some(held) = self.parts.get(part) else { return };
        let before = self.all_objects(part, held);
        for object in before.into_iter().filter(|object| !objects.contains_key(object)) {
            self.remove(&object, told);
        }
        let kept = self.put_all(part, objects, told);
        let Some(held) = self.parts.get_mut(part) else { return };
        held.objects = kept;
        let before = std::mem::replace(&mut held.needs, needs);
        before.iter().for_each(|need| self.release(need));
    }

    /// Needs a part once more, and lowers it if it does not exist; returns it as all share it.
    fn retain(&mut self, part: Part, rules: &RuleSet, told: &mut LoweredChanges) -> Part {
        if let Some((known, _)) = self.parts.get_key_value(&part) {
            let known = known.clone();
            self.parts.entry(known.clone()).and_modify(|held| held.users += 1);
            return known;
        }
        let Lowered { objects, needs } = self.lower(&part, rules);
        let needs = needs.into_iter().map(|need| self.retain(need, rules, told)).collect();
        let objects = self.put_all(&part, objects, told);
        match &part {
            Part::Class(class) | Part::Each(class) => note(&mut self.by_policy, class.policy_keys(), &part),
            Part::Tier(tier) => note(&mut self.by_cluster_policy, tier.policies.iter().cloned(), &part),
            Part::EachTier(each) => note(&mut self.by_cluster_policy, each.tier.policies.iter().cloned(), &part),
            Part::Counter(class) => told.classes.push(class.clone()),
            _ => {}
        }
        self.parts.insert(part.clone(), LoweredPart { users: 1, objects, needs });
        part
    }

    /// Needs a part once less. It is removed at the end of the update, if nothing needs it then.
    fn release(&mut self, part: &Part) {
        let Some(held) = self.parts.get_mut(part) else { return };
        held.users = held.users.saturating_sub(1);
        if held.users == 0 {
            self.idle.push(part.clone());
        }
    }

    /// Removes what nothing needs.
    fn sweep(&mut self, told: &mut LoweredChanges) {
        while let Some(part) = self.idle.pop() {
            let Some(held) = self.parts.get(&part).filter(|held| held.users == 0) else { continue };
            for object in self.all_objects(&part, held) {
                self.remove(&object, told);
            }
            match &part {
                Part::Class(class) | Part::Each(class) => forget(&mut self.by_policy, class.policy_keys(), &part),
                Part::Tier(tier) => forget(&mut self.by_cluster_policy, tier.policies.iter().cloned(), &part),
                Part::EachTier(each) => {
                    forget(&mut self.by_cluster_policy, each.tier.policies.iter().cloned(), &part);
                }
                Part::Counter(class) => told.classes.push(class.clone()),
                Part::Union(union) => self.unions.forget(union),
                _ => {}
            }
            let needs = self.parts.remove(&part).map(|held| held.needs).unwrap_or_default();
            needs.iter().for_each(|need| self.release(need));
        }
    }

    fn lower(&mut self, part: &Part, rules: &RuleSet) -> Lowered {
        let families = self.families;
        match part {
            Part::Base => {
                let Lowering { config, bridges, .. } = self;
                let closed = self.closed.as_deref().unwrap_or_default();
                BaseChainInputs { config, families, closed, bridges: bridges.closed() }.lower()
            }
            Part::Address(address) => self.address(*address, rules),
            Part::RefusedServices(address) => host_endpoints::refused_services(*address, rules, &self.denials),
            Part::Class(class) => class::class(class, rules, families),
            Part::Each(class) => class::each(class, rules, families),
            Part::Tier(tier) => tiers::tier(tier, rules, families),
            Part::EachTier(each) => tiers::each_tier(each, rules, families),
            Part::Denied(policy) => tiers::denied(policy),
            Part::Passed(policy) => tiers::passed(policy),
            Part::Shared(judged) => class::shared(judged),
            Part::Counter(class) => class::counter(class),
            Part::Peers(peers) => peers::peers(peers, families),
            Part::Set(set, family) => sets::set(set, *family, rules),
            Part::Union(union) => self.unions.lower(union, rules, families),
            Part::Endpoint(endpoint) => host_endpoints::endpoint(endpoint, &self.denials),
        }
    }

    /// Returns the elements of an address of pods of this node, which together decide how it is judged, and say whose it is.
    fn address(&self, address: IpAddr, rules: &RuleSet) -> Lowered {
        let (family, key) = (Family::from(address), Key::Address(address));
        let mut lowered = Lowered::default();
        for direction in Direction::BOTH {
            let pods = rules.local_pods_at(address);
            let judged: BTreeSet<Judged> = pods.filter_map(|(name, pod)| Judged::of(direction, name, pod)).collect();
            let judged: Vec<Judged> = judged.into_iter().collect();
            let mut jump = |map: fn(Direction, Family) -> Name, (chain, part)| {
                lowered.verdict(&map(direction, family), key.clone(), Verdict::Jump(chain));
                lowered.needs.insert(part);
            };
            match &*judged {
                [] => continue,
                [Judged { admin, rest, .. }] => {
                    if let Some(admin) = admin {
                        jump(names::admin, (names::tier(admin), Part::Tier(admin.clone())));
                    }
                    if let Some(rest) = rest {
                        jump(names::isolated, rest.part());
                    }
                }
                several => jump(names::admin, (names::shared(several), Part::Shared(several.into()))),
            }
            let itself = Object::Element(names::to_itself(family), Key::Itself(address));
            lowered.objects.insert(itself, Content::Element);
        }
        lowered.pod_id(address, rules);
        if self.config.default_deny {
            lowered.objects.insert(Object::Element(names::pods(family), key), Content::Element);
        }
        lowered
    }

    /// Returns the objects of a part with the elements of the sets that it fills.
    fn all_objects(&self, part: &Part, held: &LoweredPart) -> Vec<Object> {
        let mut all = held.objects.to_vec();
        if part.fills_its_sets() {
            let sets = held.objects.iter().filter_map(|object| match object {
                Object::Set(name) => Some(name),
                _ => None,
            });
            all.extend(sets.flat_map(|set| self.desired.elements_of(set)).map(|(object, _)| object.clone()));
        }
        all
    }

    /// Puts the objects of a part in place; returns those that it has to remember.
    fn put_all(&mut self, part: &Part, objects: BTreeMap<Object, Content>, told: &mut LoweredChanges) -> Box<[Object]> {
        let fills = part.fills_its_sets();
        let (mut kept, mut last): (Vec<Object>, Option<(Name, Name)>) = (Vec::new(), None);
        for (object, content) in objects {
            let object = match object {
                Object::Element(set, key) => {
                    let known = last.as_ref().filter(|(given, _)| *given == set).map(|(_, known)| known.clone());
                    let known = known.unwrap_or_else(|| self.desired.known(set.clone()));
                    last = Some((set, known.clone()));
                    Object::Element(known, key)
                }
                object => object,
            };
            if !(fills && matches!(object, Object::Element(..))) {
                kept.push(object.clone());
            }
            self.put(object, content, told);
        }
        kept.into()
    }

    fn put(&mut self, object: Object, content: Content, told: &mut LoweredChanges) {
        if self.desired.put(object.clone(), content) {
            told.objects.push(object);
        }
    }

    fn remove(&mut self, object: &Object, told: &mut LoweredChanges) {
        if self.desired.remove(object) {
            if matches!(object, Object::Element(..)) {
                told.left.push(object.clone());
            }
            told.objects.push(object.clone());
        }
    }
}

/// Notes that the rules of these policies are in a part.
fn note<K: Ord>(parts: &mut BTreeMap<K, BTreeSet<Part>>, keys: impl Iterator<Item = K>, part: &Part) {
    for key in keys {
        parts.entry(key).or_default().insert(part.clone());
    }
}

/// Notes that they are no longer.
fn forget<K: Ord>(parts: &mut BTreeMap<K, BTreeSet<Part>>, keys: impl Iterator<Item = K>, part: &Part) {
    for key in keys {
        let Some(its) = parts.get_mut(&key) else { continue };
        its.remove(part);
        if its.is_empty() {
            parts.remove(&key);
        }
    }
}
