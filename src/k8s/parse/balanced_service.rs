//! A Service, from the API's form to what the allocator of load balancer addresses needs.
//!
//! Kubernetes: core/v1 Service. Requests for addresses are read from `spec.loadBalancerIP` and from the annotations of MetalLB and of
//! Cilium's LB IPAM, so that clusters that come from there keep their addresses. The first of them that is there counts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::{CompactString, format_compact};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde::Deserialize;

use super::address_requests::{ADDRESS_ANNOTATIONS, POOL_ANNOTATIONS, SHARING_ANNOTATIONS, misspelt};
use super::metadata::{meta_with_givers, object_name};
use super::number::Number;
use super::protobuf::{ApiObject, FromProtobuf};
use crate::model::{AddressRequest, BalancedService, ClientPolicy, Labels, ObjectName, shortened};
use crate::net::{Family, PerFamily, Protocol};

/// The fields of a Service that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct BalancedServiceObject {
    #[serde(deserialize_with = "meta_with_givers")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

/// The name (`fieldManager`) with which the allocator writes a status in which all is its own.
pub const GIVER: &str = "kube-router-lballoc";
/// The one with which it writes a status that has entries of others too.
pub const GIVER_BESIDE_OTHERS: &str = "kube-router-lballoc-beside-others";

/// The `ipMode` of an address that nodes serve, and the default: with the other one, Proxy, a balancer in between does.
pub const VIP: &str = "VIP";

/// Most bytes that are kept of a text that whoever writes the Service chooses: as many as the name of a pool may have, which is a key of a ConfigMap.
const LONGEST: usize = 253;

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    load_balancer_class: Option<CompactString>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<String>,
    ip_families: Option<Vec<String>>,
    ip_family_policy: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    external_traffic_policy: Option<String>,
    selector: Option<BTreeMap<String, Option<String>>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize, Clone, Debug)]
struct Port {
    protocol: Option<String>,
    port: Option<Number>,
}

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize, Default, Clone, Debug)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

/// Read by the one agent that gives addresses, and as JSON alone.
impl ApiObject for BalancedServiceObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = None;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Parses a Service for the allocator. Whatever is odd in it is either a request that cannot be understood, or no concern of the
/// allocator's.
pub fn balanced_service(object: &BalancedServiceObject) -> (ObjectName, BalancedService) {
    let meta = &object.metadata;
    let absent = Spec::default();
    let spec = object.spec.as_ref().unwrap_or(&absent);
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let annotations = meta.annotations.as_ref();
    let annotation = |keys: &[&'static str]| {
        keys.iter().find_map(|key| Some((*key, annotations?.get(*key)?.trim()))).filter(|(_, value)| !value.is_empty())
    };
    let is_balancer = spec.kind.as_deref() == Some("LoadBalancer");
    let service = BalancedService {
        uid: meta.uid.as_deref().unwrap_or_default().into(),
        version: meta.resource_version.as_deref().unwrap_or_default().into(),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        labels: meta.labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Labels>(),
        is_balancer,
        class: spec.load_balancer_class.clone().filter(|class| !class.is_empty()),
        families: families(spec),
        needs_all_families: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        request: request(
            annotation(&ADDRESS_ANNOTATIONS)
                .or_else(|| Some(("spec.loadBalancerIP", spec.load_balancer_ip.as_deref()?.trim())))
                .filter(|(_, value)| !value.is_empty()),
            annotation(&POOL_ANNOTATIONS).map(|(_, name)| shortened(name, LONGEST)),
        ),
        misspelt: annotations.filter(|_| is_balancer).map(misspelt).unwrap_or_default(),
        sharing_key: annotation(&SHARING_ANNOTATIONS).map(|(_, key)| shortened(key, LONGEST)),
        ports: ports(spec),
        clients: clients(spec),
        external_ips: spec.external_ips.iter().flatten().filter_map(|text| text.trim().parse().ok()).collect(),
        status: ingress.into_iter().flatten().filter_map(address).collect(),
        not_served: ingress.into_iter().flatten().filter(|entry| !is_served(entry)).filter_map(address).collect(),
        is_given_here: meta.managed_fields.as_deref().is_some_and(is_given_here),
    };
    (object_name(meta), service)
}

fn address(entry: &Ingress) -> Option<IpAddr> {
    entry.ip.as_deref()?.parse().ok()
}

fn is_served(entry: &Ingress) -> bool {
    entry.ip_mode.as_deref().is_none_or(|mode| mode == VIP)
}

fn is_given_here(givers: &[ManagedFieldsEntry]) -> bool {
    !givers.is_empty() && givers.iter().all(|entry| entry.manager.as_deref() == Some(GIVER))
}

/// The API server sets `ipFamilies`; where it is absent, the families of the cluster IPs stand for it.
fn families(spec: &Spec) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut add = |family| {
        if !families.contains(&family) {
            families.push(family);
        }
    };
    for text in spec.ip_families.iter().flatten() {
        match text.as_str() {
            "IPv4" => add(Family::V4),
            "IPv6" => add(Family::V6),
            _ => {}
        }
    }
    if spec.ip_families.is_none() {
        spec.cluster_ips
            .iter()
            .flatten()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(Family::from)
            .for_each(add);
    }
    if families.is_empty() { vec![Family::V4] } else { families }
}

fn request(written: Option<(&'static str, &str)>, pool: Option<CompactString>) -> AddressRequest {
    let mut addresses = PerFamily::default();
    let mut mistake = None;
    if let Some((field, list)) = written {
        for text in list.split(',').map(str::trim) {
            match text.parse::<IpAddr>() {
                Err(_) => mistake = Some(format!("{field}: {:?} is not an IP address", shortened(text, LONGEST))),
                Ok(address) => {
                    let of_family: &mut Option<IpAddr> = addresses.of_mut(address.into());
                    if of_family.replace(address).is_some_and(|other| other != address) {
                        mistake = Some(format!("{field}: it asks for several addresses of one family"));
                    }
                }
            }
        }
    }
    AddressRequest { addresses, pool, mistake }
}

fn ports(spec: &Spec) -> Vec<(Protocol, u16)> {
    let read = |port: &Port| {
        let protocol = Protocol::from_api(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some((protocol, port.port.as_ref()?.port()?))
    };
    let mut ports: Vec<(Protocol, u16)> = spec.ports.iter().flatten().filter_map(read).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn clients(spec: &Spec) -> ClientPolicy {
    if spec.external_traffic_policy.as_deref() != Some("Local") {
        return ClientPolicy::Cluster;
    }
    let mut pods = CompactString::default();
    for (key, value) in spec.selector.iter().flatten() {
        pods.push_str(&format_compact!("{key}={},", value.as_deref().unwrap_or_default()));
    }
    ClientPolicy::Local(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(spec: &str, annotations: &str) -> BalancedService {
        let yaml = format!(
            "{{metadata: {{name: web, namespace: shop, resourceVersion: '7', creationTimestamp: '1970-01-01T00:01:00Z', \
             annotations: {{{annotations}}}}}, spec: {{{spec}}}, \
             status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.7}}, {{hostname: x}}]}}}}}}"
        );
        let object: BalancedServiceObject = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
        let (name, service) = balanced_service(&object);
        assert_eq!(name.to_string(), "shop/web");
        service
    }

    #[test]
    fn a_service_is_read_with_what_it_has_and_what_it_asks_for() {
        let spec = "type: LoadBalancer, loadBalancerClass: kube-router, ipFamilies: [IPv6, IPv4], \
                    ipFamilyPolicy: RequireDualStack, externalIPs: [198.51.100.1], externalTrafficPolicy: Local, \
                    selector: {tier: front, app: web}, ports: [{port: 443}, {port: 53, protocol: UDP}, {port: none}]";
        let service = parsed(spec, "");
        assert!(service.is_balancer && service.needs_all_families);
        assert_eq!((service.version.as_str(), service.created), ("7", 60));
        assert_eq!(service.class.as_deref(), Some("kube-router"));
        assert_eq!(service.families, [Family::V6, Family::V4]);
        assert_eq!(service.ports, [(Protocol::Tcp, 443), (Protocol::Udp, 53)]);
        assert_eq!(service.clients, ClientPolicy::Local("app=web,tier=front,".into()));
        assert_eq!((service.status.len(), service.external_ips.len()), (1, 1));
        assert_eq!(service.request, AddressRequest::default());
    }

    #[test]
    fn who_wrote_the_addresses_is_read_from_the_managed_fields() {
        let with = |fields: &str| {
            let yaml = format!("{{metadata: {{name: web, namespace: shop, managedFields: {fields}}}}}");
            let object: BalancedServiceObject = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
            balanced_service(&object).1.is_given_here
        };
        let gives = "fieldsV1: {'f:status': {'f:loadBalancer': {'f:ingress': {}}}}";
        let ours = format!("{{manager: kube-router-lballoc, {gives}}}");
        let kubectl = "{manager: kubectl, fieldsV1: {'f:spec': {}}}";
        assert!(with(&format!("[{kubectl}, {ours}]")));
        let beside = format!("{{manager: kube-router-lballoc-beside-others, {gives}}}");
        let other = format!("{{manager: controller, {gives}}}");
        let no_longer = "{manager: kube-router-lballoc, fieldsV1: {'f:status': {}}}";
        for others in [beside, other.clone(), format!("{ours}, {other}"), no_longer.to_owned(), kubectl.to_owned()] {
            assert!(!with(&format!("[{others}]")), "{others}");
        }
        assert!(!with("7") && !with("[x, {manager: 7}]") && !with("null"));
    }

    #[test]
    fn an_address_with_another_mode_than_vip_is_not_served_by_nodes() {
        let ingress = "[{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: '2001:db8::3', ipMode: Proxy}, {hostname: x, ipMode: Proxy}]";
        let yaml = format!("{{metadata: {{name: web}}, status: {{loadBalancer: {{ingress: {ingress}}}}}}}");
        let object: BalancedServiceObject = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
        let service = balanced_service(&object).1;
        let not_served: IpAddr = "2001:db8::3".parse().expect("an address");
        assert_eq!((service.status.len(), service.not_served), (3, vec![not_served]));
    }

    #[test]
    fn without_families_those_of_the_cluster_ips_count_and_else_ipv4() {
        assert_eq!(parsed("clusterIPs: ['fd00::1', 10.96.0.1]", "").families, [Family::V6, Family::V4]);
        assert_eq!(parsed("type: LoadBalancer", "").families, [Family::V4]);
    }

    #[test]
    fn every_spelling_of_a_request_is_read_and_the_first_one_counts() {
        let address: IpAddr = "203.0.113.9".parse().expect("an address");
        let field = "loadBalancerIP: 203.0.113.9";
        assert_eq!(parsed(field, "").request.addresses, PerFamily { v4: Some(address), v6: None });
        for key in ADDRESS_ANNOTATIONS {
            let request = parsed("loadBalancerIP: 203.0.113.1", &format!("{key}: '203.0.113.9, 2001:db8::9'")).request;
            assert_eq!(request.addresses.v4, Some(address), "{key}");
            assert_eq!(request.addresses.v6, "2001:db8::9".parse().ok(), "{key}");
        }
        for key in POOL_ANNOTATIONS {
            assert_eq!(parsed("", &format!("{key}: gold")).request.pool.as_deref(), Some("gold"), "{key}");
        }
        for key in SHARING_ANNOTATIONS {
            assert_eq!(parsed("", &format!("{key}: dns")).sharing_key.as_deref(), Some("dns"), "{key}");
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_named_with_its_field() {
        for (annotations, mistake) in [
            ("metallb.io/loadBalancerIPs: 203.0.113", "metallb.io/loadBalancerIPs: \"203.0.113\" is not an IP address"),
            (
                "lbipam.cilium.io/ips: '203.0.113.1,203.0.113.2'",
                "lbipam.cilium.io/ips: it asks for several addresses of one family",
            ),
        ] {
            assert_eq!(parsed("", annotations).request.mistake.as_deref(), Some(mistake));
        }
    }

    #[test]
    fn long_texts_are_cut_off_and_stay_different() {
        let long = |end: &str| format!("{}{end}", "\u{1f}x".repeat(30_000));
        let pool =
            |end: &str| parsed("", &format!("metallb.io/address-pool: {}", serde_json::json!(long(end)))).request.pool;
        assert!(pool("1").is_some_and(|name| name.len() < 300) && pool("1") != pool("2"));
        let key = |end: &str| {
            parsed("", &format!("metallb.io/allow-shared-ip: {}", serde_json::json!(long(end)))).sharing_key
        };
        assert!(key("1").is_some_and(|key| key.len() < 300) && key("1") != key("2"));
        let asked = parsed("", &format!("metallb.io/loadBalancerIPs: {}", serde_json::json!(long("1"))));
        assert!(asked.request.mistake.is_some_and(|text| text.len() < 2048));
        let whole = "g".repeat(253);
        let named = parsed("", &format!("metallb.io/address-pool: {whole}")).request.pool;
        assert_eq!(named.as_deref(), Some(whole.as_str()), "the longest name that a pool may have");
    }

    #[test]
    fn who_shares_an_address_has_the_same_key_other_ports_and_the_same_pods_where_traffic_stays_local() {
        let key = "metallb.io/allow-shared-ip: dns";
        let tcp = parsed("ports: [{port: 53}]", key);
        let udp = parsed("ports: [{port: 53, protocol: UDP}]", key);
        let other_key = parsed("ports: [{port: 80}]", "metallb.io/allow-shared-ip: web");
        let local = |app: &str, port: u16| {
            parsed(&format!("externalTrafficPolicy: Local, selector: {{app: {app}}}, ports: [{{port: {port}}}]"), key)
        };
        assert!(tcp.can_share_with(&udp) && !tcp.can_share_with(&tcp) && !udp.can_share_with(&other_key));
        assert!(local("a", 1).can_share_with(&local("a", 2)) && !local("a", 1).can_share_with(&local("b", 2)));
        assert!(!local("a", 1).can_share_with(&tcp));
        let without_selector =
            |port: u16| parsed(&format!("externalTrafficPolicy: Local, ports: [{{port: {port}}}]"), key);
        assert!(!without_selector(1).can_share_with(&without_selector(2)), "their pods are not known");
        let keyless = parsed("ports: [{port: 80}]", "");
        assert!(!keyless.can_share_with(&parsed("ports: [{port: 81}]", "")));
    }
}
