//! Lowers the rule set to desired kernel objects, by parts: a changed pod or label changes elements, a changed policy
//! its own chains.
//!
//! Each part of the rule set becomes objects whose names are derived from it alone, so a changed part is lowered again
//! and compared with its previous objects. The result equals that of lowering everything at once, after any history
//! (`tests/firewall.rs`).
//!
//! Families stand apart: what is off is not there, but for what is closed on bridges (`bridges`), and what can have no element in a
//! family has no set there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::{FirewallConfig, ServiceRanges};
use crate::kernel::ipset::{ElementKey, Entry, SetKind, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::model::{ObjectName, Tier, UnreadPolicies, World};
use crate::net::{Family, PerFamily};

use super::super::bridges::{ClosedBridges, PodBridges};
use super::super::closed_ranges::closed_ranges;
use super::super::denials::{DenialChanges, Denials};
use super::super::host_endpoints::HostEndpoints;
use super::super::lost::LostChains;
use super::super::rules::{
    ClusterPolicyKey, Contents, Direction, Element, Isolation, LocalPod, PolicyKey, PortOwners, RuleSet, SetKey,
};
use super::super::{frames, plan, settings};
use super::desired::{Desired, Lost, LoweredChanges};
use super::host_endpoints::{self, Unsure};
use super::pod_chain::EnteringRules;
use super::{dispatch, names, pod_chain, policy_chain};

/// The desired kernel objects, kept up to date.
pub struct Lowering {
    config: Arc<FirewallConfig>,
    /// The ranges of the flags.
    flags: ServiceRanges,
    families: PerFamily<bool>,
    desired: Desired,
    /// The rule by which pod chains enter a policy's chain, shared by all of them.
    asking: BTreeMap<PolicyKey, Rule>,
    /// The addresses of each pod when it was last lowered.
    pods: BTreeMap<ObjectName, Box<[IpAddr]>>,
    /// The ranges in which only known pods may be reached; `None` before the first World.
    closed: Option<Vec<IpNet>>,
    pod_bridges: PodBridges,
    /// Those of them that rules close.
    bridges: ClosedBridges,
    filters_ipv6: bool,
    denials: Denials,
    unread: UnreadPolicies,
}

impl Lowering {
    pub fn new(config: Arc<FirewallConfig>, families: PerFamily<bool>) -> Lowering {
        let (desired, asking, pods, pod_bridges, bridges, denials, unread) = Default::default();
        let (closed, filters_ipv6) = (None, true);
        Lowering {
            flags: config.ranges.clone(),
            config,
            families,
            desired,
            asking,
            pods,
            closed,
            pod_bridges,
            bridges,
            filters_ipv6,
            denials,
            unread,
        }
    }

    /// Returns the same for a kernel without IPv6, where pods have no link-local addresses, or one that takes no rules of
    /// IPv6: without `--enable-ipv6` none are desired.
    pub fn without_ipv6(self) -> Lowering {
        Lowering { filters_ipv6: false, ..self }
    }

    pub fn config(&self) -> &Arc<FirewallConfig> {
        &self.config
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Packs the desired elements, which are added one by one.
    pub fn pack(&mut self) {
        self.desired.elements.pack();
    }

    /// Returns the ranges in which only known pods may be reached.
    pub fn closed(&self) -> &[IpNet] {
        self.closed.as_deref().unwrap_or_default()
    }

    /// Returns the bridges on which something is closed.
    pub fn closed_bridges(&self) -> &ClosedBridges {
        &self.bridges
    }

    /// Returns the endpoints of Services on this node itself.
    pub fn host_endpoints(&self) -> &HostEndpoints {
        self.denials.endpoints()
    }

    /// Updates from changes of the rule set and the facts of this node; returns what changed.
    pub fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::RuleSetChanges) -> LoweredChanges {
        let mut told = LoweredChanges::default();
        let is_first = self.closed.is_none();
        let ranges = self.flags.in_cluster(world.cluster.service_ranges());
        let moves = FirewallConfig::follow(&mut self.config, ranges);
        let closed = closed_ranges(&self.config, world, self.closed());
        if self.closed.as_ref() != Some(&closed) {
            self.lower_tail(&closed, &mut told);
            self.closed = Some(closed);
        }
        for set in &changed.sets {
            self.lower_set(set, rules.sets.get(set), &mut told);
        }
        self.lower_elements(rules, &changed.elements, &mut told);
        for key in &changed.policies {
            self.lower_policy(key, rules, &mut told);
        }
        self.lower_cluster_policies(&changed.cluster_policies, rules, &mut told);
        // Whether a pod's chain drops what conntrack cannot assign follows from the rules of its policies.
        let is_turned = |pod: &LocalPod| pod.cluster_policies.iter().any(|key| changed.cluster_policies.contains(key));
        let turned = rules.pods.iter().filter(|(_, pod)| !changed.cluster_policies.is_empty() && is_turned(pod));
        for name in changed.pods.iter().chain(turned.map(|(name, _)| name).filter(|name| !changed.pods.contains(*name)))
        {
            self.lower_pod(name, rules, &mut told);
        }
        if is_first {
            self.lower_fixed(&mut told);
        }
        let denied = self.denials.update(rules, world, changed, &self.config);
        self.lower_denials(rules, &denied, is_first || !changed.pods.is_empty(), &mut told);
        self.lower_certainty(host_endpoints::unsure(rules, world, &self.config), &mut told);
        self.lower_lost(rules, &world.unread, !changed.pods.is_empty(), &mut told);
        self.pod_bridges.update(rules, world, changed);
        let settings = settings::settings(self.pod_bridges.is_any());
        told.settings = self.desired.settings != settings;
        self.desired.settings = settings;
        let mut closed = self.pod_bridges.closed().clone();
        let frames = frames::frames(&closed.link_local);
        told.frames = self.desired.frames != frames;
        self.desired.frames = frames;
        if !self.families.v6 && !self.filters_ipv6 {
            closed.link_local.clear();
        }
        let turns = std::mem::replace(&mut self.bridges, closed) != self.bridges;
        if turns {
            self.lower_bridges(&mut told);
        }
        if is_first || turns || moves || !changed.pods.is_empty() {
            for family in self.enabled() {
                for (piece, chain) in dispatch::chains(rules, &self.config, family, &self.bridges) {
                    self.put_rules(piece, Some(chain), &mut told);
                }
            }
        }
        told
    }

    fn lower_bridges(&mut self, told: &mut LoweredChanges) {
        let is_there = PerFamily { v6: self.families.v6 || self.filters_ipv6, ..self.families };
        for family in Family::BOTH.into_iter().filter(|family| *is_there.of(*family)) {
            for (piece, rules) in dispatch::bridge_chains(&self.bridges, family) {
                self.put_rules(piece, rules, told);
            }
        }
        if is_there.v6 && !self.families.v6 {
            for (piece, rules) in dispatch::without_policies(&self.bridges) {
                self.put_rules(piece, rules, told);
            }
        }
    }

    /// Lowers what pods are refused of Services. `pods_changed`: pods may have other addresses.
    fn lower_denials(
        &mut self,
        rules: &RuleSet,
        denied: &DenialChanges,
        pods_changed: bool,
        told: &mut LoweredChanges,
    ) {
        let families = self.families;
        for endpoint in denied.endpoints.iter().filter(|one| *families.of(Family::from(one.address))) {
            let name = names::entrances(endpoint);
            let elements = host_endpoints::elements(&self.denials, endpoint, &name);
            let family = Family::from(endpoint.address);
            let spec = elements.as_ref().map(|elements| spec(SetKind::HashIpPort, family, elements.len()));
            match spec.is_some() {
                true => drop(self.desired.closing.insert(name.clone())),
                false => drop(self.desired.closing.remove(&name)),
            }
            let name = self.put_set(&name, spec, told);
            self.put_elements(&name, elements.unwrap_or_default(), told);
        }
        for family in self.enabled() {
            for pod in &denied.pods {
                let chain = dispatch::chain(family, &names::refusal_chain(pod));
                self.put_rules(chain, host_endpoints::refusal(&self.denials, pod, family), told);
            }
            if pods_changed || !denied.pods.is_empty() {
                let chain = dispatch::chain(family, names::CHAIN_HOST_ENDPOINTS);
                self.put_rules(chain, Some(host_endpoints::dispatch(&self.denials, rules, family)), told);
            }
        }
    }

    /// Notes whether Services are completely known. What an earlier run left for those that are not is compared when
    /// they are.
    fn lower_certainty(&mut self, unsure: Option<Unsure>, told: &mut LoweredChanges) {
        if self.desired.unsure != unsure {
            told.rules.extend(self.enabled().map(|family| dispatch::chain(family, names::CHAIN_HOST_ENDPOINTS)));
            self.desired.unsure = unsure;
        }
    }

    /// Notes which ClusterNetworkPolicies may be in force without being known, and the pods that they may judge.
    fn lower_lost(&mut self, rules: &RuleSet, unread: &UnreadPolicies, pods_changed: bool, told: &mut LoweredChanges) {
        if self.unread != *unread {
            self.unread = unread.clone();
            let chains = LostChains::of(unread, |key| [names::cluster_policy_chain(key)]);
            self.desired.lost = chains.map(|chains| Lost { chains, pods: BTreeSet::new() });
            told.rules.extend(self.enabled().map(|family| dispatch::chain(family, names::CHAIN_FORWARD)));
        } else if !pods_changed {
            return;
        }
        if let Some(lost) = &mut self.desired.lost {
            let chains = |pod| Direction::BOTH.map(|direction| names::pod_chain(pod, direction));
            lost.pods = rules.pods.keys().flat_map(chains).collect();
        }
    }

    /// Returns the enabled families, IPv4 first.
    fn enabled(&self) -> impl Iterator<Item = Family> + use<> {
        let families = self.families;
        Family::BOTH.into_iter().filter(move |family| *families.of(*family))
    }

    fn lower_fixed(&mut self, told: &mut LoweredChanges) {
        for family in self.enabled() {
            for (piece, rules) in dispatch::fixed(family, self.config.flush_established) {
                self.put_rules(piece, Some(rules), told);
            }
            self.put_local_pods(family, told);
        }
    }

    fn lower_tail(&mut self, closed: &[IpNet], told: &mut LoweredChanges) {
        for family in self.enabled() {
            let (piece, rules) = dispatch::tail(family, closed);
            self.put_rules(piece, Some(rules), told);
        }
    }

    /// Lowers a set that was added, removed, or has to be compared as a whole.
    fn lower_set(&mut self, key: &SetKey, contents: Option<&Contents>, told: &mut LoweredChanges) {
        let set_names = names::set(key);
        for family in self.enabled() {
            let contents = contents.filter(|_| key.is_of(family));
            let entries: Option<Vec<Entry>> = contents.map(|contents| entries(key, contents, family).collect());
            let spec = entries.as_ref().map(|entries| spec(kind(key), family, entries.len()));
            let name = self.put_set(set_names.of(family), spec, told);
            match key.plain() {
                SetKey::NamedPort { pods: PortOwners::Local, .. } if entries.is_some() => {
                    self.desired.ports_here.insert(name.clone());
                }
                _ => drop(self.desired.ports_here.remove(&name)),
            }
            match key.closes() && entries.is_some() {
                true => drop(self.desired.denied.insert(name.clone())),
                false => drop(self.desired.denied.remove(&name)),
            }
            let keys = entries.into_iter().flatten().map(|entry| ElementKey { set: name.clone(), entry });
            self.put_elements(&name, keys.collect(), told);
        }
    }

    /// Makes these the elements of a set.
    fn put_elements(&mut self, set: &SetName, after: BTreeSet<ElementKey>, told: &mut LoweredChanges) {
        let before: Vec<ElementKey> =
            self.desired.elements.range(elements_of(set)).map(|(key, ())| key.clone()).collect();
        for key in before.into_iter().filter(|key| !after.contains(key)) {
            self.remove_element(key, told);
        }
        for key in after {
            if self.desired.elements.insert(key.clone(), ()).is_none() {
                told.elements.push(key);
            }
        }
    }

    /// Lowers elements that were added to or removed from sets.
    fn lower_elements(&mut self, rules: &RuleSet, changed: &[(Arc<SetKey>, Element)], told: &mut LoweredChanges) {
        let mut resized = BTreeSet::new();
        for (key, element) in changed {
            let family = element.family();
            let (Some(contents), true) = (rules.sets.get(key), *self.families.of(family)) else { continue };
            let (Some(entry), true) = (entry(key, *element), key.is_of(family)) else { continue };
            let elements = contents.elements.of(family);
            let name = self.known(names::set(key).of(family));
            let place = ElementKey { set: name, entry };
            resized.insert((place.set.clone(), spec(kind(key), family, elements.len())));
            match elements.contains(element) {
                true => {
                    self.desired.elements.insert(place.clone(), ());
                    told.elements.push(place);
                }
                false => self.remove_element(place, told),
            }
        }
        for (name, spec) in resized {
            self.put_set(&name, Some(spec), told);
        }
    }

    fn lower_policy(&mut self, key: &PolicyKey, rules: &RuleSet, told: &mut LoweredChanges) {
        let name = names::policy_chain(key);
        match rules.policies.contains_key(key) {
            true => drop(self.asking.entry(key.clone()).or_insert_with(|| pod_chain::asks(key))),
            false => drop(self.asking.remove(key)),
        }
        for family in self.enabled() {
            let named = |set: &SetKey| self.known(names::set(set).of(family));
            let chain = rules.policies.get(key).map(|rules| policy_chain::rules(key, rules, family, &named));
            self.put_rules(dispatch::chain(family, &name), chain, told);
        }
    }

    fn lower_pod(&mut self, name: &ObjectName, rules: &RuleSet, told: &mut LoweredChanges) {
        let pod = rules.pods.get(name);
        let addresses = pod.map(|pod| pod.addresses.clone());
        for direction in Direction::BOTH {
            let chain_name = names::pod_chain(name, direction);
            for family in self.enabled() {
                let here = pod.filter(|pod| pod.addresses.iter().any(|address| Family::from(*address) == family));
                let judged = here.filter(|pod| pod.is_judged(direction));
                let chain =
                    judged.map(|pod| pod_chain::tiered(name, direction, self.asked(pod, direction, rules), family));
                self.put_rules(dispatch::chain(family, &chain_name), chain, told);
            }
        }
        let before = match addresses.clone() {
            Some(addresses) => self.pods.insert(name.clone(), addresses),
            None => self.pods.remove(name),
        };
        let concerned: BTreeSet<IpAddr> = before.into_iter().chain(addresses).flatten().collect();
        for address in concerned {
            self.lower_address(address, rules, told);
        }
    }

    /// Returns the rules by which the chain of a pod enters those of the policies that select it.
    fn asked(&self, pod: &LocalPod, direction: Direction, rules: &RuleSet) -> EnteringRules {
        let tier = |tier| pod.tier(tier, direction).map(pod_chain::asks_cluster).collect();
        let policies = match pod.isolation(direction) {
            Isolation::Open => None,
            Isolation::Isolated { policies, .. } => {
                let keys = policies.iter().map(|policy| PolicyKey { policy: policy.clone(), direction });
                let asks = |key| self.asking.get(&key).cloned().unwrap_or_else(|| pod_chain::asks(&key));
                Some(keys.map(asks).collect())
            }
        };
        let drops_invalid = rules.drops_invalid(pod, direction);
        EnteringRules { admin: tier(Tier::Admin), policies, baseline: tier(Tier::Baseline), drops_invalid }
    }

    /// Lowers ClusterNetworkPolicies, and the chains that mark what they decide while there are any.
    fn lower_cluster_policies(
        &mut self,
        keys: &BTreeSet<ClusterPolicyKey>,
        rules: &RuleSet,
        told: &mut LoweredChanges,
    ) {
        if keys.is_empty() {
            return;
        }
        for family in self.enabled() {
            for (piece, chain) in dispatch::deciding(family) {
                self.put_rules(piece, (!rules.cluster_policies.is_empty()).then_some(chain), told);
            }
            // One that has another priority, and so another key, keeps its chain.
            let chains: BTreeMap<CompactString, Option<&ClusterPolicyKey>> = {
                let gone = keys.iter().map(|key| (names::cluster_policy_chain(key), None));
                let there = keys.iter().filter(|key| rules.cluster_policies.contains_key(key));
                gone.chain(there.map(|key| (names::cluster_policy_chain(key), Some(key)))).collect()
            };
            for (name, key) in chains {
                let named = |set: &SetKey| self.known(names::set(set).of(family));
                let list = key.and_then(|key| Some((key, rules.cluster_policies.get(key)?)));
                let chain = list.map(|(key, list)| policy_chain::cluster_rules(key, list, family, &named));
                self.put_rules(dispatch::chain(family, &name), chain, told);
            }
        }
    }

    /// Keeps an address in the set of local pods while a pod of this node has it.
    fn lower_address(&mut self, address: IpAddr, rules: &RuleSet, told: &mut LoweredChanges) {
        let family = Family::from(address);
        if !*self.families.of(family) {
            return;
        }
        let key = ElementKey { set: self.known(names::local_pods(family)), entry: Entry::Ip(address) };
        let before = told.elements.len();
        match rules.local_pods_at(address).next() {
            Some(_) if self.desired.elements.insert(key.clone(), ()).is_none() => told.elements.push(key),
            Some(_) => {}
            None => self.remove_element(key, told),
        }
        if told.elements.len() > before {
            self.put_local_pods(family, told);
        }
    }

    fn remove_element(&mut self, key: ElementKey, told: &mut LoweredChanges) {
        if self.desired.elements.remove(&key).is_some() {
            told.left.push(key.clone());
            told.elements.push(key);
        }
    }

    /// Adds the set of local pods with kube-router's specification, because it uses the same set.
    fn put_local_pods(&mut self, family: Family, told: &mut LoweredChanges) {
        let name = names::local_pods(family);
        let count = self.desired.elements.range(elements_of(name)).count();
        let spec = SetSpec { timeout: true, ..spec(SetKind::HashIp, family, count) };
        self.put_set(name, Some(spec), told);
    }

    /// Returns the stored name, so that all elements share it.
    fn put_set(&mut self, name: &SetName, spec: Option<SetSpec>, told: &mut LoweredChanges) -> SetName {
        let name = self.known(name);
        if self.desired.sets.get(&name) != spec.as_ref() {
            match spec {
                Some(spec) => drop(self.desired.sets.insert(name.clone(), spec)),
                None => drop(self.desired.sets.remove(&name)),
            }
            told.sets.push(name.clone());
        }
        name
    }

    fn known(&self, name: &SetName) -> SetName {
        self.desired.sets.get_key_value(name).map_or(name, |(known, _)| known).clone()
    }

    fn put_rules(&mut self, piece: Piece, rules: Option<Rules>, told: &mut LoweredChanges) {
        if self.desired.rules.get(&piece) == rules.as_ref() {
            return;
        }
        match rules {
            Some(rules) => drop(self.desired.rules.insert(piece.clone(), rules)),
            None => drop(self.desired.rules.remove(&piece)),
        }
        told.rules.push(piece);
    }
}

/// Returns the range of all possible element keys of a set.
pub fn elements_of(set: &SetName) -> std::ops::RangeInclusive<ElementKey> {
    let first = Entry::Ip(IpAddr::from([0; 4]));
    let last = Entry::Net(Family::host_prefix(IpAddr::from([0xff; 16])));
    ElementKey { set: set.clone(), entry: first }..=ElementKey { set: set.clone(), entry: last }
}

fn spec(kind: SetKind, family: Family, elements: usize) -> SetSpec {
    SetSpec::for_elements(kind, family, elements, false)
}

fn kind(key: &SetKey) -> SetKind {
    match key {
        SetKey::Pods(_) => SetKind::HashIp,
        SetKey::Blocks(_) => SetKind::HashNet,
        SetKey::NamedPort { .. } => SetKind::HashIpPort,
        SetKey::Denied(set) => kind(set),
    }
}

/// Returns the entries of a set in one family. A range is as few prefixes as cover it.
fn entries(key: &SetKey, contents: &Contents, family: Family) -> impl Iterator<Item = Entry> {
    let elements = contents.elements.of(family).iter().filter_map(|element| entry(key, *element));
    let ranges = contents.ranges.of(family).iter().flat_map(move |range| range.prefixes(family));
    elements.chain(ranges.map(Entry::Net))
}

fn entry(key: &SetKey, element: Element) -> Option<Entry> {
    match element {
        Element::Address(address) => Some(Entry::Ip(address)),
        Element::Port(address, port) => Some(Entry::IpPort(address, key.protocol()?, port)),
    }
}
