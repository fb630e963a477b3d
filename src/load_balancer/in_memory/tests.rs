//! Tests of decisions about the Services of files.

use super::*;
use crate::config::ServiceRanges;
use crate::k8s::parse::balanced_service::{BalancedServiceObject, balanced_service};
use crate::k8s::parse::service::{ServiceObject, service};
use crate::model::{AddressPools, ReservedAddresses};
use std::time::Duration;

pub fn config() -> LoadBalancerConfig {
    let ranges = ServiceRanges {
        strict: true,
        load_balancer_ips: vec!["203.0.113.0/29".parse().expect("a prefix"), "2001:db8::/125".parse().expect("one")],
        ..ServiceRanges::default()
    };
    LoadBalancerConfig {
        served_external_ips: ranges.clone(),
        ranges,
        takes_default_class: true,
        sync_period: Duration::from_secs(60),
        namespace: "kube-system".to_owned(),
        identity: "node-1".to_owned(),
    }
}

/// Services by name, each with the rest of its YAML.
fn services(all: &[(&str, &str)]) -> Vec<String> {
    let text = |(name, rest): &(&str, &str)| {
        format!(
            "{{metadata: {{name: {name}, namespace: shop}}, spec: {{type: LoadBalancer, clusterIP: 10.96.0.1{rest}}}"
        )
    };
    all.iter().map(|one| text(one) + "}").collect()
}

/// The addresses that the rest of the program gets to see of each Service, and the reasons of what there is to tell.
fn given(all: &[(&str, &str)]) -> (Vec<String>, Vec<&'static str>) {
    let texts = services(all);
    let balanced: Services = texts
        .iter()
        .map(|text| {
            let object: BalancedServiceObject = serde_saphyr::from_str(text).expect("the test's YAML is sound");
            let (name, service) = balanced_service(&object);
            (name, Arc::new(service))
        })
        .collect();
    let (pools, mistakes) = Pools::new(&config().ranges, &AddressPools::default(), &ReservedAddresses::default());
    assert!(mistakes.is_empty());
    let decided = decided(&config(), &balanced, pools, Instant::now());
    let addresses = texts.iter().map(|text| {
        let object: ServiceObject = serde_saphyr::from_str(text).expect("the test's YAML is sound");
        let (name, service, _) = service(&object);
        let with = decided.with_addresses(&name, &Arc::new(service.expect("it is served")));
        let all: Vec<String> = with.load_balancer.iter().map(|one| one.address.to_string()).collect();
        format!("{} {}", name.name, all.join(" "))
    });
    (addresses.collect(), decided.matters.iter().map(|(_, matter)| matter.reason()).collect())
}

#[test]
fn files_alone_decide_who_has_which_address_whatever_their_order_and_whatever_was_before() {
    let dual = ", ipFamilies: [IPv4, IPv6]";
    let (one, reasons) = given(&[("a", dual), ("b", ""), ("c", ", ipFamilies: [IPv6]")]);
    assert_eq!(one, ["a 203.0.113.1 2001:db8::1", "b 203.0.113.2", "c 2001:db8::2"]);
    assert_eq!(reasons, ["LoadBalancerAddressGiven"; 4]);
    let (mut other, _) = given(&[("c", ", ipFamilies: [IPv6]"), ("b", ""), ("a", dual)]);
    other.reverse();
    assert_eq!(one, other, "on another node");
}

#[test]
fn a_request_and_a_status_in_a_file_come_before_names() {
    let status = "}, status: {loadBalancer: {ingress: [{ip: 203.0.113.2}]}";
    let (all, reasons) = given(&[("a", ""), ("b", ", loadBalancerIP: 203.0.113.1"), ("c", status)]);
    assert_eq!(all, ["a 203.0.113.3", "b 203.0.113.1", "c 203.0.113.2"]);
    assert_eq!(reasons, ["LoadBalancerAddressGiven"; 2]);
    let (all, reasons) = given(&[("b", ", loadBalancerIP: 203.0.113.2"), ("c", status)]);
    assert_eq!(all, ["b ", "c 203.0.113.2"]);
    assert_eq!(reasons, ["RequestedAddressTaken"]);
}

#[test]
fn two_files_that_name_one_address_get_one_owner_and_others_addresses_stay() {
    let of = |address: &str| format!("}}, status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}");
    let (all, _) = given(&[("a", &of("203.0.113.4")), ("b", &of("203.0.113.4")), ("c", &of("198.51.100.9"))]);
    assert_eq!(all, ["a 203.0.113.4", "b 203.0.113.1", "c 198.51.100.9"]);
}

#[test]
fn a_service_that_is_no_load_balancer_or_anothers_gets_none_and_a_pool_that_is_full_is_told() {
    let (all, _) = given(&[("a", ", loadBalancerClass: other"), ("b", ", loadBalancerClass: kube-router")]);
    assert_eq!(all, ["a ", "b 203.0.113.1"]);
    let names: Vec<String> = (0..7).map(|number| format!("s{number}")).collect();
    let seven: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let (all, reasons) = given(&seven);
    assert_eq!(all.last().map(String::as_str), Some("s6 "), "a /29 has six that are no edge");
    assert_eq!(reasons.last(), Some(&"AddressPoolExhausted"));
}
