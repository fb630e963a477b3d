//! Whether this kernel can do all that our rules need, found out by trying.
//!
//! A table with one chain for each feature is made and deleted in one transaction: no packet ever meets it, and nothing is left
//! of it whatever happens. Trying also loads the modules, as the rules themselves would.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::batch::Batch;
use super::listener::{transact, transaction};
use super::object::{Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Name, Object, SetSpec};
use super::plan::Plan;
use super::rule::{Lookup, Mark, Match, Rule, Side, Statement, States, Verdict};
use super::wire::{ARP, BRIDGE, TableId};
use crate::kernel::netlink::{Bus, Refusal, Socket};
use crate::kernel::{Cause, Error};
use crate::net::{Family, PortRange, Protocol};

/// Something that rules of ours need.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Feature {
    /// Tables of the family `inet`, with chains, sets and named counters.
    Tables,
    /// Sets and maps of ranges.
    Ranges,
    /// Maps from addresses and ports to verdicts and marks.
    Maps,
    /// `fib`.
    RouteTypes,
    /// `ct state`, `ct original`.
    ConnectionTracking,
    /// `reject` in a table of both families.
    Reject,
    /// `limit`.
    Limit,
    /// `log group`.
    Log,
    /// Chains that translate addresses, `snat`.
    Nat,
    /// `masquerade`.
    Masquerade,
    /// Chains after which a packet is routed again.
    Route,
}

/// The features that a kernel lacks.
#[derive(Clone, Debug)]
pub struct Missing {
    pub features: BTreeSet<Feature>,
    /// The kernel's answer about the first of them.
    pub error: Error,
}

const TABLE: &str = "sluice_trial";

/// Tries everything, in the network namespace of the calling thread.
///
/// # Errors
/// Something is missing, or the kernel refuses for another reason: [`Missing::features`] is empty then.
pub fn probe() -> Result<(), Missing> {
    probe_all(true)
}

/// Has the kernel check everything without bringing it about, as `nft --check` does: a transaction without its end mark is judged and given up,
/// so that nobody is notified of anything. Modules that are not there yet are loaded all the same.
///
/// # Errors
/// As [`probe`].
pub fn check() -> Result<(), Missing> {
    probe_all(false)
}

fn probe_all(commits: bool) -> Result<(), Missing> {
    let other = |error: Error| Missing { features: BTreeSet::new(), error };
    let mut socket = Socket::open(Bus::Netfilter).map_err(other)?;
    let contents = trial();
    let mut batch = Batch::new(TABLE, None);
    batch.make_table(0);
    Plan::of_all(&contents).write(&mut batch).map_err(other)?;
    batch.delete_table();
    if commits {
        batch.close();
    }
    let refusals = transact(&mut socket, &mut batch.messages, true)
        .map_err(|fault| other(Error::new("try nf_tables", "", fault.into())))?;
    missing(&batch, refusals).map_or(Ok(()), Err)
}

/// Tries whether the kernel takes these contents in a table of the family `bridge`, in the network namespace of the calling thread.
///
/// # Errors
/// It does not; what it says of it.
pub fn probe_bridge(contents: &BTreeMap<Object, Content>) -> Result<(), Error> {
    probe_contents(TableId { family: BRIDGE, name: TABLE }, contents)
}

/// The same in a table of the family `inet`.
///
/// # Errors
/// As [`probe_bridge`].
pub fn probe_inet(contents: &BTreeMap<Object, Content>) -> Result<(), Error> {
    probe_contents(TABLE.into(), contents)
}

/// The same in a table of the family `arp`.
///
/// # Errors
/// As [`probe_bridge`].
pub fn probe_arp(contents: &BTreeMap<Object, Content>) -> Result<(), Error> {
    probe_contents(TableId { family: ARP, name: TABLE }, contents)
}

/// Tables of a family, with the option of the kernel by which it has them.
fn tables_of(family: u8) -> &'static str {
    match family {
        BRIDGE => "tables of the family bridge (CONFIG_NF_TABLES_BRIDGE)",
        ARP => "tables of the family arp (CONFIG_NF_TABLES_ARP)",
        _ => "tables of the family inet (CONFIG_NF_TABLES_INET)",
    }
}

fn probe_contents(table: TableId<'_>, contents: &BTreeMap<Object, Content>) -> Result<(), Error> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let mut batch = Batch::new(table, None);
    batch.make_table(0);
    Plan::of_all(contents).write(&mut batch)?;
    batch.delete_table();
    batch.close();
    transaction(&mut socket, &mut batch.messages)
        .map_err(|fault| Error::new("try nf_tables", tables_of(table.family), fault.into()))
}

fn missing(batch: &Batch<'_>, refusals: Vec<Refusal>) -> Option<Missing> {
    let mut missing: Option<Missing> = None;
    for refusal in refusals {
        let feature = match batch.about(refusal.message) {
            Some(object) => feature(object),
            // The first is refused where there is no nf_tables, and the second where there is no such table; else it is about
            // the caller.
            None if refusal.errno == libc::EPERM => None,
            None => Some(Feature::Tables),
        };
        let error = || Error::new("try nf_tables", feature.map_or("", Feature::module), Cause::from(refusal.clone()));
        let missing = missing.get_or_insert_with(|| Missing { features: BTreeSet::new(), error: error() });
        missing.features.extend(feature);
    }
    missing
}

/// The feature for which this object of the trial is there.
fn feature(object: &Object) -> Option<Feature> {
    let name = match object {
        Object::Counter(_) => return Some(Feature::Tables),
        Object::Set(name) | Object::Chain(name) | Object::Element(name, _) => name.as_str(),
    };
    let number = name.split('_').nth(1)?.parse::<usize>().ok()?;
    FEATURES.get(number).copied()
}

const FEATURES: [Feature; 11] = [
    Feature::Tables,
    Feature::Ranges,
    Feature::Maps,
    Feature::RouteTypes,
    Feature::ConnectionTracking,
    Feature::Reject,
    Feature::Limit,
    Feature::Log,
    Feature::Nat,
    Feature::Masquerade,
    Feature::Route,
];

/// An object for this feature is called so.
fn called(what: &str, feature: Feature) -> Name {
    let number = FEATURES.iter().position(|one| *one == feature).unwrap_or_default();
    Name::from(format!("{what}_{number}"))
}

/// A table in which every feature is used.
fn trial() -> BTreeMap<Object, Content> {
    let mut contents = sets();
    let input = Base { kind: BaseKind::Filter, hook: Hook::Input, priority: 0 };
    let nat = Base { kind: BaseKind::Nat, hook: Hook::Postrouting, priority: 100 };
    let route = Base { kind: BaseKind::Route, hook: Hook::Output, priority: -150 };
    for feature in FEATURES {
        let base = match feature {
            Feature::Nat | Feature::Masquerade => nat,
            Feature::Route => route,
            _ => input,
        };
        let chain = Chain { base: Some(base), rules: rules(feature) };
        contents.insert(Object::Chain(called("chain", feature)), Content::Chain(chain.into()));
    }
    contents
}

fn sets() -> BTreeMap<Object, Content> {
    let mut contents = BTreeMap::from([(Object::Counter(called("counter", Feature::Tables)), Content::Counter)]);
    let mut put = |what: &str, feature, spec: SetSpec| {
        contents.insert(Object::Set(called(what, feature)), Content::Set(spec));
    };
    let of = |fields, kind, intervals| SetSpec { fields, kind, intervals };
    put("set", Feature::Tables, of(Fields::Service(Family::V6), Kind::Set, false));
    put("blocks", Feature::Ranges, of(Fields::Address(Family::V4), Kind::Set, true));
    put("ports", Feature::Ranges, of(Fields::Port, Kind::Verdicts, true));
    put("pods", Feature::Maps, of(Fields::Address(Family::V4), Kind::Verdicts, false));
    put("marks", Feature::Maps, of(Fields::Service(Family::V4), Kind::Marks, false));
    let ports = Key::Ports(PortRange { first: 80, last: 90 });
    let accept = Content::Verdict(Verdict::Accept.into());
    contents.insert(Object::Element(called("ports", Feature::Ranges), ports), accept);
    contents
}

/// Rules that need this feature, and otherwise the first alone.
fn rules(feature: Feature) -> Vec<Rule> {
    let set = |what: &str, lookup: Lookup| Match::InSet { lookup, set: called(what, feature), negated: false };
    let map = |what: &str, lookup: Lookup| Verdict::Map { lookup, map: called(what, feature) };
    let tcp = Match::Protocol(Protocol::Tcp);
    let service = Lookup::DestinationService(Family::V4);
    match feature {
        Feature::Tables => {
            let count = Statement::Count(called("counter", feature));
            let lookup = Lookup::DestinationService(Family::V6);
            vec![Rule::with([set("set", lookup)], [count], Some(Verdict::Accept))]
        }
        Feature::Ranges => vec![
            Rule::new([set("blocks", Lookup::Address(Family::V4, Side::Source))], Verdict::Accept),
            Rule::new([], map("ports", Lookup::DestinationPort(Protocol::Tcp))),
        ],
        Feature::Maps => vec![
            Rule::with([], [Statement::MarkFrom { lookup: service, map: called("marks", feature) }], None),
            Rule::with([], [Statement::SetMark(Mark { value: 1, mask: 1 })], None),
            Rule::new([], map("pods", Lookup::Address(Family::V4, Side::Destination))),
        ],
        Feature::RouteTypes => vec![
            Rule::new([Match::HostAddress { of: Side::Destination, negated: false }], Verdict::Accept),
            Rule::new([Match::ToMany], Verdict::Accept),
        ],
        Feature::ConnectionTracking => {
            let known = Match::State { states: States::ESTABLISHED.or(States::RELATED), negated: false };
            let original = Lookup::OriginalService(Family::V6);
            let services = Match::InSet { lookup: original, set: called("set", Feature::Tables), negated: false };
            vec![Rule::new([known], Verdict::Accept), Rule::new([tcp, services], Verdict::Accept)]
        }
        Feature::Reject => vec![Rule::new([tcp], Verdict::Reject)],
        Feature::Limit => vec![Rule::new([Match::Limit { per_minute: 10, burst: 10 }], Verdict::Accept)],
        Feature::Log => vec![Rule::with([], [Statement::Log { group: 100, prefix: "trial".into() }], None)],
        Feature::Nat => {
            let to = std::net::IpAddr::from([127, 0, 0, 1]);
            vec![Rule::new([tcp], Verdict::SourceNat { to, random_ports: true })]
        }
        Feature::Masquerade => vec![Rule::new([tcp], Verdict::Masquerade { random_ports: true })],
        Feature::Route => vec![Rule::with([], [Statement::SetMark(Mark { value: 1, mask: u32::MAX })], None)],
    }
}

/// The modules that a trial of everything uses, and so has the kernel load.
pub const MODULES: [&str; 11] = [
    "nf_tables",
    "nft_ct",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_reject_inet",
    "nft_limit",
    "nft_log",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
];

impl Feature {
    /// The module of the kernel that has it.
    pub fn module(self) -> &'static str {
        match self {
            Feature::Tables | Feature::Ranges | Feature::Maps | Feature::Route => "nf_tables",
            Feature::RouteTypes => "nft_fib_inet",
            Feature::ConnectionTracking => "nft_ct",
            Feature::Reject => "nft_reject_inet",
            Feature::Limit => "nft_limit",
            Feature::Log => "nft_log",
            Feature::Nat => "nft_chain_nat",
            Feature::Masquerade => "nft_masq",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::Tables => "tables of the family inet",
            Feature::Ranges => "sets of ranges",
            Feature::Maps => "maps",
            Feature::RouteTypes => "fib",
            Feature::ConnectionTracking => "connection tracking",
            Feature::Reject => "reject",
            Feature::Limit => "limit",
            Feature::Log => "log",
            Feature::Nat => "address translation",
            Feature::Masquerade => "masquerade",
            Feature::Route => "chains that route again",
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.features.is_empty() {
            return write!(f, "{}", self.error);
        }
        f.write_str("nf_tables of this kernel lacks")?;
        for (index, feature) in self.features.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {feature} (module {})", feature.module())?;
        }
        write!(f, ": {}", self.error)
    }
}

impl std::error::Error for Missing {}
