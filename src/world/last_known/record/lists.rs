//! Values that many objects have in common and that are written once: names of nodes, labels, named ports, hints.
//!
//! Objects refer to an entry by its place, counted from 1; 0 is no node, no label, no port, no hint.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Hints, Labels, NamedPort, Shared};
use crate::net::Protocol;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListsRecord {
    #[prost(string, repeated, tag = "1")]
    nodes: Vec<String>,
    /// Keys and values of labels, names in hints.
    #[prost(string, repeated, tag = "2")]
    words: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<LabelsRecord>,
    #[prost(message, repeated, tag = "4")]
    ports: Vec<NamedPortsRecord>,
    #[prost(message, repeated, tag = "5")]
    hints: Vec<HintsRecord>,
}

/// Hints of endpoints, by the places of the names of zones and nodes among the words.
#[derive(Clone, PartialEq, prost::Message)]
struct HintsRecord {
    #[prost(uint32, repeated, tag = "1")]
    zones: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    nodes: Vec<u32>,
}

/// Labels, by the places of their keys and values among the words.
#[derive(Clone, PartialEq, prost::Message)]
struct LabelsRecord {
    #[prost(uint32, repeated, tag = "1")]
    keys: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    values: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamedPortsRecord {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<NamedPortRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamedPortRecord {
    #[prost(string, tag = "1")]
    name: String,
    /// As in the IP header (IANA).
    #[prost(uint32, tag = "2")]
    protocol: u32,
    #[prost(uint32, tag = "3")]
    number: u32,
}

/// The lists while they are being collected.
#[derive(Default)]
pub struct Collected<'a> {
    nodes: List<&'a str>,
    words: List<&'a str>,
    labels: List<&'a Labels>,
    ports: List<&'a [NamedPort]>,
    hints: List<&'a Hints>,
}

/// Values, each once, and their places.
struct List<T> {
    in_order: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { in_order: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Copy + Eq + Hash> List<T> {
    fn place(&mut self, value: T) -> u32 {
        if let Some(place) = self.places.get(&value) {
            return *place;
        }
        self.in_order.push(value);
        let place = u32::try_from(self.in_order.len()).expect("a cluster has fewer objects than there are numbers");
        self.places.insert(value, place);
        place
    }
}

impl<'a> Collected<'a> {
    pub fn node(&mut self, name: Option<&'a Shared<str>>) -> u32 {
        name.map_or(0, |name| self.nodes.place(name))
    }

    pub fn labels(&mut self, labels: &'a Labels) -> u32 {
        if labels.iter().next().is_none() { 0 } else { self.labels.place(labels) }
    }

    pub fn ports(&mut self, ports: &'a [NamedPort]) -> u32 {
        if ports.is_empty() { 0 } else { self.ports.place(ports) }
    }

    pub fn hints(&mut self, hints: Option<&'a Arc<Hints>>) -> u32 {
        hints.map_or(0, |hints| self.hints.place(hints))
    }

    pub fn record(mut self) -> ListsRecord {
        let words = &mut self.words;
        let labels = self.labels.in_order.iter().map(|labels| {
            let (keys, values) = labels.iter().map(|(key, value)| (words.place(key), words.place(value))).unzip();
            LabelsRecord { keys, values }
        });
        let labels = labels.collect();
        let mut all = |names: &'a [CompactString]| names.iter().map(|name| words.place(name)).collect();
        let hints =
            self.hints.in_order.iter().map(|hints| HintsRecord { zones: all(&hints.zones), nodes: all(&hints.nodes) });
        let hints = hints.collect();
        let owned = |list: &List<&str>| list.in_order.iter().map(|text| (*text).to_owned()).collect();
        let ports = |ports: &&[NamedPort]| NamedPortsRecord { ports: ports.iter().map(NamedPortRecord::of).collect() };
        ListsRecord {
            nodes: owned(&self.nodes),
            words: owned(&self.words),
            labels,
            ports: self.ports.in_order.iter().map(ports).collect(),
            hints,
        }
    }
}

impl NamedPortRecord {
    fn of(port: &NamedPort) -> NamedPortRecord {
        let NamedPort { name, protocol, number } = port;
        NamedPortRecord { name: name.to_string(), protocol: u32::from(protocol.number()), number: u32::from(*number) }
    }

    fn port(&self) -> Option<NamedPort> {
        let name = CompactString::from(&self.name);
        Some(NamedPort { name, protocol: protocol(self.protocol)?, number: u16::try_from(self.number).ok()? })
    }
}

/// The protocol with this number in the IP header.
pub fn protocol(number: u32) -> Option<Protocol> {
    Protocol::from_number(u8::try_from(number).ok()?)
}

/// The lists as they were read: objects that name the same entry share its memory. An invalid entry is `None`.
pub struct Lists {
    nodes: Vec<Shared<str>>,
    labels: Vec<Option<Labels>>,
    ports: Vec<Option<Shared<[NamedPort]>>>,
    no_ports: Shared<[NamedPort]>,
    hints: Vec<Option<Arc<Hints>>>,
}

impl Lists {
    pub fn of(record: &ListsRecord) -> Lists {
        let words: Vec<CompactString> = record.words.iter().map(CompactString::from).collect();
        let word = |place: &u32| at(&words, *place).cloned();
        let labels = |record: &LabelsRecord| -> Option<Labels> {
            let pairs = record.keys.iter().zip(&record.values);
            let pairs = pairs.map(|(key, value)| Some((word(key)?, word(value)?)));
            pairs.collect::<Option<Labels>>().filter(|_| record.keys.len() == record.values.len())
        };
        let names = |places: &[u32]| places.iter().map(word).collect::<Option<_>>();
        let hints =
            |record: &HintsRecord| Some(Arc::new(Hints { zones: names(&record.zones)?, nodes: names(&record.nodes)? }));
        Lists {
            hints: record.hints.iter().map(hints).collect(),
            nodes: record.nodes.iter().map(|name| name.as_str().into()).collect(),
            labels: record.labels.iter().map(labels).collect(),
            ports: record.ports.iter().map(|ports| ports.ports.iter().map(NamedPortRecord::port).collect()).collect(),
            no_ports: [].into(),
        }
    }

    /// The node's name, `Some(None)` for none; `None` where the place is invalid. The same for the others.
    pub fn node(&self, place: u32) -> Option<Option<Shared<str>>> {
        if place == 0 { Some(None) } else { at(&self.nodes, place).cloned().map(Some) }
    }

    pub fn hints(&self, place: u32) -> Option<Option<Arc<Hints>>> {
        if place == 0 { Some(None) } else { at(&self.hints, place)?.clone().map(Some) }
    }

    pub fn labels(&self, place: u32) -> Option<Labels> {
        if place == 0 { Some(Labels::default()) } else { at(&self.labels, place)?.clone() }
    }

    pub fn ports(&self, place: u32) -> Option<Shared<[NamedPort]>> {
        if place == 0 { Some(self.no_ports.clone()) } else { at(&self.ports, place)?.clone() }
    }
}

fn at<T>(list: &[T], place: u32) -> Option<&T> {
    list.get(usize::try_from(place.checked_sub(1)?).ok()?)
}
