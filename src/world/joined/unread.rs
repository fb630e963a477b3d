//! Objects and kinds that are not known although they were read: objects that cannot be parsed, and a kind that nobody waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use compact_str::CompactString;

use super::{Joined, set};
use crate::k8s::{Kind, Object, ObjectId};
use crate::model::{Cluster, UnreadPeers, UnreadPolicies};

impl Joined {
    /// Returns the ClusterNetworkPolicies that may be in force without being known.
    pub fn unread(&self) -> UnreadPolicies {
        let kind = Kind::ClusterNetworkPolicy;
        let of_kind = self.unknown.iter().filter(|id| id.kind == kind).map(|id| id.name.name.to_compact());
        let names: BTreeSet<CompactString> = of_kind.collect();
        if self.lacks_list(kind) || names.contains("") {
            return UnreadPolicies::Any;
        }
        if names.is_empty() { UnreadPolicies::None } else { UnreadPolicies::Named(Arc::new(names)) }
    }

    /// Returns whether nothing is known of a kind that nobody waits for.
    fn lacks_list(&self, kind: Kind) -> bool {
        self.listings.iter().any(|listing| listing.kind == kind && listing.is_withheld && !listing.is_remembered)
    }

    /// Returns whether these tables are all that is known, so that they may replace what was known last.
    pub fn may_be_kept(&self) -> bool {
        self.is_complete()
            && (self.has_asked
                || ![Kind::ClusterNetworkPolicy, Kind::ServiceCidr].map(|kind| self.lacks_list(kind)).contains(&true))
    }

    /// Returns the policies that cannot be read and of which no good version is known.
    pub fn policies_not_in_force(&self) -> BTreeSet<String> {
        let is_policy = |id: &&ObjectId| {
            matches!(id.kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy) && !id.name.name.is_empty()
        };
        self.unknown.iter().filter(is_policy).map(ObjectId::to_string).collect()
    }

    /// Returns whether there are objects that cannot be parsed and of which no good version is known.
    pub fn lacks_good_versions(&self) -> bool {
        !self.unknown.is_empty() || self.lacks_peers
    }

    /// Puts the last good external peers of our own Node in the place of those that cannot be read. Nobody asks for those of other Nodes, whose kubelets write them and
    /// could make this cost much.
    pub(super) fn with_last_good_peers(&mut self, object: Object) -> Object {
        let (name, node) = match object {
            Object::Node(name, Some(node)) if name == self.host.node_name => (name, node),
            other => return other,
        };
        if node.routing().unread_peers == UnreadPeers::None {
            self.lacks_peers = false;
            return Object::Node(name, Some(node));
        }
        let node = match self.cluster.nodes.get(&name) {
            Some(before) => node.or_last_good_peers(before),
            None => {
                let is_first = self.unlisted().any(|kind| kind == Kind::Node);
                self.lacks_peers |= is_first;
                node
            }
        };
        Object::Node(name, Some(node))
    }

    /// Looks in the last known state for the external peers of our own Node that cannot be read, once; returns whether any was found. Of a peer that has
    /// a password the file has all but that, and so it waits for the annotation to be mended.
    pub(super) fn recall_peers(&mut self, earlier: &Cluster) -> bool {
        let (nodes, name) = (&mut self.cluster.nodes, &self.host.node_name);
        let (true, Some(now), Some(before)) =
            (std::mem::take(&mut self.lacks_peers), nodes.get(name).cloned(), earlier.nodes.get(name))
        else {
            return false;
        };
        set(nodes, name.clone(), Some(now.or_last_good_peers(before)))
    }

    /// Puts the good versions of objects in place that cannot be parsed now; returns whether there was any.
    pub fn recall(&mut self, earlier: &Cluster) -> bool {
        let good_version = |id: &ObjectId| {
            let name = &id.name;
            match id.kind {
                Kind::NetworkPolicy => {
                    Some(Object::NetworkPolicy(name.clone(), Some(earlier.policies.get(name)?.clone())))
                }
                Kind::ClusterNetworkPolicy => {
                    let policy = earlier.cluster_policies.get(&name.name.to_compact())?.clone();
                    Some(Object::ClusterNetworkPolicy(name.name.to_compact(), Some(policy)))
                }
                _ => None,
            }
        };
        let good: Vec<Object> = self.unknown.iter().filter_map(good_version).collect();
        let found = self.recall_peers(earlier) || !good.is_empty();
        for object in good {
            self.put(object);
        }
        found
    }
}
