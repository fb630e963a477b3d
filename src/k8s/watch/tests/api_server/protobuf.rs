//! Objects of the API as protocol buffers, made from their JSON by a table of the fields' numbers.
//!
//! The table is written from the API's `generated.proto` files and holds more fields than the program reads. That it is right is
//! shown by what a real API server has said in both encodings (`tests/support/wire`).

use std::collections::BTreeMap;

use serde_json::Value;

/// Type of a field.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// A Go string that is not a pointer: it is written even where it is empty.
    Plain,
    Number,
    /// A Go number that is not a pointer.
    PlainNumber,
    Truth,
    PlainTruth,
    Map,
    Time,
    Message(&'static [Field]),
    /// A struct that is not a pointer.
    PlainMessage(&'static [Field]),
}

/// Name in JSON, number, form. A JSON array stands for a repeated field.
type Field = (&'static str, u32, Form);

use Form::{Map, Message, Number, Plain, PlainMessage, PlainNumber, PlainTruth, Text, Time, Truth};

const OWNER: &[Field] = &[
    ("kind", 1, Plain),
    ("name", 3, Plain),
    ("uid", 4, Plain),
    ("apiVersion", 5, Plain),
    ("controller", 6, Truth),
    ("blockOwnerDeletion", 7, Truth),
];

const META: &[Field] = &[
    ("name", 1, Plain),
    ("generateName", 2, Plain),
    ("namespace", 3, Plain),
    ("selfLink", 4, Plain),
    ("uid", 5, Plain),
    ("resourceVersion", 6, Plain),
    ("generation", 7, PlainNumber),
    ("creationTimestamp", 8, Time),
    ("labels", 11, Map),
    ("annotations", 12, Map),
    ("ownerReferences", 13, Message(OWNER)),
];

const SERVICE: &[Field] = &[
    ("metadata", 1, PlainMessage(META)),
    (
        "spec",
        2,
        PlainMessage(&[
            (
                "ports",
                1,
                Message(&[
                    ("name", 1, Plain),
                    ("protocol", 2, Plain),
                    ("port", 3, PlainNumber),
                    ("nodePort", 5, PlainNumber),
                    ("appProtocol", 6, Text),
                ]),
            ),
            ("selector", 2, Map),
            ("clusterIP", 3, Plain),
            ("type", 4, Plain),
            ("externalIPs", 5, Text),
            ("sessionAffinity", 7, Plain),
            ("loadBalancerIP", 8, Plain),
            ("externalName", 10, Plain),
            ("externalTrafficPolicy", 11, Plain),
            ("healthCheckNodePort", 12, PlainNumber),
            ("publishNotReadyAddresses", 13, PlainTruth),
            ("sessionAffinityConfig", 14, Message(&[("clientIP", 1, Message(&[("timeoutSeconds", 1, Number)]))])),
            ("ipFamilyPolicy", 17, Text),
            ("clusterIPs", 18, Text),
            ("ipFamilies", 19, Text),
            ("allocateLoadBalancerNodePorts", 20, Truth),
            ("loadBalancerClass", 21, Text),
            ("internalTrafficPolicy", 22, Text),
            ("trafficDistribution", 23, Text),
        ]),
    ),
    (
        "status",
        3,
        PlainMessage(&[(
            "loadBalancer",
            1,
            PlainMessage(&[("ingress", 1, Message(&[("ip", 1, Plain), ("hostname", 2, Plain), ("ipMode", 3, Text)]))]),
        )]),
    ),
];

const SLICE: &[Field] = &[
    ("metadata", 1, PlainMessage(META)),
    (
        "endpoints",
        2,
        Message(&[
            ("addresses", 1, Text),
            ("conditions", 2, PlainMessage(&[("ready", 1, Truth), ("serving", 2, Truth), ("terminating", 3, Truth)])),
            ("hostname", 3, Text),
            (
                "targetRef",
                4,
                Message(&[
                    ("kind", 1, Plain),
                    ("namespace", 2, Plain),
                    ("name", 3, Plain),
                    ("uid", 4, Plain),
                    ("apiVersion", 5, Plain),
                    ("resourceVersion", 6, Plain),
                    ("fieldPath", 7, Plain),
                ]),
            ),
            ("nodeName", 6, Text),
            ("zone", 7, Text),
            (
                "hints",
                8,
                Message(&[
                    ("forZones", 1, Message(&[("name", 1, Plain)])),
                    ("forNodes", 2, Message(&[("name", 1, Plain)])),
                ]),
            ),
        ]),
    ),
    ("ports", 3, Message(&[("name", 1, Text), ("protocol", 2, Text), ("port", 3, Number), ("appProtocol", 4, Text)])),
    ("addressType", 4, Plain),
];

const NODE: &[Field] = &[
    ("metadata", 1, PlainMessage(META)),
    (
        "spec",
        2,
        PlainMessage(&[
            ("podCIDR", 1, Plain),
            ("externalID", 2, Plain),
            ("providerID", 3, Plain),
            ("unschedulable", 4, PlainTruth),
            ("taints", 5, Message(&[("key", 1, Plain), ("value", 2, Plain), ("effect", 3, Plain)])),
            ("podCIDRs", 7, Text),
        ]),
    ),
    (
        "status",
        3,
        PlainMessage(&[("phase", 3, Plain), ("addresses", 5, Message(&[("type", 1, Plain), ("address", 2, Plain)]))]),
    ),
];

const CONTAINER: &[Field] = &[
    ("name", 1, Plain),
    ("image", 2, Plain),
    (
        "ports",
        6,
        Message(&[
            ("name", 1, Plain),
            ("hostPort", 2, PlainNumber),
            ("containerPort", 3, PlainNumber),
            ("protocol", 4, Plain),
            ("hostIP", 5, Plain),
        ]),
    ),
    ("restartPolicy", 24, Text),
];

const POD: &[Field] = &[
    ("metadata", 1, PlainMessage(META)),
    (
        "spec",
        2,
        PlainMessage(&[
            ("containers", 2, Message(CONTAINER)),
            ("nodeName", 10, Plain),
            ("hostNetwork", 11, PlainTruth),
            ("initContainers", 20, Message(CONTAINER)),
        ]),
    ),
    (
        "status",
        3,
        PlainMessage(&[
            ("phase", 1, Plain),
            ("hostIP", 5, Plain),
            ("podIP", 6, Plain),
            ("podIPs", 12, Message(&[("ip", 1, Plain)])),
        ]),
    ),
];

const NAMESPACE: &[Field] = &[("metadata", 1, PlainMessage(META))];
const SERVICE_CIDR: &[Field] = &[("metadata", 1, PlainMessage(META)), ("spec", 2, PlainMessage(&[("cidrs", 1, Text)]))];
const STATUS: &[Field] = &[("status", 2, Plain), ("message", 3, Plain), ("reason", 4, Plain), ("code", 6, PlainNumber)];
const LIST_META: &[Field] = &[("selfLink", 1, Plain), ("resourceVersion", 2, Plain), ("continue", 3, Plain)];

/// The form of the objects of a collection; `None` for one that has no table.
fn form(path: &str) -> Option<&'static [Field]> {
    match path.rsplit('/').next() {
        Some("services") => Some(SERVICE),
        Some("endpointslices") => Some(SLICE),
        Some("nodes") => Some(NODE),
        Some("pods") => Some(POD),
        Some("namespaces") => Some(NAMESPACE),
        Some("servicecidrs") => Some(SERVICE_CIDR),
        _ => None,
    }
}

/// An object of a collection, without the envelope. Panics where the object does not have the form of the API.
pub fn object(path: &str, object: &Value) -> Vec<u8> {
    let mut out = message(form(path).expect("this kind has a table"), object);
    if object["spec"]["ports"].is_string() {
        // An object of another form than the API's has no such encoding: `spec` becomes a number, which is invalid.
        variable(&mut out, 2, 1);
    }
    out
}

/// An event of a watch, as it goes over the wire. `line`: the same in JSON; what is not JSON is sent as it is, within its length.
pub fn event(path: &str, line: &str) -> Vec<u8> {
    let body = serde_json::from_str::<Value>(line).ok().and_then(|event| encoded_event(path, &event));
    let body = body.unwrap_or_else(|| line.as_bytes().to_vec());
    let mut all = u32::try_from(body.len()).expect("a short event").to_be_bytes().to_vec();
    all.extend(body);
    all
}

fn encoded_event(path: &str, event: &Value) -> Option<Vec<u8>> {
    let kind = event["type"].as_str()?;
    let of = &event["object"];
    of["metadata"].as_object().or(of.as_object().filter(|_| kind == "ERROR"))?;
    let inner = match kind {
        "ERROR" => message(STATUS, of),
        "BOOKMARK" => message(NAMESPACE, of),
        _ => object(path, of),
    };
    let mut extension = Vec::new();
    bytes(&mut extension, 1, &envelope(&inner));
    let mut body = Vec::new();
    bytes(&mut body, 1, kind.as_bytes());
    bytes(&mut body, 2, &extension);
    Some(body)
}

/// A list, as it goes over the wire.
pub fn list(path: &str, metadata: &Value, items: &[&Value]) -> Vec<u8> {
    let mut body = Vec::new();
    bytes(&mut body, 1, &message(LIST_META, metadata));
    for item in items {
        bytes(&mut body, 2, &object(path, item));
    }
    envelope(&body)
}

pub fn status(value: &Value) -> Vec<u8> {
    envelope(&message(STATUS, value))
}

fn envelope(inner: &[u8]) -> Vec<u8> {
    let mut all = b"k8s\0".to_vec();
    let mut kind = Vec::new();
    bytes(&mut kind, 1, b"v1");
    bytes(&mut all, 1, &kind);
    bytes(&mut all, 2, inner);
    bytes(&mut all, 3, b"");
    bytes(&mut all, 4, b"");
    all
}

fn message(fields: &[Field], value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, number, form) in fields {
        match &value[*name] {
            Value::Array(items) => items.iter().for_each(|item| field(&mut out, *number, *form, item)),
            item => field(&mut out, *number, *form, item),
        }
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, form: Form, value: &Value) {
    let is_there = !value.is_null();
    match form {
        Text if !is_there => {}
        Text | Plain => bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Number | Truth if !is_there => {}
        Number | PlainNumber => variable(out, number, value.as_i64().unwrap_or(0).cast_unsigned()),
        Truth | PlainTruth => variable(out, number, u64::from(value.as_bool().unwrap_or(false))),
        Map => {
            let entries: BTreeMap<&String, &Value> = value.as_object().into_iter().flatten().collect();
            for (key, value) in entries {
                let mut entry = Vec::new();
                bytes(&mut entry, 1, key.as_bytes());
                bytes(&mut entry, 2, value.as_str().unwrap_or_default().as_bytes());
                bytes(out, number, &entry);
            }
        }
        Time => {
            let mut time = Vec::new();
            if let Some(seconds) = value.as_str().and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok()) {
                variable(&mut time, 1, seconds.as_second().cast_unsigned());
                variable(&mut time, 2, 0);
            }
            bytes(out, number, &time);
        }
        Message(_) if !is_there => {}
        Message(fields) | PlainMessage(fields) => bytes(out, number, &message(fields, value)),
    }
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn variable(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number << 3));
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
