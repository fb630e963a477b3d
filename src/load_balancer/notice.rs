//! Events on Services about their addresses.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use compact_str::CompactString;

use super::decide::MOST_SHARED;
use crate::model::ObjectName;
use crate::net::Family;

/// Something to tell about a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    pub service: ObjectName,
    /// `metadata.uid` of the Service.
    pub uid: CompactString,
    /// When it came to be so.
    pub at: Instant,
    pub matter: Matter,
}

/// A notice as it happened.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Matter {
    /// The address is in the Service's status.
    Given { address: IpAddr, pool: CompactString },
    /// The Service waits for something.
    Wanting(Problem),
    /// The address, which the Service has in its status, leaves it.
    TakenAway(IpAddr, Loss),
    /// An annotation looks like one that asks for addresses and is none.
    Misspelt(String),
}

/// Why a Service lacks an address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Problem {
    /// The pools that are for the Service have no free address of the family.
    Exhausted(Family),
    /// No pool that is for the Service has addresses of the family.
    NoPool(Family),
    /// The address that it asks for is another Service's, or in another's `externalIPs`.
    Taken(IpAddr),
    /// The address that it asks for has as many Services as may share one.
    Crowded(IpAddr),
    /// The address that it asks for is in no pool that is for the Service.
    Outside(IpAddr),
    /// The address that it asks for is the network or broadcast address of its range.
    Edge(IpAddr),
    /// The address that it asks for is a Node's.
    OfNode(IpAddr),
    /// The address that it has is a Node's since. It stays, because a Node that registers must not move a Service.
    HasOfNode(IpAddr),
    /// The address that Services with its sharing key have is a Node's. It gets another one, or none.
    SharedOfNode(IpAddr),
    /// There is no pool of the name that it asks for.
    UnknownPool(CompactString),
    /// The address that it asks for is of a family that it has not.
    OtherFamily(IpAddr),
    /// Its request cannot be understood.
    Mistake(String),
}

/// Why an address leaves a Service that goes on to get addresses here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Loss {
    /// Its family is not among the Service's any more.
    OtherFamily,
    /// The Service asks for another address.
    OtherRequest,
    /// It is in no pool that is for the Service.
    OfNoPool,
    /// Another Service has it, which comes first and does not share it.
    OtherOwner,
    /// The Service requires both families, and there is no address of the other one.
    Incomplete,
    /// The Service has another address of the family.
    Surplus,
}

/// The subject of a matter: of two that have the same one, of one Service, the later counts.
pub type Subject = (&'static str, Option<Family>);

impl Matter {
    /// Its reason, and the family where there may be one for each.
    pub fn subject(&self) -> Subject {
        let family = match self {
            Matter::Given { address, .. } | Matter::TakenAway(address, _) => Some(Family::from(*address)),
            Matter::Wanting(problem) => problem.family(),
            Matter::Misspelt(_) => None,
        };
        (self.reason(), family)
    }

    /// The line of the log.
    pub fn headline(&self) -> &'static str {
        match self {
            Matter::Given { .. } => "Load balancer address given",
            Matter::TakenAway(..) => "Load balancer address is taken away",
            Matter::Misspelt(_) => "Annotation of a Service has no effect on its load balancer address",
            Matter::Wanting(problem) if problem.is_lack() => "Service lacks a load balancer address",
            Matter::Wanting(_) => "Load balancer address is not served by all nodes",
        }
    }

    /// The Event's `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Matter::Given { .. } => "LoadBalancerAddressGiven",
            Matter::TakenAway(..) => "LoadBalancerAddressTakenAway",
            Matter::Misspelt(_) => "UnknownAnnotation",
            Matter::Wanting(problem) => match problem {
                Problem::Exhausted(_) => "AddressPoolExhausted",
                Problem::NoPool(_) => "NoAddressPool",
                Problem::Taken(_) | Problem::Crowded(_) | Problem::OfNode(_) => "RequestedAddressTaken",
                Problem::HasOfNode(_) | Problem::SharedOfNode(_) => "AddressOfNode",
                Problem::Outside(_) | Problem::Edge(_) | Problem::UnknownPool(_) => "RequestedAddressNotInPool",
                Problem::OtherFamily(_) | Problem::Mistake(_) => "InvalidAddressRequest",
            },
        }
    }

    /// Returns whether the Event is of type Warning.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Matter::Given { .. })
    }
}

impl Problem {
    /// The family that it is about, where there may be one for each.
    fn family(&self) -> Option<Family> {
        match self {
            Problem::Exhausted(family) | Problem::NoPool(family) => Some(*family),
            Problem::Taken(address)
            | Problem::Crowded(address)
            | Problem::Outside(address)
            | Problem::Edge(address)
            | Problem::OfNode(address)
            | Problem::HasOfNode(address)
            | Problem::SharedOfNode(address)
            | Problem::OtherFamily(address) => Some(Family::from(*address)),
            Problem::UnknownPool(_) | Problem::Mistake(_) => None,
        }
    }

    /// Returns whether the Service lacks something that it is to have.
    pub fn is_lack(&self) -> bool {
        !matches!(self, Problem::HasOfNode(_) | Problem::SharedOfNode(_))
    }
}

impl fmt::Display for Matter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Matter::Given { address, pool } if pool.is_empty() => write!(f, "{address} is the Service's"),
            Matter::Given { address, pool } => write!(f, "{address} of pool {pool} is the Service's"),
            Matter::Wanting(problem) => write!(f, "{problem}"),
            Matter::TakenAway(address, loss) => write!(f, "{address} is taken away, because {loss}"),
            Matter::Misspelt(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::OtherFamily => "ipFamilies of the Service has not its family",
            Loss::OtherRequest => "the Service asks for another one",
            Loss::OfNoPool => "it is in no pool for this Service",
            Loss::OtherOwner => "another Service has it, which comes first and does not share it",
            Loss::Incomplete => "the Service requires both families, and there is no address of the other one",
            Loss::Surplus => "the Service has another one of its family",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Exhausted(family) => write!(f, "no pool for this Service has a free {family} address"),
            Problem::NoPool(family) => write!(f, "no pool for this Service has {family} addresses"),
            Problem::Taken(address) => write!(f, "{address} is asked for and in use by another Service"),
            Problem::Crowded(address) => {
                write!(f, "{address} is asked for and shared by {MOST_SHARED} Services already, which is the most")
            }
            Problem::Outside(address) => write!(f, "{address} is asked for and in no pool for this Service"),
            Problem::Edge(address) => {
                write!(f, "{address} is asked for and is the network or broadcast address of its range")
            }
            Problem::OfNode(address) => {
                write!(f, "{address} is asked for and is an address of a Node, which no other node would serve")
            }
            Problem::HasOfNode(address) => {
                write!(f, "{address} is the Service's and has become an address of a Node; no other node serves it")
            }
            Problem::SharedOfNode(address) => write!(
                f,
                "{address}, which Services with the same sharing key have, is an address of a Node and given to no other Service"
            ),
            Problem::UnknownPool(name) => write!(f, "pool {name} is asked for and does not exist"),
            Problem::OtherFamily(address) => {
                write!(f, "{address} is asked for and ipFamilies of the Service has not {}", Family::from(*address))
            }
            Problem::Mistake(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::parse::address_requests::{ADDRESS_ANNOTATIONS, POOL_ANNOTATIONS, SHARING_ANNOTATIONS};

    #[test]
    fn the_guide_names_every_reason_and_every_annotation_that_is_read() {
        let guide = include_str!("../../docs/user-guide.md");
        let address: IpAddr = "203.0.113.1".parse().expect("an address");
        let problems = [
            Problem::Exhausted(Family::V4),
            Problem::NoPool(Family::V6),
            Problem::Taken(address),
            Problem::Crowded(address),
            Problem::Outside(address),
            Problem::Edge(address),
            Problem::OfNode(address),
            Problem::HasOfNode(address),
            Problem::SharedOfNode(address),
            Problem::UnknownPool("gold".into()),
            Problem::OtherFamily(address),
            Problem::Mistake("text".to_owned()),
        ];
        let given = Matter::Given { address, pool: "gold".into() };
        let others = [given, Matter::TakenAway(address, Loss::OtherOwner), Matter::Misspelt("text".to_owned())];
        let matters: Vec<Matter> = problems.into_iter().map(Matter::Wanting).chain(others).collect();
        let reasons = matters.iter().map(Matter::reason);
        let annotations = [&ADDRESS_ANNOTATIONS[..], &POOL_ANNOTATIONS, &SHARING_ANNOTATIONS].concat();
        for word in reasons.chain(annotations) {
            assert!(guide.contains(&format!("`{word}`")), "{word}");
        }
        let warnings = matters.iter().filter(|matter| matter.is_warning()).count();
        assert_eq!(warnings, matters.len() - 1, "an address that is given is the good news");
    }
}
