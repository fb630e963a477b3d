//! Why a Service does not do what its object asks for, as users of the cluster are told by Events.
//!
//! A problem is a state, not an occurrence: it is there for as long as its cause is. Each part of the program that finds problems publishes
//! all that it finds, by Service ([`ServiceProblems`]). Policies that hold what is not understood have problems of the same form ([`PolicyProblems`]).

use std::fmt;

use compact_str::{CompactString, format_compact};

use super::{ObjectName, Table};

/// The problems of Services that one part of the program has found; a Service without one is not in it.
pub type ServiceProblems = Table<ObjectName, Vec<ServiceProblem>>;

/// The problems of NetworkPolicies, by name, and of ClusterNetworkPolicies, by their names without a namespace.
pub type PolicyProblems = Table<ObjectName, Vec<ServiceProblem>>;

/// Most problems that are named of one Service.
pub const MOST_OF_A_SERVICE: usize = 8;
/// Most Services with problems that one part of the program names.
pub const MOST_SERVICES_WITH_PROBLEMS: usize = 2000;

/// One problem of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceProblem {
    pub cause: Cause,
    /// The subject: an address with its port, a field. Together with the cause it tells the problem from others of the Service, and it
    /// is the same on all nodes and in every run.
    pub subject: CompactString,
    /// The fault and its consequence, without secrets.
    pub text: String,
    /// When the Service was created, in seconds since 1970, where that is known: one of the same name that came later has problems of its own.
    pub created: i64,
}

impl ServiceProblem {
    /// Makes a problem. Who writes an object decides how long its fields are, so of long words only the beginning is kept.
    pub fn new(cause: Cause, subject: &str, mut text: String) -> ServiceProblem {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.shrink_to_fit();
        let subject = shortened(subject, LONGEST_SUBJECT);
        ServiceProblem { cause, subject, text, created: 0 }
    }

    /// The same problem of a Service that was created then.
    pub fn of(self, created: i64) -> ServiceProblem {
        ServiceProblem { created, ..self }
    }
}

/// Most bytes of a text and of a subject.
const LONGEST_TEXT: usize = 512;
const LONGEST_SUBJECT: usize = 128;

/// The beginning of a text, of at most so many bytes, and a digest of all of it where that is longer: texts that differ stay different. Whoever may
/// write one object may write 256 KiB into an annotation.
pub fn shortened(text: &str, longest: usize) -> CompactString {
    match text.get(..text.floor_char_boundary(longest)) {
        Some(begin) if begin.len() < text.len() => format_compact!("{begin} {:016x}", digest(&[text])),
        _ => text.into(),
    }
}

/// A number for these words that is the same on all nodes, in all runs and versions: FNV-1a, whose neighbours are then taken apart, because
/// names of nodes differ in their last letter alone.
pub fn digest(words: &[&str]) -> u64 {
    // The separator is in no text of the API.
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0xff]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Reason why a Service is not served as its object asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// An older Service, or one whose claim comes first, has the address and port.
    Conflict,
    /// As before, at an address of this node alone.
    NodeConflict,
    /// An external or load balancer address is not allowed.
    Refused,
    /// A field or an annotation is not understood.
    Field,
    /// The source ranges are more than the kernel is given.
    SourceRanges,
    /// A traffic policy is Local, and no endpoint says which node it is on.
    NoLocalEndpoint,
    /// No endpoint has a port of the name and protocol of a port of the Service.
    NoEndpointPort,
    /// Some endpoints of a slice cannot be used.
    Endpoints,
    /// A program of the node uses the health check node port.
    HealthCheckPort,
    /// A pod of the node cannot be set up to answer for the addresses (direct server return).
    PodTunnel,
    /// Something of a Service with direct server return is served with NAT, or not at all.
    NoTunnel,
    /// As before, at an address of this node alone.
    NoTunnelHere,
    /// The kernel of the node refuses the scheduler or an endpoint.
    Kernel,
    /// A part of a policy is not understood, or not supported.
    Policy,
    /// A policy has more than this node's packet filter is given; those of other nodes may take it.
    PolicyHere,
}

impl Cause {
    /// The `reason` of an Event.
    pub fn reason(self) -> &'static str {
        match self {
            Cause::Conflict | Cause::NodeConflict => "ServiceAddressConflict",
            Cause::Refused => "ExternalAddressRefused",
            Cause::Field => "InvalidServiceField",
            Cause::SourceRanges => "TooManySourceRanges",
            Cause::NoLocalEndpoint => "NoLocalEndpoint",
            Cause::NoEndpointPort => "NoEndpointForPort",
            Cause::Endpoints => "EndpointsLeftOut",
            Cause::HealthCheckPort => "HealthCheckPortInUse",
            Cause::PodTunnel => "PodTunnelMissing",
            Cause::NoTunnel | Cause::NoTunnelHere => "TunnelNotUsed",
            Cause::Kernel => "RefusedByKernel",
            Cause::Policy | Cause::PolicyHere => "InvalidPolicyField",
        }
    }

    /// Returns whether each node has to find it out for itself. Everything else follows from the cluster, and all nodes find the same.
    pub fn is_of_one_node(self) -> bool {
        match self {
            Cause::NodeConflict | Cause::HealthCheckPort | Cause::PodTunnel | Cause::NoTunnelHere => true,
            Cause::Kernel | Cause::PolicyHere => true,
            Cause::Conflict | Cause::Refused | Cause::Field | Cause::SourceRanges | Cause::NoLocalEndpoint => false,
            Cause::NoEndpointPort | Cause::Endpoints | Cause::NoTunnel | Cause::Policy => false,
        }
    }
}

impl fmt::Display for ServiceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Sets the problems of a Service. Returns whether they are others than before. Of very many Services only the first are named.
pub fn put_problems(all: &mut ServiceProblems, service: &ObjectName, mut problems: Vec<ServiceProblem>) -> bool {
    problems.truncate(MOST_OF_A_SERVICE);
    if problems.is_empty() {
        // Most Services have none, and had none.
        return !all.is_empty() && all.remove(service).is_some();
    }
    let has_room = all.len() < MOST_SERVICES_WITH_PROBLEMS || all.get(service).is_some();
    has_room && all.insert(service.clone(), problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> ServiceProblem {
        ServiceProblem::new(Cause::Field, text, text.to_owned())
    }

    #[test]
    fn of_long_words_the_beginning_is_kept_and_subjects_stay_different() {
        let long = |end: &str| problem(&format!("{}{end}", "ä".repeat(100_000)));
        let (one, other) = (long("1"), long("2"));
        assert!(one.text.len() <= 512 && one.subject.len() <= 128 + 17);
        assert_ne!(one.subject, other.subject);
        assert_eq!(problem("short").subject, "short");
    }

    #[test]
    fn of_very_many_problems_and_services_only_the_first_are_kept() {
        let mut all = ServiceProblems::default();
        let name = |number: usize| ObjectName::new("default", &number.to_string());
        let many: Vec<ServiceProblem> = (0..100).map(|number| problem(&number.to_string())).collect();
        for number in 0..MOST_SERVICES_WITH_PROBLEMS + 10 {
            assert_eq!(put_problems(&mut all, &name(number), many.clone()), number < MOST_SERVICES_WITH_PROBLEMS);
        }
        assert_eq!(all.len(), MOST_SERVICES_WITH_PROBLEMS);
        assert_eq!(all.get(&name(0)).map(|problems| problems.len()), Some(MOST_OF_A_SERVICE));
        assert!(put_problems(&mut all, &name(0), vec![problem("another")]), "those that are named are kept up to date");
        assert!(put_problems(&mut all, &name(0), Vec::new()), "and leave their place to others");
        assert!(!put_problems(&mut all, &name(0), Vec::new()));
        assert!(put_problems(&mut all, &name(MOST_SERVICES_WITH_PROBLEMS), vec![problem("x")]));
    }
}
