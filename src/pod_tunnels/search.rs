//! Where pods are now: asked of the container runtime, and where that does not answer, of the namespaces in the usual directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::task;

use super::machine::NoPlace;
use super::places::{DIRECTORIES, KnownPods, of_sandboxes, sought};
use crate::container_runtime::hosts::Runtimes;
use crate::kernel::address::host_addresses;
use crate::kernel::namespace::{Namespace, NamespaceId};
use crate::kernel::pod_tunnel::addresses_of_pod;

/// Names of namespaces that are looked at in one directory.
const MOST_NAMES: usize = 4096;
/// Why one of the directories' namespaces is not taken for a pod's.
const SEVERAL: &str = "several network namespaces have its address, and no container runtime tells which is the pod's";

/// The places of addresses, or why there are none.
pub type Found = BTreeMap<IpAddr, Result<Vec<PathBuf>, NoPlace>>;

/// Returns where these addresses are, and whether the container runtime answered.
pub async fn search(runtimes: &mut Runtimes, lost: &BTreeSet<IpAddr>, known: &KnownPods) -> (Found, bool) {
    runtimes.forget(lost);
    let (mut found, failure, answered) = match runtimes.sandboxes(&sought(lost, known)).await {
        Ok(told) => {
            let found = of_sandboxes(&told.sandboxes, lost, known);
            let found: Found = found.into_iter().map(|(address, places)| (address, Ok(places))).collect();
            let none = "the container runtime has no sandbox with its address";
            let failure = match told.lacking {
                None => NoPlace::NoSandbox(none.to_owned()),
                Some(lacking) => NoPlace::Unknown(format!("{none} ({lacking})")),
            };
            (found, failure, true)
        }
        Err(failure) => {
            let lost = lost.clone();
            let found = task::spawn_blocking(move || of_directories(&lost)).await.unwrap_or_default();
            (found, NoPlace::Unknown(failure), false)
        }
    };
    let hosts: BTreeSet<IpAddr> = host_addresses().into_iter().flatten().map(|one| one.address.addr()).collect();
    let mut result = |address: &IpAddr| match found.remove(address) {
        Some(result) => result,
        None if hosts.contains(address) => {
            Err(NoPlace::Unknown("it shares its node's network (hostNetwork)".to_owned()))
        }
        None => Err(failure.clone()),
    };
    (lost.iter().map(|address| (*address, result(address))).collect(), answered)
}

/// Looks for these addresses in all namespaces of the directories: the way that is left without a runtime. Which of several with one
/// address is the pod's nobody can say.
fn of_directories(lost: &BTreeSet<IpAddr>) -> Found {
    let mut found = Found::new();
    for place in distinct(directories()) {
        let inside = Namespace::open(&place).and_then(|namespace| namespace.run(addresses_of_pod));
        // One that cannot be entered is none of those that are looked for, as far as can be known.
        let Ok(Ok(addresses)) = inside else { continue };
        let its: BTreeSet<IpAddr> = addresses.iter().map(|one| one.address.addr()).collect();
        for address in its.intersection(lost) {
            let places = found.entry(*address).or_insert_with(|| Ok(Vec::new()));
            match places {
                Ok(places) if places.is_empty() => places.push(place.clone()),
                _ => *places = Err(NoPlace::Unknown(SEVERAL.to_owned())),
            }
        }
    }
    found
}

/// Returns the names in the usual directories.
pub fn directories() -> BTreeSet<PathBuf> {
    let names = |directory: &&str| fs::read_dir(directory).into_iter().flatten().take(MOST_NAMES);
    DIRECTORIES.iter().flat_map(names).filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// One place for each namespace that is not the host's.
pub fn distinct(places: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut known: BTreeSet<NamespaceId> = NamespaceId::of_process().into_iter().collect();
    places.into_iter().filter(|place| NamespaceId::at(place).is_some_and(|id| known.insert(id))).collect()
}

/// Returns whether any of the usual directories can be read.
pub fn sees_directories() -> bool {
    DIRECTORIES.iter().any(|directory| fs::read_dir(directory).is_ok())
}
