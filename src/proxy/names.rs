//! The names of everything that the service proxy keeps in the kernel.
//!
//! They are a contract with running nodes: kube-router uses the same ones, so either program finds, adopts and removes
//! the other's objects. Only [`CHAIN_SNAT`] is ours alone: kube-router writes its masquerade rules straight into
//! POSTROUTING, where their owner cannot be recognised.

use std::sync::LazyLock;

use crate::kernel::ipset::SetName;
use crate::net::{Family, PerFamily};

/// The dummy device of the local routes to service addresses.
pub const DEVICE: &str = "kube-dummy-if";

/// The filter chain that accepts known service ports and rejects all others.
pub const CHAIN_GUARD: &str = "KUBE-ROUTER-SERVICES";
/// The nat chain that masquerades connections to remote backends.
pub const CHAIN_SNAT: &str = "KUBE-ROUTER-SNAT";

/// The sets that the guard's rules match; they also mark virtual services as ours for a process without memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Set {
    /// The host's own addresses.
    LocalAddresses,
    /// Every service address.
    ServiceAddresses,
    /// Every service address with its protocol and port.
    ServicePorts,
}

impl Set {
    pub const ALL: [Set; 3] = [Set::LocalAddresses, Set::ServiceAddresses, Set::ServicePorts];

    /// Returns the set's name in one family. IPv6 names have a prefix.
    pub fn name(self, family: Family) -> SetName {
        let [local, addresses, ports] = NAMES.of(family);
        match self {
            Set::LocalAddresses => local.clone(),
            Set::ServiceAddresses => addresses.clone(),
            Set::ServicePorts => ports.clone(),
        }
    }

    fn text(self, family: Family) -> &'static str {
        match (self, family) {
            (Set::LocalAddresses, Family::V4) => "kube-router-local-ips",
            (Set::LocalAddresses, Family::V6) => "inet6:kube-router-local-ips",
            (Set::ServiceAddresses, Family::V4) => "kube-router-svip",
            (Set::ServiceAddresses, Family::V6) => "inet6:kube-router-svip",
            (Set::ServicePorts, Family::V4) => "kube-router-svip-prt",
            (Set::ServicePorts, Family::V6) => "inet6:kube-router-svip-prt",
        }
    }
}

/// Names of the sets, shared by all elements to save memory.
static NAMES: LazyLock<PerFamily<[SetName; 3]>> =
    LazyLock::new(|| PerFamily::from_fn(|family| Set::ALL.map(|set| SetName(set.text(family).into()))));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_running_nodes() {
        assert_eq!((DEVICE, CHAIN_GUARD), ("kube-dummy-if", "KUBE-ROUTER-SERVICES"));
        let names: Vec<String> =
            Family::BOTH.into_iter().flat_map(|family| Set::ALL.map(|set| set.name(family).to_string())).collect();
        assert_eq!(
            names,
            [
                "kube-router-local-ips",
                "kube-router-svip",
                "kube-router-svip-prt",
                "inet6:kube-router-local-ips",
                "inet6:kube-router-svip",
                "inet6:kube-router-svip-prt"
            ]
        );
    }
}
