//! Rules of ours in tables that a host no longer uses.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::info;

use super::flavour::has_unreadable_tables;
use super::{Families, Ownership, Tables, detect};
use crate::kernel::Name;
use crate::kernel::ipset::{self, SetName};
use crate::kernel::nftables::host_chains::{self, HostTable};
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

/// Removes everything of ours from the tables of both variants, and these sets; returns why something could not be removed.
/// Without programs of iptables what its nf_tables variant wrote is removed by netlink. What the legacy variant wrote can then be
/// neither read nor removed: sets that are in use say that there is something.
pub fn remove_all(ownership: &Ownership, sets: Vec<Name>, temporary: SetName) -> Vec<String> {
    let detected = detect(ownership);
    let both = [detected.programs, detected.abandoned];
    let mut failed: Vec<String> = both.into_iter().filter_map(|programs| remove(programs, ownership.clone())).collect();
    failed.extend(remove_by_netlink(ownership));
    if let Some(error) = ipset::abandoned::remove(sets, temporary) {
        failed.push(error);
        failed.extend(has_unreadable_tables().then(|| UNREADABLE.to_owned()));
    }
    failed
}

/// Removes chains of ours that are left in the tables of nf_tables, because a program is missing.
fn remove_by_netlink(ownership: &Ownership) -> Vec<String> {
    let mut failed = Vec::new();
    for (family, table) in
        Family::BOTH.into_iter().flat_map(|family| ownership.tables().map(move |table| (family, table)))
    {
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
