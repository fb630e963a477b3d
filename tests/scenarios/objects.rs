//! The objects of a scenario, through the same door as manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use sluice::k8s::manifests::catalog::{Catalog, ManifestRemark};
use sluice::k8s::manifests::document::Format;
use sluice::k8s::{Object, SliceOf};
use sluice::kernel::iptables::{Piece, Rules};
use sluice::model::{Authority, Endpoints, Host, HostAddress, HostLink, ObjectName, OnLink, World};

use crate::support::generate;

/// The World of these documents, and what was odd about them.
pub fn world<'a>(documents: &str, host: impl Iterator<Item = &'a str>) -> (World, Vec<String>) {
    let mut world = generate::empty_world();
    (world.authority.proxy, world.authority.firewall) = (Authority::Complete, Authority::Complete);
    world.authority.router = Authority::Complete;
    let mut given = Host { node_name: "node1".into(), ..Host::default() };
    host.for_each(|line| add_address(&mut given, line));
    world.host = Arc::new(if given.addresses.is_empty() { generate::host(false) } else { given });
    let mut catalog = Catalog::default();
    let changed = catalog.put("objects.yaml", Format::Yaml, repeated(documents).as_bytes());
    let mut warnings = Vec::new();
    for (object, odd) in changed.objects {
        warnings.extend(odd.iter().map(|warning| format!("{}: {warning}", object.id())));
        put(&mut world, object);
    }
    warnings.extend(changed.remarks.into_iter().map(|said| match said {
        ManifestRemark::Broken { line, text } => format!("line {line}: {text}"),
        ManifestRemark::Skipped { line, text } => format!("line {line} is left aside: {text}"),
        ManifestRemark::Twice { object, .. } => format!("{object} stands there twice"),
        ManifestRemark::Mended => "mended".to_owned(),
    }));
    (world, warnings)
}

fn put(world: &mut World, object: Object) {
    match object {
        Object::Service(name, Some(service)) => {
            world.cluster.services.insert(name, (*service).clone());
        }
        Object::EndpointSlice(name, Some(of)) => {
            let SliceOf { service, slice } = *of;
            let owner = ObjectName::of(name.namespace.clone(), &service);
            let known = world.cluster.endpoints.get(&owner);
            let mut endpoints = known.map_or_else(Endpoints::default, |known| (**known).clone());
            endpoints.slices.insert(name.name.to_compact(), slice);
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
        Object::ServiceCidr(name, Some(of)) => {
            world.cluster.service_cidrs.insert(name, (*of).clone());
        }
        object => assert!(object.is_gone() || matches!(object, Object::Unreadable(_)), "{object:?} was put nowhere"),
    }
}

/// `eth0 192.0.2.1`, `eth0 192.0.2.1/24` for a link of which the network is known too (`mtu 9000` behind it where that is another one than 1500), or
/// `lo 127.0.0.1 here` for an address that others cannot reach.
fn add_address(host: &mut Host, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (link, address, global, mtu) = match words.as_slice() {
        [link, address] => (*link, *address, true, 1500),
        [link, address, "mtu", mtu] => (*link, *address, true, number(mtu)),
        [link, address, "here"] => (*link, *address, false, 1500),
        _ => panic!("an address of the host is `eth0 192.0.2.1/24` or `lo 127.0.0.1 here`; this is {line:?}"),
    };
    let network: Option<IpNet> = address.parse().ok();
    let address = network.map_or_else(|| address.parse(), |network| Ok(network.addr()));
    let address = address.unwrap_or_else(|_| panic!("{line:?} has no address"));
    host.addresses.push(HostAddress { address, link: link.into(), global });
    if let Some(network) = network {
        host.on_link.push(OnLink { prefix: network.trunc(), link: link.into() });
        let known = HostLink { name: link.into(), mtu, bridge: false };
        if !host.links.contains(&known) {
            host.links.push(known);
        }
    }
}

/// Rules as `iptables-save` has them, below the chain that they are in.
pub fn rules(all: &BTreeMap<Piece, Rules>) -> Vec<String> {
    let piece = |(piece, rules): (&Piece, &Rules)| {
        let head = std::iter::once(format!("{piece}"));
        head.chain(rules.0.iter().map(|rule| format!("  {rule}"))).collect::<Vec<String>>()
    };
    all.iter().flat_map(piece).collect()
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
