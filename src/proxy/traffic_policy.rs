//! `internalTrafficPolicy`, `externalTrafficPolicy` and the annotation `kube-router.io/service.local`:
//! whether traffic may leave the node that it arrived at.
//!
//! Internal traffic is what is sent to a cluster address; all else (node ports, external and load balancer
//! addresses) is external. The annotation makes the external policy Local. It leaves the internal policy
//! as the spec has it; kube-router turns that into Cluster, which no user asked for.
//!
//! Local with no local backend:
//! - a cluster address is still served, with no destination, so clients are refused at once. Were it left
//!   out, the packet would leave the node by its default route, for a place that cannot know it;
//! - at an external address clients on this node are served from all endpoints, and others are not ([`inside`](super::inside)). Nobody
//!   announces it from this node then.

use crate::model::{Service, TrafficPolicy};

/// Returns the policy for cluster IPs.
pub fn internal(service: &Service) -> TrafficPolicy {
    service.internal_traffic_policy
}

/// Returns the policy for node ports, external and load balancer addresses.
pub fn external(service: &Service) -> TrafficPolicy {
    service.external_policy()
}
