//! The names of everything that the firewall keeps in the kernel.
//!
//! Fixed names and prefixes are a contract with running nodes: kube-router uses the same, so either program finds and
//! removes the other's objects. A prefix is followed by 16 letters (base32 of a SHA-256, 80 bits) of the object's
//! identity. They never change with the content of the policy, so an unchanged chain is recognised after a restart and
//! left alone (`firewall/identity.rs`).
//!
//! A set is named by its definition alone, as in `rules`; policies with the same definition share it. Named ports and the
//! addresses of Services are `KUBE-DST-`, because they are always those of the destination, everything else is `KUBE-SRC-`.

use std::sync::LazyLock;

use compact_str::{CompactString, format_compact};

use crate::kernel::ipset::SetName;
use crate::kernel::iptables::rule::Mark;
use crate::kernel::iptables::{Piece, Rule};
use crate::model::ObjectName;
use crate::net::{Family, PerFamily};

use super::super::host_endpoints::HostEndpoint;
use super::super::identity::{identity, joined, letters};
use super::super::rules::{ClusterPolicyKey, Direction, PolicyKey, SetKey};

/// The dispatch chains, entered first from `INPUT`, `FORWARD` and `OUTPUT`.
pub const CHAIN_INPUT: &str = "KUBE-ROUTER-INPUT";
pub const CHAIN_FORWARD: &str = "KUBE-ROUTER-FORWARD";
pub const CHAIN_OUTPUT: &str = "KUBE-ROUTER-OUTPUT";

/// Marks a packet as allowed.
pub const CHAIN_DEFAULT: &str = "KUBE-NWPLCY-DEFAULT";
/// Marks a packet as denied by a ClusterNetworkPolicy.
pub const CHAIN_DENY: &str = "KUBE-NWPLCY-DENY";
/// Marks a packet as passed on by a ClusterNetworkPolicy to the next tier.
pub const CHAIN_PASS: &str = "KUBE-NWPLCY-PASS";
/// Accepts packets that pass regardless of policies.
pub const CHAIN_COMMON: &str = "KUBE-NWPLCY-COMMON";
/// Filters link-local traffic between the ports of a pod bridge.
pub const CHAIN_LINK_LOCAL: &str = "KUBE-NWPLCY-LINK-LOCAL";
/// Filters multicast and broadcast to the ports of a pod bridge.
pub const CHAIN_MULTICAST: &str = "KUBE-NWPLCY-MULTICAST";
/// Rejects what pods send to Services with an endpoint on this node itself that their policies deny.
pub const CHAIN_HOST_ENDPOINTS: &str = "KUBE-NWPLCY-HOST-ENDPOINTS";
/// Handles packets that no pod's chain refused.
pub const CHAIN_TAIL: &str = "KUBE-NWPLCY-TAIL";

/// One chain for each isolated pod and direction, and one for each pod that is refused Services (`host_endpoints`).
pub const POD_CHAINS: &str = "KUBE-POD-FW-";
/// One chain for each policy and direction, and the fixed ones above.
pub const POLICY_CHAINS: &str = "KUBE-NWPLCY-";
/// One chain for each ClusterNetworkPolicy and direction. A hash has no 0, and one letter less here.
pub const CLUSTER_POLICY_CHAINS: &str = "KUBE-NWPLCY-0";

/// Prefixes of set names; IPv6 names have [`OF_IPV6`] before that.
pub const SETS: [&str; 2] = [ADDRESSES, PORTS];
pub const OF_IPV6: &str = "inet6:";
const ADDRESSES: &str = "KUBE-SRC-";
const PORTS: &str = "KUBE-DST-";

/// The addresses of this node's pods whose rules are in the kernel.
const LOCAL_PODS: &str = "kube-router-local-pods";

/// The bit of a packet's mark that is set if a policy allows the packet.
pub const MARK: Mark = Mark { value: 0x10000, mask: 0x10000 };

/// The same bit, not set.
pub const CLEARED: Mark = Mark { value: 0, ..MARK };

/// The bit that, alone, says that a ClusterNetworkPolicy has passed the packet on to the next tier.
pub const PASSED: Mark = Mark { value: 0x20000, mask: 0x20000 };
/// The same bit, not set.
pub const NOT_PASSED: Mark = Mark { value: 0, ..PASSED };
/// Both bits: a ClusterNetworkPolicy denies the packet.
pub const DENIED: Mark = Mark { value: 0x30000, mask: 0x30000 };
/// Neither bit: no ClusterNetworkPolicy of the tier has decided about the packet.
pub const UNDECIDED: Mark = Mark { value: 0, ..DENIED };

/// Purpose of a chain of ours. Derived from its name, because a process without memory sees nothing else of a chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChainKind {
    /// Entered from a built-in chain, it dispatches packets to the pod chains that judge them.
    Dispatch,
    /// The tail, the chain of unconditional accepts, and the chain that marks.
    Fixed,
    /// Filters what the ports of a pod bridge exchange without addresses that a policy could name.
    Bridge,
    /// Dispatches packets to Services that are refused because of an endpoint on this node.
    HostEndpoints,
    Pod,
    Policy,
    /// Of a ClusterNetworkPolicy, which may deny: the pods that enter it may not do without it.
    ClusterPolicy,
}

/// Returns the purpose of the chain of this name; `None` for a foreign chain.
pub fn kind(chain: &str) -> Option<ChainKind> {
    match chain {
        CHAIN_INPUT | CHAIN_FORWARD | CHAIN_OUTPUT => Some(ChainKind::Dispatch),
        CHAIN_DEFAULT | CHAIN_DENY | CHAIN_PASS | CHAIN_COMMON | CHAIN_TAIL => Some(ChainKind::Fixed),
        CHAIN_LINK_LOCAL | CHAIN_MULTICAST => Some(ChainKind::Bridge),
        CHAIN_HOST_ENDPOINTS => Some(ChainKind::HostEndpoints),
        _ if chain.starts_with(POD_CHAINS) => Some(ChainKind::Pod),
        _ if chain.starts_with(CLUSTER_POLICY_CHAINS) => Some(ChainKind::ClusterPolicy),
        _ if chain.starts_with(POLICY_CHAINS) => Some(ChainKind::Policy),
        _ => None,
    }
}

/// Same as [`kind`], for a key.
pub fn kind_of(piece: &Piece) -> Option<ChainKind> {
    match piece {
        Piece::Chain { chain, .. } => kind(chain),
        Piece::Jump { .. } | Piece::Leftover { .. } => None,
    }
}

/// The dispatch chains.
pub const DISPATCH: [&str; 3] = [CHAIN_INPUT, CHAIN_FORWARD, CHAIN_OUTPUT];

/// Returns the name of the chain of an isolated pod in one direction; the same in both families.
pub fn pod_chain(pod: &ObjectName, direction: Direction) -> CompactString {
    let identity = joined(&["pod", &pod.namespace, &pod.name, direction.name()]);
    format_compact!("{POD_CHAINS}{}", letters(identity.as_bytes()))
}

/// Returns the name of the chain that rejects what a pod sends to Services (`host_endpoints`); the same in both families.
pub fn refusal_chain(pod: &ObjectName) -> CompactString {
    let identity = joined(&["pod", &pod.namespace, &pod.name, "egress", "host endpoints"]);
    format_compact!("{POD_CHAINS}{}", letters(identity.as_bytes()))
}

/// Returns the name of the chain of one direction of a policy; the same in both families.
pub fn policy_chain(key: &PolicyKey) -> CompactString {
    let identity = joined(&["policy", &key.policy.namespace, &key.policy.name, key.direction.name()]);
    format_compact!("{POLICY_CHAINS}{}", letters(identity.as_bytes()))
}

/// Returns the name of the chain of one direction of a ClusterNetworkPolicy; the same in both families. Its priority is not
/// part of it: that decides where the chain is entered.
pub fn cluster_policy_chain(key: &ClusterPolicyKey) -> CompactString {
    let identity = joined(&["cluster policy", &key.policy, key.tier.name(), key.direction.name()]);
    let letters = letters(identity.as_bytes());
    format_compact!("{CLUSTER_POLICY_CHAINS}{}", letters.get(1..).unwrap_or_default())
}

/// Returns the name of a set in each family.
pub fn set(key: &SetKey) -> PerFamily<SetName> {
    let prefix = match key.plain() {
        SetKey::Pods(_) | SetKey::Blocks(_) | SetKey::Denied(_) => ADDRESSES,
        SetKey::NamedPort { .. } => PORTS,
    };
    let name = format_compact!("{prefix}{}", letters(identity(key).as_bytes()));
    PerFamily::from_fn(|family| of_family(&name, family))
}

/// Returns the name of the set of the addresses and ports of the Services of a host endpoint, in the endpoint's family.
pub fn entrances(endpoint: &HostEndpoint) -> SetName {
    let HostEndpoint { address, protocol, port } = endpoint;
    let words = ["host endpoint", &address.to_string(), &protocol.to_string(), &port.to_string()];
    let name = format_compact!("{PORTS}{}", letters(joined(&words).as_bytes()));
    of_family(&name, Family::from(*address))
}

/// Returns the set of this node's pods whose rules are in the kernel.
pub fn local_pods(family: Family) -> &'static SetName {
    static NAMES: LazyLock<PerFamily<SetName>> =
        LazyLock::new(|| PerFamily::from_fn(|family| of_family(LOCAL_PODS, family)));
    NAMES.of(family)
}

/// Returns the hash by which kube-router recognises a rule of its own, at the end of the rule's comment. It is computed
/// from the name of the chain and the rule's arguments, joined without a separator. `rule`: as kube-router gives it to iptables,
/// in that order of matches and without the hash.
pub fn rule_id(chain: &str, rule: &Rule) -> String {
    let mut text = chain.to_owned();
    rule.arguments().iter().for_each(|word| text.push_str(word));
    letters(text.as_bytes())
}

fn of_family(name: &str, family: Family) -> SetName {
    match family {
        Family::V4 => SetName(name.into()),
        Family::V6 => SetName(format!("{OF_IPV6}{name}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::rules::{PortOwners, Scope, Selection};
    use crate::kernel::iptables::{Match, Verdict};
    use crate::model::Selector;
    use crate::net::Protocol;

    #[test]
    fn ids_are_those_that_running_nodes_show() {
        let jump = |from, to: &str| {
            rule_id(from, &Rule::new([Match::Comment("kube-router netpol".into())], Verdict::Jump(to.into())))
        };
        assert_eq!(jump("INPUT", CHAIN_INPUT), "4IA2OSFRMVNDXBVV");
        assert_eq!(jump("FORWARD", CHAIN_FORWARD), "TEMCG2JMHZYE7H7T");
        assert_eq!(jump("OUTPUT", CHAIN_OUTPUT), "VEAAIY32XVBHCSCY");
    }

    #[test]
    fn names_that_look_alike_when_joined_are_told_apart() {
        let pod = |namespace, name| pod_chain(&ObjectName::new(namespace, name), Direction::Ingress);
        assert_ne!(pod("a", "bc"), pod("ab", "c"));
        let policy = |namespace, name, direction| {
            policy_chain(&PolicyKey { policy: ObjectName::new(namespace, name), direction })
        };
        assert_ne!(policy("a", "bc", Direction::Ingress), policy("ab", "c", Direction::Ingress));
        assert_ne!(policy("a", "b", Direction::Ingress), policy("a", "b", Direction::Egress));
    }

    #[test]
    fn names_of_sets_fit_into_the_kernel_and_tell_families_apart() {
        let everybody = Selection { namespaces: Scope::Named("shop".into()), pods: Selector::everything() };
        let port = SetKey::NamedPort { pods: PortOwners::Local, name: "http".into(), protocol: Protocol::Tcp };
        let names: Vec<SetName> = [SetKey::Pods(everybody), port]
            .iter()
            .flat_map(|key| Family::BOTH.map(|family| set(key).of(family).clone()))
            .collect();
        let heads: Vec<&str> = names.iter().map(|name| &name.0[..name.0.len() - 16]).collect();
        assert_eq!(heads, ["KUBE-SRC-", "inet6:KUBE-SRC-", "KUBE-DST-", "inet6:KUBE-DST-"]);
        assert!(names.iter().all(|name| name.0.len() <= 31), "{names:?}");
    }
}
