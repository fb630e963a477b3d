//! The names of everything in the table `inet sluice_policy`.
//!
//! A name is for readers of `nft list table` first: direction, namespace and policy, or what a set holds. 16 letters
//! (base32 of a SHA-256, 80 bits) of the object's identity follow, so that names that are cut or that look alike stay
//! apart. A name never depends on what happened before, so a process without memory finds its objects by it.
//!
//! `nft` reads a name that begins with a letter and consists of letters, digits, `/`, `_`, `-` and `.`, and that is not a word of
//! its language.

use std::net::IpAddr;

use crate::kernel::nftables::{Name, Object};
use crate::model::ObjectName;
use crate::net::{Family, Protocol};

use super::super::host_endpoints::HostEndpoint;
use super::super::identity::{identity, joined, letters};
use super::super::rules::{Direction, PortOwners, Scope, SetKey};
use super::class::Class;
use super::peers::{Peers, Union};

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

/// Number of bytes of a name that is shown of the name of an object of the API.
const SHOWN: usize = 32;

/// Returns the map from the address of an isolated pod of this node to the chain that judges it.
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

/// Returns the map from the address of a pod to the chain that refuses it Services (`host_endpoints`).
pub fn host_endpoints(family: Family) -> Name {
    of_family("host_endpoints", family)
}

/// Returns the chain of a pod's address that refuses it Services.
pub fn refused_services(address: IpAddr) -> Name {
    format!("services_{}", address.to_string().replace(':', "-")).into()
}

/// Returns the set of addresses and ports of the Services of a host endpoint.
pub fn endpoint(endpoint: &HostEndpoint) -> Name {
    let HostEndpoint { address, protocol, port } = endpoint;
    let shown = address.to_string().replace(':', "-");
    format!("services_of_{shown}_{protocol}_{port}").into()
}

/// Returns the chain of the ICMP messages that always pass.
pub fn icmp(family: Family) -> Name {
    of_family("icmp", family)
}

/// Returns the chain that refuses unknown addresses of this node's pod CIDRs.
pub fn closed(direction: Direction) -> Name {
    format!("closed_{}", direction.name()).into()
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
    format!("{}_{}_{what}_{}", short(*direction), plain(namespace), letters(joined(&words).as_bytes())).into()
}

/// Returns the chain that asks a class on behalf of an address that several pods claim.
pub fn each(class: &Class) -> Name {
    format!("each_{}", self::class(class)).into()
}

/// Returns the chain of an address that pods of several classes claim.
pub fn shared(classes: &[std::sync::Arc<Class>]) -> Name {
    let names: Vec<Name> = classes.iter().map(|class| self::class(class)).collect();
    let words: Vec<&str> = names.iter().map(Name::as_str).collect();
    let direction = classes.first().map_or("", |class| short(class.direction));
    format!("{direction}_shared_{}", letters(joined(&words).as_bytes())).into()
}

/// Returns whether a chain is that of an address that several pods claim.
pub fn is_shared(chain: &Name) -> bool {
    ["in_shared_", "out_shared_"].iter().any(|head| chain.as_str().starts_with(head))
}

/// Returns whether an element closes paths, where most elements open some: it isolates an address, or refuses a Service.
pub fn closes(object: &Object) -> bool {
    let Object::Element(set, _) = object else { return false };
    let is_its = |name: Name| name == *set;
    let isolates = |family| Direction::BOTH.into_iter().any(|direction| is_its(isolated(direction, family)));
    let closes = |family| isolates(family) || is_its(host_endpoints(family));
    Family::BOTH.into_iter().any(closes) || set.as_str().starts_with("services_of_")
}

/// Returns the map of single ports of a class.
pub fn ports(class: &Name) -> Name {
    format!("{class}_ports").into()
}

/// Returns the map of port ranges of a class.
pub fn ranges(class: &Name, protocol: Protocol) -> Name {
    format!("{class}_{protocol}").into()
}

/// Returns the chain that accepts what comes from, or goes to, any of these peers.
pub fn peers(peers: &Peers) -> Name {
    let identities: Vec<String> = peers.sets.iter().map(|set| identity(set)).collect();
    let words: Vec<&str> = identities.iter().map(String::as_str).collect();
    let side = match peers.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let shown = match &*words {
        [_] => peers.sets.first().map_or_else(String::new, |set| shown(set)),
        several => format!("{}_sets", several.len()),
    };
    format!("{side}_{shown}_{}", letters(joined(&words).as_bytes())).into()
}

/// Returns a set of the rule set in one family.
pub fn set(key: &SetKey, family: Family) -> Name {
    format!("{}_{}_{}", shown(key), letters(identity(key).as_bytes()), number(family)).into()
}

/// Returns the union of several sets.
pub fn union(union: &Union, family: Family) -> Name {
    let identities: Vec<String> = union.sets.iter().map(|set| identity(set)).collect();
    let words: Vec<&str> = identities.iter().map(String::as_str).collect();
    let hash = letters(joined(&words).as_bytes());
    format!("any_of_{}_sets_{hash}_{}", words.len(), number(family)).into()
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
        SetKey::Denied(set) => format!("denied_{}", shown(set)),
    }
}

/// Returns the policies of a class as people write them, for comments.
pub fn policies(class: &Class) -> String {
    let names = class.policies.iter().map(ObjectName::to_string);
    let annotation = class.by_namespace.then(|| format!("the annotation of {}", class.namespace));
    names.chain(annotation).collect::<Vec<_>>().join(", ")
}

fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
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
mod tests {
    use super::super::super::given::{object, selector};
    use super::super::super::rules::Selection;
    use super::*;

    fn class_of(policies: &[&str], by_namespace: bool) -> Class {
        let policies = policies.iter().map(|name| object(name)).collect();
        Class { direction: Direction::Ingress, namespace: "shop".into(), policies, by_namespace }
    }

    fn head(name: &Name) -> &str {
        name.as_str().rsplit_once('_').expect("a hash").0
    }

    #[test]
    fn a_class_is_called_by_its_policies() {
        assert_eq!(head(&class(&class_of(&["shop/db"], false))), "in_shop_db");
        assert_eq!(head(&class(&class_of(&["shop/a", "shop/b"], false))), "in_shop_2_policies");
        assert_eq!(head(&class(&class_of(&[], true))), "in_shop_annotation");
        assert_ne!(class(&class_of(&["shop/a"], true)), class(&class_of(&["shop/a"], false)));
        assert_ne!(class(&class_of(&["shop/a", "shop/bc"], false)), class(&class_of(&["shop/ab", "shop/c"], false)));
    }

    #[test]
    fn every_name_can_be_read_by_nft_and_fits_into_the_kernel() {
        let odd = ObjectName::new(&"n".repeat(300), "sp ace\"{}#\u{e9}");
        let odd = Class {
            direction: Direction::Egress,
            namespace: odd.namespace.clone(),
            policies: [odd].into(),
            by_namespace: true,
        };
        let chain = class(&odd);
        let selection = Selection { namespaces: Scope::Named("a b".into()), pods: selector("app=web") };
        let six: IpAddr = "fd00:10:244::1".parse().unwrap();
        let endpoint_of = HostEndpoint { address: six, protocol: Protocol::Sctp, port: 65535 };
        for name in [
            each(&odd),
            ports(&chain),
            ranges(&chain, Protocol::Sctp),
            set(&SetKey::Pods(selection), Family::V6),
            refused_services(six),
            endpoint(&endpoint_of),
            isolated(Direction::Egress, Family::V4),
            to_itself(Family::V6),
        ] {
            let name = name.as_str();
            assert!(name.starts_with(|first: char| first.is_ascii_alphabetic()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c)), "{name}");
            assert!(name.len() < 128, "{name}: also the prefix of a logged packet");
        }
    }
}
