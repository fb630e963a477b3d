//! The cluster and this host in our own words: plain data, parsed once at the door.
//!
//! Reading order: [`World`] is what subsystems see; [`Cluster`] and [`Host`] are its halves; one file
//! for each kind of object. [`Claims`] says who has what several claim. Nothing here knows the Kubernetes client, the kernel or a file format.

mod address_pool;
mod attachment;
mod balanced_service;
mod claims;
mod cluster_policy;
mod endpoint;
mod endpoint_list;
mod event_clock;
mod host;
mod interner;
mod name;
mod node;
mod node_annotations;
mod pod;
mod policies;
mod policy;
mod report;
mod reserved_addresses;
mod selector;
mod service;
mod service_cidr;
mod service_problem;
mod shared_value;
mod table;
mod unread_peers;

pub use address_pool::{AddressPool, AddressPools};
pub use attachment::{Attachment, AttachmentChange, AttachmentId, CNI_VERSIONS, DEFAULT_CNI_SOCKET, PodLink};
pub use balanced_service::{AddressRequest, BalancedService, ClientPolicy};
pub use claims::{Claim, Claims, Store};
pub use cluster_policy::{Action, ClusterNetworkPolicy, ClusterRule, Subject, Tier};
pub use endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Hints, Slices, Use};
pub use endpoint_list::{EndpointList, Listed};
pub use event_clock::EventClock;
pub use host::{DetectedAddresses, Host, HostAddress, HostLink, OnLink};
pub use interner::{Counted, Interner};
pub use name::{NamespaceName, ObjectName, OwnName, Words};
pub use node::{
    COUNTED_ADDRESSES, NODE_ADDRESS_ANNOTATION, Node, NodeAddress, NodeAddressKind, Prepend, Reflection, Routing,
    Taint, WIREGUARD_KEY_ANNOTATION, WIREGUARD_NEXT_KEY_ANNOTATION,
};
pub use pod::{NamedPort, Namespace, Pod, PodAddresses, PodUid};
pub use policies::Policies;
pub use policy::{Namespaces, NetworkPolicy, Peer, Peers, PolicyPort, PolicyRule, PortMatch, Ports};
pub use report::{News, OwnAnnotation, Report};
pub use reserved_addresses::ReservedAddresses;
pub use selector::{Labels, Operator, Requirement, Selector};
pub use service::{
    AnnounceAnnotations, ExternalField, LoadBalancerAddress, ProxyAnnotations, Scheduler, SchedulerFlags, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
pub use service_cidr::ServiceCidr;
pub use service_problem::{
    Cause, MOST_OF_A_SERVICE, PolicyProblems, ServiceProblem, ServiceProblems, digest, put_problems, shortened,
};
pub use shared_value::Shared;
pub use table::{Change, Table};
pub use unread_peers::{UnreadPeer, UnreadPeers};

/// Addresses of Ethernet are words of `net`; here they are a pod's.
pub use crate::net::LinkAddress;

use std::collections::BTreeSet;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

/// How far the known state of the cluster may be trusted, which decides what may be done to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Authority {
    /// Nothing is known yet: the kernel stays as it is.
    #[default]
    Nothing,
    /// The last known state from disk, used while the cluster cannot be reached. The kernel may be newer
    /// than the file, so nothing that exists changes or goes, and where the kernel holds anything of ours
    /// that could be told from the file, what it lacks is taken for deleted: the file is for a kernel that is empty.
    Remembered,
    /// Some objects could not be read (a manifest that does not parse, say): what is known is put in
    /// place, but nothing shrinks, because absence proves nothing.
    Partial,
    /// Every needed kind has been listed in full: the kernel is made equal to the desired state.
    Complete,
}

/// The input of subsystems: one immutable view of the cluster and of this host.
///
/// Cloning is cheap (shared structure) and two views compare in time proportional to their difference.
#[derive(Clone, Debug)]
pub struct World {
    /// Larger than that of every World that was published before. By it one subsystem says up to which World it has done what another one waits for.
    pub number: u64,
    pub cluster: Cluster,
    pub host: Arc<Host>,
    pub authority: Authorities,
    pub unread: UnreadPolicies,
    /// Parts of policies that are not understood, and how they are treated.
    pub policy_problems: PolicyProblems,
}

/// The ClusterNetworkPolicies that the cluster may have and that are not known: an earlier run may have put them in force, and
/// then they stay so. They say nothing against what is known of other objects.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum UnreadPolicies {
    #[default]
    None,
    /// These cannot be read, and no good version of them is known. Not empty.
    Named(Arc<BTreeSet<CompactString>>),
    /// Any: they could not be listed yet, or one cannot be read whose name is not known.
    Any,
}

/// The authority of each subsystem. Apart, so that Services need not wait for every pod to be listed, and no subsystem suffers
/// where only objects of another cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Authorities {
    /// Over Services, endpoints and nodes.
    pub proxy: Authority,
    /// Over pods, namespaces, policies and nodes.
    pub firewall: Authority,
    /// Over all nodes, where all of them are read.
    pub router: Authority,
}

/// The Kubernetes objects that the running subsystems need.
#[derive(Clone, Default, Debug)]
pub struct Cluster {
    pub services: Table<ObjectName, Service>,
    /// The endpoint slices of each Service, by the name of the Service.
    pub endpoints: Table<ObjectName, Endpoints>,
    /// Nodes by name: all of them where router or firewall run or a Service may have external addresses, else only our own.
    pub nodes: Table<CompactString, Node>,
    pub pods: Table<ObjectName, Pod>,
    pub namespaces: Table<CompactString, Namespace>,
    pub policies: Table<ObjectName, NetworkPolicy>,
    /// By name, as they belong to no namespace.
    pub cluster_policies: Table<CompactString, ClusterNetworkPolicy>,
    /// By name, as they belong to no namespace; none where the API server has none, or they may not be read.
    pub service_cidrs: Table<CompactString, ServiceCidr>,
}

impl Cluster {
    /// Returns the ranges of all ServiceCIDRs, in the order of their names.
    pub fn service_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.iter().flat_map(|(_, of)| of.ranges.iter().copied())
    }
}

impl World {
    /// The view before anything is known.
    pub fn empty() -> World {
        let (cluster, authority, unread, policy_problems) = Default::default();
        World { number: 0, cluster, host: Arc::new(Host::default()), authority, unread, policy_problems }
    }
}
