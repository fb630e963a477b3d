//! The bytes in `tests/support/wire` came from kube-apiserver 1.36.3: the same lists in both encodings, a streaming list, a refusal.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::k8s::parse::{
    Pool, endpoint_slice_object, namespace_object, network_policy_object, node_object, pod_object, service_object,
};
use crate::k8s::watch::tests::api_server::protobuf;
use crate::k8s::{Kind, Object, Warning};

macro_rules! wire {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/support/wire/", $name))
    };
}

/// The lists of one kind: the real server's answers in both encodings, and the table of the scripted server.
fn read_alike<K: ApiObject>(
    kind: Kind,
    json: &'static [u8],
    protobuf: &'static [u8],
    parse: fn(&K, &mut Pool) -> (Object, Vec<Warning>),
) -> usize {
    let parsed = |encoding, bytes: Bytes| {
        let page: Page<K> = page(encoding, &bytes).expect("the server's own words");
        let version = page.version.expect("a list has a version");
        let items = page.items.into_iter().map(|item| {
            let object = item.expect("the server's own words");
            let meta = object.metadata();
            let versions = (meta.resource_version.clone(), meta.creation_timestamp.clone());
            (parse(&object, &mut Pool::default()), versions)
        });
        (version, page.next, items.collect::<Vec<_>>())
    };
    let from_json = parsed(Encoding::Json, Bytes::from_static(json));
    assert_eq!(parsed(Encoding::Protobuf, Bytes::from_static(protobuf)), from_json, "{kind}");
    let list: Value = serde_json::from_slice(json).expect("the server's own words");
    let items: Vec<&Value> = list["items"].as_array().expect("a list").iter().collect();
    let by_table = protobuf::list(kind.path(), &list["metadata"], &items);
    assert_eq!(parsed(Encoding::Protobuf, Bytes::from(by_table)), from_json, "{kind} by the table");
    from_json.2.len()
}

#[test]
fn both_encodings_of_a_real_server_say_the_same() {
    let services = read_alike(Kind::Service, wire!("services.json"), wire!("services.pb"), service_object);
    let (json, protobuf) = (wire!("endpointslices.json"), wire!("endpointslices.pb"));
    let slices = read_alike(Kind::EndpointSlice, json, protobuf, endpoint_slice_object);
    let nodes = read_alike(Kind::Node, wire!("nodes.json"), wire!("nodes.pb"), node_object);
    let pods = read_alike(Kind::Pod, wire!("pods.json"), wire!("pods.pb"), pod_object);
    let namespaces = read_alike(Kind::Namespace, wire!("namespaces.json"), wire!("namespaces.pb"), namespace_object);
    assert!(services == 3 && slices >= 3 && nodes == 1 && pods == 2 && namespaces >= 2);
}

type Slice = crate::k8s::parse::endpoint_slice::EndpointSliceObject;
type Service = crate::k8s::parse::service::ServiceObject;
type Policy = crate::k8s::parse::network_policy::NetworkPolicyObject;

/// The events of a stream, fed in pieces of this many bytes.
fn heard(encoding: Encoding, bytes: &[u8], piece: usize) -> Vec<String> {
    let mut events = Events::new(encoding);
    let mut heard = Vec::new();
    for piece in bytes.chunks(piece) {
        events.push(piece);
        while let Some(bytes) = events.cut().expect("no event is too long") {
            heard.push(match event::<Service>(encoding, bytes) {
                Ok(Change::Is(object)) => format!("is {}", object.metadata().name.as_deref().unwrap_or_default()),
                Ok(Change::Gone(object)) => format!("gone {}", object.metadata().name.as_deref().unwrap_or_default()),
                Ok(Change::Bookmark { version, ends_list }) => format!("mark {} {ends_list}", version.is_some()),
                Ok(Change::Refused(refusal)) => refusal.to_string(),
                Err(why) => format!("odd: {}", why.reason),
            });
        }
    }
    heard
}

#[test]
fn a_stream_is_cut_into_its_events_however_it_arrives() {
    let lines = b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"}}}\n\n\
        {\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"5\"}}}\r\n\
        {\"type\":\"ERROR\",\"object\":{\"code\":410,\"message\":\"too old\"}}\nnonsense\n{\"type\":";
    for piece in [1, 2, 3, 5, 7, 64, 1000, 100_000] {
        assert_eq!(
            heard(Encoding::Protobuf, wire!("watch.pb"), piece),
            ["is everything", "is headless", "is plain", "mark true true"],
            "{piece}"
        );
        let heard = heard(Encoding::Json, lines, piece);
        assert_eq!(heard[..3], ["is a", "mark true false", "too old (410)"], "{piece}");
        assert!(heard.len() == 4 && heard[3].starts_with("odd: "), "{heard:?}");
    }
}

#[test]
fn a_refusal_is_read_in_either_encoding_and_from_whoever_gives_it() {
    let real = refusal(Encoding::Protobuf, 422, &Bytes::from_static(wire!("refused.pb")));
    assert!(real.code == 422 && real.message.contains("resourceVersionMatch: Forbidden"), "{real}");
    let json = Bytes::from_static(b"{\"kind\":\"Status\",\"message\":\"no\",\"code\":403}");
    assert_eq!(refusal(Encoding::Json, 403, &json).to_string(), "no (403)");
    let proxy = Bytes::from_static(b"upstream is away\nbye");
    assert_eq!(refusal(Encoding::of(Some("text/plain")), 502, &proxy).to_string(), "upstream is away (502)");
    assert_eq!(refusal(Encoding::Protobuf, 500, &Bytes::new()).to_string(), "no reason given (500)");
}

#[test]
fn an_event_that_claims_to_be_endless_ends_the_stream() {
    let mut events = Events::new(Encoding::Protobuf);
    events.push(&[0xff, 0xff, 0xff, 0xff, 0]);
    assert_eq!(events.cut(), Err(TooLong));
    let mut lines = Events::new(Encoding::Json);
    for _ in 0..=LONGEST >> 20 {
        assert_eq!(lines.cut(), Ok(None));
        lines.push(&vec![b'x'; 1 << 20]);
    }
    assert_eq!(lines.cut(), Err(TooLong));
}

#[test]
fn bytes_that_are_damaged_break_nothing() {
    let whole = wire!("endpointslices.pb");
    let watch = wire!("watch.pb");
    for index in 0..whole.len().max(watch.len()) {
        for damage in [0x01, 0x80, 0xff] {
            let damaged = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.get_mut(index).into_iter().for_each(|byte| *byte ^= damage);
                bytes
            };
            drop(page::<Slice>(Encoding::Protobuf, &Bytes::from(damaged(whole))));
            let mut events = Events::new(Encoding::Protobuf);
            events.push(&damaged(watch));
            while let Ok(Some(bytes)) = events.cut() {
                drop(event::<Service>(Encoding::Protobuf, bytes));
            }
        }
        drop(page::<Slice>(Encoding::Protobuf, &Bytes::from_static(whole.get(..index).unwrap_or_default())));
    }
}

#[test]
fn policies_are_asked_for_in_the_encoding_that_shows_every_field() {
    assert_eq!(Accept::of::<Policy>().watch, "application/json");
    assert!(Accept::of::<Slice>().watch.starts_with("application/vnd.kubernetes.protobuf;stream=watch,"));
}

/// An object of one kind is read to its end, whatever comes of it.
fn read_all<K: ApiObject>(encoding: Encoding, bytes: &[u8], parse: fn(&K, &mut Pool) -> (Object, Vec<Warning>)) {
    let Ok(page) = page::<K>(encoding, &Bytes::copy_from_slice(bytes)) else { return };
    for object in page.items.into_iter().flatten() {
        drop(parse(&object, &mut Pool::default()));
    }
}

const POLICIES: &[u8] =
    br#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"p","namespace":"a"},"spec":{
    "podSelector":{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"tier","operator":"In","values":["a","b"]}]},
    "policyTypes":["Ingress","Egress"],
    "ingress":[{"from":[{"ipBlock":{"cidr":"203.0.113.0/24","except":["203.0.113.8/29"]}},
        {"namespaceSelector":{},"podSelector":{"matchLabels":{"x":"y"}}}],
      "ports":[{"protocol":"TCP","port":80,"endPort":90},{"port":"http"}]}],"egress":[{}]}}]}"#;

proptest! {
    #[test]
    fn lists_of_every_kind_that_are_damaged_break_nothing(
        kind in 0..6_usize,
        is_json in any::<bool>(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        (from, to) in any::<(prop::sample::Index, prop::sample::Index)>(),
        cut in 0..4_u8,
    ) {
        let wires: [[&[u8]; 2]; 6] = [
            [wire!("services.json"), wire!("services.pb")],
            [wire!("endpointslices.json"), wire!("endpointslices.pb")],
            [wire!("nodes.json"), wire!("nodes.pb")],
            [wire!("pods.json"), wire!("pods.pb")],
            [wire!("namespaces.json"), wire!("namespaces.pb")],
            [POLICIES, POLICIES],
        ];
        let encoding = if is_json { Encoding::Json } else { Encoding::Protobuf };
        let mut bytes = wires[kind][usize::from(!is_json)].to_vec();
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            // Other digits and letters leave more of a text readable than any byte does.
            bytes[at] = if is_json { b' ' + byte % 95 } else { byte };
        }
        if cut == 0 {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            bytes.drain(from.min(to)..from.max(to));
        }
        match kind {
            0 => read_all(encoding, &bytes, service_object),
            1 => read_all(encoding, &bytes, endpoint_slice_object),
            2 => read_all(encoding, &bytes, node_object),
            3 => read_all(encoding, &bytes, pod_object),
            4 => read_all(encoding, &bytes, namespace_object),
            _ => read_all(encoding, &bytes, network_policy_object),
        }
        drop(refusal(encoding, 500, &Bytes::from(bytes)));
    }
}
