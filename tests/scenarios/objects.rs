//! The objects of a scenario, through the same door as manifests.

use std::sync::Arc;

use sluice::k8s::manifests::catalog::{Catalog, Said};
use sluice::k8s::manifests::document::Format;
use sluice::k8s::{Object, SliceOf};
use sluice::model::{Authority, Endpoints, Host, HostAddress, ObjectName, World};

use crate::support::generate;

/// The World of these documents, and what was odd about them.
pub fn world<'a>(documents: &str, host: impl Iterator<Item = &'a str>) -> (World, Vec<String>) {
    let mut world = generate::empty_world();
    world.authority = Authority::Complete;
    let addresses: Vec<HostAddress> = host.map(host_address).collect();
    world.host = Arc::new(if addresses.is_empty() {
        generate::host(false)
    } else {
        Host { node_name: "node1".into(), addresses, ..Host::default() }
    });
    let mut catalog = Catalog::default();
    let changed = catalog.put("objects.yaml", Format::Yaml, repeated(documents).as_bytes());
    let mut warnings = Vec::new();
    for (object, odd) in changed.objects {
        warnings.extend(odd.iter().map(|warning| format!("{}: {warning}", object.id())));
        put(&mut world, object);
    }
    warnings.extend(changed.remarks.into_iter().map(|said| match said {
        Said::Broken { line, text } => format!("line {line}: {text}"),
        Said::Skipped { line, text } => format!("line {line} is left aside: {text}"),
        Said::Twice { object, .. } => format!("{object} stands there twice"),
        Said::Mended => "mended".to_owned(),
    }));
    (world, warnings)
}

fn put(world: &mut World, object: Object) {
    match object {
        Object::Service(name, Some(service)) => {
            world.cluster.services.insert(name, (*service).clone());
        }
        Object::EndpointSlice(name, Some(SliceOf { service, slice })) => {
            let owner = ObjectName { namespace: name.namespace, name: service };
            let known = world.cluster.endpoints.get(&owner);
            let mut endpoints = known.map_or_else(Endpoints::default, |known| (**known).clone());
            endpoints.slices.insert(name.name, slice);
            world.cluster.endpoints.insert(owner, endpoints);
        }
        Object::Node(name, Some(node)) => {
            world.cluster.nodes.insert(name, (*node).clone());
        }
        Object::Pod(name, Some(pod)) => {
            world.cluster.pods.insert(name, (*pod).clone());
        }
        Object::Namespace(name, Some(namespace)) => {
            world.cluster.namespaces.insert(name, (*namespace).clone());
        }
        Object::NetworkPolicy(name, Some(policy)) => {
            world.cluster.policies.insert(name, (*policy).clone());
        }
        object => assert!(object.is_gone() || matches!(object, Object::Unreadable(_)), "{object:?} was put nowhere"),
    }
}

/// `eth0 192.0.2.1`, or `lo 127.0.0.1 here` for an address that others cannot reach.
fn host_address(line: &str) -> HostAddress {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (link, address, global) = match words.as_slice() {
        [link, address] => (link, address, true),
        [link, address, "here"] => (link, address, false),
        _ => panic!("an address of the host is `eth0 192.0.2.1` or `lo 127.0.0.1 here`; this is {line:?}"),
    };
    let address = address.parse().unwrap_or_else(|_| panic!("{address} is no address"));
    HostAddress { address, link: (*link).into(), global }
}

fn repeated(documents: &str) -> String {
    let mut all = String::new();
    for line in documents.lines() {
        match line.split_once("# for n in ") {
            Some((line, range)) => {
                let bounds = range.trim().split_once("..").expect("a range is A..B");
                let (first, last) = (number(bounds.0), number(bounds.1));
                (first..last)
                    .for_each(|n| all.push_str(&format!("{}\n", line.trim_end().replace("$n", &n.to_string()))));
            }
            None => all.push_str(&format!("{line}\n")),
        }
    }
    all
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}
