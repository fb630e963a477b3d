//! A Service as the allocator of load balancer addresses sees it.
//!
//! Services that the service proxy leaves to others are among them: an address in the status of any Service is in use.

use std::cmp::Ordering;
use std::net::IpAddr;

use compact_str::CompactString;

use super::selector::Labels;
use crate::net::{Family, PerFamily, Protocol};

/// A Service of type LoadBalancer as the allocator sees it: its requests and its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BalancedService {
    /// `metadata.uid`.
    pub uid: CompactString,
    /// `metadata.resourceVersion`.
    pub version: CompactString,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: i64,
    pub labels: Labels,
    /// `spec.type` is LoadBalancer.
    pub is_balancer: bool,
    /// `spec.loadBalancerClass`; `None` where absent or empty.
    pub class: Option<CompactString>,
    /// `spec.ipFamilies`, the first one first; at least one.
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy` is RequireDualStack: an address of each family or none.
    pub needs_all_families: bool,
    pub request: AddressRequest,
    /// Annotations that look like requests and are none, each as a sentence.
    pub misspelt: Vec<String>,
    /// The key with which the Service agrees to share its address with others of its namespace.
    pub sharing_key: Option<CompactString>,
    /// Protocol and port of each port, sorted.
    pub ports: Vec<(Protocol, u16)>,
    pub clients: ClientPolicy,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of `status.loadBalancer.ingress`, in its order.
    pub status: Vec<IpAddr>,
    /// Those of them whose `ipMode` is another one than VIP, so that nodes do not serve them.
    pub not_served: Vec<IpAddr>,
    /// An agent with `--run-loadbalancer` wrote that list, which had no entry of others, and nobody has changed it since (`metadata.managedFields`).
    pub is_given_here: bool,
}

/// Addresses that a Service asks for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AddressRequest {
    pub addresses: PerFamily<Option<IpAddr>>,
    /// The pool that the addresses are to come from.
    pub pool: Option<CompactString>,
    /// Why the request cannot be understood, as a sentence that names the field.
    pub mistake: Option<String>,
}

/// `spec.externalTrafficPolicy`, as far as it decides who may share an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientPolicy {
    Cluster,
    /// Local: with the selector of the pods, `key=value` sorted.
    Local(CompactString),
}

/// Returns whether two sorted lists of ports, of up to 1,000 each by the API, have one in common.
fn have_one_in_common(mut some: &[(Protocol, u16)], mut others: &[(Protocol, u16)]) -> bool {
    while let ([first, rest @ ..], [other, more @ ..]) = (some, others) {
        match first.cmp(other) {
            Ordering::Less => some = rest,
            Ordering::Greater => others = more,
            Ordering::Equal => return true,
        }
    }
    false
}

impl BalancedService {
    /// Returns whether both agree to have one address together: with the same key, on different ports, and, where their
    /// traffic is to stay on the node that it reaches, with the same pods. Whose namespaces differ never do.
    pub fn can_share_with(&self, other: &BalancedService) -> bool {
        // Pods without a selector are nobody's to compare: whoever writes the EndpointSlices chooses them.
        let are_known = self.clients != ClientPolicy::Local(CompactString::default());
        let agree = are_known
            && self.sharing_key.is_some()
            && self.sharing_key == other.sharing_key
            && self.clients == other.clients;
        agree && !have_one_in_common(&self.ports, &other.ports)
    }
}
