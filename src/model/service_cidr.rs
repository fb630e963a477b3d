//! A range that cluster IPs come from, as the cluster itself says it.

use ipnet::IpNet;

/// The ranges of one ServiceCIDR (networking.k8s.io/v1): one of a family, or one of each. Kept as long as the object exists:
/// one that is being deleted still has Services with addresses in it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServiceCidr {
    pub ranges: Box<[IpNet]>,
}
