//! The kinds of objects that are read, their identity, and one object as the model knows it.

use std::fmt;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{
    ClusterNetworkPolicy, EndpointSlice, Namespace, NetworkPolicy, Node, ObjectName, Pod, Service, ServiceCidr,
};

/// The kinds of objects that this program reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    Service,
    EndpointSlice,
    /// Only the Node of the own host, unless the router runs.
    Node,
    Pod,
    Namespace,
    NetworkPolicy,
    /// A custom resource, which the API server may not have ([`Kind::may_be_absent`]).
    ClusterNetworkPolicy,
    /// Served from Kubernetes 1.33 on.
    ServiceCidr,
}

/// One object as the model knows it. Without a value the object is gone, or is of no concern to a node
/// agent (a headless Service, say).
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    Service(ObjectName, Option<Arc<Service>>),
    /// Boxed: the catalogue of manifests keeps every object, and its size is that of the largest kind.
    EndpointSlice(ObjectName, Option<Box<SliceOf>>),
    Node(CompactString, Option<Arc<Node>>),
    Pod(ObjectName, Option<Arc<Pod>>),
    Namespace(CompactString, Option<Arc<Namespace>>),
    NetworkPolicy(ObjectName, Option<Arc<NetworkPolicy>>),
    ClusterNetworkPolicy(CompactString, Option<Arc<ClusterNetworkPolicy>>),
    ServiceCidr(CompactString, Option<Arc<ServiceCidr>>),
    /// It exists, but cannot be parsed. Its last good version stays in force; where there is none, its kind is known
    /// in part only. Without a name it is any object of its kind: a listing that has one removes nothing.
    Unreadable(ObjectId),
}

/// A slice and the name of the Service it belongs to, which is in the slice's own namespace.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceOf {
    pub service: CompactString,
    pub slice: Arc<EndpointSlice>,
}

/// The identity of an object among all that are read. Cluster-wide objects have an empty namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    pub kind: Kind,
    pub name: ObjectName,
}

/// A part of the cluster that is needed; nothing else is requested.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    Services,
    EndpointSlices,
    /// The one Node of this name.
    Node(CompactString),
    /// All of them: each may be a neighbour.
    Nodes,
    /// Of the whole cluster: any of them may be somebody's peer.
    Pods,
    Namespaces,
    NetworkPolicies,
    ClusterNetworkPolicies,
    ServiceCidrs,
}

impl Wanted {
    pub fn kind(&self) -> Kind {
        match self {
            Wanted::Services => Kind::Service,
            Wanted::EndpointSlices => Kind::EndpointSlice,
            Wanted::Node(_) | Wanted::Nodes => Kind::Node,
            Wanted::Pods => Kind::Pod,
            Wanted::Namespaces => Kind::Namespace,
            Wanted::NetworkPolicies => Kind::NetworkPolicy,
            Wanted::ClusterNetworkPolicies => Kind::ClusterNetworkPolicy,
            Wanted::ServiceCidrs => Kind::ServiceCidr,
        }
    }

    /// Returns whether this object is among what is wanted.
    pub fn includes(&self, object: &Object) -> bool {
        let id = object.id();
        let is_named = match self {
            Wanted::Node(name) => *id.name.name == **name,
            _ => true,
        };
        id.kind == self.kind() && is_named
    }
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::Pod,
        Kind::Namespace,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
        Kind::ServiceCidr,
    ];

    /// The API's name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Kind::ServiceCidr => "ServiceCIDR",
        }
    }

    /// `apiVersion` of the version of this kind that is read; of its newest one where there are two.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node | Kind::Pod | Kind::Namespace => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::NetworkPolicy | Kind::ServiceCidr => "networking.k8s.io/v1",
            Kind::ClusterNetworkPolicy => "policy.networking.k8s.io/v1beta1",
        }
    }

    /// The API path of all objects of this kind.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Service => "/api/v1/services",
            Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Kind::Node => "/api/v1/nodes",
            Kind::Pod => "/api/v1/pods",
            Kind::Namespace => "/api/v1/namespaces",
            Kind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Kind::ClusterNetworkPolicy => "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies",
            Kind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// An earlier version of this kind with the same fields, for servers that do not have the newer one: its `apiVersion` and
    /// its API path.
    pub fn earlier(self) -> Option<(&'static str, &'static str)> {
        match self {
            Kind::ClusterNetworkPolicy => Some((
                "policy.networking.k8s.io/v1alpha2",
                "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
            )),
            _ => None,
        }
    }

    /// Returns whether objects of this kind are read in this `apiVersion`.
    pub fn is_read_as(self, api_version: &str) -> bool {
        self.api_version() == api_version || self.earlier().is_some_and(|(earlier, _)| earlier == api_version)
    }

    /// The kind with this API name; `None` for a kind that is not read.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns whether objects of this kind belong to no namespace.
    pub fn is_cluster_wide(self) -> bool {
        matches!(self, Kind::Node | Kind::Namespace | Kind::ClusterNetworkPolicy | Kind::ServiceCidr)
    }

    /// Returns whether the API server has this kind only where somebody has installed it, or from a version on: that it is not there
    /// is then no failure.
    pub fn may_be_absent(self) -> bool {
        matches!(self, Kind::ClusterNetworkPolicy | Kind::ServiceCidr)
    }
}

impl Object {
    pub fn id(&self) -> ObjectId {
        let of = |kind, name: &ObjectName| ObjectId { kind, name: name.clone() };
        match self {
            Object::Service(name, _) => of(Kind::Service, name),
            Object::EndpointSlice(name, _) => of(Kind::EndpointSlice, name),
            Object::Node(name, _) => ObjectId { kind: Kind::Node, name: ObjectName::new("", name) },
            Object::Pod(name, _) => of(Kind::Pod, name),
            Object::Namespace(name, _) => ObjectId { kind: Kind::Namespace, name: ObjectName::new("", name) },
            Object::NetworkPolicy(name, _) => of(Kind::NetworkPolicy, name),
            Object::ClusterNetworkPolicy(name, _) => {
                ObjectId { kind: Kind::ClusterNetworkPolicy, name: ObjectName::new("", name) }
            }
            Object::ServiceCidr(name, _) => ObjectId { kind: Kind::ServiceCidr, name: ObjectName::new("", name) },
            Object::Unreadable(id) => id.clone(),
        }
    }

    /// Returns the identity of the object, in the order of [`ObjectId`], without copying it.
    pub fn key(&self) -> (Kind, &str, &str) {
        let (kind, name) = match self {
            Object::Node(name, _) => return (Kind::Node, "", name),
            Object::Namespace(name, _) => return (Kind::Namespace, "", name),
            Object::ClusterNetworkPolicy(name, _) => return (Kind::ClusterNetworkPolicy, "", name),
            Object::ServiceCidr(name, _) => return (Kind::ServiceCidr, "", name),
            Object::Service(name, _) => (Kind::Service, name),
            Object::EndpointSlice(name, _) => (Kind::EndpointSlice, name),
            Object::Pod(name, _) => (Kind::Pod, name),
            Object::NetworkPolicy(name, _) => (Kind::NetworkPolicy, name),
            Object::Unreadable(id) => (id.kind, &id.name),
        };
        (kind, &name.namespace, &name.name)
    }

    /// Reports that this object is gone.
    pub fn gone(id: ObjectId) -> Object {
        match id.kind {
            Kind::Service => Object::Service(id.name, None),
            Kind::EndpointSlice => Object::EndpointSlice(id.name, None),
            Kind::Node => Object::Node(id.name.name.to_compact(), None),
            Kind::Pod => Object::Pod(id.name, None),
            Kind::Namespace => Object::Namespace(id.name.name.to_compact(), None),
            Kind::NetworkPolicy => Object::NetworkPolicy(id.name, None),
            Kind::ClusterNetworkPolicy => Object::ClusterNetworkPolicy(id.name.name.to_compact(), None),
            Kind::ServiceCidr => Object::ServiceCidr(id.name.name.to_compact(), None),
        }
    }

    /// Returns whether this reports that the object is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Object::Service(_, value) => value.is_none(),
            Object::EndpointSlice(_, value) => value.is_none(),
            Object::Node(_, value) => value.is_none(),
            Object::Pod(_, value) => value.is_none(),
            Object::Namespace(_, value) => value.is_none(),
            Object::NetworkPolicy(_, value) => value.is_none(),
            Object::ClusterNetworkPolicy(_, value) => value.is_none(),
            Object::ServiceCidr(_, value) => value.is_none(),
            Object::Unreadable(_) => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.is_cluster_wide() {
            true => write!(f, "{} {}", self.kind, self.name.name),
            false => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
