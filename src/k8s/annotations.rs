//! Every annotation that is obeyed, its type and its meaning, in one table, and the parsing of those that the service
//! proxy, the firewall and the node facts need.
//!
//! The keys are a contract with manifests that exist: spelling and meaning are kube-router's. Where a value
//! is not understood the effect is that of an absent annotation, and a warning says so.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;

use super::parse::Warnings;
use crate::model::{ProxyAnnotations, Scheduler, SchedulerFlags};

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

pub const SERVICE_SCHEDULER: &str = "kube-router.io/service.scheduler";
pub const SERVICE_SCHEDFLAGS: &str = "kube-router.io/service.schedflags";
pub const SERVICE_LOCAL: &str = "kube-router.io/service.local";
pub const SERVICE_SKIP_LB_IPS: &str = "kube-router.io/service.skiplbips";
pub const NODE_POD_CIDR: &str = "kube-router.io/pod-cidr";
pub const NODE_POD_CIDRS: &str = "kube-router.io/pod-cidrs";

/// Older than NetworkPolicy v1, and the one key here that is not in kube-router's own domain.
pub const NAMESPACE_ISOLATION: &str = "net.beta.kubernetes.io/network-policy";

/// All keys. Those of subsystems that do not exist yet are listed so that nobody gives them another meaning.
pub const TABLE: &[Annotation] = &[
    row(On::Service, SERVICE_SCHEDULER, "name of an IPVS scheduler", "the scheduler of every port; rr where absent"),
    row(On::Service, SERVICE_SCHEDFLAGS, "list of flag-1, flag-2, flag-3", "flags of the schedulers sh and mh"),
    row(On::Service, SERVICE_LOCAL, "true", "external traffic policy Local, whatever the spec says"),
    row(On::Service, SERVICE_SKIP_LB_IPS, "presence", "load balancer addresses are neither served nor announced"),
    row(On::Service, "kube-router.io/service.dsr", "tunnel", "direct server return for external addresses"),
    row(On::Service, "kube-router.io/service.hairpin", "presence", "an endpoint may reach itself by its Service"),
    row(On::Service, "kube-router.io/service.hairpin.externalips", "presence", "hairpin for external addresses too"),
    row(On::Service, "kube-router.io/service.advertise.clusterip", "bool", "overrides --advertise-cluster-ip"),
    row(On::Service, "kube-router.io/service.advertise.externalip", "bool", "overrides --advertise-external-ip"),
    row(
        On::Service,
        "kube-router.io/service.advertise.loadbalancerip",
        "bool",
        "overrides --advertise-loadbalancer-ip",
    ),
    row(On::Node, NODE_POD_CIDRS, "list of CIDRs", "pod ranges of the node; wins over spec.podCIDRs"),
    row(On::Node, NODE_POD_CIDR, "CIDR", "pod range of the node; wins over spec.podCIDR"),
    row(On::Node, "kube-router.io/node.asn", "number", "AS number of the node"),
    row(On::Node, "kube-router.io/rr.server", "number or IPv4 address", "route reflector with this cluster id"),
    row(On::Node, "kube-router.io/rr.client", "number or IPv4 address", "client of the route reflectors"),
    row(On::Node, "kube-router.io/path-prepend.as", "number", "AS to prepend towards external peers"),
    row(On::Node, "kube-router.io/path-prepend.repeat-n", "number", "how often to prepend it"),
    row(On::Node, "kube-router.io/node.bgp.communities", "list of communities", "added towards external peers"),
    row(On::Node, "kube-router.io/node.bgp.customimportreject", "list of CIDRs", "routes never imported"),
    row(On::Node, "kube-router.io/peers", "YAML list", "external peers of the node"),
    row(On::Node, "kube-router.io/peer.ips", "list of addresses", "external peers, older form"),
    row(On::Node, "kube-router.io/peer.asns", "list of numbers", "their AS numbers"),
    row(On::Node, "kube-router.io/peer.ports", "list of numbers", "their TCP ports"),
    row(On::Node, "kube-router.io/peer.passwords", "list of base64 texts", "their MD5 keys"),
    row(On::Node, "kube-router.io/peer.localips", "list of addresses", "our address towards each of them"),
    row(On::Node, "kube-router.io/bgp-local-addresses", "list of addresses", "addresses to listen on for BGP"),
    row(
        On::Namespace,
        NAMESPACE_ISOLATION,
        "{\"ingress\":{\"isolation\":\"DefaultDeny\"}}",
        "pods of the namespace accept only what a policy allows",
    ),
];

/// What the service proxy obeys of a Service's annotations.
pub fn proxy_annotations(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> ProxyAnnotations {
    let scheduler = scheduler(annotations, warnings);
    ProxyAnnotations {
        scheduler,
        scheduler_flags: scheduler_flags(annotations, scheduler, warnings),
        local: annotations.get(SERVICE_LOCAL).is_some_and(|value| value == "true"),
        skip_load_balancer_ips: annotations.contains_key(SERVICE_SKIP_LB_IPS),
    }
}

/// The pod ranges that a Node's annotations give; empty where they give none.
pub fn pod_cidrs(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for key in [NODE_POD_CIDR, NODE_POD_CIDRS] {
        let Some(list) = annotations.get(key) else { continue };
        for item in list.split(',').map(str::trim) {
            match item.parse::<IpNet>() {
                Ok(range) if !ranges.contains(&range.trunc()) => ranges.push(range.trunc()),
                Ok(_) => {}
                Err(_) => warnings.odd(key, format_args!("{item:?} is not a CIDR; it is left out")),
            }
        }
    }
    ranges
}

/// Whether a Namespace's annotation asks for the isolation of all its pods.
pub fn isolates(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> bool {
    #[derive(Deserialize)]
    struct Isolation {
        ingress: Option<Ingress>,
    }
    #[derive(Deserialize)]
    struct Ingress {
        isolation: Option<String>,
    }
    let Some(text) = annotations.get(NAMESPACE_ISOLATION) else { return false };
    let written = match serde_json::from_str::<Isolation>(text) {
        Ok(written) => written.ingress.and_then(|ingress| ingress.isolation).unwrap_or_default(),
        Err(error) => {
            warnings.odd(NAMESPACE_ISOLATION, format_args!("{error}; the namespace is not isolated by it"));
            return false;
        }
    };
    match written.as_str() {
        "DefaultDeny" => true,
        "" => false,
        other => {
            let text = format_args!("the isolation {other:?} is not known; the namespace is not isolated by it");
            warnings.odd(NAMESPACE_ISOLATION, text);
            false
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
    fn a_namespace_is_isolated_by_exactly_one_word_and_by_no_mistake() {
        for (value, isolated, odd) in [
            ("{\"ingress\":{\"isolation\":\"DefaultDeny\"}}", true, 0),
            (" { \"ingress\" : { \"isolation\" : \"DefaultDeny\", \"more\": 1 } } ", true, 0),
            ("{}", false, 0),
            ("{\"ingress\":{}}", false, 0),
            ("{\"ingress\":{\"isolation\":\"defaultdeny\"}}", false, 1),
            ("{\"ingress\":\"DefaultDeny\"}", false, 1),
            ("DefaultDeny", false, 1),
            ("", false, 1),
        ] {
            let annotations = [(NAMESPACE_ISOLATION.to_owned(), value.to_owned())].into();
            let mut warnings = Warnings::default();
            assert_eq!(isolates(&annotations, &mut warnings), isolated, "{value}");
            assert_eq!(warnings.take().len(), odd, "{value}");
        }
    }

    #[test]
    fn no_key_stands_twice_in_the_table() {
        let mut keys: Vec<&str> = TABLE.iter().map(|row| row.key).collect();
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all);
        assert!(keys.iter().all(|key| key.starts_with("kube-router.io/") || *key == NAMESPACE_ISOLATION));
    }
}
