//! Why the check could not be switched off, as sentences that say what to do. None holds a secret.

use std::time::Duration;

/// Reason for which an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    #[error("{variable} is no URL of a service: {value:?}")]
    BadEndpoint { variable: &'static str, value: String },
    #[error(
        "AWS_EC2_METADATA_DISABLED is true, and the credentials of the instance's role come from the instance metadata service alone: take the variable away, {or_else}"
    , or_else = OR_ELSE)]
    MetadataDisabled,
    #[error(
        "the instance metadata service at {endpoint} does not answer: {reason}; to an agent that is not on the host network its answers come only with a hop limit of 2 (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2), and nothing may keep the agent from that address; an instance with IPv6 alone may need it over IPv6 (--http-protocol-ipv6 enabled)"
    )]
    NoMetadata { endpoint: String, reason: String },
    #[error(
        "the instance metadata service at {endpoint} refuses to answer (403): it is switched off for this instance (aws ec2 modify-instance-metadata-options --http-endpoint enabled)"
    )]
    MetadataRefused { endpoint: String },
    #[error("the instance metadata service answers {status} to the question for {what}")]
    OddMetadata { what: &'static str, status: u16 },
    #[error("the instance metadata service gives something else than {what}")]
    OddAnswer { what: &'static str },
    #[error(
        "the instance metadata service tells of {told}, and spec.providerID of this Node of {named}: nothing is changed"
    )]
    OtherInstance { told: String, named: String },
    #[error(
        "this instance has no role: give it an instance profile whose role may ec2:ModifyInstanceAttribute, {or_else}"
    , or_else = OR_ELSE)]
    NoRole,
    #[error("the credentials of the role {role} are not to be had: {code}")]
    NoCredentials { role: String, code: String },
    #[error("{endpoint} does not answer: {reason}")]
    NoAnswer { endpoint: String, reason: String },
    #[error("the role {role} may not ec2:ModifyInstanceAttribute of {instance} ({code}): allow it, {or_else}", or_else = OR_ELSE)]
    Unauthorized { role: String, instance: String, code: String },
    #[error(
        "EC2 refuses it for {instance}, because it has several network interfaces: switch the check off for the one of the node's address (aws ec2 modify-network-interface-attribute --no-source-dest-check), and set --disable-source-dest-check=false"
    )]
    SeveralInterfaces { instance: String },
    #[error("EC2 answers {status} {code}: {message}")]
    Refused { status: u16, code: String, message: String },
}

/// The other way, at the end of a sentence.
const OR_ELSE: &str = "or switch the source/destination check off yourself, or use --overlay-type=full, and set --disable-source-dest-check=false";

/// The first pause, and the longest; and the one where somebody has to do something first.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
const WITHOUT_RIGHT: Duration = Duration::from_secs(300);

impl Failure {
    /// Returns how long to wait before attempt number `attempt` (from 1) is repeated. `spread`, below 256, keeps nodes that began together apart.
    pub fn pause(&self, attempt: u32, spread: u8) -> Duration {
        let longest = FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(LONGEST);
        let longest = if self.wants_somebody() { WITHOUT_RIGHT } else { longest };
        // Between half of it and all.
        longest / 2 + longest.mul_f64(f64::from(spread) / 512.0)
    }

    /// Returns whether it stays as it is until somebody changes something in AWS or in the manifest.
    fn wants_somebody(&self) -> bool {
        match self {
            Failure::BadEndpoint { .. }
            | Failure::MetadataDisabled
            | Failure::OtherInstance { .. }
            | Failure::NoRole
            | Failure::Unauthorized { .. }
            | Failure::SeveralInterfaces { .. } => true,
            Failure::NoMetadata { .. }
            | Failure::MetadataRefused { .. }
            | Failure::OddMetadata { .. }
            | Failure::OddAnswer { .. }
            | Failure::NoCredentials { .. }
            | Failure::NoAnswer { .. }
            | Failure::Refused { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_differ_between_nodes_and_are_long_at_once_where_a_right_is_missing() {
        let throttled = Failure::Refused { status: 503, code: "RequestLimitExceeded".into(), message: String::new() };
        let seconds = |failure: &Failure, attempt, spread| failure.pause(attempt, spread).as_secs_f64();
        assert_eq!((seconds(&throttled, 1, 0), seconds(&throttled, 1, 128)), (1.0, 1.5));
        assert_eq!((seconds(&throttled, 2, 0), seconds(&throttled, 5, 0)), (2.0, 16.0));
        for attempt in [9, 40, u32::MAX] {
            assert_eq!(seconds(&throttled, attempt, 0), 150.0);
            assert!(throttled.pause(attempt, u8::MAX) < LONGEST);
        }
        assert_eq!(seconds(&Failure::NoRole, 1, 0), 150.0);
    }
}
