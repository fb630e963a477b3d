//! The names of everything in the table `inet sluice_policy`.
//!
//! A name is for readers of `nft list table` first: direction, namespace and policy, or what a set holds. 16 letters
//! (base32 of a SHA-256, 80 bits) of the object's identity follow, so that names that are cut or that look alike stay
//! apart. A name never depends on what happened before, so a process without memory finds its objects by it.
//!
//! `nft` reads a name that begins with a letter and consists of letters, digits, `/`, `_`, `-` and `.`, and that is not a word of
//! its language.

use std::net::IpAddr;

use crate::kernel::nftables::{Name, Object, Verdict};
use crate::model::{ObjectName, Tier};
use crate::net::{Family, PortRange, Protocol};

use super::super::host_endpoints::HostEndpoint;
use super::super::identity::{identity, joined, letters, number_of};
use super::super::ip_block;
use super::super::rules::{ClusterPolicyKey, Direction, PortOwners, Scope, SetKey};
use super::class::Class;
use super::peers::{Outcome, Peers, Union};
use super::tiers::{EachTier, Judged, TierPolicies};

/// The table, of the family `inet`.
pub const TABLE: &str = "sluice_policy";

/// Base chains, by hook and direction.
pub const FORWARD_EGRESS: &str = "forward_egress";
pub const INPUT_EGRESS: &str = "input_egress";
pub const OUTPUT_EGRESS: &str = "output_egress";
pub const FORWARD_INGRESS: &str = "forward_ingress";
pub const OUTPUT_INGRESS: &str = "output_ingress";

/// Filters link-local traffic of pods.
pub const LINK_LOCAL: &str = "link_local";
/// Filters multicast and broadcast to pods.
pub const MULTICAST: &str = "to_many";

/// How the names of objects begin, where something is decided by it or where several begin so.
const IN: &str = "in_";
const OUT: &str = "out_";
const EACH: &str = "each_";
const ADMIN: &str = "admin_";
const BASELINE: &str = "baseline_";
/// Of chains, and of sets that are not unions.
const DENIED: &str = "denied_";
const PASSED: &str = "passed_";
const KEPT: &str = "kept_";
const SHARED: &str = "shared_";
const FROM: &str = "from_";
const TO: &str = "to_";
const SERVICES: &str = "services_";
const SERVICES_OF: &str = "services_of_";
const ANY_OF: &str = "any_of_";
const ANY_DENIED_OF: &str = "any_denied_of_";
const CLOSED: &str = "closed_";
const ICMP: &str = "icmp";
const RANGES: &str = "ranges";
/// Of maps and sets of single ports, behind the name of the chain; those of ranges have the name of the protocol in its place.
const PORTS: &str = "ports";

/// Purpose of a chain. Derived from its name, because a process without memory sees nothing else of a chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChainKind {
    /// Those that packets meet whoever is judged: base chains and what they jump to.
    Fixed,
    /// Of a class of pods.
    Class,
    /// Asks a class or a tier on behalf of an address that several pods claim.
    Each,
    /// Of an address that several pods claim.
    Shared,
    /// Of the policies of a tier.
    Tier,
    /// Decides about what comes from, or goes to, some peers.
    Peers,
    /// Refuses what a ClusterNetworkPolicy denies.
    Denied,
    /// Stands for what a ClusterNetworkPolicy of the Admin tier passes on.
    Passed,
    /// Goes on denying what policies deny that are not known.
    Kept,
    /// Refuses Services to the pods of an address.
    RefusedServices,
}

/// The heads of the names of chains. None begins with another one.
const CHAINS: [(&str, ChainKind); 14] = [
    (IN, ChainKind::Class),
    (OUT, ChainKind::Class),
    (EACH, ChainKind::Each),
    (SHARED, ChainKind::Shared),
    (ADMIN, ChainKind::Tier),
    (BASELINE, ChainKind::Tier),
    (FROM, ChainKind::Peers),
    (TO, ChainKind::Peers),
    (DENIED, ChainKind::Denied),
    (PASSED, ChainKind::Passed),
    (KEPT, ChainKind::Kept),
    (SERVICES, ChainKind::RefusedServices),
    (CLOSED, ChainKind::Fixed),
    (ICMP, ChainKind::Fixed),
];

/// Returns the purpose of the chain of this name; `None` for one that is not ours.
pub fn kind(chain: &Name) -> Option<ChainKind> {
    match chain.as_str() {
        FORWARD_EGRESS | INPUT_EGRESS | OUTPUT_EGRESS | FORWARD_INGRESS | OUTPUT_INGRESS | LINK_LOCAL | MULTICAST => {
            Some(ChainKind::Fixed)
        }
        name => CHAINS.iter().find(|(head, _)| name.starts_with(head)).map(|(_, kind)| *kind),
    }
}

/// The heads of the names of sets whose elements close paths, besides [`entrances`].
const CLOSING: [&str; 3] = [SERVICES_OF, DENIED, ANY_DENIED_OF];

/// Number of bytes of a name that is shown of the name of an object of the API.
const SHOWN: usize = 32;

/// Returns the map that is looked up before that of isolated pods: from the address of a pod that ClusterNetworkPolicies of the Admin
/// tier select to the chain of these, and from an address that several pods claim to the chain that asks all of them.
pub fn admin(direction: Direction, family: Family) -> Name {
    of_family(&format!("{ADMIN}{}", direction.name()), family)
}

/// Returns the map from the address of a pod of this node that is isolated, or that the Baseline tier selects, to the chain that
/// judges it.
pub fn isolated(direction: Direction, family: Family) -> Name {
    of_family(direction.name(), family)
}

/// Returns the set of addresses of isolated pods, each as source and destination of one packet.
pub fn to_itself(family: Family) -> Name {
    of_family("self", family)
}

/// Returns the set of addresses of this node's pods, for `--netpol-default-deny`.
pub fn pods(family: Family) -> Name {
    of_family("pods", family)
}

/// Returns the map from the address of a pod of this node to the number that stands for the pod ([`pod_id`]). No packet is looked up in it: it is for who reads the
/// table, and for the next run of the program, to which it says whose address something is.
pub fn pod_ids(family: Family) -> Name {
    of_family("pod_ids", family)
}

/// Returns the number that stands for a pod. Two pods have the same one by a chance of one in 2³², or by a name that somebody searched for minutes, which may
/// keep a pod waiting by an address of another one. A pod that is made anew under its name keeps it.
pub fn pod_id(pod: &ObjectName) -> u32 {
    number_of(joined(&["pod", &pod.namespace, &pod.name]).as_bytes())
}

/// Returns the map from the address of a pod to the chain that refuses it Services (`host_endpoints`).
pub fn host_endpoints(family: Family) -> Name {
    of_family("host_endpoints", family)
}

/// Returns the chain of a pod's address that refuses it Services.
pub fn refused_services(address: IpAddr) -> Name {
    format!("{SERVICES}{}", address.to_string().replace(':', "-")).into()
}

/// Returns the set of addresses and ports of the Services of a host endpoint.
pub fn endpoint(endpoint: &HostEndpoint) -> Name {
    let HostEndpoint { address, protocol, port } = endpoint;
    let shown = address.to_string().replace(':', "-");
    format!("{SERVICES_OF}{shown}_{protocol}_{port}").into()
}

/// Returns the chain of the ICMP messages that always pass.
pub fn icmp(family: Family) -> Name {
    of_family(ICMP, family)
}

/// Returns the chain that refuses unknown addresses of this node's pod CIDRs.
pub fn closed(direction: Direction) -> Name {
    format!("{CLOSED}{}", direction.name()).into()
}

/// Returns the chain of a class, which is also the name of its counter.
pub fn class(class: &Class) -> Name {
    let Class { direction, namespace, policies, by_namespace } = class;
    let names = policies.iter().flat_map(|policy| [policy.namespace.as_str(), policy.name.as_str()]);
    let annotation = if *by_namespace { "annotation" } else { "" };
    let words: Vec<&str> = ["class", direction.name(), namespace, annotation].into_iter().chain(names).collect();
    let what = match &**policies {
        [] => "annotation".to_owned(),
        [one] => plain(&one.name),
        several => format!("{}_policies", several.len()),
    };
    format!("{}{}_{what}_{}", of_direction(*direction), plain(namespace), letters(joined(&words).as_bytes())).into()
}

/// Returns the maps from the addresses of pods to the chains that judge them.
pub fn entrances() -> impl Iterator<Item = Name> {
    let maps = |family| {
        Direction::BOTH.into_iter().flat_map(move |direction| [admin(direction, family), isolated(direction, family)])
    };
    Family::BOTH.into_iter().flat_map(move |family| maps(family).chain([host_endpoints(family)]))
}

/// Returns whether the base chains look a set or map up.
pub fn is_of_base(set: &Name) -> bool {
    let is_its = |family| [to_itself(family), pods(family)].contains(set);
    Family::BOTH.into_iter().any(is_its) || entrances().any(|map| map == *set)
}

/// Returns the chain that asks a class on behalf of an address that several pods claim.
pub fn each(class: &Class) -> Name {
    format!("{EACH}{}", self::class(class)).into()
}

/// Returns the chain of the policies of a tier.
pub fn tier(tier: &TierPolicies) -> Name {
    let TierPolicies { tier, direction, policies } = tier;
    let priorities: Vec<String> = policies.iter().map(|key| key.priority.to_string()).collect();
    let keys = policies.iter().zip(&priorities).flat_map(|(key, priority)| [priority.as_str(), key.policy.as_str()]);
    let words: Vec<&str> = ["tier", tier.name(), direction.name()].into_iter().chain(keys).collect();
    let what = match &**policies {
        [one] => plain(&one.policy),
        several => format!("{}_policies", several.len()),
    };
    let of_tier = match tier {
        Tier::Admin => ADMIN,
        Tier::Baseline => BASELINE,
    };
    format!("{of_tier}{}{what}_{}", of_direction(*direction), letters(joined(&words).as_bytes())).into()
}

/// Returns the chain that goes on denying what policies deny that are not known, and leads to `now` then. `rules`: as text.
pub fn kept(rules: &[String], now: Option<&Name>) -> Name {
    let words: Vec<&str> = rules.iter().map(String::as_str).chain([now.map_or("", Name::as_str)]).collect();
    format!("{KEPT}{}", letters(joined(&words).as_bytes())).into()
}

/// Returns the name that those of the maps of some rules of a tier begin with.
pub fn run(tier: &Name, place: usize) -> Name {
    format!("{tier}_{place}").into()
}

/// Returns the chain that asks a tier on behalf of an address that several pods claim.
pub fn each_tier(each: &EachTier) -> Name {
    let tier = self::tier(&each.tier);
    let behind = each.rest.as_ref().map(|rest| rest.each().0);
    let words = [tier.as_str(), behind.as_ref().map_or("", Name::as_str)];
    format!("{EACH}{tier}_{}", letters(joined(&words).as_bytes())).into()
}

/// Returns the chain that refuses what a policy denies, which is also the name of its counter.
pub fn denied(key: &ClusterPolicyKey) -> Name {
    of_policy(DENIED, "denied", key)
}

/// Returns the chain for what a policy passes on.
pub fn passed(key: &ClusterPolicyKey) -> Name {
    of_policy(PASSED, "passed", key)
}

fn of_policy(head: &str, what: &str, key: &ClusterPolicyKey) -> Name {
    let ClusterPolicyKey { tier, priority, policy, direction } = key;
    let priority = priority.to_string();
    let words: [&str; 5] = [what, tier.name(), &priority, policy, direction.name()];
    format!("{head}{}{}_{}", of_direction(*direction), plain(policy), letters(joined(&words).as_bytes())).into()
}

/// Returns the chain of an address that several pods claim which are judged in different ways.
pub fn shared(judged: &[Judged]) -> Name {
    let names: Vec<Name> = judged.iter().filter_map(Judged::each).map(|(name, _)| name).collect();
    let words: Vec<&str> = names.iter().map(Name::as_str).collect();
    let direction = judged.first().map_or("_", |judged| of_direction(judged.direction));
    format!("{SHARED}{direction}{}", letters(joined(&words).as_bytes())).into()
}

/// Returns whether an element closes paths, where most elements open some: it has an address judged, refuses a Service, or is denied.
pub fn closes(object: &Object) -> bool {
    let Object::Element(set, _) = object else { return false };
    entrances().any(|map| map == *set) || CLOSING.iter().any(|head| set.as_str().starts_with(head))
}

/// Returns the map of single ports of a class, or of some rules of a tier. What it holds is in its name, so that it never changes: a packet that is under way
/// would meet what it holds now beside the rules of before, and a kernel may look up what it held beside rules that are new.
pub fn ports(class: &Name, verdicts: &[((Protocol, u16), Verdict)]) -> Name {
    let words = verdicts.iter().map(|((protocol, port), verdict)| (format!("{protocol} {port}"), verdict));
    by_contents(class, PORTS, words)
}

/// Returns the set of the many single ports of a class, or of some rules of a tier, that have this verdict. Its name says what it holds, as above.
pub fn ports_of(class: &Name, verdict: &Verdict, ports: &[(Protocol, u16)]) -> Name {
    by_contents(class, PORTS, ports.iter().map(|(protocol, port)| (format!("{protocol} {port}"), verdict)))
}

/// Returns the map of port ranges of a class, or of some rules of a tier. Its name says what it holds, as above.
pub fn ranges(class: &Name, protocol: Protocol, verdicts: &[(PortRange, Verdict)]) -> Name {
    let words = verdicts.iter().map(|(PortRange { first, last }, verdict)| (format!("{first}-{last}"), verdict));
    by_contents(class, &protocol.to_string(), words)
}

fn by_contents<'v>(class: &Name, what: &str, elements: impl Iterator<Item = (String, &'v Verdict)>) -> Name {
    let mut words = Vec::new();
    for (ports, verdict) in elements {
        let to = match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => chain.as_str(),
            _ => "",
        };
        words.extend([ports, to.to_owned()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    format!("{class}_{what}_{}", letters(joined(&words).as_bytes())).into()
}

/// Returns the chains that may look up a set or map of ports, by its name: that of a class, or of a tier. None for other sets.
pub fn looking_up(ports: &Name) -> impl Iterator<Item = Name> {
    let protocols = Protocol::ALL.map(|protocol| protocol.to_string());
    let is_of_ports = |what: &str| what == PORTS || protocols.iter().any(|protocol| protocol == what);
    let named = ports.as_str().rsplit_once('_').and_then(|(named, _)| named.rsplit_once('_'));
    let owner = named.filter(|(_, what)| is_of_ports(what)).map(|(owner, _)| owner);
    let tier = owner.and_then(|run| run.rsplit_once('_')).map(|(tier, _)| tier);
    owner.into_iter().chain(tier).map(Name::from).collect::<Vec<_>>().into_iter()
}

/// Returns the chain that decides about what comes from, or goes to, any of these peers.
pub fn peers(peers: &Peers) -> Name {
    let identities: Vec<String> = peers.sets.iter().map(|set| identity(set)).collect();
    let denied = match &peers.outcome {
        Outcome::Accept => None,
        Outcome::Deny(policy) => Some(denied(policy)),
    };
    let alone: Vec<String> = peers.alone.iter().map(|set| identity(set)).collect();
    let side = match peers.direction {
        Direction::Ingress => FROM,
        Direction::Egress => TO,
    };
    let shown = match &*identities {
        [_] => peers.sets.first().map_or_else(String::new, |set| shown(set)),
        several => format!("{}_sets", several.len()),
    };
    let apart = if alone.is_empty() { None } else { Some("alone") };
    let sets = identities.iter().map(String::as_str).chain(denied.as_ref().map(Name::as_str));
    let words: Vec<&str> = sets.chain(apart).chain(alone.iter().map(String::as_str)).collect();
    format!("{side}{shown}_{}", letters(joined(&words).as_bytes())).into()
}

/// Returns a set of the rule set in one family.
pub fn set(key: &SetKey, family: Family) -> Name {
    let shown = match key {
        // The elements of one name are in one form, whichever version wrote them: see `sets`.
        SetKey::Blocks(blocks) if ip_block::has_holes(blocks, family) => RANGES.to_owned(),
        key => shown(key),
    };
    format!("{shown}_{}_{}", letters(identity(key).as_bytes()), number(family)).into()
}

/// Returns the union of several sets.
pub fn union(union: &Union, family: Family) -> Name {
    let identities: Vec<String> = union.sets.iter().map(|set| identity(set)).collect();
    let words: Vec<&str> = identities.iter().map(String::as_str).collect();
    let hash = letters(joined(&words).as_bytes());
    let head = if union.sets.iter().any(|set| set.closes()) { ANY_DENIED_OF } else { ANY_OF };
    format!("{head}{}_sets_{hash}_{}", words.len(), number(family)).into()
}

/// Returns what a set holds, for readers.
fn shown(key: &SetKey) -> String {
    match key {
        SetKey::Pods(selection) => match &selection.namespaces {
            Scope::Named(namespace) => format!("pods_{}", plain(namespace)),
            Scope::Selected(_) => "pods_of_namespaces".to_owned(),
        },
        SetKey::Blocks(_) => "blocks".to_owned(),
        SetKey::NamedPort { pods, name, protocol } => {
            let here = if *pods == PortOwners::Local { "here_" } else { "" };
            format!("port_{here}{}_{protocol}", plain(name))
        }
        SetKey::Denied(set) => format!("{DENIED}{}", shown(set)),
    }
}

/// Returns the policies of a class as people write them, for comments.
pub fn policies(class: &Class) -> String {
    let names = class.policies.iter().map(ObjectName::to_string);
    let annotation = class.by_namespace.then(|| format!("the annotation of {}", class.namespace));
    names.chain(annotation).collect::<Vec<_>>().join(", ")
}

fn of_direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => IN,
        Direction::Egress => OUT,
    }
}

/// Returns a name of the API, which objects from files do not keep to, in letters that `nft` reads.
fn plain(name: &str) -> String {
    let letter = |letter: char| if letter.is_ascii_alphanumeric() || "-.".contains(letter) { letter } else { '_' };
    name.chars().map(letter).take(SHOWN).collect()
}

fn of_family(name: &str, family: Family) -> Name {
    format!("{name}{}", number(family)).into()
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

#[cfg(test)]
mod tests;
