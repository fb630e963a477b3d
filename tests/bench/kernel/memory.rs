//! Memory of endpoints: as the API's full objects, and as our World holds them.

use std::hint::black_box;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sluice::k8s::parse::Pool;
use sluice::k8s::parse::endpoint_slice::{EndpointSliceObject, endpoint_slice};
use sluice::model::{Endpoints, ObjectName, World};

const SLICES: usize = 1_000;
const ENDPOINTS: usize = 100;

pub fn measure() -> Result<(), String> {
    // Warms up the allocator.
    black_box((full(1), ours(1)));
    let before = resident();
    let ours = ours(SLICES);
    let of_ours = resident() - before;
    let before = resident();
    let full = full(SLICES);
    let of_full = resident() - before;
    assert_eq!((ours.cluster.endpoints.len(), full.len()), (SLICES, SLICES));
    println!("\n{} endpoints in {SLICES} slices, resident memory", SLICES * ENDPOINTS);
    println!("  {:<62} {:>10.2} MiB {:>9.2}", "k8s-openapi, full objects", mib(of_full), 1.0);
    println!("  {:<62} {:>10.2} MiB {:>9.2}", "model::World", mib(of_ours), of_full as f64 / of_ours as f64);
    Ok(())
}

fn full(slices: usize) -> Vec<EndpointSlice> {
    (0..slices).map(|index| serde_json::from_str(&text(index)).expect("an EndpointSlice")).collect()
}

fn ours(slices: usize) -> World {
    let mut world = World::empty();
    let mut pool = Pool::default();
    for index in 0..slices {
        let object: EndpointSliceObject = serde_json::from_str(&text(index)).expect("an EndpointSlice");
        let (name, slice, warnings) = endpoint_slice(&object, &mut pool);
        assert!(warnings.is_empty(), "{warnings:?}");
        let slice = slice.expect("it belongs to a Service");
        let endpoints = Endpoints { slices: [(name.name.to_compact(), slice.slice)].into() };
        world.cluster.endpoints.insert(ObjectName::new(&name.namespace, &slice.service), endpoints);
    }
    world
}

/// A slice as a real server sends it.
fn text(index: usize) -> String {
    let (name, namespace) = (format!("service-{index:05}"), format!("namespace-{}", index % 50));
    let endpoint = |number: usize| {
        let host = index * ENDPOINTS + number;
        json!({"addresses": [format!("10.{}.{}.{}", 244 + host / 62_500, host / 250 % 250, 1 + host % 250)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{:03}", host % 500), "zone": format!("zone-{}", host % 3),
            "targetRef": {"kind": "Pod", "name": format!("{name}-{number}"), "namespace": namespace,
                "uid": format!("00000000-0000-0000-0001-{host:012}")}})
    };
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(endpoint).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-abcde"), "namespace": namespace, "generateName": format!("{name}-"),
            "uid": format!("00000000-0000-0000-0002-{index:012}"), "resourceVersion": "123456", "generation": 7,
            "creationTimestamp": "2026-11-20T08:00:00Z",
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-20T08:00:00Z"},
            "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "controller": true,
                "blockOwnerDeletion": true, "uid": format!("00000000-0000-0000-0000-{index:012}")}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update",
                "apiVersion": "discovery.k8s.io/v1", "time": "2026-11-20T08:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:addressType": {}, "f:endpoints": {}, "f:ports": {}, "f:metadata": {"f:labels": {}}}}]},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
    .to_string()
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kibibytes << 10
}
