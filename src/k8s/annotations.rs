//! Every annotation that is obeyed, its type and its meaning, in one table, and the parsing of those that the service
//! proxy, the firewall and the node facts need.
//!
//! The keys are a contract with manifests that exist: spelling and meaning are kube-router's. Where a value
//! is not understood the effect is that of an absent annotation, and a warning says so; but external peers stay as they were ([`peers`]).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;

use self::keys::{
    NAMESPACE_ISOLATION, NODE_ADDRESS, NODE_ASN, NODE_BGP_LOCAL_ADDRESSES, NODE_COMMUNITIES, NODE_IMPORT_REJECT,
    NODE_PEER_ASNS, NODE_PEER_IPS, NODE_PEER_LOCAL_IPS, NODE_PEER_PASSWORDS, NODE_PEER_PORTS, NODE_PEERS,
    NODE_POD_CIDR, NODE_POD_CIDRS, NODE_PREPEND_AS, NODE_PREPEND_REPEAT, NODE_REFLECTOR_CLIENT, NODE_REFLECTOR_SERVER,
    NODE_WIREGUARD_KEY, NODE_WIREGUARD_NEXT_KEY, SERVICE_ADVERTISE_CLUSTER_IP, SERVICE_ADVERTISE_EXTERNAL_IP,
    SERVICE_ADVERTISE_LOAD_BALANCER_IP, SERVICE_DSR, SERVICE_HAIRPIN, SERVICE_HAIRPIN_EXTERNAL, SERVICE_LOCAL,
    SERVICE_PREFIX, SERVICE_SCHEDFLAGS, SERVICE_SCHEDULER, SERVICE_SKIP_LB_IPS,
};
use super::warning::Warnings;
use crate::model::{AnnounceAnnotations, ProxyAnnotations, Scheduler, SchedulerFlags};
use crate::net::{PublicKey, go};

pub(in crate::k8s) mod keys;
mod peers;
pub mod pod_ranges;
mod routing;
mod value;

pub use keys::SERVICE_SOURCE_RANGES;
pub use routing::routing;

/// One row of [`TABLE`].
pub struct Annotation {
    pub key: &'static str,
    pub on: On,
    pub value: &'static str,
    pub meaning: &'static str,
}

/// The kind of object that carries an annotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Service,
    Node,
    Namespace,
}

/// All keys. Those of subsystems that do not exist yet are listed so that nobody gives them another meaning.
pub const TABLE: &[Annotation] = &[
    row(On::Service, SERVICE_SCHEDULER, "name of an IPVS scheduler", "the scheduler of every port; rr where absent"),
    row(On::Service, SERVICE_SCHEDFLAGS, "list of flag-1, flag-2, flag-3", "flags of the schedulers sh and mh"),
    row(On::Service, SERVICE_LOCAL, "true", "external traffic policy Local, whatever the spec says"),
    row(On::Service, SERVICE_SKIP_LB_IPS, "presence", "load balancer addresses are neither served nor announced"),
    row(
        On::Service,
        SERVICE_SOURCE_RANGES,
        "list of CIDRs",
        "clients of load balancer addresses; the spec's field wins",
    ),
    row(On::Service, SERVICE_DSR, "tunnel", "direct server return for external addresses"),
    row(On::Service, SERVICE_HAIRPIN, "presence", "an endpoint may reach itself by its Service, as it may without"),
    row(On::Service, SERVICE_HAIRPIN_EXTERNAL, "presence", "the same for external addresses, as without"),
    row(On::Service, SERVICE_ADVERTISE_CLUSTER_IP, "bool", "overrides --advertise-cluster-ip"),
    row(On::Service, SERVICE_ADVERTISE_EXTERNAL_IP, "bool", "overrides --advertise-external-ip"),
    row(On::Service, SERVICE_ADVERTISE_LOAD_BALANCER_IP, "bool", "overrides --advertise-loadbalancer-ip"),
    row(On::Node, NODE_POD_CIDRS, "list of CIDRs", "pod ranges of the node; wins over spec.podCIDRs"),
    row(On::Node, NODE_POD_CIDR, "CIDR", "pod range of the node, where neither pod-cidrs nor spec.podCIDRs names any"),
    row(On::Node, NODE_ASN, "number", "AS number of the node"),
    row(On::Node, NODE_REFLECTOR_SERVER, "number or IPv4 address", "route reflector with this cluster id"),
    row(On::Node, NODE_REFLECTOR_CLIENT, "number or IPv4 address", "client of the route reflectors"),
    row(On::Node, NODE_PREPEND_AS, "number", "AS to prepend towards external peers"),
    row(On::Node, NODE_PREPEND_REPEAT, "number", "how often to prepend it"),
    row(On::Node, NODE_COMMUNITIES, "list of communities", "added towards external peers"),
    row(On::Node, NODE_IMPORT_REJECT, "list of CIDRs", "routes never imported"),
    row(On::Node, NODE_PEERS, "YAML list", "external peers of the node"),
    row(On::Node, NODE_PEER_IPS, "list of addresses", "external peers, older form"),
    row(On::Node, NODE_PEER_ASNS, "list of numbers", "their AS numbers"),
    row(On::Node, NODE_PEER_PORTS, "list of numbers", "their TCP ports"),
    row(On::Node, NODE_PEER_PASSWORDS, "list of base64 texts", "their MD5 keys"),
    row(On::Node, NODE_PEER_LOCAL_IPS, "list of addresses", "our address towards each of them"),
    row(On::Node, NODE_BGP_LOCAL_ADDRESSES, "list of addresses", "addresses to listen on for BGP"),
    row(On::Node, NODE_WIREGUARD_KEY, "base64 of 32 bytes", "public key of the node; written by its own agent"),
    row(
        On::Node,
        NODE_WIREGUARD_NEXT_KEY,
        "base64 of 32 bytes",
        "the public key that follows, while it changes; written by its own agent",
    ),
    row(
        On::Node,
        NODE_ADDRESS,
        "list of addresses, one of each family",
        "addresses to route to the node, in place of its InternalIP; written by its own agent",
    ),
    row(
        On::Namespace,
        NAMESPACE_ISOLATION,
        "{\"ingress\":{\"isolation\":\"DefaultDeny\"}}",
        "pods of the namespace accept only what a policy allows",
    ),
];

/// Parses the annotations of a Service that the service proxy obeys.
pub fn proxy_annotations(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> ProxyAnnotations {
    warn_of_unknown(annotations, warnings);
    let dsr = is_dsr(annotations, warnings);
    let scheduler = scheduler(annotations, warnings);
    ProxyAnnotations {
        scheduler,
        scheduler_flags: scheduler_flags(annotations, scheduler, warnings),
        local: annotations.get(SERVICE_LOCAL).is_some_and(|value| value == "true"),
        skip_load_balancer_ips: annotations.contains_key(SERVICE_SKIP_LB_IPS),
        dsr,
    }
}

/// Returns whether a Service asks for direct server return. Its only method is `tunnel`.
fn is_dsr(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> bool {
    let Some(method) = annotations.get(SERVICE_DSR) else { return false };
    if method != "tunnel" {
        warnings.odd(SERVICE_DSR, format_args!("{method:?} is not \"tunnel\"; the Service is served with NAT"));
        return false;
    }
    true
}

/// Warns of annotations of a Service that look like ours and are none: whatever begins as ours do, and what is not far from one of ours where the
/// letters that differ are in front. Anything else is somebody else's, also in the domain, where there are annotations of other objects.
fn warn_of_unknown(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) {
    let known = || TABLE.iter().filter(|row| row.on == On::Service).map(|row| row.key);
    let meant = |key: &str| {
        let near = known().filter(|known| known.len().abs_diff(key.len()) <= NEAR);
        near.map(|known| (distance(key, known), known)).min().filter(|(far, _)| *far <= NEAR).map(|(_, known)| known)
    };
    let begins_so = |key: &&String| key.starts_with(SERVICE_PREFIX);
    let ours = annotations.range(SERVICE_PREFIX.to_owned()..).map(|(key, _)| key).take_while(begins_so);
    // An object may have thousands of annotations, and is read again at each change.
    let unknown = ours.filter(|key| known().all(|known| known != *key)).take(UNKNOWN_KEYS);
    let mut named: Vec<(&String, Option<&str>)> = unknown.map(|key| (key, meant(key))).collect();
    let others = annotations.keys().filter(|key| !begins_so(key) && key.contains(WORD)).take(COMPARED_KEYS);
    let others = others.filter_map(|key| Some((key, Some(meant(key)?))));
    named.extend(others.take(UNKNOWN_KEYS.saturating_sub(named.len())));
    for (key, meant) in named {
        let meant = meant.map(|known| format!("; {known} may be meant")).unwrap_or_default();
        warnings.odd(key.clone(), format_args!("no annotation of a Service is called so, and it has no effect{meant}"));
    }
}

/// Most letters by which a key may differ from the one that was meant.
const NEAR: usize = 2;
/// Most unknown keys of one object that are named.
const UNKNOWN_KEYS: usize = 8;
/// A key that does not begin as ours do, and does not have this word, is not looked at any further.
const WORD: &str = "router";
/// Most keys with that word of one object that are compared with those that are known.
const COMPARED_KEYS: usize = 64;

/// Returns the number of letters to be put in, taken out or replaced to make one key of another (Levenshtein).
pub fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (done, letter) in one.chars().enumerate() {
        let mut diagonal = done;
        let mut left = done + 1;
        for (place, wanted) in row.iter_mut().zip([None].into_iter().chain(other.iter().map(Some))) {
            let above = *place;
            *place = match wanted {
                None => left,
                Some(wanted) => (diagonal + usize::from(letter != *wanted)).min(above + 1).min(left + 1),
            };
            (diagonal, left) = (above, *place);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Parses the annotations of a Service that the router obeys.
pub fn announce_annotations(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> AnnounceAnnotations {
    let mut switch = |key: &'static str| {
        let text = annotations.get(key)?;
        let meant = go::switch(text.trim());
        if meant.is_none() {
            warnings.odd(key, format_args!("{text:?} is neither true nor false; the flag decides"));
        }
        meant
    };
    AnnounceAnnotations {
        cluster_ips: switch(SERVICE_ADVERTISE_CLUSTER_IP),
        external_ips: switch(SERVICE_ADVERTISE_EXTERNAL_IP),
        load_balancer_ips: switch(SERVICE_ADVERTISE_LOAD_BALANCER_IP),
    }
}

/// Returns the pod ranges in one annotation of a Node, [`NODE_POD_CIDRS`](keys::NODE_POD_CIDRS) or [`NODE_POD_CIDR`](keys::NODE_POD_CIDR); empty where there
/// are none.
pub fn pod_cidrs(annotations: &BTreeMap<String, String>, key: &'static str, warnings: &mut Warnings) -> Vec<IpNet> {
    let items = annotations.get(key).into_iter().flat_map(|list| list.split(','));
    pod_ranges::read(items.map(|item| (key, item.trim())), warnings)
}

/// Returns the public key of a Node for WireGuard. One that is not understood counts as none: nothing is sent to that node then.
pub fn wireguard_key(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Option<PublicKey> {
    public_key(NODE_WIREGUARD_KEY, annotations, warnings)
}

/// Returns the public key that follows that one; none where it is not understood.
pub fn wireguard_next_key(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Option<PublicKey> {
    public_key(NODE_WIREGUARD_NEXT_KEY, annotations, warnings)
}

fn public_key(key: &'static str, annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Option<PublicKey> {
    annotations.get(key)?.parse().map_err(|why| warnings.odd(key, format_args!("{why}"))).ok()
}

/// Returns whether a Namespace's annotation requests the isolation of all its pods. One that does not parse does:
/// whoever wrote it meant to close something, and a mistake never opens what was closed.
pub fn isolates(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> bool {
    #[derive(Deserialize)]
    struct Isolation {
        ingress: Option<Ingress>,
    }
    #[derive(Deserialize)]
    struct Ingress {
        isolation: Option<String>,
    }
    let Some(text) = annotations.get(NAMESPACE_ISOLATION).filter(|text| !text.is_empty()) else { return false };
    let written = match serde_json::from_str::<Isolation>(text) {
        Ok(written) => written.ingress.and_then(|ingress| ingress.isolation).unwrap_or_default(),
        Err(error) => {
            warnings.odd(NAMESPACE_ISOLATION, format_args!("{error}; the namespace is isolated all the same"));
            return true;
        }
    };
    match written.as_str() {
        "DefaultDeny" => true,
        "" => false,
        other => {
            let text = format_args!("the isolation {other:?} is not known; the namespace is isolated all the same");
            warnings.odd(NAMESPACE_ISOLATION, text);
            true
        }
    }
}

const fn row(on: On, key: &'static str, value: &'static str, meaning: &'static str) -> Annotation {
    Annotation { key, on, value, meaning }
}

fn scheduler(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Scheduler {
    let Some(name) = annotations.get(SERVICE_SCHEDULER) else { return Scheduler::default() };
    Scheduler::from_name(name.trim()).unwrap_or_else(|| {
        let known: Vec<&str> = Scheduler::ALL.into_iter().map(Scheduler::name).collect();
        warnings.odd(
            SERVICE_SCHEDULER,
            format_args!("no scheduler is called {name:?}; rr is used. Known: {}", known.join(" ")),
        );
        Scheduler::default()
    })
}

fn scheduler_flags(
    annotations: &BTreeMap<String, String>,
    scheduler: Scheduler,
    warnings: &mut Warnings,
) -> SchedulerFlags {
    let mut flags = SchedulerFlags::default();
    let Some(list) = annotations.get(SERVICE_SCHEDFLAGS) else { return flags };
    if !matches!(scheduler, Scheduler::Sh | Scheduler::Mh) {
        let text = format_args!("only sh and mh have flags, {} has none; they are ignored", scheduler.name());
        warnings.odd(SERVICE_SCHEDFLAGS, text);
        return flags;
    }
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item {
            "flag-1" => flags.flag_1 = true,
            "flag-2" => flags.flag_2 = true,
            "flag-3" => flags.flag_3 = true,
            _ => warnings.odd(SERVICE_SCHEDFLAGS, format_args!("{item:?} is none of flag-1, flag-2, flag-3")),
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(annotations: &[(&str, &str)]) -> (ProxyAnnotations, Vec<String>) {
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let mut warnings = Warnings::default();
        let value = proxy_annotations(&annotations, &mut warnings);
        (value, warnings.take().into_iter().map(|warning| warning.to_string()).collect())
    }

    #[test]
    fn every_scheduler_of_the_kernel_is_accepted() {
        for scheduler in Scheduler::ALL {
            let (value, warnings) = parsed(&[(SERVICE_SCHEDULER, scheduler.name())]);
            assert_eq!((value.scheduler, warnings.len()), (scheduler, 0));
        }
    }

    #[test]
    fn an_unknown_scheduler_is_rr_and_a_warning() {
        let (value, warnings) = parsed(&[(SERVICE_SCHEDULER, "fastest")]);
        assert_eq!(value.scheduler, Scheduler::Rr);
        assert!(warnings[0].starts_with("kube-router.io/service.scheduler: no scheduler is called \"fastest\""));
    }

    #[test]
    fn direct_server_return_is_asked_for_without_a_warning() {
        let (value, warnings) = parsed(&[("kube-router.io/service.dsr", "tunnel")]);
        assert_eq!(value, ProxyAnnotations { dsr: true, ..ProxyAnnotations::default() });
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn a_method_of_direct_server_return_that_is_not_known_is_nat_and_a_warning() {
        for method in ["", "Tunnel", "true", "route"] {
            let (value, warnings) = parsed(&[("kube-router.io/service.dsr", method)]);
            assert_eq!(value, ProxyAnnotations::default());
            let text =
                format!("kube-router.io/service.dsr: {method:?} is not \"tunnel\"; the Service is served with NAT");
            assert_eq!(warnings, [text]);
        }
    }

    #[test]
    fn a_misspelt_annotation_is_named_with_the_one_that_may_be_meant() {
        let (value, warnings) = parsed(&[("kube-router.io/service.schedular", "lc"), ("kube-router.io/service.x", "")]);
        assert_eq!(value, ProxyAnnotations::default());
        let none = "no annotation of a Service is called so, and it has no effect";
        assert_eq!(
            warnings,
            [
                format!("kube-router.io/service.schedular: {none}; kube-router.io/service.scheduler may be meant"),
                format!("kube-router.io/service.x: {none}"),
            ]
        );
        let far = "kube-router.io/service.something.else.altogether";
        assert_eq!(parsed(&[(far, "")]).1, [format!("{far}: {none}")]);
        for near in ["kube-router.io/servise.dsr", "kube-router.io/service-dsr", "kube-routers.io/service.dsr"] {
            let text = format!("{near}: {none}; kube-router.io/service.dsr may be meant");
            assert_eq!(parsed(&[(near, "tunnel")]), (ProxyAnnotations::default(), vec![text]));
        }
        // What is far from all that is known may be anybody's, and the domain has annotations of other objects.
        let others = ["kube-router.io/servicex", "kube-router.io/pod-cidr", "example.net/service.dsr", "router"];
        assert_eq!(parsed(&others.map(|key| (key, ""))).1, [""; 0]);
        for row in TABLE.iter().filter(|row| row.on == On::Service && row.key != SERVICE_DSR) {
            let named = parsed(&[(row.key, "rr")]).1.iter().any(|warning| warning.contains("is called so"));
            assert!(!named, "{}", row.key);
        }
    }

    #[test]
    fn of_very_many_unknown_annotations_the_first_are_named_at_little_cost() {
        let keys: Vec<String> = (0..10_000).map(|number| format!("kube-router.io/service.{number:05}")).collect();
        let all: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(parsed(&all).1.len(), UNKNOWN_KEYS);
        let long = format!("kube-router.io/service.{}", "x".repeat(200_000));
        assert_eq!(parsed(&[(&long, "")]).1.len(), 1);
        let keys: Vec<String> = (0..10_000).map(|number| format!("kube-router.io/service{number:05}")).collect();
        let mut all: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(parsed(&all).1, [""; 0], "they are compared, and the first of them alone");
        all.push(("kube-router.io/servise.dsr", ""));
        assert_eq!(parsed(&all).1, [""; 0]);
    }

    #[test]
    fn letters_that_differ_are_counted() {
        for (one, other, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "ac", 1), ("ac", "abc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn hairpin_is_on_for_every_service_and_its_annotations_are_no_mistake() {
        for key in ["kube-router.io/service.hairpin", "kube-router.io/service.hairpin.externalips"] {
            let (parsed, warnings) = parsed(&[(key, "")]);
            assert_eq!((parsed, warnings.len()), (ProxyAnnotations::default(), 0));
        }
    }

    #[test]
    fn flags_belong_to_the_hashing_schedulers() {
        for (scheduler, expected, count) in [("mh", true, 0), ("sh", true, 0), ("lc", false, 1)] {
            let (value, warnings) =
                parsed(&[(SERVICE_SCHEDULER, scheduler), (SERVICE_SCHEDFLAGS, " flag-1, flag-2 ,")]);
            let flags = value.scheduler_flags;
            assert_eq!((flags.flag_1, flags.flag_2, flags.flag_3), (expected, expected, false), "{scheduler}");
            assert_eq!(warnings.len(), count, "{warnings:?}");
        }
        let (_, warnings) = parsed(&[(SERVICE_SCHEDULER, "mh"), (SERVICE_SCHEDFLAGS, "flag-4")]);
        assert_eq!(warnings, ["kube-router.io/service.schedflags: \"flag-4\" is none of flag-1, flag-2, flag-3"]);
    }

    #[test]
    fn local_wants_exactly_true_and_skiplbips_only_presence() {
        let (value, _) = parsed(&[(SERVICE_LOCAL, "yes"), (SERVICE_SKIP_LB_IPS, "false")]);
        assert!(!value.local && value.skip_load_balancer_ips);
        assert!(parsed(&[(SERVICE_LOCAL, "true")]).0.local);
    }

    #[test]
    fn a_namespace_is_isolated_by_one_word_and_by_what_may_be_that_word() {
        for (value, isolated, odd) in [
            ("{\"ingress\":{\"isolation\":\"DefaultDeny\"}}", true, 0),
            (" { \"ingress\" : { \"isolation\" : \"DefaultDeny\", \"more\": 1 } } ", true, 0),
            ("{}", false, 0),
            ("{\"ingress\":{}}", false, 0),
            ("{\"ingress\":{\"isolation\":\"defaultdeny\"}}", true, 1),
            ("{\"ingress\":\"DefaultDeny\"}", true, 1),
            ("DefaultDeny", true, 1),
            ("", false, 0),
        ] {
            let annotations = [(NAMESPACE_ISOLATION.to_owned(), value.to_owned())].into();
            let mut warnings = Warnings::default();
            assert_eq!(isolates(&annotations, &mut warnings), isolated, "{value}");
            assert_eq!(warnings.take().len(), odd, "{value}");
        }
    }

    #[test]
    fn what_a_service_says_of_its_announcement_wins_when_it_says_yes_or_no() {
        let odd = "kube-router.io/service.advertise.externalip: \"yes\" is neither true nor false; the flag decides";
        for (text, meant, warning) in [("true", Some(true), None), ("0", Some(false), None), ("yes", None, Some(odd))] {
            let annotations = [(SERVICE_ADVERTISE_EXTERNAL_IP.to_owned(), text.to_owned())].into();
            let mut warnings = Warnings::default();
            let announce = announce_annotations(&annotations, &mut warnings);
            assert_eq!(announce, AnnounceAnnotations { external_ips: meant, ..AnnounceAnnotations::default() });
            assert_eq!(warnings.take().first().map(ToString::to_string).as_deref(), warning);
        }
    }

    #[test]
    fn no_key_stands_twice_in_the_table() {
        let mut keys: Vec<&str> = TABLE.iter().map(|row| row.key).collect();
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all);
        let others = [NAMESPACE_ISOLATION, SERVICE_SOURCE_RANGES];
        assert!(keys.iter().all(|key| key.starts_with("kube-router.io/") || others.contains(key)));
    }
}
