use super::*;
use crate::k8s::parse::protobuf::ApiObject;
use crate::net::Protocol;

fn parsed(yaml: &str) -> (Pod, Vec<String>) {
    let object: PodObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
    let (_, pod, warnings) = pod(&object, &mut Pool::default());
    (pod.expect("the test's Pod has a name"), warnings.iter().map(Warning::to_string).collect())
}

fn addresses_of(status: &str) -> (Vec<String>, usize) {
    let (pod, warnings) = parsed(&format!("{{metadata: {{name: a}}, status: {{{status}}}}}"));
    (pod.addresses.iter().map(IpAddr::to_string).collect(), warnings.len())
}

fn ports_of(spec: &str) -> (Vec<String>, Vec<String>) {
    let (pod, warnings) = parsed(&format!("{{metadata: {{name: a}}, spec: {{{spec}}}}}"));
    let ports = pod.ports.iter().map(|port| format!("{} {} {}", port.name, port.protocol, port.number));
    (ports.collect(), warnings)
}

#[test]
fn a_pod_as_the_api_sends_it() {
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-7d9f8b6c5-abcde","namespace":"shop",
        "generateName":"web-7d9f8b6c5-","uid":"1","labels":{"app":"web","pod-template-hash":"7d9f8b6c5"},
        "annotations":{"checksum/config":"0123"},"managedFields":[{"manager":"kubelet","fieldsV1":{"f:status":{}}}],
        "ownerReferences":[{"kind":"ReplicaSet","name":"web-7d9f8b6c5","apiVersion":"apps/v1","uid":"2"}]},
        "spec":{"nodeName":"node-1","containers":[{"name":"web","image":"web:1","ports":[
        {"name":"http","containerPort":8080,"protocol":"TCP"},{"containerPort":9000}],
        "livenessProbe":{"httpGet":{"path":"/","port":"http"}}}],"restartPolicy":"Always","tolerations":[]},
        "status":{"phase":"Running","hostIP":"192.0.2.1","podIP":"10.244.1.5",
        "podIPs":[{"ip":"10.244.1.5"},{"ip":"fd00:10:244:1::5"}],"conditions":[{"type":"Ready","status":"True"}]}}"#;
    let from_json: PodObject = serde_json::from_str(json).expect("the test's JSON is sound");
    let from_yaml: PodObject = serde_saphyr::from_str(json).expect("JSON is YAML");
    let mut pool = Pool::default();
    let (name, value, warnings) = pod(&from_json, &mut pool);
    assert_eq!((name.to_string().as_str(), warnings.len()), ("shop/web-7d9f8b6c5-abcde", 0));
    assert_eq!(value, pod(&from_yaml, &mut pool).1);
    let expected = Pod {
        uid: None,
        labels: [("app", "web"), ("pod-template-hash", "7d9f8b6c5")].into_iter().collect(),
        addresses: ["10.244.1.5", "fd00:10:244:1::5"].map(|text| text.parse().expect("sound")).into(),
        node: Some("node-1".into()),
        host_network: false,
        finished: false,
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }].into(),
    };
    assert_eq!(value, Some(expected));
}

#[test]
fn what_pods_have_in_common_is_in_memory_once() {
    let mut pool = Pool::default();
    let mut read = |name: &str| {
        let yaml = format!(
            "{{metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{nodeName: node-1, \
             containers: [{{ports: [{{name: http, containerPort: 80}}]}}]}}}}"
        );
        let object: PodObject = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
        pod(&object, &mut pool).1.expect("it has a name")
    };
    let (one, other) = (read("one"), read("other"));
    assert!(std::ptr::eq(&*one.ports, &*other.ports));
    assert!(std::ptr::eq(one.node.as_deref().expect("named"), other.node.as_deref().expect("named")));
    let place = |pod: &Pod| pod.labels.value("app").map(str::as_ptr);
    assert_eq!(one.labels, other.labels);
    assert!(std::ptr::eq(place(&one).expect("labelled"), place(&other).expect("labelled")));
}

#[test]
fn addresses_of_both_fields_count_once_and_in_order() {
    assert_eq!(addresses_of("podIP: 10.244.1.5"), (vec!["10.244.1.5".to_owned()], 0));
    assert_eq!(addresses_of("podIPs: [{ip: 'fd00:10:244::5'}, {ip: 10.244.1.5}]").0, ["fd00:10:244::5", "10.244.1.5"]);
    assert_eq!(
        addresses_of("podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: 10.244.1.6}]").0,
        ["10.244.1.5", "10.244.1.6"]
    );
    assert_eq!(addresses_of("podIP: '', podIPs: [{}]"), (vec![], 0));
    assert_eq!(addresses_of("podIP: 'fe80::1', podIPs: [{ip: 169.254.3.4}]").0, ["fe80::1", "169.254.3.4"]);
    assert_eq!(addresses_of("podIP: '::ffff:10.244.1.5'").0, ["10.244.1.5"]);
    for odd in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "'::1'", "10.244.1", "web"] {
        assert_eq!(addresses_of(&format!("podIP: {odd}")), (vec![], 1), "{odd}");
    }
}

#[test]
fn ports_are_those_of_containers_that_run_while_the_pod_runs() {
    let spec = "containers: [{ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}, \
                {name: dns, containerPort: 53}, {containerPort: 9}, {name: '', containerPort: 9}]}, \
                {ports: [{name: http, containerPort: 80}]}, {}], \
                initContainers: [{ports: [{name: once, containerPort: 7}]}, \
                {restartPolicy: Always, ports: [{name: mesh, containerPort: 15090, protocol: SCTP}]}]";
    let (ports, warnings) = ports_of(spec);
    assert_eq!(ports, ["dns tcp 53", "dns udp 53", "http tcp 80", "mesh sctp 15090"]);
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a_port_that_makes_no_sense_is_left_out_and_the_others_stay() {
    let spec = "containers: [{ports: [{name: a, containerPort: 0}, {name: b, containerPort: 65536}, {name: c}, \
                {name: d, containerPort: 1, protocol: tcp}, {name: e, containerPort: 2}]}]";
    let (ports, warnings) = ports_of(spec);
    assert_eq!(ports, ["e tcp 2"]);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert_eq!(warnings[3], "spec.containers[].ports[]: d: \"tcp\" is not a protocol; this port is left out");
}

#[test]
fn pods_that_take_no_part_are_values_too() {
    for (yaml, finished, host_network) in [
        ("{metadata: {name: a}}", false, false),
        ("{metadata: {name: a}, status: {phase: Pending}}", false, false),
        ("{metadata: {name: a}, status: {phase: Unknown, podIP: 10.244.1.5}}", false, false),
        ("{metadata: {name: a}, status: {phase: Succeeded, podIP: 10.244.1.5}}", true, false),
        ("{metadata: {name: a}, status: {phase: Failed, podIP: 10.244.1.5}}", true, false),
        ("{metadata: {name: a}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}", false, true),
    ] {
        let (pod, warnings) = parsed(yaml);
        assert_eq!((pod.finished, pod.host_network, warnings.len()), (finished, host_network, 0), "{yaml}");
        assert_eq!(pod.node, None);
        assert_eq!(pod.takes_part(), yaml.contains("Unknown"), "{yaml}");
    }
}

#[test]
fn a_pod_without_a_name_is_absent() {
    let object: PodObject = serde_saphyr::from_str("{metadata: {namespace: shop}}").expect("sound");
    let (_, pod, warnings) = pod(&object, &mut Pool::default());
    assert_eq!((pod, warnings.len()), (None, 1));
}

/// The kubelet names a static pod to the CNI plugin by the UID of its manifest; its object in the API has another one.
#[test]
fn a_mirror_pod_is_known_by_its_name_alone_in_either_form() {
    const UID: &str = "1f0a3a52-55c4-4d3e-9b0a-0242ac120002";
    // A field of the protocol-buffer form, of less than 128 bytes.
    let field = |tag: u8, value: &[u8]| [&[tag << 3 | 2, value.len() as u8][..], value].concat();
    for (annotation, has_uid) in [("kubernetes.io/config.mirror", false), ("kubernetes.io/config.seen", true)] {
        let (pod_of_yaml, _) =
            parsed(&format!("{{metadata: {{name: a, uid: {UID}, annotations: {{{annotation}: b}}}}}}"));
        let pair = [field(1, annotation.as_bytes()), field(2, b"b")].concat();
        let metadata = [field(1, b"a"), field(5, UID.as_bytes()), field(12, &pair)].concat();
        let read = PodObject::FROM_PROTOBUF.expect("pods are read in this form");
        let object = read(&field(1, &metadata)).expect("the test's bytes are sound");
        let pod_of_protobuf = pod(&object, &mut Pool::default()).1.expect("it has a name");
        for pod in [pod_of_yaml, pod_of_protobuf] {
            assert_eq!(pod.uid, PodUid::of(UID).filter(|_| has_uid), "{annotation}");
        }
    }
}
