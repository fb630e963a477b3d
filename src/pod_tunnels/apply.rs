//! Sets up one pod, takes it down, and removes what is left: in the pod's network namespace, on a thread that ends there.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::compare::{Obstacle, WantedTunnel, changes, is_abandoned, removal};
use crate::kernel::namespace::{Namespace, NamespaceId};
use crate::kernel::pod_tunnel::PodNetwork;
use crate::kernel::{Error, module};
use crate::net::Family;

/// Where a pod was found, and is as wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    pub place: PathBuf,
    pub namespace: NamespaceId,
    /// Changes that were made.
    pub changes: usize,
}

/// Why a pod differs from the desired state.
#[derive(Clone, Debug)]
pub enum Failure {
    /// None of the places is a namespace that has the pod's address: the pod is gone, or somewhere else.
    NotFound,
    /// It is the pod's, and something in it stands in the way.
    Obstacle(Obstacle),
    /// The kernel refused.
    Kernel(Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotFound => f.write_str("no network namespace with the pod's address was found"),
            Failure::Obstacle(obstacle) => obstacle.fmt(f),
            Failure::Kernel(error) => error.fmt(f),
        }
    }
}

/// Loads the modules of the tunnels. What cannot be loaded shows where a device is made.
pub fn load_modules() -> Vec<Error> {
    module::load(&crate::kernel::pod_tunnel::MODULES)
}

/// Returns whether this host's kernel can have a tunnel of ours: the modules are there, built in or loaded by anybody.
pub fn may_have_tunnels() -> bool {
    crate::kernel::pod_tunnel::MODULES.iter().any(|name| module::is_present(name))
}

/// Makes the pod as wanted, in the first of the places that has its address; takes it down in all of them. `is_wanted`: the addresses that have tunnels wanted.
///
/// # Errors
/// Why it is not. A pod that went meanwhile is not found.
pub fn bring_about(
    places: &[PathBuf],
    want: &WantedTunnel,
    is_wanted: impl Fn(IpAddr) -> bool + Sync,
) -> Result<Done, Failure> {
    let (mut cleared, mut failure) = (None, None);
    for place in places {
        match bring_about_at(place, want, &is_wanted) {
            // What is to go may be in several.
            Ok(done) if want.services.is_empty() => cleared = Some(done),
            Ok(done) => return Ok(done),
            Err(Failure::NotFound | Failure::Obstacle(Obstacle::NotThePods)) => {}
            Err(other) => failure = Some(other),
        }
    }
    match (failure, cleared) {
        (None, Some(done)) => Ok(done),
        (failure, _) => Err(failure.unwrap_or(Failure::NotFound)),
    }
}

/// Returns why this process sees none of these places, where that follows from its mounts: a container without the host's `/run/netns`, or with one to which what the host
/// mounts later does not come. A pod that has just gone leaves its directory, and nothing in it.
pub fn unseen(places: &[PathBuf]) -> Option<String> {
    // With the host's processes the other places would do.
    let is_process = |place: &&PathBuf| place.starts_with("/proc");
    if places.iter().filter(is_process).any(|place| place.exists()) {
        return None;
    }
    let place = places.iter().find(|place| !is_process(place))?;
    let directory = place.parent()?;
    let is_namespace = || Namespace::open(place).is_ok();
    match (directory.exists(), place.exists()) {
        (false, _) => Some(format!("the container runtime keeps them in {}, which is not there", directory.display())),
        (true, true) if !is_namespace() => {
            Some(format!("what the host mounts in {} does not come here", directory.display()))
        }
        (true, _) => None,
    }
}

fn bring_about_at(
    place: &Path,
    want: &WantedTunnel,
    is_wanted: &(impl Fn(IpAddr) -> bool + Sync),
) -> Result<Done, Failure> {
    let namespace = match Namespace::open(place) {
        Ok(namespace) => namespace,
        Err(error) if error.is_absent() => return Err(Failure::NotFound),
        Err(error) => return Err(Failure::Kernel(error)),
    };
    if NamespaceId::of_process().map_err(Failure::Kernel)? == namespace.id() {
        return Err(Failure::NotFound);
    }
    let made = namespace.run(|| {
        let mut network = PodNetwork::open(Family::from(want.pod)).map_err(Failure::Kernel)?;
        let seen = network.read().map_err(Failure::Kernel)?;
        let changes = changes(&seen, want, is_wanted).map_err(Failure::Obstacle)?;
        changes.iter().try_for_each(|change| network.apply(change)).map_err(Failure::Kernel)?;
        Ok(changes.len())
    });
    let changes = made.map_err(Failure::Kernel)??;
    Ok(Done { place: place.to_owned(), namespace: namespace.id(), changes })
}

/// Removes the devices in one namespace that serve no address for which one is wanted. Returns how many went.
///
/// # Errors
/// The kernel refused. A namespace that is gone, and the host's own, have none.
pub fn remove_abandoned(place: &Path, is_wanted: impl Fn(IpAddr) -> bool + Sync) -> Result<usize, Error> {
    let namespace = match Namespace::open(place) {
        Ok(namespace) => namespace,
        Err(error) if error.is_absent() => return Ok(0),
        Err(error) => return Err(error),
    };
    if NamespaceId::of_process()? == namespace.id() {
        return Ok(0);
    }
    namespace.run(|| {
        let mut removed = 0;
        for family in Family::BOTH {
            let mut network = PodNetwork::open(family)?;
            let seen = network.read()?;
            if is_abandoned(&seen, &is_wanted) {
                removal(&seen).iter().try_for_each(|change| network.apply(change))?;
                removed += 1;
            }
        }
        Ok(removed)
    })?
}
