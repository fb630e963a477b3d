//! Direct server return: answers go from the pod to the client, and not through the node that the client's packets came to.
//!
//! Kubernetes: the annotation `kube-router.io/service.dsr: tunnel`. The external and load balancer addresses of the Service become virtual
//! services for a mark of packets ([`packet_marks`]), whose destinations get each packet as it is, inside another one (IP in IP): the pod
//! finds the service address as destination, and answers with it as source. So in the pod a tunnel has to end
//! which has that address ([`PodAddresses`]).
//!
//! In use where `ProxyConfig::tunnel_mode` says so: `plan/tunnels.rs` gives the marks, `apply/dsr.rs` has the order in which all of it comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::ObjectName;

pub mod local_pods;
pub mod packet_marks;
pub mod rules;
pub mod tunnels;

/// The tunnels that end in pods of this node: the service addresses for which packets come through a tunnel, by the address of the pod that
/// they come to. Both are of one family. Pods on the host's network are not among them.
pub type PodAddresses = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// Endpoints on this node in which no tunnel ends, although their Services ask for one and may have it, by Service: the pods cannot be set up. This node sends
/// them nothing through tunnels. Pods that policies close to tunnels are not among them: all nodes see these alike.
pub type Untunnelled = BTreeMap<ObjectName, BTreeSet<IpAddr>>;

/// The endpoints on this node in which tunnels are to end, as far as they are no ends yet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TunnelEnds {
    /// Those that could not be set up for long enough.
    pub lacking: Untunnelled,
    /// Those that are not set up, for however short a time; `None` while it is not known which are to be.
    pub unproven: Option<Untunnelled>,
}
