use super::*;
use crate::k8s::parse::ApiObject;
use crate::net::Protocol;

fn parsed(yaml: &str) -> (Option<SliceOf>, Vec<String>) {
    let object: EndpointSliceObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
    let (_, slice, warnings) = endpoint_slice(&object, &mut Pool::default());
    (slice, warnings.iter().map(Warning::to_string).collect())
}

fn with_body(body: &str) -> (SliceOf, Vec<String>) {
    let (slice, warnings) = parsed(&format!(
        "{{metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, {body}}}"
    ));
    (slice.expect("the test's slice is used"), warnings)
}

#[test]
fn absent_conditions_mean_what_the_api_says() {
    let (slice, warnings) = with_body(
        "ports: [{port: 8080}], endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2], conditions: {}}, \
         {addresses: [10.244.1.3], conditions: {ready: false}}, \
         {addresses: [10.244.1.4], conditions: {ready: false, serving: true, terminating: true}}, \
         {addresses: [10.244.1.5], conditions: {ready: null, serving: null, terminating: null}}, \
         {addresses: [10.244.1.6], conditions: {ready: false, terminating: true}}]",
    );
    let conditions: Vec<_> = slice
        .slice
        .endpoints
        .iter()
        .map(|e| (e.conditions.ready, e.conditions.serving, e.conditions.terminating))
        .collect();
    assert_eq!(
        conditions,
        [
            (true, true, false),
            (true, true, false),
            (false, true, false),
            (false, true, true),
            (true, true, false),
            (false, true, true)
        ]
    );
    assert_eq!(*slice.slice.ports, [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }]);
    assert!(warnings.is_empty());
}

#[test]
fn the_first_address_is_the_endpoint() {
    let (slice, _) = with_body("ports: [{port: 1}], endpoints: [{addresses: [10.244.1.1, 10.244.1.2], nodeName: a}]");
    let [endpoint] = &*slice.slice.endpoints.to_vec() else { panic!("one endpoint, one address") };
    assert_eq!((endpoint.address.to_string().as_str(), endpoint.node.as_deref()), ("10.244.1.1", Some("a")));
}

#[test]
fn hints_count_by_what_they_name_in_both_encodings() {
    let (slice, warnings) = with_body(
        "ports: [{port: 1}], endpoints: [{addresses: [10.244.1.1], hints: {forZones: [{name: east}], forNodes: [{name: n1}]}}, \
         {addresses: [10.244.1.2], hints: {forZones: [{name: east}, {}, {name: ''}]}}, {addresses: [10.244.1.3], hints: {}}, \
         {addresses: [10.244.1.4], hints: {forZones: null, forNodes: []}}, {addresses: [10.244.1.5], hints: null}]",
    );
    let of = |slice: &SliceOf| -> Vec<Option<(String, String)>> {
        let texts = |hints: &Arc<Hints>| (hints.zones.join(","), hints.nodes.join(","));
        slice.slice.endpoints.iter().map(|endpoint| endpoint.hints.as_ref().map(texts)).collect()
    };
    let one = |zones: &str, nodes: &str| Some((zones.to_owned(), nodes.to_owned()));
    assert_eq!(of(&slice), [one("east", "n1"), one("east", ""), None, None, None]);
    assert_eq!(warnings, ["endpoints[1].hints.forZones: a hint has no name; it is left out"]);

    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8][..], content].concat();
    let named = |number, name: &str| field(number, &field(1, name.as_bytes()));
    let hints = [named(1, "east"), named(2, "n1")].concat();
    let endpoint = [field(1, b"10.244.1.1"), field(7, b"elsewhere"), field(8, &hints)].concat();
    let label = [field(1, SERVICE_NAME.as_bytes()), field(2, b"web")].concat();
    let meta = [field(1, b"web-1"), field(11, &label)].concat();
    let bytes = [field(1, &meta), field(2, &endpoint), field(4, b"IPv4")].concat();
    let decode = EndpointSliceObject::FROM_PROTOBUF.expect("slices have this form");
    let object = decode(&bytes).expect("the test's bytes are sound");
    let (_, slice, _) = endpoint_slice(&object, &mut Pool::default());
    assert_eq!(of(&slice.expect("the slice is used")), [one("east", "n1")]);
}

#[test]
fn odd_ports_and_endpoints_are_left_out_and_the_rest_stays() {
    let (slice, warnings) = with_body(
        "ports: [{name: a, port: 80}, {name: b}, {name: c, port: null}, {name: null, port: 81}, {name: d, port: 99999}, \
         {name: e, port: 82, protocol: ICMP}, {name: a, port: 80}, {name: a, port: 83}], \
         endpoints: [{addresses: []}, {}, {addresses: [bad]}, {addresses: ['fd00:10:244::1']}, {addresses: [10.244.1.1]}]",
    );
    let ports: Vec<(&str, u16)> = slice.slice.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("a", 80), ("", 81)]);
    assert_eq!(slice.slice.endpoints.len(), 1);
    assert_eq!(warnings.len(), 8);
}

#[test]
fn a_slice_without_ports_or_endpoints_is_a_slice() {
    for body in ["ports: null, endpoints: null", "ports: [], endpoints: []", "ports: [{port: 80}]"] {
        let (slice, warnings) = with_body(body);
        assert_eq!((slice.slice.endpoints.len(), warnings.len()), (0, 0), "{body}");
    }
    let (slice, warnings) = with_body("endpoints: [{addresses: [10.244.1.1]}]");
    assert_eq!(slice.slice.endpoints.len(), 1);
    assert_eq!(warnings, ["ports: none usable, so nothing can be sent to the endpoints of this slice"]);
}

#[test]
fn the_service_is_named_by_label_then_single_owner_then_generated_name() {
    for (meta, expected) in [
        (
            "labels: {kubernetes.io/service-name: by-label}, ownerReferences: [{name: by-owner}], generateName: g-",
            Some("by-label"),
        ),
        ("ownerReferences: [{name: by-owner}], generateName: by-prefix-", Some("by-owner")),
        ("ownerReferences: [{name: one}, {name: two}], generateName: by-prefix-", Some("by-prefix")),
        ("labels: {kubernetes.io/service-name: ''}", None),
        ("labels: {}", None),
    ] {
        let (slice, warnings) = parsed(&format!("{{metadata: {{name: s, {meta}}}, addressType: IPv4}}"));
        assert_eq!(slice.as_ref().map(|slice| slice.service.as_str()), expected, "{meta}");
        assert_eq!(warnings.is_empty(), expected.is_some());
    }
}

#[test]
fn slices_that_no_node_needs_are_absent() {
    let labels = "kubernetes.io/service-name: web";
    for (yaml, count) in [
        (
            format!(
                "{{metadata: {{name: s, labels: {{{labels}, service.kubernetes.io/headless: ''}}}}, addressType: IPv4}}"
            ),
            0,
        ),
        (format!("{{metadata: {{name: s, labels: {{{labels}}}}}, addressType: FQDN}}"), 0),
        (format!("{{metadata: {{name: s, labels: {{{labels}}}}}, addressType: IPX}}"), 1),
        (format!("{{metadata: {{name: s, labels: {{{labels}}}}}}}"), 1),
    ] {
        let (slice, warnings) = parsed(&yaml);
        assert_eq!((slice, warnings.len()), (None, count), "{yaml}");
    }
}
