//! Services and address pools of a directory, for the allocator of load balancer addresses (`--manifests` with `--run-loadbalancer`).
//!
//! The directory is read once more beside the source: the allocator needs other fields of a Service, and those of the ConfigMap
//! `kube-router-lb-pools`, which the source has no use for; and of Nodes and ServiceCIDRs it needs what no Service may have. What is wrong with a file the source tells. As there, of what does not
//! parse the last good version counts, and of an object in two places the first by the name of the file counts. A Service that the source leaves out, for whatever field, has no
//! address here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use compact_str::CompactString;
use tokio::sync::watch;
use tracing::warn;

use super::directory::{Directory, Look, Reading, Seen};
use super::document::{Format, Head, Piece, documents, is_odd};
use super::{BURST, IDLE, LOOK_THROUGH, PAUSE, RETRY};
use crate::k8s::parse::address_pools::{ConfigMapObject, POOLS, address_pools};
use crate::k8s::parse::balanced_service::{BalancedServiceObject, balanced_service};
use crate::k8s::parse::node::{NodeObject, node};
use crate::k8s::parse::object_name;
use crate::k8s::parse::service::{self, ServiceObject};
use crate::k8s::parse::service_cidr::{ServiceCidrObject, service_cidr};
use crate::model::{AddressPools, BalancedService, Node, ObjectName, ReservedAddresses, ServiceCidr};

/// The Services and the pools of a directory.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Balanced {
    pub services: BTreeMap<ObjectName, Arc<BalancedService>>,
    /// Empty where no file has the ConfigMap.
    pub pools: AddressPools,
    pub reserved: ReservedAddresses,
}

/// Follows a directory until nobody listens any more. `namespace`: the one of the ConfigMap of the pools.
///
/// # Errors
/// Only where the thread cannot be started. A directory that goes away is waited for.
pub fn follow(path: PathBuf, namespace: String, out: watch::Sender<Option<Balanced>>) -> std::io::Result<()> {
    let follower = Follower { path, namespace, out, files: BTreeMap::new() };
    std::thread::Builder::new().name("manifests-lb".to_owned()).spawn(move || follower.run()).map(drop)
}

struct Follower {
    path: PathBuf,
    namespace: String,
    out: watch::Sender<Option<Balanced>>,
    files: BTreeMap<String, Found>,
}

/// The Services and the pools of one file.
#[derive(Default, Debug)]
struct Found {
    services: BTreeMap<ObjectName, Arc<BalancedService>>,
    pools: Option<AddressPools>,
    nodes: BTreeMap<CompactString, Node>,
    service_cidrs: BTreeMap<CompactString, ServiceCidr>,
}

impl Follower {
    fn run(mut self) {
        while !self.out.is_closed() {
            match Directory::open(&self.path) {
                Ok(directory) => self.watch(directory),
                // The source tells of it.
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Follows the directory until it is gone or nobody listens.
    fn watch(&mut self, mut directory: Directory) {
        let patience_ends = Instant::now() + RETRY;
        while directory.is_being_written() && self.out.borrow().is_none() && Instant::now() < patience_ends {
            std::thread::sleep(BURST);
        }
        let first = if self.out.borrow().is_none() { Look::Now } else { Look::WhenStill };
        self.look_through(&mut directory, first);
        let mut looked_through = Instant::now();
        while !self.out.is_closed() {
            let waits_for_listing = self.out.borrow().is_none();
            if waits_for_listing {
                std::thread::sleep(RETRY);
            }
            if waits_for_listing || looked_through.elapsed() > LOOK_THROUGH {
                looked_through = Instant::now();
                self.look_through(&mut directory, Look::WhenStill);
            }
            match directory.wait(IDLE, PAUSE, BURST) {
                Seen::Nothing => {}
                Seen::Files(_, names) => {
                    names.iter().for_each(|(name, look)| self.look_at(&mut directory, name, *look));
                    self.tell();
                }
                Seen::Everything(_) => self.look_through(&mut directory, Look::WhenStill),
                Seen::Gone => return,
            }
        }
    }

    fn look_through(&mut self, directory: &mut Directory, look: Look) {
        // A directory that cannot be listed is the source's to tell.
        let Ok(names) = directory.names() else { return };
        let gone: Vec<String> = self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().chain(&names).for_each(|name| self.look_at(directory, name, look));
        self.tell();
    }

    fn look_at(&mut self, directory: &mut Directory, name: &str, look: Look) {
        let Some(format) = Format::of_file(name) else { return };
        match directory.read(name, look) {
            Ok(Reading::Text(bytes)) => {
                let text = std::str::from_utf8(&bytes).ok();
                let (mut now, is_whole) =
                    text.map_or_else(Default::default, |text| found(format, text, &self.namespace));
                let earlier = self.files.remove(name).unwrap_or_default();
                if !is_whole {
                    warn!(file = %Path::new(&self.path).join(name).display(), "Manifest cannot be read as a whole; for load balancer addresses what is missing counts as it was before");
                    now.extend(earlier);
                }
                self.files.insert(name.to_owned(), now);
            }
            Ok(Reading::Absent) => drop(self.files.remove(name)),
            Ok(Reading::Same) | Err(_) => {}
        }
    }

    fn tell(&self) {
        let mut all = Balanced::default();
        let mut pools: Option<&AddressPools> = None;
        let (mut nodes, mut service_cidrs) = (BTreeMap::new(), BTreeMap::new());
        for found in self.files.values() {
            for (name, service) in &found.services {
                all.services.entry(name.clone()).or_insert_with(|| service.clone());
            }
            pools = pools.or(found.pools.as_ref());
            for (name, node) in &found.nodes {
                nodes.entry(name).or_insert(node);
            }
            for (name, of) in &found.service_cidrs {
                service_cidrs.entry(name).or_insert(of);
            }
        }
        all.pools = pools.cloned().unwrap_or_default();
        all.reserved = ReservedAddresses {
            nodes: nodes.values().flat_map(|node| &node.addresses).map(|it| it.address).collect(),
            cluster_ips: service_cidrs.values().flat_map(|of| of.ranges.iter().copied()).collect(),
        };
        self.out.send_if_modified(|told| {
            let is_new = told.as_ref() != Some(&all);
            if is_new {
                *told = Some(all);
            }
            is_new
        });
    }
}

/// The Services and the pools of a file, and whether all of them could be read.
fn found(format: Format, text: &str, namespace: &str) -> (Found, bool) {
    let (mut found, mut is_whole) = (Found::default(), true);
    for document in documents(format, text) {
        // Most documents of a large directory are none of these.
        if ["Service", "ConfigMap", "Node", "List"].iter().any(|kind| document.text.contains(kind)) {
            let mut of_document = Found::default();
            let read = document.pieces(&mut |piece, head| is_whole &= of_document.add(piece, head, namespace).is_ok());
            match read {
                Ok(()) => found.extend(of_document),
                Err(_) => is_whole = false,
            }
        }
    }
    (found, is_whole)
}

impl Found {
    /// Adds an object. One that the source ignores, or of another kind, is none.
    ///
    /// # Errors
    /// It cannot be read.
    fn add(&mut self, piece: &Piece<'_>, head: &Head, namespace: &str) -> Result<(), Unreadable> {
        match (head.api_version.as_deref(), head.kind.as_deref()) {
            (Some("networking.k8s.io/v1"), Some("ServiceCIDR")) => {
                let (name, of, _) = service_cidr(&piece.read::<ServiceCidrObject>().map_err(|_| Unreadable)?);
                self.service_cidrs.extend(of.map(|of| (name, of)));
            }
            (Some("v1"), Some("Node")) => {
                let (name, node, _) = node(&piece.read::<NodeObject>().map_err(|_| Unreadable)?);
                self.nodes.extend(node.map(|node| (name, node)));
            }
            (Some("v1"), Some("Service")) => {
                let (name, service) = balanced_service(&piece.read::<BalancedServiceObject>().map_err(|_| Unreadable)?);
                let (_, served, _) = service::service(&piece.read::<ServiceObject>().map_err(|_| Unreadable)?);
                if name.name.is_empty() || is_odd(&name.namespace, &name.name) {
                    return Err(Unreadable);
                }
                if served.is_some() {
                    self.services.entry(name).or_insert_with(|| Arc::new(service));
                }
            }
            (Some("v1"), Some("ConfigMap")) => {
                let object: ConfigMapObject = piece.read().map_err(|_| Unreadable)?;
                let name = object_name(&object.metadata);
                if (name.namespace.as_str(), name.name.as_str()) == (namespace, POOLS) && self.pools.is_none() {
                    self.pools = Some(address_pools(&object));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds what is not here yet.
    fn extend(&mut self, others: Found) {
        for (name, service) in others.services {
            self.services.entry(name).or_insert(service);
        }
        self.pools = self.pools.take().or(others.pools);
        for (name, node) in others.nodes {
            self.nodes.entry(name).or_insert(node);
        }
        for (name, of) in others.service_cidrs {
            self.service_cidrs.entry(name).or_insert(of);
        }
    }
}

/// The source tells where and why.
struct Unreadable;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn service(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{type: LoadBalancer, clusterIP: 10.96.0.1{spec}}}\n---\n"
        )
    }

    /// The names of all Services once this holds.
    fn once(told: &watch::Receiver<Option<Balanced>>, wanted: impl Fn(&Balanced) -> bool) -> Balanced {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if let Some(all) = told.borrow().as_ref().filter(|all| wanted(all)) {
                return all.clone();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it never comes: {:?}", told.borrow());
    }

    #[test]
    fn services_and_pools_of_a_directory_are_followed_in_every_form_of_a_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        let pools = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-router-lb-pools, namespace: lb}\n\
                     data: {gold: 'addresses: [203.0.113.0/28]'}\n";
        fs::write(file("a.yaml"), service("a", "") + pools).expect("writable");
        let list = r#"{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"name":"b","namespace":"shop"},"spec":{"clusterIP":"10.96.0.2"}}]}"#;
        fs::write(file("b.json"), list).expect("writable");
        let (out, told) = watch::channel(None);
        follow(directory.path().to_owned(), "lb".to_owned(), out).expect("a thread can be started");
        let all = once(&told, |all| all.services.len() == 2);
        assert!(all.pools.pools.contains_key("gold"));
        fs::write(file("a.yaml"), service("a", ", loadBalancerIP: 203.0.113.7") + pools).expect("writable");
        once(&told, |all| all.services[&ObjectName::new("shop", "a")].request.addresses.v4.is_some());
        fs::write(file("a.yaml"), service("a", ": [")).expect("writable");
        fs::write(file("c.yaml"), service("c", "") + &service("a", "")).expect("writable");
        let all = once(&told, |all| all.services.len() == 3);
        assert!(all.services[&ObjectName::new("shop", "a")].request.addresses.v4.is_some(), "a.yaml as it was");
        fs::remove_file(file("a.yaml")).expect("it is there");
        let all = once(&told, |all| all.pools == AddressPools::default());
        assert!(all.services[&ObjectName::new("shop", "a")].request.addresses.v4.is_none(), "that of c.yaml");
    }

    #[test]
    fn addresses_of_nodes_and_ranges_of_cluster_ips_are_read_so_that_no_service_is_given_one() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let node = |name: &str, address: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
            )
        };
        let range = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.97.0.0/16]}\n";
        let file = directory.path().join("a.yaml");
        fs::write(&file, node("one", "192.0.2.11") + &node("two", "'2001:db8::2'") + range).expect("writable");
        let (out, told) = watch::channel(None);
        follow(directory.path().to_owned(), "lb".to_owned(), out).expect("a thread can be started");
        let reserved = once(&told, |all| all.reserved.nodes.len() == 2).reserved;
        assert!(reserved.nodes.contains(&"192.0.2.11".parse().expect("an address")));
        assert_eq!(reserved.cluster_ips.len(), 1);
        fs::write(&file, node("one", "192.0.2.12")).expect("writable");
        let reserved = once(&told, |all| all.reserved.nodes.len() == 1).reserved;
        assert_eq!((reserved.nodes.len(), reserved.cluster_ips.len()), (1, 0));
    }

    #[test]
    fn a_document_that_cannot_be_read_leaves_the_others_of_its_file_alone() {
        let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: shop, labels: {version: 1}, annotations: {x: true}}\n\
                   spec: {type: LoadBalancer, clusterIP: 10.96.0.3}\n---\n";
        let wrong = "apiVersion: v1\nkind: Service\nmetadata: {name: wrong, namespace: shop}\nspec: {ports: 7}\n---\n";
        let nameless = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop}\n---\n";
        let without_version =
            "kind: Service\nmetadata: {name: ghost, namespace: shop}\nspec: {type: LoadBalancer}\n---\n";
        let names = |(found, is_whole): (Found, bool)| {
            (found.services.keys().map(|name| name.name.to_string()).collect::<Vec<_>>(), is_whole)
        };
        let read = |text: &str| names(found(Format::Yaml, text, "lb"));
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(read(&(service("a", "") + odd)), (all(&["a", "odd"]), true), "as the source reads them");
        assert_eq!(read(&(service("a", "") + wrong + &service("b", ""))), (all(&["a", "b"]), false));
        assert_eq!(read(&(service("a", "") + nameless)), (all(&["a"]), false));
        assert_eq!(read(&(service("a", "") + &service("\"web\\e[2J\"", ""))), (all(&["a"]), false));
        // The source cannot read it for a field that the allocator has no use for, and leaves out what has no cluster IP.
        let refused = service("b", ", sessionAffinityConfig: 7");
        assert_eq!(read(&(service("a", "") + &refused)), (all(&["a"]), false));
        let left_out = service("b", "").replace(", clusterIP: 10.96.0.1", "");
        assert_eq!(read(&(service("a", "") + &left_out)), (all(&["a"]), true));
        assert_eq!(read(&(service("a", "") + without_version)), (all(&["a"]), true), "the source ignores it");
    }
}
