//! Kernel objects without a single Service: the device, the host's addresses in their set, the rules, and the routes'
//! source.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use std::sync::Arc;

use crate::config::Backend;
use crate::kernel::address::{AddressKey, KEEPER};
use crate::kernel::bridge::Hairpin;
use crate::kernel::ipset::Entry;
use crate::kernel::link::{Link, LinkKind, LinkName};
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::Route;
use crate::model::{Endpoints, ObjectName, Service, Table};
use crate::net::{Family, PerFamily};

use super::{Plan, address_of, different_keys, local_route_key};
use crate::proxy::desired::ProxyChanges;
use crate::proxy::dsr::rules;
use crate::proxy::external_ip::Refusals;
use crate::proxy::health_check::{self, HealthCheck, HealthChecks};
use crate::proxy::local_node::LocalNode;
use crate::proxy::names::{BRIDGE, DEVICE, Set};
use crate::proxy::part::PartInputs;
use crate::proxy::settings::InTunnelMode;
use crate::proxy::{
    external_ip, guard, hidden_ports, host_input, inside, masquerade, node_port, settings, source_ranges, unallocated,
};

impl Plan {
    /// Returns the number of refused external and load balancer addresses.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// Returns the families in which any Service has source ranges.
    pub fn ranged(&self) -> PerFamily<bool> {
        self.shape.ranged
    }

    /// Returns the number of draining destinations.
    pub fn draining(&self) -> usize {
        self.draining.len()
    }

    /// Returns whether any virtual service stays open until routers have been told.
    pub fn is_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    /// Returns the health checks of Services that are wanted; cheap to clone. Which of them the kernel has not got is not the plan's to know.
    pub fn health_checks(&self) -> HealthChecks {
        let addresses = health_check::addresses(&self.node, self.config.nodeport_bindon_all_ip);
        HealthChecks { checks: self.health_checks.all().clone(), addresses, pending: Arc::default() }
    }

    /// Returns the owner of each health check port.
    pub fn health_checked(&self) -> &Table<u16, HealthCheck> {
        self.health_checks.all()
    }

    /// Returns whether a Service asks for a health check.
    pub fn has_health_check(&self, name: &ObjectName) -> bool {
        self.health_checks.has(name)
    }

    /// Notes the health check that a Service asks for, none if it no longer exists.
    pub(super) fn note_health_check(
        &mut self,
        name: &ObjectName,
        service: Option<(&Service, Option<&Arc<Endpoints>>)>,
        changed: &mut ProxyChanges,
    ) {
        let none = Endpoints::default();
        let check = service.and_then(|(service, endpoints)| {
            let endpoints = endpoints.map_or(&none, |endpoints| &**endpoints);
            health_check::wanted(name, service, endpoints, &self.node, self.untunnelled.get(name))
        });
        changed.health_checks |= self.health_checks.update(name, check, &mut changed.notes);
    }

    /// Returns the inputs of every part, besides its Service and what is known of its endpoints' tunnels.
    pub(super) fn inputs(&self) -> PartInputs<'_> {
        PartInputs { node: &self.node, others: &self.others, config: &self.config, untunnelled: None }
    }

    /// Returns the inputs of a Service's part.
    pub fn inputs_of(&self, name: &ObjectName) -> PartInputs<'_> {
        PartInputs { untunnelled: self.untunnelled.get(name), ..self.inputs() }
    }

    /// Counts and returns the addresses of a Service that are refused, none if it no longer exists. Its part must still be the
    /// old one: what that does not name is newly refused.
    pub(super) fn note_refused(
        &mut self,
        name: &ObjectName,
        service: Option<&Service>,
        changed: &mut ProxyChanges,
    ) -> Refusals {
        let refused = service.map(|service| external_ip::refused(service, self.inputs())).unwrap_or_default();
        let after = Refusals::new(&refused);
        let before = self.parts.get(name).map(|held| &held.refused);
        self.refused = self.refused + after.len() - before.map_or(0, Refusals::len);
        changed.refused.add(name, refused, before);
        after
    }

    /// Returns whether a change of the node leaves all parts unchanged. Addresses of the host come and go; parts name
    /// only those that node ports listen on, and no endpoint at the node's own but for speakers. Pod ranges say which endpoints are here, where they do not say it themselves.
    pub(super) fn parts_stay(&self, newer: &LocalNode) -> bool {
        let named = |node: &LocalNode| {
            let family = |family| {
                let on_all = self.config.nodeport_bindon_all_ip;
                node_port::node_port_addresses(node, on_all, family)
            };
            let ports = PerFamily::from_fn(family);
            let own = (node.address, node.routing_address);
            (node.name.clone(), node.families, own, node.pod_cidrs.clone(), ports, node.runtime_awaited)
        };
        named(&self.node) == named(newer)
    }

    /// Updates all of them. Called when the node has changed.
    pub(super) fn replace_common(&mut self, changed: &mut ProxyChanges) {
        self.desired.links = BTreeMap::from([(LinkName(DEVICE.into()), Link { kind: LinkKind::Dummy, up: true })]);
        self.desired.hairpin_ports = BTreeMap::from([(LinkName(BRIDGE.into()), Hairpin)]);
        self.keep_device(changed);
        self.replace_settings(changed);
        match self.config.backend {
            Backend::Iptables => self.replace_rules(changed),
            Backend::Nftables => self.replace_chains(changed),
        }
        let listed = self.listed_own_addresses().into_iter();
        let gone: Vec<Entry> = listed.filter(|entry| !self.node.lists(entry)).collect();
        for entry in gone {
            self.put_element(Set::LocalAddresses, entry, false, changed);
        }
        let enabled = |address: &&IpAddr| *self.node.families.of(Family::from(**address));
        let own: Vec<IpAddr> = self.node.addresses.iter().filter(enabled).copied().collect();
        for address in own {
            self.put_element(Set::LocalAddresses, Entry::Ip(address), true, changed);
        }
        let marked = self.desired.marks.keys();
        let mut used: Vec<IpAddr> = self.desired.virtuals.keys().chain(marked).filter_map(address_of).collect();
        used.dedup();
        for address in used {
            self.follow_use(address, true, changed);
        }
    }

    /// Follows the ranges that cluster IPs come from: those of the configuration, and of the World's ServiceCIDR objects.
    pub(super) fn follow_ranges(&mut self, changed: &mut ProxyChanges) {
        let judged = unallocated::judged(&self.config, &self.world, &self.node);
        if self.unallocated == judged {
            return;
        }
        let other_rules = self.unallocated.refused != judged.refused;
        self.unallocated = judged.clone();
        changed.ranges = Some(judged);
        if !other_rules {
            return;
        }
        match self.config.backend {
            Backend::Iptables => self.replace_rules(changed),
            Backend::Nftables => self.replace_chains(changed),
        }
    }

    /// Returns the named range of cluster IPs around an address, the narrowest, with the reason where its free addresses are not refused.
    pub fn cluster_ip_range(&self, address: IpAddr) -> Option<(IpNet, Option<&str>)> {
        let refused = self.unallocated.refused.of(Family::from(address)).iter().map(|range| (*range, None));
        let left_out = self.unallocated.left_out.iter().map(|(range, why)| (*range, Some(why.as_str())));
        let around = refused.chain(left_out).filter(|(range, _)| range.contains(&address));
        around.max_by_key(|(range, _)| range.prefix_len())
    }

    pub(super) fn replace_settings(&mut self, changed: &mut ProxyChanges) {
        let tunnels = InTunnelMode { is_any_v4: self.shape.tunnels.v4, takes_over: self.takes_over() };
        let settings = settings::settings(&self.node, self.kernel, tunnels);
        changed.settings |= settings != self.desired.settings;
        self.desired.settings = settings;
    }

    pub(super) fn replace_rules(&mut self, changed: &mut ProxyChanges) {
        let mut rules = BTreeMap::new();
        for family in self.node.enabled_families() {
            if self.config.guard {
                rules.extend(guard::rules(family, &self.config.speakers));
            }
            rules.extend(hidden_ports::rules(family));
            rules.extend(unallocated::rules(self.unallocated.refused.of(family), family));
            if *self.shape.ranged.of(family) {
                rules.extend(source_ranges::rules(family));
            }
            if *self.shape.inside.of(family) {
                rules.extend(inside::rules(&self.node, family));
            }
            rules.extend(self.marking_rules(family));
            rules.extend(masquerade::rules(&self.node, self.config.masquerade_all, &self.config.bgp_ports, family));
        }
        let old = std::mem::replace(&mut self.desired.rules, rules);
        changed.rules.extend(different_keys(&old, &self.desired.rules));
    }

    /// Replaces all of our table but the elements.
    pub(super) fn replace_chains(&mut self, changed: &mut ProxyChanges) {
        let families: Vec<Family> = self.node.enabled_families().collect();
        let sets = families.iter().flat_map(|family| Set::BASIC.map(|set| guard::table_set(set, *family)));
        let mut new: BTreeMap<Object, Content> = sets.collect();
        if self.config.guard {
            new.extend(guard::table_chains(&families, &self.config.speakers));
            new.extend(host_input::table_chains());
        }
        new.extend(hidden_ports::in_table(&families));
        new.extend(unallocated::table_chains(&self.unallocated.refused));
        new.extend(source_ranges::in_table(&self.shape, &families));
        new.extend(inside::in_table(&self.node, &self.shape.inside));
        new.extend(rules::in_table(self.segment_sizes()));
        let passages = if self.config.guard { host_input::passages(&families) } else { BTreeMap::new() };
        let old = std::mem::replace(&mut self.desired.passages, passages);
        changed.passages.extend(different_keys(&old, &self.desired.passages));
        new.extend(masquerade::table_chains(&self.node, self.config.masquerade_all, &self.config.bgp_ports));
        // Elements are the last of all objects.
        let before = self.desired.table.iter().take_while(|(object, _)| !matches!(object, Object::Element(..)));
        let old: BTreeMap<Object, Content> =
            before.map(|(object, content)| (object.clone(), content.clone())).collect();
        for object in different_keys(&old, &new) {
            match new.get(&object) {
                Some(content) => self.desired.table.insert(object.clone(), content.clone()),
                None => self.desired.table.remove(&object),
            };
            changed.table.push(object);
        }
    }

    /// Keeps one unused address on the device: with the last IPv4 address the kernel deletes all IPv4 routes of a
    /// device, and the last one may be kube-router's, which are deleted while our routes stay. The kernel creates a
    /// local route for it, which looks like one of ours.
    fn keep_device(&mut self, changed: &mut ProxyChanges) {
        let link = LinkName(DEVICE.into());
        let key = local_route_key(KEEPER.addr());
        self.desired.addresses.clear();
        self.desired.routes.remove(&key);
        if self.node.families.v4 {
            let route = Route { source: Some(KEEPER.addr()), ..self.local_route(Family::V4) };
            self.desired.addresses.insert(AddressKey { link, address: KEEPER }, ());
            self.desired.routes.insert(key.clone(), route.into());
        }
        changed.routes.push(key);
    }
}
