use std::net::IpAddr;

use super::*;
use crate::model::Scheduler;

fn parsed(yaml: &str) -> (Option<Service>, Vec<String>) {
    let object: ServiceObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
    let (_, service, warnings) = service(&object);
    (service, warnings.iter().map(Warning::to_string).collect())
}

fn with_spec(spec: &str) -> (Option<Service>, Vec<String>) {
    parsed(&format!("{{metadata: {{name: web}}, spec: {{clusterIP: 10.96.0.1, {spec}}}}}"))
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("the test's address is sound")).collect()
}

#[test]
fn everything_that_is_left_out_has_the_apis_default() {
    let (service, warnings) = with_spec("ports: [{port: 80}]");
    let service = service.expect("a Service with an address is served");
    assert_eq!(warnings, [""; 0]);
    assert_eq!(service.kind, ServiceType::ClusterIp);
    assert_eq!(*service.ports, [ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]);
    assert_eq!(service.affinity_seconds, None);
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.created, 0);
    assert_eq!(service.annotations.scheduler, Scheduler::Rr);
}

#[test]
fn json_of_the_api_and_yaml_of_a_manifest_give_the_same_service() {
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop","uid":"1",
        "creationTimestamp":"2026-11-20T08:00:00Z","managedFields":[{"manager":"x","fieldsV1":{"f:spec":{}}}],
        "annotations":{"kube-router.io/service.scheduler":"mh"}},
        "spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00:10:96::1"],
        "ports":[{"name":"http","protocol":"TCP","port":80,"targetPort":"web","nodePort":30080}],
        "sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}},
        "externalTrafficPolicy":"Local","internalTrafficPolicy":"Local","healthCheckNodePort":31000,
        "selector":{"app":"web"},"ipFamilies":["IPv4","IPv6"]},
        "status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.7","ipMode":"VIP"},{"ip":"203.0.113.8","ipMode":"Proxy"},
        {"hostname":"lb.example"}]},"conditions":[]}}"#;
    let from_json: ServiceObject = serde_json::from_str(json).expect("the test's JSON is sound");
    let from_yaml: ServiceObject = serde_saphyr::from_str(json).expect("JSON is YAML");
    let (name, value, warnings) = service(&from_json);
    assert_eq!(value, service(&from_yaml).1);
    assert_eq!((name.to_string().as_str(), warnings.len()), ("shop/web", 0));
    let value = value.expect("the Service is served");
    assert_eq!(value.cluster_ips, addresses(&["10.96.0.1", "fd00:10:96::1"]));
    assert_eq!(value.ports[0].node_port, Some(30080));
    assert_eq!(value.affinity_seconds, Some(60));
    assert_eq!(value.health_check_node_port, Some(31000));
    assert_eq!(value.created, 1_795_161_600);
    let balancer: Vec<bool> = value.load_balancer.iter().map(|entry| entry.through_balancer).collect();
    assert_eq!(balancer, [false, true]);
}

#[test]
fn services_that_no_node_serves_are_absent_without_a_word() {
    for yaml in [
        "{metadata: {name: a}, spec: {clusterIP: None}}",
        "{metadata: {name: a}, spec: {clusterIP: none, externalIPs: [203.0.113.1]}}",
        "{metadata: {name: a}, spec: {clusterIPs: [None]}}",
        "{metadata: {name: a}, spec: {type: ExternalName, externalName: example.org}}",
        "{metadata: {name: a, labels: {service.kubernetes.io/headless: ''}}, spec: {clusterIP: 10.96.0.1}}",
        "{metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: other}}, spec: {clusterIP: 10.96.0.1}}",
    ] {
        assert_eq!(parsed(yaml), (None, vec![]), "{yaml}");
    }
    let ours = "{metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: kube-router}}, \
                spec: {clusterIP: 10.96.0.1}}";
    assert!(parsed(ours).0.is_some());
}

#[test]
fn a_service_without_an_address_is_absent_and_says_why() {
    for spec in
        ["{}", "{clusterIP: ''}", "{clusterIP: nonsense}", "{clusterIPs: [127.0.0.1]}", "{clusterIP: 010.96.0.1}"]
    {
        let (service, warnings) = parsed(&format!("{{metadata: {{name: a}}, spec: {spec}}}"));
        assert!(service.is_none());
        assert!(warnings.last().is_some_and(|text| text.starts_with("spec.clusterIP: no usable")), "{warnings:?}");
    }
    let (service, warnings) = parsed("{metadata: {}, spec: {clusterIP: 10.96.0.1}}");
    assert!(service.is_none() && warnings[0].starts_with("metadata.name"));
}

#[test]
fn a_bad_item_is_left_out_and_the_rest_stays() {
    let (service, warnings) = parsed(
        "{metadata: {name: a}, spec: {clusterIPs: [10.96.0.1, bad], externalIPs: [203.0.113.1, 1.2.3, 203.0.113.1], \
         ports: [{name: a, port: 80}, {name: b, port: 70000}, {name: c, port: http}, {name: d, port: 81, protocol: ICMP}, \
         {name: e, port: 80}, {name: a, port: 82}, {name: f}, {name: g, port: 80, protocol: UDP}]}}",
    );
    let service = service.expect("the Service is served");
    assert_eq!(service.cluster_ips, addresses(&["10.96.0.1"]));
    assert_eq!(service.external_ips, addresses(&["203.0.113.1"]));
    let names: Vec<&str> = service.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["a", "g"]);
    assert_eq!(warnings.len(), 8);
    assert_eq!(warnings[3], "spec.ports[2].port: \"http\" is not a port; this port is left out");
}

#[test]
fn a_thousand_bad_ports_are_a_handful_of_warnings() {
    let ports: Vec<String> = (0..1000).map(|index| format!("{{name: p{index}, port: 0}}")).collect();
    let (service, warnings) = with_spec(&format!("ports: [{}]", ports.join(",")));
    assert!(service.expect("the Service is served").ports.is_empty());
    assert_eq!(warnings.len(), 8);
}

#[test]
fn load_balancer_addresses_count_only_for_the_type_that_has_them() {
    let yaml = |kind: &str| {
        format!(
            "{{metadata: {{name: a}}, spec: {{type: {kind}, clusterIP: 10.96.0.1}}, \
             status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}, {{ip: 127.0.0.1}}, {{ip: 203.0.113.2, ipMode: New}}]}}}}}}"
        )
    };
    for kind in ["ClusterIP", "NodePort"] {
        assert!(parsed(&yaml(kind)).0.expect("served").load_balancer.is_empty());
    }
    let (service, warnings) = parsed(&yaml("LoadBalancer"));
    let entries = service.expect("served").load_balancer;
    assert_eq!(entries.iter().map(|entry| entry.through_balancer).collect::<Vec<_>>(), [false, true]);
    assert_eq!(warnings.len(), 2);
}

#[test]
fn node_ports_need_a_type_that_has_them_and_are_unique() {
    let ports = "ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}, \
                 {name: c, port: 82, nodePort: 99999}, {name: d, port: 30, nodePort: 30000, protocol: UDP}]";
    let node_ports = |spec: &str| {
        let (service, warnings) = with_spec(spec);
        let ports: Vec<_> = service.expect("served").ports.iter().map(|port| port.node_port).collect();
        (ports, warnings.len())
    };
    assert_eq!(node_ports(&format!("type: NodePort, {ports}")), (vec![Some(30000), None, None, Some(30000)], 2));
    assert_eq!(node_ports(&format!("type: ClusterIP, {ports}")), (vec![None; 4], 4));
}

#[test]
fn affinity_has_a_default_and_a_range() {
    for (spec, expected, count) in [
        ("sessionAffinity: ClientIP", Some(10_800), 0),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}", Some(5), 0),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}", Some(10_800), 1),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {}", Some(10_800), 0),
        ("sessionAffinity: None", None, 0),
        ("sessionAffinity: Cookie", None, 1),
    ] {
        let (service, warnings) = with_spec(spec);
        assert_eq!((service.expect("served").affinity_seconds, warnings.len()), (expected, count), "{spec}");
    }
}

#[test]
fn unknown_words_are_taken_for_the_default_with_a_warning() {
    let (service, warnings) =
        with_spec("type: Magic, internalTrafficPolicy: Near, externalTrafficPolicy: Far, healthCheckNodePort: -1");
    let service = service.expect("served");
    assert_eq!(service.kind, ServiceType::ClusterIp);
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!((service.health_check_node_port, warnings.len()), (None, 4));
}

/// The source ranges of a load balancer with these fields and this annotation, and the warnings.
fn ranges(spec: &str, annotation: &str) -> (Option<Vec<String>>, Vec<String>) {
    let (service, warnings) = parsed(&format!(
        "{{metadata: {{name: web, annotations: {{service.beta.kubernetes.io/load-balancer-source-ranges: '{annotation}'}}}},
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}], {spec}}}}}"
    ));
    let found = service.expect("it is served").source_ranges;
    (found.map(|ranges| ranges.iter().map(ToString::to_string).collect()), warnings)
}

#[test]
fn source_ranges_are_those_of_the_spec_or_else_of_the_annotation() {
    let list = |texts: &[&str]| (Some(texts.iter().map(|text| text.to_string()).collect::<Vec<_>>()), Vec::new());
    assert_eq!(ranges("", ""), (None, Vec::new()));
    assert_eq!(ranges("loadBalancerSourceRanges: []", " "), (None, Vec::new()));
    let spec = "loadBalancerSourceRanges: [198.51.100.7/24, ' 2001:db8::/32 ', 10.0.0.0/8, 10.0.0.0/8]";
    assert_eq!(ranges(spec, "192.0.2.0/24"), list(&["10.0.0.0/8", "198.51.100.0/24", "2001:db8::/32"]));
    assert_eq!(ranges("", "192.0.2.0/24, 10.0.0.0/8"), list(&["10.0.0.0/8", "192.0.2.0/24"]));
}

#[test]
fn a_source_range_that_makes_no_sense_lets_nobody_in() {
    let (found, warnings) = ranges("loadBalancerSourceRanges: [everybody, 10.0.0.1, 10.0.0.0/8]", "");
    assert_eq!(found, Some(vec!["10.0.0.0/8".to_owned()]));
    assert_eq!(
        warnings,
        [
            "spec.loadBalancerSourceRanges: \"everybody\" is not a CIDR; no client is let in for it",
            "spec.loadBalancerSourceRanges: \"10.0.0.1\" is not a CIDR; no client is let in for it"
        ]
    );
    assert_eq!(ranges("", "0.0.0.0/33").0, Some(Vec::new()), "an open Service would be worse than a closed one");
}

#[test]
fn source_ranges_of_other_types_mean_nothing() {
    let (service, warnings) = with_spec("ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/8]");
    assert_eq!((service.expect("it is served").source_ranges, warnings.len()), (None, 0));
}
