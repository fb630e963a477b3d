//! Rules of ours in tables that a host no longer uses.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use tracing::info;

use super::flavour::{has_program, has_unreadable_tables};
use super::rule::{SetSides, Side};
use super::{Families, Flavour, Leftovers, Match, Ownership, Rule, Table, Tables, Verdict, detect};
use crate::kernel::ipset::{self, Ipset, SetName};
use crate::kernel::nftables::host_chains::{self, HostTable};
use crate::kernel::nftables::host_masquerades::{InSet, Masquerade, Masqueraded};
use crate::kernel::{Error, Name};
use crate::net::Family;
use crate::reconcile::{Mirror, Moment, Reflection};

const UNREADABLE: &str = "the sets may be in use by rules of legacy iptables, whose programs are not installed: run --cleanup-config \
     with an image that has iptables-legacy-restore and ip6tables-legacy-restore";

/// Removes everything of ours from the tables of these programs; returns why something could not be removed.
pub fn remove(programs: Families, ownership: Ownership) -> Option<String> {
    let mut mirror = Mirror::new(Tables::new(programs, ownership));
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}

/// Removes everything of ours from the tables of both variants, and sets of ours, part by part: each starts one or two programs at most, and whoever
/// removes does other things in between.
///
/// Without programs of iptables what its nf_tables variant wrote is removed by netlink. What the legacy variant wrote can then be
/// neither read nor removed: sets that are in use say that there is something.
#[derive(Debug)]
pub struct Removal {
    ownership: Ownership,
    sets: Vec<Name>,
    temporary: SetName,
    /// The remaining parts of an attempt that has begun.
    parts: VecDeque<Part>,
    failed: Vec<String>,
}

/// A part of an attempt.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The tables that these programs read, of one family.
    Tables(Families),
    /// The tables of nf_tables, of one family.
    Netlink(Family),
    /// All sets; rules that name them must have gone.
    Sets,
}

impl Removal {
    pub fn of(ownership: Ownership, sets: Vec<Name>, temporary: SetName) -> Removal {
        Removal { ownership, sets, temporary, parts: VecDeque::new(), failed: Vec::new() }
    }

    /// Does the next part. Behind the last one it returns why something could not be removed; the next call begins anew then.
    pub fn step(&mut self) -> Vec<String> {
        match self.parts.pop_front() {
            None => self.begin(),
            Some(Part::Tables(programs)) => self.failed.extend(remove(programs, self.ownership.clone())),
            Some(Part::Netlink(family)) => self.failed.extend(remove_by_netlink(&self.ownership, family)),
            Some(Part::Sets) => {
                if let Some(error) = ipset::abandoned::remove(self.sets.clone(), self.temporary.clone()) {
                    self.failed.push(error);
                    self.failed.extend(has_unreadable_tables().then(|| UNREADABLE.to_owned()));
                }
            }
        }
        if self.goes_on() { Vec::new() } else { std::mem::take(&mut self.failed) }
    }

    /// Returns whether an attempt has begun and is not complete.
    pub fn goes_on(&self) -> bool {
        !self.parts.is_empty()
    }

    fn begin(&mut self) {
        let detected = detect(&self.ownership);
        for programs in [detected.programs, detected.abandoned] {
            for family in Family::BOTH {
                let of_family = programs.of(family).map(|its| Families {
                    v4: (family == Family::V4).then_some(its),
                    v6: (family == Family::V6).then_some(its),
                });
                self.parts.extend(of_family.map(Part::Tables));
            }
        }
        self.parts.extend(Family::BOTH.map(Part::Netlink));
        self.parts.push_back(Part::Sets);
    }
}

/// Removes what is ours in the tables of nf_tables, of the families whose programs are not installed. Returns why something could not
/// be removed.
pub fn remove_without_programs(ownership: &Ownership) -> Vec<String> {
    let lack = Family::BOTH.into_iter().filter(|family| !has_program(Flavour::NfTables, *family));
    lack.flat_map(|family| remove_by_netlink(ownership, family)).collect()
}

/// Removes chains of ours, and rules that kube-router left, that are in the tables of nf_tables because a program is missing.
fn remove_by_netlink(ownership: &Ownership, family: Family) -> Vec<String> {
    let mut failed = Vec::new();
    failed.extend(remove_leftovers(ownership, family).err().map(|error| error.to_string()));
    for table in ownership.tables() {
        let of_host = HostTable { family, name: table.name() };
        match host_chains::remove(of_host, |chain| ownership.owns_in(table.name(), chain)) {
            Ok(0) => {}
            Ok(chains) => {
                info!(%family, table = table.name(), chains, "Chains of iptables that an earlier run left are removed")
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    failed
}

/// Removes the rules of `POSTROUTING` by which kube-router masqueraded: its router's are known by the names of their sets, its proxy's by
/// their shape.
fn remove_leftovers(ownership: &Ownership, family: Family) -> Result<(), Error> {
    const CHAIN: &str = "POSTROUTING";
    if ownership.leftovers == Leftovers::None {
        return Ok(());
    }
    let table = HostTable { family, name: Table::Nat.name() };
    let removed = host_chains::remove_masquerades(table, CHAIN, |found| {
        let have_sets = found.iter().any(|one| matches!(one.packets, Masqueraded::InSets(_)));
        let mut ipset = have_sets.then(Ipset::open).transpose()?;
        let mut is_leftover = |found: &Masquerade| match &found.packets {
            Masqueraded::ByIpvs => ownership.leftovers == Leftovers::Proxy,
            Masqueraded::InSets(sets) => {
                let rule = ipset.as_mut().and_then(|ipset| rule_of_sets(sets, ipset));
                rule.is_some_and(|rule| ownership.leftovers.include(Table::Nat, CHAIN, &rule))
            }
        };
        Ok(found.iter().filter(|one| is_leftover(one)).map(|one| one.handle).collect())
    })?;
    if removed > 0 {
        info!(%family, rules = removed, "Masquerade rules that kube-router left in iptables are removed");
    }
    Ok(())
}

/// Returns the rule that masquerades what these look-ups find, with the names of the sets; `None` if the kernel does not tell one.
fn rule_of_sets(sets: &[InSet], ipset: &mut Ipset) -> Option<Rule> {
    let asked = sets.iter().map(|one| {
        let side = if one.is_source { Side::Source } else { Side::Destination };
        Some(Match::Set { set: ipset.name_of(one.number)?, of: SetSides::Address(side), negated: one.negated })
    });
    let asked: Vec<Match> = asked.collect::<Option<_>>()?;
    Some(Rule::new(asked, Verdict::Masquerade { random_ports: false }))
}
