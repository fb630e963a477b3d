//! The external and load balancer addresses that a Service is served at.
//!
//! Kubernetes: `Service.spec.externalIPs`, `status.loadBalancer.ingress[].ip`. The administrator decides which ranges
//! are allowed (`config::ServiceRanges`). An address of another node is never served: it would become local here, and
//! cut this node off from that one (`other_nodes`). The node that has it serves it. So nothing is served at such addresses
//! before all Nodes are known, which a last known state may lack. Addresses of load balancers with
//! `ipMode: Proxy` are left out: traffic for them must pass the balancer.
//!
//! Anybody who may write a Service may write any address, so a refusal is logged: once for each Service and address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use super::part::PartInputs;
use crate::config::Disallowed;
use crate::model::{ObjectName, Service};
use crate::net::Family;

/// An address that a Service asks for and is not served at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub address: IpAddr,
    pub reason: Reason,
}

/// Reason for refusing an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Disallowed by the ranges of this flag.
    Range { flag: &'static str, disallowed: Disallowed },
    /// It is an address of this Node.
    NodeAddress(CompactString),
    /// It may be an address of another Node, because not all are known.
    NodesUnknown,
}

/// Refused addresses by Service, so that each is logged once.
#[derive(Default, Debug)]
pub struct Refusals {
    by_service: BTreeMap<ObjectName, Vec<Refused>>,
}

/// Returns the external and load balancer addresses that are served.
pub fn served<'a>(service: &'a Service, inputs: PartInputs<'a>) -> impl Iterator<Item = IpAddr> + 'a {
    judged(service, inputs).filter(|(_, reason)| reason.is_none()).map(|(address, _)| address)
}

/// Returns the external and load balancer addresses that are refused.
pub fn refused(service: &Service, inputs: PartInputs<'_>) -> Vec<Refused> {
    judged(service, inputs).filter_map(|(address, reason)| Some(Refused { address, reason: reason? })).collect()
}

/// Returns every address that the Service asks for, in enabled families, with the reason if it is refused.
fn judged<'a>(service: &'a Service, inputs: PartInputs<'a>) -> impl Iterator<Item = (IpAddr, Option<Reason>)> + 'a {
    let ranges = &inputs.config.ranges;
    let external = service.external_ips.iter().map(|address| {
        let flag = "--service-external-ip-range";
        (*address, ranges.disallow_external_ip(*address).map(|disallowed| Reason::Range { flag, disallowed }))
    });
    let wanted = !service.annotations.skip_load_balancer_ips;
    let direct = service.load_balancer.iter().filter(move |entry| wanted && !entry.through_balancer);
    let balanced = direct.map(|entry| {
        let flag = "--loadbalancer-ip-range";
        let disallowed = ranges.disallow_load_balancer_ip(entry.address);
        (entry.address, disallowed.map(|disallowed| Reason::Range { flag, disallowed }))
    });
    let is_on = move |address: IpAddr| *inputs.node.families.of(Family::from(address));
    external.chain(balanced).filter(move |(address, _)| is_on(*address)).map(move |(address, reason)| {
        let of_another = || match inputs.others.holder(address) {
            _ if inputs.node.is_own(address) => None,
            Some(node) => Some(Reason::NodeAddress(node.clone())),
            None => (!inputs.others.are_known()).then_some(Reason::NodesUnknown),
        };
        (address, reason.or_else(of_another))
    })
}

impl Refusals {
    /// Replaces the refused addresses of a Service. Returns those that were not refused before.
    pub fn update(&mut self, service: &ObjectName, refused: Vec<Refused>) -> Vec<Refused> {
        let known = self.by_service.get(service).map(Vec::as_slice).unwrap_or_default();
        let new = refused.iter().filter(|refused| !known.contains(refused)).cloned().collect();
        match refused.is_empty() {
            true => drop(self.by_service.remove(service)),
            false => drop(self.by_service.insert(service.clone(), refused)),
        }
        new
    }

    /// Returns the number of refused addresses, each counted once for each Service.
    pub fn len(&self) -> usize {
        self.by_service.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_service.is_empty()
    }
}

impl fmt::Display for Reason {
    /// Writes a sentence that names the flag or the Node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Range { flag, disallowed: Disallowed::NoRange } => write!(f, "{flag} is not set"),
            Reason::Range { flag, disallowed: Disallowed::OutsideRange } => write!(f, "it is outside {flag}"),
            Reason::Range { disallowed: Disallowed::ClusterIpRange, .. } => {
                f.write_str("it is inside --service-cluster-ip-range")
            }
            Reason::NodeAddress(node) => write!(f, "it is an address of Node {node}"),
            Reason::NodesUnknown => f.write_str("it may be an address of another Node; not all are known yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_once_for_each_service_and_address() {
        let name = |name: &str| ObjectName::new("default", name);
        let refused = |last: u8| Refused {
            address: [203, 0, 113, last].into(),
            reason: Reason::Range { flag: "--service-external-ip-range", disallowed: Disallowed::NoRange },
        };
        let mut refusals = Refusals::default();
        assert_eq!(refusals.update(&name("web"), vec![refused(1)]), [refused(1)]);
        assert_eq!(refusals.update(&name("web"), vec![refused(1), refused(2)]), [refused(2)]);
        assert_eq!(refusals.update(&name("web"), vec![refused(1), refused(2)]), []);
        assert_eq!(refusals.update(&name("other"), vec![refused(1)]), [refused(1)]);
        assert_eq!(refusals.len(), 3);
        assert_eq!(refusals.update(&name("web"), Vec::new()), []);
        assert_eq!(refusals.update(&name("web"), vec![refused(1)]), [refused(1)], "it was allowed in between");
        assert_eq!(refusals.len(), 2);
    }
}
