//! Rules of ours in tables that a host no longer uses.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use tracing::info;

use super::flavour::{has_legacy_tables_of, has_program, has_unreadable_tables, left_beside, legacy_holds};
use super::plan::HELD;
use super::rule::{IpProtocol, Mark, SetSides, Side};
use super::{Detected, Families, Flavour, Leftovers, Match, Ownership, Programs, Rule, Table, Tables, Verdict, detect};
use crate::kernel::ipset::{self, Ipset};
use crate::kernel::netlink::Socket;
use crate::kernel::nftables::host_chains::{self, HostTable, Jumps, Removed};
use crate::kernel::nftables::host_masquerades::{InSet, Masquerade, Masqueraded, masquerade};
use crate::kernel::nftables::host_service_rules::{Does, ServiceRule, service_rule};
use crate::kernel::{Error, Name, nftables};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Mirror, Moment, Reflection};

const UNREADABLE: &str = "the sets may be in use by rules of legacy iptables, whose programs are not installed: run the cleanup \
     with an image that has iptables-legacy-restore and ip6tables-legacy-restore";

/// Removes everything of ours from the tables of these programs; returns why something could not be removed.
pub fn remove(programs: Families, ownership: Ownership) -> Option<String> {
    let mut mirror = Mirror::new(Tables::new(programs, ownership));
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}

/// Rules of ours in the tables of the variant that a host with iptables does not use.
#[derive(Debug)]
pub struct OtherVariant {
    ownership: Ownership,
    /// The programs that are in use.
    used: Families,
    /// The programs of the other variant, of families in whose tables there is something, as detected at the start.
    detected: Option<Families>,
    /// The same, as last looked for, or why that is not known.
    left: Option<Result<Families, String>>,
}

impl OtherVariant {
    /// As detected; of a host where nothing was, there is none.
    pub fn of(detected: &Detected, ownership: Ownership) -> OtherVariant {
        OtherVariant { ownership, used: detected.programs, detected: Some(detected.abandoned), left: None }
    }

    /// Returns whether there is anything, or may be: what was detected, and after the first call what is there by then. An agent that still runs
    /// may have put its rules back, or somebody has removed them.
    pub fn is_there(&mut self) -> bool {
        let left = self.look();
        let is_there = left != Ok(Families::default());
        self.left = Some(left);
        is_there
    }

    /// Removes what is there. Returns why something could not be removed, or may remain.
    pub fn remove(&mut self) -> Option<String> {
        let left = match self.left.take().unwrap_or_else(|| self.look()) {
            Ok(left) if left == Families::default() => return None,
            Ok(left) => left,
            Err(error) => return Some(error),
        };
        info!("Removing rules of ours from the tables of the other variant of iptables");
        let failed = remove(left, self.ownership.clone());
        self.left = failed.is_some().then_some(Ok(left));
        failed
    }

    fn look(&mut self) -> Result<Families, String> {
        self.detected.take().map_or_else(|| left_beside(self.used, &self.ownership), Ok)
    }
}

/// Removes everything of ours from the tables of both variants, sets of ours, and tables of others that go with them, part by part: each starts one or two
/// programs at most, and whoever removes does other things in between.
///
/// Programs are started only where something may be ours, which the kernel is asked before: by netlink about tables of nf_tables, and about those of the
/// legacy variant by the list of their names. All parts have one socket, which stays open: the kernel takes tens of milliseconds to close one.
///
/// Without programs of iptables what its nf_tables variant wrote is removed by netlink. What the legacy variant wrote can then be
/// neither read nor removed: sets that are in use say that there is something.
#[derive(Debug)]
pub struct Removal {
    ownership: Ownership,
    sets: Vec<Name>,
    /// Tables of nf_tables that others left and that go last.
    tables: &'static [nftables::Table<'static>],
    /// The programs leave chains that rules of others jump to; behind them these may go with the rules.
    jumps: Jumps,
    /// Opened by the first part.
    ipset: Option<Ipset>,
    /// The remaining parts of an attempt that has begun.
    parts: VecDeque<Part>,
    failed: Vec<String>,
}

/// A part of an attempt.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The tables that these programs read, of one family.
    Programs(Families),
    /// The tables of nf_tables, of one family.
    Netlink(Family),
    /// All sets; rules that name them must have gone.
    Sets,
    /// The tables that others left.
    Tables,
}

impl Removal {
    pub fn of(ownership: Ownership, sets: Vec<Name>) -> Removal {
        let (parts, failed) = (VecDeque::new(), Vec::new());
        Removal { ownership, sets, tables: &[], jumps: Jumps::Removed, ipset: None, parts, failed }
    }

    /// The same, which leaves chains that rules of others jump to.
    pub fn sparing_rules_of_others(self) -> Removal {
        Removal { jumps: Jumps::Spared, ..self }
    }

    /// The same, and behind all else these tables of nf_tables.
    pub fn with_tables(self, tables: &'static [nftables::Table<'static>]) -> Removal {
        Removal { tables, ..self }
    }

    /// Does the next part. Behind the last one it returns why something could not be removed, and the next call begins anew; `None` before.
    pub fn step(&mut self) -> Option<Vec<String>> {
        if let Err(error) = self.open() {
            return Some(vec![error.to_string()]);
        }
        match self.parts.pop_front() {
            None => self.begin(),
            Some(part) => self.perform(part),
        }
        self.parts.is_empty().then(|| std::mem::take(&mut self.failed))
    }

    /// Returns whether there are chains of ours, sets of ours, or tables of others that go with them. What the kernel does not say is not there. Rules that
    /// kube-router left in chains of the host are not looked for: without its sets they are few, and all others there would have to be read.
    pub fn finds_any(&mut self) -> bool {
        // What cannot be opened is told by the removal.
        let _ = self.open();
        let Removal { ownership, sets, tables, ipset, .. } = self;
        let is_in_nf_tables = |ipset: &mut Ipset| {
            let owns = |table: &str, chain: &str| ownership.owns_in(table, chain);
            let has = |family| host_chains::has_chain(ipset.socket(), family, owns).unwrap_or(false);
            let has_chain = Family::BOTH.into_iter().any(has);
            has_chain || ipset::abandoned::is_there(ipset, sets) || nftables::has_any(ipset.socket(), tables)
        };
        ipset.as_mut().is_some_and(is_in_nf_tables) || legacy_holds(ownership)
    }

    /// Opens the socket, where that is not done and the kernel has such sockets. Another kernel has nothing of all this but, perhaps, legacy tables.
    fn open(&mut self) -> Result<(), Error> {
        if self.ipset.is_none() {
            match Ipset::open() {
                Ok(ipset) => self.ipset = Some(ipset),
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn perform(&mut self, part: Part) {
        if let Part::Programs(programs) = part {
            self.failed.extend(remove(programs, self.ownership.clone()));
        }
        let Some(ipset) = &mut self.ipset else { return };
        match part {
            Part::Programs(_) => {}
            Part::Netlink(family) => {
                let failed = remove_by_netlink(&self.ownership, family, self.jumps, ipset.socket());
                self.failed.extend(failed);
            }
            Part::Sets => {
                if let Some(error) = ipset::abandoned::remove(ipset, &self.sets) {
                    self.failed.push(error);
                    self.failed.extend(has_unreadable_tables().then(|| UNREADABLE.to_owned()));
                }
            }
            Part::Tables => match nftables::remove(ipset.socket(), self.tables) {
                Ok(removed) => {
                    for nftables::Table { family, name } in removed {
                        info!(%family, table = name, "Removed a table of nf_tables that another program left");
                    }
                }
                Err(error) => self.failed.push(error.to_string()),
            },
        }
    }

    fn begin(&mut self) {
        let of_nf_tables = PerFamily::from_fn(|family| self.may_hold(family));
        let legacy = PerFamily::from_fn(has_legacy_tables_of);
        let of = |family: Family, programs: Programs| match programs {
            // Which variant the plain ones are of is not certain.
            Programs { plain: true, .. } => *of_nf_tables.of(family) || *legacy.of(family),
            Programs { flavour: Flavour::NfTables, .. } => *of_nf_tables.of(family),
            Programs { flavour: Flavour::Legacy, .. } => *legacy.of(family),
        };
        if Family::BOTH.into_iter().any(|family| *of_nf_tables.of(family) || *legacy.of(family)) {
            let detected = detect(&self.ownership);
            for programs in [detected.programs, detected.abandoned] {
                for family in Family::BOTH {
                    let of_family = programs.of(family).filter(|its| of(family, *its)).map(|its| Families {
                        v4: (family == Family::V4).then_some(its),
                        v6: (family == Family::V6).then_some(its),
                    });
                    self.parts.extend(of_family.map(Part::Programs));
                }
            }
        }
        let forces = self.jumps == Jumps::Removed;
        let by_netlink =
            |family: &Family| *of_nf_tables.of(*family) && (forces || !has_program(Flavour::NfTables, *family));
        self.parts.extend(Family::BOTH.into_iter().filter(by_netlink).map(Part::Netlink));
        self.parts.push_back(Part::Sets);
        self.parts.extend((!self.tables.is_empty()).then_some(Part::Tables));
    }

    /// Returns whether tables of nf_tables hold anything of ours, or may: a chain by its name, or any rule where kube-router left some.
    fn may_hold(&mut self, family: Family) -> bool {
        let Some(ipset) = &mut self.ipset else { return false };
        let ownership = &self.ownership;
        let has_chain = host_chains::has_chain(ipset.socket(), family, |table, chain| ownership.owns_in(table, chain));
        let mut places = ownership.leftovers.places().iter();
        // Where the kernel does not say, the attempt does, and tells why.
        has_chain.unwrap_or(true)
            || places.any(|(table, chain)| {
                let table = HostTable { family, name: table.name() };
                host_chains::has_rule(ipset.socket(), table, chain).unwrap_or(true)
            })
    }
}

/// Removes what is ours in the tables of nf_tables, of the families whose programs are not installed. Returns why something could not
/// be removed.
pub fn remove_without_programs(ownership: &Ownership) -> Vec<String> {
    let lack: Vec<Family> =
        Family::BOTH.into_iter().filter(|family| !has_program(Flavour::NfTables, *family)).collect();
    if lack.is_empty() {
        return Vec::new();
    }
    match Ipset::open() {
        Ok(mut ipset) => {
            let remove = |family| remove_by_netlink(ownership, family, Jumps::Removed, ipset.socket());
            lack.into_iter().flat_map(remove).collect()
        }
        Err(error) if error.is_unsupported() => Vec::new(),
        Err(error) => vec![error.to_string()],
    }
}

/// Removes chains of ours, and rules that kube-router left, that are in the tables of nf_tables because a program is missing.
fn remove_by_netlink(ownership: &Ownership, family: Family, jumps: Jumps, socket: &mut Socket) -> Vec<String> {
    let mut failed = remove_leftovers(ownership, family, socket);
    for table in ownership.tables() {
        let of_host = HostTable { family, name: table.name() };
        match host_chains::remove(socket, of_host, jumps, |chain| ownership.owns_in(table.name(), chain)) {
            Ok(Removed { chains, held }) => {
                if chains > 0 {
                    info!(%family, table = table.name(), chains, "Chains of iptables that an earlier run left are removed");
                }
                let told = |chain: String| format!("remove chain {chain} of table {} ({family}): {HELD}", table.name());
                failed.extend(held.into_iter().map(told));
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    failed
}

/// Removes the rules that kube-router left in chains of the host: those by which it masqueraded, and those of its direct server return. Returns why
/// some could not be removed.
fn remove_leftovers(ownership: &Ownership, family: Family, socket: &mut Socket) -> Vec<String> {
    failures_of(ownership.leftovers.places(), |table, chain| match table {
        Table::Nat => remove_masquerades(ownership, family, chain, socket),
        Table::Mangle => remove_service_rules(ownership, family, chain, socket),
        Table::Filter => Ok(()),
    })
}

/// Does something in each of these chains, also behind one in which it fails: `--cleanup-config` tries once. Returns the failures.
fn failures_of(
    places: &'static [(Table, &'static str)],
    mut remove: impl FnMut(Table, &'static str) -> Result<(), Error>,
) -> Vec<String> {
    places.iter().filter_map(|(table, chain)| Some(remove(*table, chain).err()?.to_string())).collect()
}

/// Removes the rules by which kube-router masqueraded: its router's are known by the names of their sets, its proxy's by their shape.
fn remove_masquerades(ownership: &Ownership, family: Family, chain: &str, socket: &mut Socket) -> Result<(), Error> {
    let table = HostTable { family, name: Table::Nat.name() };
    let removed = host_chains::remove_read(socket, table, chain, masquerade, |socket, found| {
        let mut is_leftover = |found: &Masquerade| match &found.packets {
            Masqueraded::ByIpvs => ownership.leftovers == Leftovers::Proxy,
            Masqueraded::InSets(sets) => {
                let rule = rule_of_sets(sets, socket);
                rule.is_some_and(|rule| ownership.leftovers.include(Table::Nat, chain, &rule))
            }
        };
        found.iter().filter(|one| is_leftover(one)).map(|one| one.handle).collect()
    })?;
    if removed > 0 {
        info!(%family, rules = removed, "Masquerade rules that kube-router left in iptables are removed");
    }
    Ok(())
}

/// Removes the rules by which kube-router marked packets for direct server return, and had answers announce smaller segments.
fn remove_service_rules(ownership: &Ownership, family: Family, chain: &str, socket: &mut Socket) -> Result<(), Error> {
    let table = HostTable { family, name: Table::Mangle.name() };
    let removed = host_chains::remove_read(socket, table, chain, service_rule, |_, found| {
        let is_leftover = |one: &&ServiceRule| ownership.leftovers.include(Table::Mangle, chain, &rule_of_service(one));
        found.iter().filter(is_leftover).map(|one| one.handle).collect()
    })?;
    if removed > 0 {
        info!(%family, chain, rules = removed, "Rules of direct server return that kube-router left in iptables are removed");
    }
    Ok(())
}

/// Returns the rule as iptables would tell it.
fn rule_of_service(ServiceRule { address, protocol, port, does, .. }: &ServiceRule) -> Rule {
    let (range, protocol, port) = (Family::host_prefix(*address), *protocol, *port);
    let of = Match::Protocol(IpProtocol::Transport(protocol));
    match does {
        Does::Mark { value, mask } => Rule::new(
            [Match::Destination { range, negated: false }, of, Match::Port { protocol, side: Side::Destination, port }],
            Verdict::SetMark(Mark { value: *value, mask: *mask }),
        ),
        Does::SmallerSegments { link, size } => Rule::new(
            [
                Match::Source { range, negated: false },
                Match::InputLink(link.as_str().into()),
                of,
                Match::OpeningFrom { port },
            ],
            Verdict::SetMss(*size),
        ),
    }
}

/// Returns the rule that masquerades what these look-ups find, with the names of the sets; `None` if the kernel does not tell one.
fn rule_of_sets(sets: &[InSet], socket: &mut Socket) -> Option<Rule> {
    let asked = sets.iter().map(|one| {
        let side = if one.is_source { Side::Source } else { Side::Destination };
        Some(Match::Set { set: ipset::name_of(socket, one.number)?, of: SetSides::Address(side), negated: one.negated })
    });
    let asked: Vec<Match> = asked.collect::<Option<_>>()?;
    Some(Rule::new(asked, Verdict::Masquerade { random_ports: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Cause;

    #[test]
    fn a_failure_in_one_chain_keeps_no_other_from_being_tried() {
        let places = Leftovers::Proxy.places();
        let mut tried = Vec::new();
        let failed = failures_of(places, |table, chain| {
            tried.push((table, chain));
            let fails = table == Table::Nat || chain == "PREROUTING";
            if fails { Err(Error::new("remove rules of iptables", chain, Cause::Timeout)) } else { Ok(()) }
        });
        assert_eq!(tried, places);
        assert_eq!(failed.len(), 2, "each failure is told: {failed:?}");
        assert!(
            failed.iter().zip(["POSTROUTING", "PREROUTING"]).all(|(words, chain)| words.contains(chain)),
            "{failed:?}"
        );
    }
}
