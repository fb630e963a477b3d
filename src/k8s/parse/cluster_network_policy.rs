//! A ClusterNetworkPolicy, from the API's form to ours.
//!
//! Kubernetes: `policy.networking.k8s.io/v1beta1` ClusterNetworkPolicy, `spec`; v1alpha2 has the same fields. Custom resource, so
//! always JSON.
//!
//! What cannot be read never opens a path. A rule that makes no sense, or has a field that is not known, fails closed, which
//! the API defines: an Accept rule matches nothing, a Deny or Pass rule, and one whose action is not known, denies everything.
//! That concerns the whole rule, whichever of its parts is the odd one:
//! - a peer with none or several of its fields; an empty list of peers or of protocols, or one that is missing where it
//!   must not be; a network that is no range;
//! - a port number or range out of bounds, a protocol with none or several of its fields; a named port beside networks or nodes.
//!
//! Peers by `domainNames`, which are experimental and for Accept rules alone, are not supported and treated alike: what a name stands for is known only to who reads
//! all answers of DNS that a pod gets, before the pod has them, and holds them back until the kernel knows the addresses.
//!
//! What decides about the whole policy has no such safe side: its tier and priority, and its subject. A policy in which one of
//! these is odd is unreadable (`k8s::Object::Unreadable`): its last good version stays in force, and where there is none, it is
//! not known. So is one with a field of `spec` that is not known, which may be a misspelt direction, where it has no direction;
//! beside one the field has no effect, as a later version of the API may add one to every policy.

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use self::written::{PeerObject, PodsObject, PortObject, ProtocolObject, RuleObject, Spec, SubjectObject};
use super::metadata::labelled_meta;
use super::network_policy::{Direction, is_port_name, range};
use super::number::Number;
use super::protobuf::{ApiObject, FromProtobuf};
use super::selector::{SelectorObject, selector};
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Namespaces, Peer, Peers, PolicyPort, PolicyRule, PortMatch, Ports,
    Selector, Subject, Tier,
};
use crate::net::Protocol;

/// Parses a ClusterNetworkPolicy; `None` where it is unreadable.
pub fn cluster_network_policy(
    object: &ClusterNetworkPolicyObject,
) -> (CompactString, Option<ClusterNetworkPolicy>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = CompactString::from(object.metadata.name.as_deref().unwrap_or_default());
    if name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let empty = Spec::default();
    let policy = match policy(object.spec.as_ref().unwrap_or(&empty), &mut warnings) {
        Ok(policy) => Some(policy),
        Err(Wrong { field, why }) => {
            warnings.odd(
                format!("spec{field}"),
                format_args!(
                    "{why}; the policy cannot be read; its last good version, if there is one, stays in force"
                ),
            );
            None
        }
    };
    (name, policy, warnings.take())
}

/// The fields of a ClusterNetworkPolicy that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct ClusterNetworkPolicyObject {
    #[serde(deserialize_with = "labelled_meta")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
}

/// Custom resources have no protocol buffers.
impl ApiObject for ClusterNetworkPolicyObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = None;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Why a part makes no sense.
struct Wrong {
    /// Below the part's own field, beginning with a dot or a bracket.
    field: String,
    /// Continues the sentence behind the name of the field.
    why: String,
}

impl Wrong {
    fn new(field: impl Into<String>, why: impl Into<String>) -> Wrong {
        Wrong { field: field.into(), why: why.into() }
    }

    /// The same, seen from one level above.
    fn below(self, field: &str) -> Wrong {
        Wrong { field: format!("{field}{}", self.field), ..self }
    }
}

fn policy(spec: &Spec, warnings: &mut Warnings) -> Result<ClusterNetworkPolicy, Wrong> {
    if let (Some(name), None, None) = (spec.unknown.keys().next(), &spec.ingress, &spec.egress) {
        return Err(Wrong::new(format!(".{name}"), "is not known"));
    }
    let tier = match spec.tier.as_deref() {
        Some("Admin") => Tier::Admin,
        Some("Baseline") => Tier::Baseline,
        other => return Err(Wrong::new(".tier", format!("{:?} is not known", other.unwrap_or_default()))),
    };
    let priority = match &spec.priority {
        Some(Number::Is(number)) => u16::try_from(*number).ok(),
        Some(Number::IsNot(_)) | None => None,
    };
    let priority = priority.filter(|priority| *priority <= ClusterNetworkPolicy::LAST_PRIORITY);
    let priority = priority.ok_or_else(|| Wrong::new(".priority", "is not a number from 0 to 1000"))?;
    let subject = spec.subject.as_ref().ok_or_else(|| Wrong::new(".subject", "is absent"))?;
    let subject = read_subject(subject).map_err(|wrong| wrong.below(".subject"))?;
    for name in spec.unknown.keys() {
        warnings.odd(format!("spec.{name}"), "is not known; it has no effect");
    }
    let ingress = rules(Direction::Ingress, &spec.ingress, warnings);
    let egress = rules(Direction::Egress, &spec.egress, warnings);
    Ok(ClusterNetworkPolicy { tier, priority, subject, ingress, egress })
}

fn read_subject(written: &SubjectObject) -> Result<Subject, Wrong> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(Wrong::new(format!(".{name}"), "is not known"));
    }
    let (namespaces, pods) = match (&written.namespaces, &written.pods) {
        (Some(namespaces), None) => (below("namespaces", namespaces)?, Selector::everything()),
        (None, Some(pods)) => read_pods(pods)?,
        _ => return Err(Wrong::new("", "has not exactly one of namespaces and pods")),
    };
    Ok(Subject { namespaces, pods })
}

fn rules(direction: Direction, written: &Option<Vec<RuleObject>>, warnings: &mut Warnings) -> Box<[ClusterRule]> {
    let rules = written.iter().flatten().enumerate().map(|(index, written)| {
        let name = written.name.clone().unwrap_or_default();
        let action = match written.action.as_deref() {
            Some("Accept") => Some(Action::Accept),
            Some("Deny") => Some(Action::Deny),
            Some("Pass") => Some(Action::Pass),
            _ => None,
        };
        let unknown = || Wrong::new(".action", format!("{:?} is not known", written.action.as_deref().unwrap_or("")));
        let read = action.ok_or_else(unknown).and_then(|action| Ok((action, rule(direction, written)?)));
        let (action, matches) = read.unwrap_or_else(|wrong| {
            let (effect, closed) = match action {
                Some(Action::Accept) => ("matches nothing", (Action::Accept, nothing())),
                _ => ("denies everything", (Action::Deny, everything())),
            };
            let field = wrong.below(&format!("spec.{}[{index}]", direction.field()));
            warnings.odd(field.field, format_args!("{}; the rule {effect}", field.why));
            closed
        });
        ClusterRule { name, action, matches }
    });
    rules.collect()
}

fn nothing() -> PolicyRule {
    PolicyRule { peers: Peers::Of([].into()), ports: Ports::Of([].into()) }
}

fn everything() -> PolicyRule {
    PolicyRule { peers: Peers::Any, ports: Ports::Any }
}

fn rule(direction: Direction, written: &RuleObject) -> Result<PolicyRule, Wrong> {
    let (peers, other) = match direction {
        Direction::Ingress => (&written.from, written.to.as_ref().map(|_| "to")),
        Direction::Egress => (&written.to, written.from.as_ref().map(|_| "from")),
    };
    if let Some(name) = other.or_else(|| written.unknown.keys().next().map(String::as_str)) {
        return Err(Wrong::new(format!(".{name}"), "is not a field of this rule"));
    }
    let side = direction.peers_field();
    let peers = peers.as_deref().filter(|peers| !peers.is_empty());
    let peers = peers.ok_or_else(|| Wrong::new(format!(".{side}"), "is empty"))?;
    let read_one =
        |(index, peer)| read_peer(direction, peer).map_err(|wrong| wrong.below(&format!(".{side}[{index}]")));
    let peers: Vec<Vec<Peer>> = peers.iter().enumerate().map(read_one).collect::<Result<_, _>>()?;
    let peers: Box<[Peer]> = peers.into_iter().flatten().collect();
    let ports = read_protocols(&written.protocols)?;
    let is_named = |port: &PolicyPort| matches!(port.number, PortMatch::Named(_));
    if let Ports::Of(ports) = &ports
        && ports.iter().any(is_named)
        && peers.iter().any(|peer| matches!(peer, Peer::Block { .. } | Peer::Nodes(_)))
    {
        return Err(Wrong::new(".protocols", "has a named port, which networks and nodes do not have"));
    }
    Ok(PolicyRule { peers: Peers::Of(peers), ports })
}

/// Returns what a peer stands for: pods, nodes, or one or more networks.
fn read_peer(direction: Direction, written: &PeerObject) -> Result<Vec<Peer>, Wrong> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(Wrong::new(format!(".{name}"), "is not a field of a peer"));
    }
    let PeerObject { namespaces, pods, nodes, networks, domain_names, .. } = written;
    let of_egress =
        [("networks", networks.is_some()), ("nodes", nodes.is_some()), ("domainNames", domain_names.is_some())];
    let given = of_egress.iter().filter(|(_, given)| *given);
    let count = given.clone().count() + usize::from(namespaces.is_some()) + usize::from(pods.is_some());
    if count != 1 {
        return Err(Wrong::new("", "has not exactly one of the fields of a peer"));
    }
    if let (Direction::Ingress, Some((name, _))) = (direction, given.clone().next()) {
        return Err(Wrong::new(format!(".{name}"), "is not a field of a peer for ingress"));
    }
    let of = |namespaces, pods| vec![Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods }];
    match (namespaces, pods, networks, nodes) {
        (Some(namespaces), ..) => Ok(of(below("namespaces", namespaces)?, Selector::everything())),
        (_, Some(pods), ..) => read_pods(pods).map(|(namespaces, pods)| of(namespaces, pods)),
        (.., Some(networks), _) => read_networks(networks).map_err(|wrong| wrong.below(".networks")),
        (.., Some(nodes)) => Ok(vec![Peer::Nodes(below("nodes", nodes)?)]),
        _ => {
            let name = given.map(|(name, _)| *name).next().unwrap_or_default();
            Err(Wrong::new(format!(".{name}"), "is not supported; name the networks instead"))
        }
    }
}

fn read_networks(written: &[Option<CompactString>]) -> Result<Vec<Peer>, Wrong> {
    if written.is_empty() {
        return Err(Wrong::new("", "is empty"));
    }
    let read_one = |(index, text): (usize, &Option<CompactString>)| {
        let text = text.as_deref().unwrap_or_default();
        let cidr = range(text).ok_or_else(|| Wrong::new(format!("[{index}]"), format!("{text:?} is not a range")))?;
        Ok(Peer::Block { cidr, except: [].into() })
    };
    written.iter().enumerate().map(read_one).collect()
}

/// Returns the selectors of namespaces and of pods. A missing `namespaceSelector` selects all namespaces.
fn read_pods(written: &PodsObject) -> Result<(Selector, Selector), Wrong> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(Wrong::new(format!(".pods.{name}"), "is not known"));
    }
    let pods = written.pod_selector.as_ref().ok_or_else(|| Wrong::new(".pods.podSelector", "is absent"))?;
    let namespaces = match &written.namespace_selector {
        Some(namespaces) => below("pods.namespaceSelector", namespaces)?,
        None => Selector::everything(),
    };
    Ok((namespaces, below("pods.podSelector", pods)?))
}

fn below(name: &str, written: &SelectorObject) -> Result<Selector, Wrong> {
    selector(written).map_err(|wrong| Wrong::new(format!(".{name}{}", wrong.field), wrong.why))
}

fn read_protocols(written: &Option<Vec<ProtocolObject>>) -> Result<Ports, Wrong> {
    let Some(written) = written else { return Ok(Ports::Any) };
    if written.is_empty() {
        return Err(Wrong::new(".protocols", "is empty"));
    }
    let read_one = |(index, one)| read_protocol(one).map_err(|wrong| wrong.below(&format!(".protocols[{index}]")));
    let ports: Vec<Vec<PolicyPort>> = written.iter().enumerate().map(read_one).collect::<Result<_, _>>()?;
    Ok(Ports::Of(ports.into_iter().flatten().collect()))
}

/// Returns what one entry of `protocols[]` stands for. A port name means a container's port of any protocol.
fn read_protocol(written: &ProtocolObject) -> Result<Vec<PolicyPort>, Wrong> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(Wrong::new(format!(".{name}"), "is not known"));
    }
    let named = written.destination_named_port.as_ref().filter(|name| !name.is_empty());
    let of_protocol = [
        ("tcp", Protocol::Tcp, &written.tcp),
        ("udp", Protocol::Udp, &written.udp),
        ("sctp", Protocol::Sctp, &written.sctp),
    ];
    let mut given = of_protocol.iter().filter_map(|(name, protocol, object)| Some((name, protocol, object.as_ref()?)));
    match (given.next(), given.next(), named) {
        (Some((name, protocol, object)), None, None) => {
            let field = format!(".{name}");
            if let Some(other) = object.unknown.keys().next() {
                return Err(Wrong::new(format!("{field}.{other}"), "is not known"));
            }
            let port = object.destination_port.as_ref();
            let port = port.ok_or_else(|| Wrong::new(format!("{field}.destinationPort"), "is absent"))?;
            let number = read_port(port).map_err(|wrong| wrong.below(&format!("{field}.destinationPort")))?;
            Ok(vec![PolicyPort { protocol: *protocol, number }])
        }
        (None, None, Some(name)) if is_port_name(name) => {
            let of = |protocol| PolicyPort { protocol, number: PortMatch::Named(name.clone()) };
            Ok(Protocol::ALL.into_iter().map(of).collect())
        }
        (None, None, Some(name)) => {
            Err(Wrong::new(".destinationNamedPort", format!("{name:?} is not the name of a port")))
        }
        _ => Err(Wrong::new("", "has not exactly one of tcp, udp, sctp and destinationNamedPort")),
    }
}

fn read_port(written: &PortObject) -> Result<PortMatch, Wrong> {
    if let Some(name) = written.unknown.keys().next() {
        return Err(Wrong::new(format!(".{name}"), "is not known"));
    }
    let port = |field: &str, number: &Option<Number>| {
        let wrong = || Wrong::new(field, "is not a port number");
        number.as_ref().and_then(Number::port).ok_or_else(wrong)
    };
    match (&written.number, &written.range) {
        (number @ Some(_), None) => {
            let number = port(".number", number)?;
            Ok(PortMatch::Range { first: number, last: number })
        }
        (None, Some(range)) => {
            if let Some(name) = range.unknown.keys().next() {
                return Err(Wrong::new(format!(".range.{name}"), "is not known"));
            }
            let (first, last) = (port(".range.start", &range.start)?, port(".range.end", &range.end)?);
            if last < first {
                return Err(Wrong::new(".range", format!("ends at {last}, before its start, {first}")));
            }
            Ok(PortMatch::Range { first, last })
        }
        _ => Err(Wrong::new("", "has not exactly one of number and range")),
    }
}

/// The spec as written. Unknown fields are collected, because any of them may change what is meant.
mod written {
    use std::collections::BTreeMap;

    use compact_str::CompactString;
    use serde::Deserialize;
    use serde::de::IgnoredAny;

    use super::{Number, SelectorObject};

    type Unknown = BTreeMap<String, IgnoredAny>;

    #[derive(Deserialize, Default, Clone, Debug)]
    pub struct Spec {
        pub tier: Option<CompactString>,
        pub priority: Option<Number>,
        pub subject: Option<SubjectObject>,
        pub ingress: Option<Vec<RuleObject>>,
        pub egress: Option<Vec<RuleObject>>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct SubjectObject {
        pub namespaces: Option<SelectorObject>,
        pub pods: Option<PodsObject>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct PodsObject {
        pub namespace_selector: Option<SelectorObject>,
        pub pod_selector: Option<SelectorObject>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct RuleObject {
        pub name: Option<CompactString>,
        pub action: Option<CompactString>,
        pub from: Option<Vec<PeerObject>>,
        pub to: Option<Vec<PeerObject>>,
        pub protocols: Option<Vec<ProtocolObject>>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct PeerObject {
        pub namespaces: Option<SelectorObject>,
        pub pods: Option<PodsObject>,
        pub nodes: Option<SelectorObject>,
        pub networks: Option<Vec<Option<CompactString>>>,
        pub domain_names: Option<IgnoredAny>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct ProtocolObject {
        pub tcp: Option<TransportObject>,
        pub udp: Option<TransportObject>,
        pub sctp: Option<TransportObject>,
        pub destination_named_port: Option<CompactString>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct TransportObject {
        pub destination_port: Option<PortObject>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct PortObject {
        pub number: Option<Number>,
        pub range: Option<RangeObject>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(Deserialize, Clone, Debug)]
    pub struct RangeObject {
        pub start: Option<Number>,
        pub end: Option<Number>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }
}

#[cfg(test)]
mod tests;
