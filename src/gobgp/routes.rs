//! Routes as clients display them: lookups, and the encoding of results.
//!
//! Three tables of RFC 4271 3.2: Loc-RIB (*global*), Adj-RIB-In (*adj-in*) and Adj-RIB-Out (*adj-out*, computed on
//! request) of a neighbour. Large tables are returned in portions, between which the speaker continues its work: an
//! answer is no consistent snapshot, but each of its prefixes is.
//!
//! A prefix selects itself, or its more specific prefixes, or its less specific ones; an address without a length
//! selects the longest matching prefix.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::attributes::attributes;
use super::clock::Clock;
use super::version::{Version, spoken};
use super::wire::messages::{Destination, Path, TableLookupPrefix};
use crate::bgp::message::Attributes;
use crate::bgp::rib::{PeerId, Table};
use crate::bgp::speaker::Speaker;
use crate::net::Family;

/// Table to look up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Global,
    /// Adj-RIB-In of this neighbour.
    In(IpAddr),
    /// Adj-RIB-Out of this neighbour.
    Out(IpAddr),
}

/// Selection of prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    All,
    Exactly(IpNet),
    /// Longest prefix that contains an address.
    Around(IpAddr),
    Inside(IpNet),
    Containing(IpNet),
}

/// Selection of routes in one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    pub which: Which,
    pub family: Family,
    pub lookup: Lookup,
}

/// Routes to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub prefix: IpNet,
    pub routes: Vec<Shown>,
}

/// One of the routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    pub attributes: Arc<Attributes>,
    pub age: Duration,
    pub best: bool,
    pub stale: bool,
    /// Rejected by import policy, or a loop.
    pub unused: bool,
    pub source: Origin,
}

/// Source of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// `None` for a route of our own.
    pub address: Option<IpAddr>,
}

/// Portion of an answer, and the prefix behind which it continues; `None` at its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Portion {
    pub rows: Vec<Row>,
    pub next: Option<IpNet>,
}

/// Number of prefixes, and of routes to them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sizes {
    pub prefixes: u64,
    pub routes: u64,
    pub used: u64,
}

/// Maximum number of prefixes in one request.
const PREFIXES: usize = 1000;

impl Lookup {
    /// Reads the lookups of a request; without any prefix it is about all of them.
    ///
    /// # Errors
    /// There are too many, or one of them is none, as a sentence for the client.
    pub fn all(version: Version, wanted: &[TableLookupPrefix]) -> Result<Vec<Lookup>, String> {
        match wanted.len() {
            0 => Ok(vec![Lookup::All]),
            1..=PREFIXES => wanted.iter().map(|prefix| Lookup::read(version, prefix)).collect(),
            _ => Err(format!("one request may ask for {PREFIXES} prefixes at the most")),
        }
    }

    /// Reads the lookup of a client.
    ///
    /// # Errors
    /// Its prefix is neither a prefix nor an address, or the kind of lookup is unknown, as a sentence for the client.
    pub fn read(version: Version, wanted: &TableLookupPrefix) -> Result<Lookup, String> {
        let text = wanted.prefix.trim();
        let kind = version.place(wanted.r#type).unwrap_or_default();
        if let Ok(address) = text.parse::<IpAddr>() {
            let host = IpNet::from(address);
            return match kind {
                0 => Ok(Lookup::Around(address)),
                1 => Ok(Lookup::Inside(host)),
                _ => Ok(Lookup::Containing(host)),
            };
        }
        let prefix: IpNet = text.parse().map_err(|_| format!("{text:?} is no prefix and no address"))?;
        let prefix = prefix.trunc();
        match kind {
            0 => Ok(Lookup::Exactly(prefix)),
            1 => Ok(Lookup::Inside(prefix)),
            2 => Ok(Lookup::Containing(prefix)),
            _ => Err("only exact, longer and shorter prefixes can be asked for".to_owned()),
        }
    }
}

/// Next rows of an answer, from a bounded number of prefixes.
pub fn portion(speaker: &mut Speaker, query: Query, after: Option<IpNet>, most: usize) -> Portion {
    let Query { which, family, lookup } = query;
    let candidates = candidates(speaker.rib().table(), family, lookup, after, most);
    let next = candidates.last().copied().filter(|_| candidates.len() >= most && can_go_on(lookup));
    let mut rows = candidates.into_iter().filter_map(|prefix| row(speaker, which, prefix));
    let rows = match lookup {
        // Rows are in the order of decreasing length.
        Lookup::Around(_) => rows.next().into_iter().collect(),
        _ => rows.collect(),
    };
    Portion { rows, next }
}

/// Returns whether more prefixes can match than there are prefix lengths.
fn can_go_on(lookup: Lookup) -> bool {
    matches!(lookup, Lookup::All | Lookup::Inside(_))
}

fn candidates(table: &Table, family: Family, lookup: Lookup, after: Option<IpNet>, most: usize) -> Vec<IpNet> {
    let around = |inner: IpNet, lengths: &mut dyn Iterator<Item = u8>| {
        let outer = lengths.filter_map(|length| IpNet::new(inner.addr(), length).ok());
        outer.map(|outer| outer.trunc()).filter(|outer| !table.paths(*outer).is_empty()).collect::<Vec<_>>()
    };
    match lookup {
        Lookup::All => table.walk(family, after).map(|(prefix, _)| prefix).take(most).collect(),
        Lookup::Exactly(prefix) => vec![prefix],
        Lookup::Around(address) => around(IpNet::from(address), &mut (0..=Family::from(address).host_bits()).rev()),
        Lookup::Containing(prefix) => around(prefix, &mut (0..=prefix.prefix_len())),
        Lookup::Inside(outer) => {
            let itself = (after.is_none() && !table.paths(outer).is_empty()).then_some(outer);
            let walk = table.walk(Family::from(outer), after.or(Some(outer))).map(|(prefix, _)| prefix);
            itself.into_iter().chain(walk.take_while(|prefix| outer.contains(prefix))).take(most).collect()
        }
    }
}

/// Routes to a prefix in one of the tables; `None` where there are none.
pub fn row(speaker: &mut Speaker, which: Which, prefix: IpNet) -> Option<Row> {
    let routes: Vec<Shown> = match which {
        Which::Global => {
            let table = speaker.rib().table();
            let best = table.best(prefix).map(|best| best.source);
            let used = table.paths(prefix).iter().filter_map(|path| Some((path, path.used.as_ref()?)));
            used.map(|(path, attributes)| Shown {
                attributes: attributes.clone(),
                age: table.age(path),
                best: best == Some(path.source),
                stale: path.is_stale(),
                unused: false,
                source: origin(speaker, path.source),
            })
            .collect()
        }
        Which::In(address) => {
            let table = speaker.rib().table();
            let path = table.path(prefix, speaker.neighbour(address)?.id())?;
            vec![Shown {
                attributes: path.received.clone(),
                age: table.age(path),
                best: false,
                stale: path.is_stale(),
                unused: path.used.is_none(),
                source: origin(speaker, path.source),
            }]
        }
        Which::Out(address) => {
            let attributes = speaker.told(address, prefix)?;
            let table = speaker.rib().table();
            let source = table.best(prefix)?.source;
            let age = table.path(prefix, source).map(|path| table.age(path)).unwrap_or_default();
            let source = origin(speaker, source);
            vec![Shown { attributes, age, best: false, stale: false, unused: false, source }]
        }
    };
    (!routes.is_empty()).then_some(Row { prefix, routes })
}

fn origin(speaker: &Speaker, id: PeerId) -> Origin {
    let own = speaker.rib().own();
    match speaker.rib().table().source(id).filter(|_| !id.is_local()) {
        None => Origin { asn: own.asn, identifier: own.identifier, address: None },
        Some(source) => {
            let settings = speaker.neighbour(source.address).map(|neighbour| {
                let agreed = neighbour.peer().agreement().map(|agreement| agreement.open.asn);
                agreed.or(neighbour.wanted().settings.asn).unwrap_or_default()
            });
            Origin { asn: settings.unwrap_or_default(), identifier: source.identifier, address: Some(source.address) }
        }
    }
}

/// Size of a table. Adj-RIB-Out has to be computed, so that it is counted by walking over it.
pub fn sizes(speaker: &Speaker, which: Which, family: Family) -> Sizes {
    let table = speaker.rib().table();
    match which {
        Which::Global => {
            let used =
                table.walk(family, None).map(|(_, paths)| paths.iter().filter(|path| path.used.is_some()).count());
            used.filter(|routes| *routes > 0).fold(Sizes::default(), |sizes, routes| Sizes {
                prefixes: sizes.prefixes + 1,
                routes: sizes.routes + routes as u64,
                used: 0,
            })
        }
        Which::In(address) => {
            let count = speaker.neighbour(address).map(|neighbour| table.count(neighbour.id()));
            let count = count.map(|count| *count.of(family)).unwrap_or_default();
            let received = u64::from(count.received);
            Sizes { prefixes: received, routes: received, used: count.used.into() }
        }
        Which::Out(_) => Sizes::default(),
    }
}

/// Encodes a row. `marks`: unused routes are marked.
pub fn destination(version: Version, clock: Clock, row: &Row, marks: bool) -> Destination {
    let path = |shown: &Shown| {
        let path = path(version, clock, row.prefix, shown);
        Path { filtered: path.filtered && marks, ..path }
    };
    Destination { prefix: row.prefix.to_string(), paths: row.routes.iter().map(path).collect() }
}

/// Encodes a route.
pub fn path(version: Version, clock: Clock, prefix: IpNet, shown: &Shown) -> Path {
    // Source of a local route in 3.x.
    let nobody = if version == Version::V3 { "<nil>" } else { "" };
    let source = shown.source;
    let address = source.address.map(|address| address.to_string());
    let identifier = source.address.map(|_| source.identifier.to_string());
    Path {
        nlri: version.nlri(prefix),
        pattrs: attributes(version, prefix, &shown.attributes),
        age: Some(clock.ago(shown.age)),
        best: shown.best,
        family: Some(spoken(Family::from(prefix))),
        source_asn: source.asn,
        source_id: identifier.unwrap_or_else(|| nobody.to_owned()),
        filtered: shown.unused,
        stale: shown.stale,
        neighbor_ip: address.unwrap_or_else(|| nobody.to_owned()),
        ..Path::default()
    }
}

/// Encodes the withdrawal of a route.
pub fn withdrawal(version: Version, clock: Clock, prefix: IpNet, shown: &Shown) -> Path {
    Path { is_withdraw: true, best: false, age: Some(clock.ago(Duration::ZERO)), ..path(version, clock, prefix, shown) }
}

#[cfg(test)]
pub(super) mod tests;
