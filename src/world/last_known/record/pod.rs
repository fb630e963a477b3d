//! Pods and namespaces on disk.
//!
//! There are many pods, and every node writes down all of them, so the pods of a namespace are a table whose columns are
//! packed. Of a pod's name is written what the name before does not begin with, which for pods of one template is the
//! last few letters.

use compact_str::CompactString;

use super::lists::{Collected, Lists};
use super::packed::{Packed, column, put_address, rows};
use crate::model::{Namespace, NamespaceName, ObjectName, Pod, Words};

/// The pods of a namespace, sorted by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodsRecord {
    #[prost(string, tag = "1")]
    namespace: String,
    /// Number of bytes of each name that it shares with the name before.
    #[prost(uint32, repeated, tag = "2")]
    shared: Vec<u32>,
    /// The length of what follows, in bytes. This column is never shortened: it has as many numbers as there are pods.
    #[prost(uint32, repeated, tag = "3")]
    lengths: Vec<u32>,
    /// The rests of all names, one behind the other.
    #[prost(string, tag = "4")]
    names: String,
    #[prost(uint32, repeated, tag = "5")]
    labels: Vec<u32>,
    #[prost(uint32, repeated, tag = "6")]
    ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "7")]
    nodes: Vec<u32>,
    /// 1 host network, 2 finished.
    #[prost(uint32, repeated, tag = "8")]
    is: Vec<u32>,
    /// Number of addresses of each.
    #[prost(uint32, repeated, tag = "9")]
    address_counts: Vec<u32>,
    #[prost(bytes = "vec", tag = "10")]
    addresses: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    labels: u32,
    #[prost(bool, tag = "3")]
    isolated: bool,
}

impl PodsRecord {
    /// The pods, which must be of one namespace.
    pub fn of<'a>(pods: &[(&'a ObjectName, &'a Pod)], collected: &mut Collected<'a>) -> PodsRecord {
        let mut record = PodsRecord::default();
        let mut before = "";
        for (name, pod) in pods {
            let Words { namespace, name } = &***name;
            if record.lengths.is_empty() {
                record.namespace = namespace.to_string();
            }
            record.push(name, before, pod, collected);
            before = name;
        }
        for numbers in [&mut record.labels, &mut record.ports, &mut record.nodes, &mut record.is] {
            *numbers = column(numbers.drain(..));
        }
        record.address_counts = column(record.address_counts);
        record
    }

    fn push<'a>(&mut self, name: &str, before: &str, pod: &'a Pod, collected: &mut Collected<'a>) {
        // A pod that is remembered is known by its name alone.
        let Pod { uid: _, labels, addresses, node, host_network, finished, ports } = pod;
        let shared: usize =
            name.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
        let rest = name.get(shared..).unwrap_or_default();
        self.shared.push(number(shared));
        self.lengths.push(number(rest.len()));
        self.names.push_str(rest);
        self.labels.push(collected.labels(labels));
        self.ports.push(collected.ports(ports));
        self.nodes.push(collected.node(node.as_ref()));
        self.is.push(u32::from(*host_network) | u32::from(*finished) << 1);
        self.address_counts.push(number(addresses.len()));
        addresses.iter().for_each(|address| put_address(&mut self.addresses, address));
    }

    /// Gives each pod to `take`; `None` as soon as one is invalid.
    pub fn pods(self, lists: &Lists, mut take: impl FnMut(ObjectName, Pod)) -> Option<()> {
        let namespace = NamespaceName::from(self.namespace.as_str());
        let mut addresses = Packed::new(&self.addresses);
        let mut names = self.names.as_str();
        let mut before = CompactString::default();
        let columns = rows(self.shared).zip(rows(self.labels)).zip(rows(self.ports)).zip(rows(self.nodes));
        let columns = columns.zip(rows(self.is)).zip(rows(self.address_counts));
        for (length, (((((shared, labels), ports), node), is), count)) in self.lengths.into_iter().zip(columns) {
            let rest;
            (rest, names) = names.split_at_checked(usize::try_from(length).ok()?)?;
            let mut name = CompactString::from(before.get(..usize::try_from(shared).ok()?)?);
            name.push_str(rest);
            before.clone_from(&name);
            let pod = Pod {
                uid: None,
                labels: lists.labels(labels)?,
                addresses: addresses.take(count)?.into(),
                node: lists.node(node)?,
                host_network: is & 1 != 0,
                finished: is & 2 != 0,
                ports: lists.ports(ports)?,
            };
            take(ObjectName::of(namespace.clone(), &name), pod);
        }
        Some(())
    }
}

fn number(length: usize) -> u32 {
    u32::try_from(length).expect("a name and its addresses are shorter than 4 GiB")
}

impl NamespaceRecord {
    pub fn of<'a>(name: &CompactString, namespace: &'a Namespace, collected: &mut Collected<'a>) -> NamespaceRecord {
        let Namespace { labels, isolated } = namespace;
        NamespaceRecord { name: name.to_string(), labels: collected.labels(labels), isolated: *isolated }
    }

    pub fn namespace(self, lists: &Lists) -> Option<(CompactString, Namespace)> {
        Some((self.name.into(), Namespace { labels: lists.labels(self.labels)?, isolated: self.isolated }))
    }
}
