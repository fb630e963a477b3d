//! The external and load balancer addresses that a Service is served at.
//!
//! Kubernetes: `Service.spec.externalIPs`, `status.loadBalancer.ingress[].ip`. The administrator decides which ranges
//! are allowed (`config::ServiceRanges`). An address of another node is never served here: it would become local, and
//! cut this node off from that one (`other_nodes`). The node that has it serves it, so nobody is told of a refusal. Nothing is served at such addresses
//! before all Nodes are known, which a last known state may lack. Addresses of load balancers with
//! `ipMode: Proxy` are left out: traffic for them must pass the balancer.
//!
//! Anybody who may write a Service may write any address, so a refusal is logged: once for each Service and address, and in
//! one line with their number where many come at once.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;

use compact_str::CompactString;

use super::part::PartInputs;
use crate::config::Disallowed;
use crate::model::{ExternalField, ObjectName, Service};
use crate::net::Family;

/// An address that a Service asks for and is not served at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refused {
    pub address: IpAddr,
    pub reason: Reason,
}

/// Reason for refusing an address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Disallowed by the ranges of this flag.
    Range { flag: &'static str, disallowed: Disallowed },
    /// It is an address of this other Node, which serves it.
    NodeAddress(CompactString),
    /// It may be an address of another Node, because not all are known.
    NodesUnknown,
}

/// The refused addresses of one Service, as hashes: enough to see which are new.
#[derive(Default, Debug)]
pub struct Refusals(Box<[u64]>);

/// Addresses that are newly refused in one update of the cluster.
#[derive(Default, Debug)]
pub struct NewlyRefused {
    /// The first [`NAMED`] of them.
    pub named: Vec<(ObjectName, Refused)>,
    /// Number of the others.
    pub others: usize,
}

/// Maximum number of reasons of one kind that are logged one by one after one update.
pub const NAMED: usize = 10;

/// Returns the external and load balancer addresses that are served.
pub fn served<'a>(service: &'a Service, inputs: PartInputs<'a>) -> impl Iterator<Item = IpAddr> + 'a {
    served_with_fields(service, inputs).map(|(address, _)| address)
}

/// As before, with the fields that name them: an address that both name comes twice, if both may.
pub fn served_with_fields<'a>(
    service: &'a Service,
    inputs: PartInputs<'a>,
) -> impl Iterator<Item = (IpAddr, ExternalField)> + 'a {
    judged(service, inputs).filter(|(.., reason)| reason.is_none()).map(|(address, field, _)| (address, field))
}

/// Returns the external and load balancer addresses that are allowed, also those that another node alone serves, because they are its own.
pub fn allowed<'a>(service: &'a Service, inputs: PartInputs<'a>) -> impl Iterator<Item = IpAddr> + 'a {
    let is_allowed = |reason: &Option<Reason>| matches!(reason, None | Some(Reason::NodeAddress(_)));
    judged(service, inputs).filter(move |(.., reason)| is_allowed(reason)).map(|(address, ..)| address)
}

/// Returns the external and load balancer addresses that are refused. Those of other nodes are not among them: these serve them, as load balancers want it
/// whose addresses are the nodes' own.
pub fn refused(service: &Service, inputs: PartInputs<'_>) -> Vec<Refused> {
    let not_here = |(address, _, reason): (IpAddr, ExternalField, Option<Reason>)| match reason? {
        Reason::NodeAddress(_) => None,
        reason => Some(Refused { address, reason }),
    };
    judged(service, inputs).filter_map(not_here).collect()
}

/// Returns every address that the Service asks for, in enabled families, with its field and the reason if it is refused.
fn judged<'a>(
    service: &'a Service,
    inputs: PartInputs<'a>,
) -> impl Iterator<Item = (IpAddr, ExternalField, Option<Reason>)> + 'a {
    let is_on = move |address: IpAddr| *inputs.node.families.of(Family::from(address));
    let asked = service.external_addresses().filter(move |(address, _)| is_on(*address));
    asked.map(move |(address, field)| (address, field, refusal(address, field, inputs)))
}

/// Returns why an address that a field names is refused; `None` if it is served.
pub fn refusal(address: IpAddr, field: ExternalField, inputs: PartInputs<'_>) -> Option<Reason> {
    let ranges = &inputs.config.ranges;
    let (flag, disallowed) = match field {
        ExternalField::ExternalIps => ("--service-external-ip-range", ranges.disallow_external_ip(address)),
        ExternalField::LoadBalancer => ("--loadbalancer-ip-range", ranges.disallow_load_balancer_ip(address)),
    };
    let reason = disallowed.map(|disallowed| Reason::Range { flag, disallowed });
    let of_another = || match inputs.others.holder(address) {
        _ if inputs.node.is_own(address) => None,
        Some(node) => Some(Reason::NodeAddress(node.clone())),
        None => (!inputs.others.are_known()).then_some(Reason::NodesUnknown),
    };
    reason.or_else(of_another)
}

impl Refusals {
    pub fn new(refused: &[Refused]) -> Refusals {
        Refusals(refused.iter().map(hash).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, refused: &Refused) -> bool {
        !self.is_empty() && self.0.contains(&hash(refused))
    }
}

impl NewlyRefused {
    /// Adds those refused addresses of a Service that were not refused before.
    pub fn add(&mut self, service: &ObjectName, refused: Vec<Refused>, before: Option<&Refusals>) {
        for refused in refused {
            if before.is_some_and(|before| before.contains(&refused)) {
                continue;
            }
            if self.named.len() < NAMED {
                self.named.push((service.clone(), refused));
            } else {
                self.others += 1;
            }
        }
    }
}

/// Returns the same number for the same address and reason in this process.
fn hash(refused: &Refused) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(refused)
}

impl fmt::Display for Reason {
    /// Writes a sentence that names the flag or the Node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Range { flag, disallowed: Disallowed::NoRange } => write!(f, "{flag} is not set"),
            Reason::Range { flag, disallowed: Disallowed::OutsideRange } => write!(f, "it is outside {flag}"),
            Reason::Range { disallowed: Disallowed::ClusterIpRange, .. } => {
                f.write_str("it is inside a range of cluster IPs")
            }
            Reason::NodeAddress(node) => write!(f, "it is an address of Node {node}, which serves it"),
            Reason::NodesUnknown => f.write_str("it may be an address of another Node; not all are known yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(last: u8) -> Refused {
        Refused {
            address: [203, 0, 113, last].into(),
            reason: Reason::Range { flag: "--service-external-ip-range", disallowed: Disallowed::NoRange },
        }
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    #[test]
    fn a_refusal_is_said_once_for_each_service_and_address() {
        let news = |service: &str, before: &[Refused], after: Vec<Refused>| {
            let mut newly = NewlyRefused::default();
            newly.add(&name(service), after, Some(&Refusals::new(before)));
            newly.named.into_iter().map(|(_, refused)| refused).collect::<Vec<_>>()
        };
        assert_eq!(news("web", &[], vec![refused(1)]), [refused(1)]);
        assert_eq!(news("web", &[refused(1)], vec![refused(1), refused(2)]), [refused(2)]);
        assert_eq!(news("web", &[refused(1), refused(2)], vec![refused(1), refused(2)]), []);
        assert_eq!(news("web", &[refused(1)], Vec::new()), []);
        let unknown = Refused { reason: Reason::NodesUnknown, ..refused(1) };
        assert_eq!(news("web", &[refused(1)], vec![unknown.clone()]), [unknown], "for another reason");
    }

    #[test]
    fn many_refusals_are_counted_and_only_the_first_are_named() {
        let mut newly = NewlyRefused::default();
        for service in 0..100 {
            newly.add(&name(&service.to_string()), vec![refused(1), refused(2)], None);
        }
        assert_eq!((newly.named.len(), newly.others), (NAMED, 200 - NAMED));
    }
}
