//! Sets of ours that nobody uses any more.

use super::Ipset;
use crate::kernel::Name;

/// Returns whether there is a set with one of these names. What the kernel does not list is not there.
pub fn is_there(ipset: &mut Ipset, names: &[Name]) -> bool {
    ipset.names().is_ok_and(|sets| sets.iter().any(|set| names.iter().any(|name| name.matches(&set.0))))
}

/// Removes the sets with these names, and their elements; returns why one could not be removed. Rules that name them must have gone. A
/// kernel without ipset has none.
pub fn remove(ipset: &mut Ipset, names: &[Name]) -> Option<String> {
    let sets = match ipset.names() {
        Ok(sets) => sets,
        Err(error) if error.is_unsupported() => return None,
        Err(error) => return Some(error.to_string()),
    };
    let ours = sets.iter().filter(|set| names.iter().any(|name| name.matches(&set.0)));
    let failed = ours.filter_map(|set| ipset.destroy(set).err());
    // All are tried, whichever fails.
    failed.collect::<Vec<_>>().into_iter().next().map(|error| error.to_string())
}
