//! A NetworkPolicy, from the API's form to ours.
//!
//! Kubernetes: `networking.k8s.io/v1` NetworkPolicy, `spec`. The API's defaults are worked out here: without
//! `policyTypes` a policy is for ingress, and for egress too where it has egress rules; a port without a protocol is TCP;
//! a list of peers or ports that is missing or empty stands for everything.
//!
//! What cannot be read never opens a path. A rule, a peer or a port that makes no sense, or has a field that is not
//! known, matches nothing, and the rest of the policy stays:
//! - a peer with an `ipBlock` and a selector, or with neither; an `ipBlock` whose `cidr` or `except` is no range;
//! - an `endPort` without a number to begin with, or below it; a port that is neither a port's number nor a name.
//!
//! An `except` that lies outside its `cidr` takes nothing away and only causes a warning; one that covers it leaves
//! nothing.
//!
//! The policy's own `podSelector` and its `policyTypes` have no such safe side: selecting nothing would open what the
//! policy was to close, selecting every pod would cut off pods that it does not concern, and any set of pods in between
//! may be given what the rules allow. A policy in which one of these is invalid, or may be misspelt, is unreadable
//! (`k8s::Object::Unreadable`): its last good version stays in force, and where there is none, it is not known. No
//! single mistake in a policy allows more than the policy did; a test makes all of them.

use compact_str::CompactString;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use self::written::{Block, PeerObject, PortObject, RuleObject, Spec};
use super::metadata::{labelled_meta, object_name};
use super::number::Number;
use super::protobuf::{ApiObject, FromProtobuf};
use super::selector::{Incomprehensible, SelectorObject, selector};
use super::service::protocol;
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{
    Namespaces, NetworkPolicy, ObjectName, Peer, Peers, PolicyPort, PolicyRule, PortMatch, Ports, Selector,
};

/// Parses a NetworkPolicy; `None` where it is unreadable.
pub fn network_policy(object: &NetworkPolicyObject) -> (ObjectName, Option<NetworkPolicy>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = object_name(&object.metadata);
    if name.name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let empty = Spec::default();
    let policy = policy(object.spec.as_ref().unwrap_or(&empty), &mut warnings);
    (name, policy, warnings.take())
}

/// The fields of a NetworkPolicy that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct NetworkPolicyObject {
    #[serde(deserialize_with = "labelled_meta")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
}

/// Policies are few and change seldom, and an unknown field has to be seen: in protocol buffers it would be skipped.
impl ApiObject for NetworkPolicyObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = None;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// One of the two directions, as the API calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

fn policy(spec: &Spec, warnings: &mut Warnings) -> Option<NetworkPolicy> {
    // A field that a later API adds to every policy must not take all of them out of force. An API server names
    // the pods and directions that a policy is for; where they are missing too, the field may be its misspelling.
    let says_whom = spec.pod_selector.is_some() && spec.policy_types.is_some();
    for name in spec.unknown.keys() {
        let effect = if says_whom { "it has no effect" } else { UNREADABLE };
        warnings.odd(format!("spec.{name}"), format_args!("is not known; {effect}"));
    }
    if !says_whom && !spec.unknown.is_empty() {
        return None;
    }
    let (is_ingress, is_egress) = directions(spec, warnings)?;
    let pods = match spec.pod_selector.as_ref().map_or_else(|| Ok(Selector::everything()), selector) {
        Ok(pods) => pods,
        Err(Incomprehensible { field, why }) => {
            warnings.odd(format!("spec.podSelector{field}"), format_args!("{why}; {UNREADABLE}"));
            return None;
        }
    };
    let ingress = is_ingress.then(|| rules(Direction::Ingress, &spec.ingress, warnings));
    let egress = is_egress.then(|| rules(Direction::Egress, &spec.egress, warnings));
    Some(NetworkPolicy { pods, ingress, egress })
}

const UNREADABLE: &str = "the policy cannot be read, so its last good version stays in force";

/// Returns whether the policy is for ingress and for egress; `None` where that cannot be known.
fn directions(spec: &Spec, warnings: &mut Warnings) -> Option<(bool, bool)> {
    let written: Vec<&str> =
        spec.policy_types.iter().flatten().map(|kind| kind.as_deref().unwrap_or_default()).collect();
    if let Some(odd) = written.iter().find(|kind| !matches!(**kind, "Ingress" | "Egress")) {
        warnings.odd("spec.policyTypes", format_args!("{odd:?} is not known; {UNREADABLE}"));
        return None;
    }
    let has_egress_rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    if written.is_empty() {
        return Some((true, has_egress_rules));
    }
    Some((written.contains(&"Ingress"), written.contains(&"Egress")))
}

fn rules(
    direction: Direction,
    written: &Option<Vec<Option<RuleObject>>>,
    warnings: &mut Warnings,
) -> Box<[PolicyRule]> {
    let mut rules = Vec::new();
    for (index, rule_object) in written.iter().flatten().enumerate() {
        let field = format!("spec.{}[{index}]", direction.field());
        let Some(rule_object) = rule_object else {
            warnings.odd(field, "is empty; it allows nothing. A rule that allows everything is written {}");
            rules.push(nothing());
            continue;
        };
        rules.push(rule(direction, rule_object, &field, warnings).unwrap_or_else(nothing));
    }
    rules.into()
}

/// A rule that matches nothing, in place of an unreadable one, so that the others keep their index in messages.
fn nothing() -> PolicyRule {
    PolicyRule { peers: Peers::Of([].into()), ports: Ports::Of([].into()) }
}

/// One rule. `None` where it has a field that is not known, because such a field may well narrow what it allows.
fn rule(direction: Direction, written: &RuleObject, field: &str, warnings: &mut Warnings) -> Option<PolicyRule> {
    let (peers, other) = match direction {
        Direction::Ingress => (&written.from, written.to.as_ref().map(|_| "to")),
        Direction::Egress => (&written.to, written.from.as_ref().map(|_| "from")),
    };
    if let Some(name) = other.or_else(|| written.unknown.keys().next().map(String::as_str)) {
        warnings.odd(format!("{field}.{name}"), "is not a field of this rule; the rule allows nothing");
        return None;
    }
    let side = direction.peers_field();
    let read_peer = |peer: &PeerObject, field: &str, warnings: &mut Warnings| read_peer(peer, field, warnings);
    let peers = readable(peers, &format!("{field}.{side}"), "peer", warnings, read_peer);
    let ports = readable(&written.ports, &format!("{field}.ports"), "port", warnings, |port: &PortObject, field, _| {
        read_port(port).map_err(|why| (field.to_owned(), why))
    });
    Some(PolicyRule { peers: peers.map_or(Peers::Any, Peers::Of), ports: ports.map_or(Ports::Any, Ports::Of) })
}

/// Why an entry matches nothing: field and reason.
type Wrong = (String, String);

/// The entries of a list that make sense; `None` where there is no list, or an empty one, which is the same to the API.
fn readable<T, U>(
    list: &Option<Vec<Option<T>>>,
    field: &str,
    noun: &str,
    warnings: &mut Warnings,
    read: impl Fn(&T, &str, &mut Warnings) -> Result<U, Wrong>,
) -> Option<Box<[U]>> {
    let list = list.as_ref().filter(|list| !list.is_empty())?;
    let mut entries = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let read = match entry {
            Some(entry) => read(entry, &field, warnings),
            None => Err((field, "is empty".to_owned())),
        };
        match read {
            Ok(entry) => entries.push(entry),
            Err((field, why)) => warnings.odd(field, format_args!("{why}; this {noun} matches nothing")),
        }
    }
    Some(entries.into())
}

fn read_peer(written: &PeerObject, field: &str, warnings: &mut Warnings) -> Result<Peer, Wrong> {
    let wrong = |why: &str| Err((field.to_owned(), why.to_owned()));
    if let Some(name) = written.unknown.keys().next() {
        return Err((format!("{field}.{name}"), "is not a field of a peer".to_owned()));
    }
    let below = |name: &str, object: &SelectorObject| {
        let longer = |wrong: Incomprehensible| (format!("{field}.{name}{}", wrong.field), wrong.why);
        selector(object).map_err(longer)
    };
    match (&written.ip_block, &written.namespace_selector, &written.pod_selector) {
        (Some(block), None, None) => read_block(block, field, warnings),
        (Some(_), ..) => wrong("has an ipBlock and a selector, which exclude each other"),
        (None, None, None) => wrong("has neither an ipBlock nor a selector"),
        (None, namespaces, pods) => Ok(Peer::Pods {
            namespaces: match namespaces {
                Some(object) => Namespaces::Selected(below("namespaceSelector", object)?),
                None => Namespaces::Own,
            },
            pods: pods.as_ref().map_or_else(|| Ok(Selector::everything()), |object| below("podSelector", object))?,
        }),
    }
}

fn read_block(written: &Block, field: &str, warnings: &mut Warnings) -> Result<Peer, Wrong> {
    let wrong = |name: &str, text: &str| (format!("{field}.ipBlock.{name}"), format!("{text:?} is not a range"));
    if let Some(name) = written.unknown.keys().next() {
        return Err((format!("{field}.ipBlock.{name}"), "is not a field of an ipBlock".to_owned()));
    }
    let text = written.cidr.as_deref().unwrap_or_default();
    let cidr = range(text).ok_or_else(|| wrong("cidr", text))?;
    let mut except = Vec::new();
    for text in written.except.iter().flatten() {
        let text = text.as_deref().unwrap_or_default();
        let hole = range(text).ok_or_else(|| wrong("except", text))?;
        let field = || format!("{field}.ipBlock.except");
        if cidr.contains(&hole) && cidr != hole {
            except.push(hole);
        } else if hole.contains(&cidr) {
            warnings.odd(field(), format_args!("{hole} covers all of {cidr}; this peer matches nothing"));
            except.push(cidr);
        } else {
            warnings.odd(field(), format_args!("{hole} lies outside of {cidr}; it is ignored"));
        }
    }
    except.sort();
    except.dedup();
    Ok(Peer::Block { cidr, except: except.into() })
}

/// A range with its host bits masked, as the API takes it.
pub(super) fn range(text: &str) -> Option<IpNet> {
    text.trim().parse::<IpNet>().ok().map(|range| range.trunc())
}

fn read_port(written: &PortObject) -> Result<PolicyPort, String> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(format!("has a field {name}, which is not known"));
    }
    let Some(protocol) = protocol(written.protocol.as_deref()) else {
        return Err(format!(
            "has the protocol {:?}, which is not known",
            written.protocol.as_deref().unwrap_or_default()
        ));
    };
    let number = match (&written.port, &written.end_port) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => return Err("has an endPort without a port".to_owned()),
        (Some(Number::IsNot(name)), None) if is_port_name(name) => PortMatch::Named(CompactString::from(name)),
        (Some(Number::IsNot(name)), Some(_)) if is_port_name(name) => {
            return Err(format!("has an endPort although its port is a name, {name:?}"));
        }
        (Some(port), end) => {
            let first = port.port().ok_or_else(|| format!("has {port} for a port"))?;
            let last = match end {
                Some(end) => end.port().ok_or_else(|| format!("has {end} for an endPort"))?,
                None => first,
            };
            if last < first {
                return Err(format!("has an endPort, {last}, below its port, {first}"));
            }
            PortMatch::Range { first, last }
        }
    };
    Ok(PolicyPort { protocol, number })
}

/// Returns whether a container's port can have this name: at least one letter tells a name from a number in quotes.
pub(super) fn is_port_name(text: &str) -> bool {
    let is_sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 15 && text.bytes().all(is_sound) && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

impl Direction {
    /// Name of the field of the spec with its rules.
    pub(super) fn field(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    /// Name of the field of a rule with its peers.
    pub(super) fn peers_field(self) -> &'static str {
        match self {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        }
    }
}

/// The spec as written. Unknown fields are collected, because one of them may narrow what is
/// allowed.
mod written {
    use std::collections::BTreeMap;

    use compact_str::CompactString;
    use serde::Deserialize;
    use serde::de::IgnoredAny;

    use super::{Number, SelectorObject};

    type Unknown = BTreeMap<String, IgnoredAny>;

    #[derive(Deserialize, Default, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct Spec {
        pub pod_selector: Option<SelectorObject>,
        pub policy_types: Option<Vec<Option<CompactString>>>,
        pub ingress: Option<Vec<Option<RuleObject>>>,
        pub egress: Option<Vec<Option<RuleObject>>>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct RuleObject {
        pub from: Option<Vec<Option<PeerObject>>>,
        pub to: Option<Vec<Option<PeerObject>>>,
        pub ports: Option<Vec<Option<PortObject>>>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct PeerObject {
        pub pod_selector: Option<SelectorObject>,
        pub namespace_selector: Option<SelectorObject>,
        pub ip_block: Option<Block>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct Block {
        pub cidr: Option<CompactString>,
        pub except: Option<Vec<Option<CompactString>>>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct PortObject {
        pub protocol: Option<CompactString>,
        pub port: Option<Number>,
        pub end_port: Option<Number>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }
}

#[cfg(test)]
mod tests;
