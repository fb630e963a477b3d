//! Changes inside a pod: the objects that are there compared with those that are desired.
//!
//! The order keeps a process that ends at any point harmless. The device is there and its filter is loose before it has an
//! address, and addresses go before the device does; what is half done is the beginning of what the next run does, or undoes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::kernel::pod_tunnel::{Change, Seen, SeenDevice, device};
use crate::net::Family;

/// Desired tunnel of one address of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedTunnel {
    /// The pod's address: where the tunnel ends.
    pub pod: IpAddr,
    /// Service addresses of the same family; none where the tunnel is to go.
    pub services: BTreeSet<IpAddr>,
    /// Whether what is not wanted goes: not before the cluster is known completely.
    pub shrinks: bool,
}

/// Why nothing can be done in this namespace. Nothing is changed then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// No device has the pod's address: it is another pod's, or has none yet.
    NotThePods,
    /// The pod has a device of its own under our name, of this type.
    ForeignDevice(String),
    /// The device serves another address of the same pod.
    Taken(IpAddr),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotThePods => f.write_str("its network namespace does not have the pod's address"),
            Obstacle::ForeignDevice(kind) => {
                write!(f, "the pod has a device of its own under the tunnel's name ({kind})")
            }
            Obstacle::Taken(other) => write!(f, "the pod's tunnel serves its other address {other}"),
        }
    }
}

/// Returns the changes that make what is seen what is wanted, in order. `is_wanted`: whether another address has a tunnel wanted:
/// of two addresses of one pod and family the lower one has it.
///
/// # Errors
/// The obstacle that keeps the pod from being changed.
pub fn changes(seen: &Seen, want: &WantedTunnel, is_wanted: impl Fn(IpAddr) -> bool) -> Result<Vec<Change>, Obstacle> {
    if want.services.is_empty() {
        let is_its = |found: &SeenDevice| matches!(found, SeenDevice::Tunnel { local, .. } if *local == want.pod);
        let has_its = seen.device.as_ref().is_some_and(is_its);
        if !has_its && !seen.pod_addresses.contains(&want.pod) {
            return Err(Obstacle::NotThePods);
        }
        let goes = want.shrinks && has_its;
        return Ok(if goes { removal(seen) } else { Vec::new() });
    }
    if !seen.pod_addresses.contains(&want.pod) {
        return Err(Obstacle::NotThePods);
    }
    let mut changes = Vec::new();
    let made = |is_there| Change::Device { local: want.pod, is_there };
    match &seen.device {
        None => changes.push(made(false)),
        Some(SeenDevice::Other(kind)) => return Err(Obstacle::ForeignDevice(kind.to_string())),
        Some(SeenDevice::Tunnel { local, .. })
            if *local < want.pod && is_wanted(*local) && seen.pod_addresses.contains(local) =>
        {
            return Err(Obstacle::Taken(*local));
        }
        Some(SeenDevice::Tunnel { takes_all: false, .. }) => changes.extend([Change::DeleteDevice, made(false)]),
        Some(SeenDevice::Tunnel { local, up, .. }) if *local != want.pod || !up => changes.push(made(true)),
        Some(SeenDevice::Tunnel { .. }) => {}
    }
    let replaced = changes.contains(&Change::DeleteDevice);
    // A new device takes over the filter of `default`, which nobody looked at.
    let is_new = matches!(changes.last(), Some(Change::Device { is_there: false, .. }));
    if Family::from(want.pod) == Family::V4 && (seen.filters_strictly || is_new) {
        changes.push(Change::LoosenFilter);
    }
    // A device that is replaced may have been allowed what `default` does not allow the new one.
    if Family::from(want.pod) == Family::V6 && (seen.lacks_ipv6 || replaced) {
        changes.push(Change::EnableIpv6);
    }
    let has = |address: &IpAddr| !replaced && seen.services.contains(address);
    changes.extend(want.services.iter().filter(|address| !has(address)).map(|address| Change::Add(*address)));
    let unwanted = seen.services.iter().filter(|address| !want.services.contains(address) && !replaced && want.shrinks);
    changes.extend(unwanted.map(|address| Change::Delete(*address)));
    Ok(changes)
}

/// Returns the changes after which nothing of ours is there, whomever it served.
pub fn removal(seen: &Seen) -> Vec<Change> {
    match &seen.device {
        None | Some(SeenDevice::Other(_)) => Vec::new(),
        Some(SeenDevice::Tunnel { .. }) if seen.foreign.is_empty() => vec![Change::DeleteDevice],
        Some(SeenDevice::Tunnel { .. }) => seen.services.iter().map(|address| Change::Delete(*address)).collect(),
    }
}

/// Returns whether the device serves an address for which none is wanted.
pub fn is_abandoned(seen: &Seen, is_wanted: impl Fn(IpAddr) -> bool) -> bool {
    matches!(seen.device, Some(SeenDevice::Tunnel { local, .. }) if !is_wanted(local))
}

/// The device of an address, for messages.
pub fn device_of(pod: IpAddr) -> String {
    device(Family::from(pod)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> BTreeSet<IpAddr> {
        text.split_whitespace().map(|one| one.parse().expect("an address")).collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A pod's namespace: `device` as `LOCAL up|down [one]`, or the type of a foreign one.
    fn seen(pod: &str, device: &str, services: &str) -> Seen {
        let words: Vec<&str> = device.split_whitespace().collect();
        let device = match words.as_slice() {
            [] => None,
            [kind] => Some(SeenDevice::Other((*kind).into())),
            [local, up, rest @ ..] => {
                Some(SeenDevice::Tunnel { local: address(local), takes_all: rest.is_empty(), up: *up == "up" })
            }
        };
        Seen { pod_addresses: addresses(pod), device, services: addresses(services), ..Seen::default() }
    }

    fn want(pod: &str, services: &str) -> WantedTunnel {
        WantedTunnel { pod: address(pod), services: addresses(services), shrinks: true }
    }

    fn lines(changes: &[Change]) -> String {
        let line = |change: &Change| match change {
            Change::Device { is_there: false, local } => format!("make {local}"),
            Change::Device { is_there: true, local } => format!("change {local}"),
            Change::LoosenFilter => "loosen".to_owned(),
            Change::EnableIpv6 => "enable".to_owned(),
            Change::Add(address) => format!("add {address}"),
            Change::Delete(address) => format!("delete {address}"),
            Change::DeleteDevice => "remove".to_owned(),
        };
        changes.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    fn check(seen: &Seen, want: &WantedTunnel, expected: &str) {
        let found = match changes(seen, want, |_| true) {
            Ok(changes) => lines(&changes),
            Err(obstacle) => obstacle.to_string(),
        };
        assert_eq!(found, expected, "{seen:?} {want:?}");
    }

    const POD: &str = "10.244.1.5";
    const POD_V6: &str = "fd00:10:244:1::5";

    #[test]
    fn a_device_is_made_and_its_filter_loosened_before_it_has_an_address() {
        check(
            &seen(POD, "", ""),
            &want(POD, "203.0.113.7 203.0.113.8"),
            "make 10.244.1.5, loosen, add 203.0.113.7, add 203.0.113.8",
        );
        check(&seen(POD_V6, "", ""), &want(POD_V6, "2001:db8:1::7"), "make fd00:10:244:1::5, add 2001:db8:1::7");
    }

    #[test]
    fn a_device_that_would_take_no_ipv6_address_is_made_to_before_it_gets_one() {
        let without = |device, services| Seen { lacks_ipv6: true, ..seen(POD_V6, device, services) };
        let want = want(POD_V6, "2001:db8:1::7");
        check(&without("", ""), &want, "make fd00:10:244:1::5, enable, add 2001:db8:1::7");
        check(&without("fd00:10:244:1::5 up", ""), &want, "enable, add 2001:db8:1::7");
        let one = seen(POD_V6, "fd00:10:244:1::5 up one", "2001:db8:1::7");
        check(&one, &want, "remove, make fd00:10:244:1::5, enable, add 2001:db8:1::7");
    }

    #[test]
    fn what_is_as_wanted_is_not_touched_and_what_another_run_left_half_done_is_finished() {
        check(&seen(POD, "10.244.1.5 up", "203.0.113.7"), &want(POD, "203.0.113.7"), "");
        check(&seen(POD, "10.244.1.5 up", ""), &want(POD, "203.0.113.7"), "add 203.0.113.7");
        check(&seen(POD, "10.244.1.5 down", ""), &want(POD, "203.0.113.7"), "change 10.244.1.5, add 203.0.113.7");
        let strict = Seen { filters_strictly: true, ..seen(POD, "10.244.1.5 up", "203.0.113.7") };
        check(&strict, &want(POD, "203.0.113.7"), "loosen");
        check(
            &seen(POD, "10.244.1.4 up", "203.0.113.9"),
            &want(POD, "203.0.113.7"),
            "change 10.244.1.5, add 203.0.113.7, delete 203.0.113.9",
        );
        check(
            &seen(POD, "10.244.1.5 up one", "203.0.113.7"),
            &want(POD, "203.0.113.7"),
            "remove, make 10.244.1.5, loosen, add 203.0.113.7",
        );
    }

    #[test]
    fn addresses_go_with_their_services_and_the_device_with_the_last() {
        check(&seen(POD, "10.244.1.5 up", "203.0.113.7 203.0.113.8"), &want(POD, "203.0.113.8"), "delete 203.0.113.7");
        check(&seen(POD, "10.244.1.5 up", "203.0.113.7"), &want(POD, ""), "remove");
        check(&seen(POD, "", ""), &want(POD, ""), "");
        // Another pod has the namespace by now, and a device of its own tunnel: the pod's may be at another place.
        let not = "its network namespace does not have the pod's address";
        check(&seen("10.244.1.9", "10.244.1.9 up", "203.0.113.7"), &want(POD, ""), not);
        // The pod has lost its address.
        check(&seen("", "10.244.1.5 up", "203.0.113.7"), &want(POD, ""), "remove");
    }

    #[test]
    fn nothing_goes_before_the_cluster_is_known_completely() {
        let partly = |services: &str| WantedTunnel { shrinks: false, ..want(POD, services) };
        check(&seen(POD, "10.244.1.5 up", "203.0.113.7"), &partly("203.0.113.8"), "add 203.0.113.8");
        check(&seen(POD, "10.244.1.5 up", "203.0.113.7"), &partly(""), "");
    }

    #[test]
    fn a_namespace_that_is_not_the_pods_is_left_alone_and_so_is_what_others_put_there() {
        let not = "its network namespace does not have the pod's address";
        check(&seen("10.244.1.9", "", ""), &want(POD, "203.0.113.7"), not);
        // The address on our own device is no proof.
        check(&seen("", "10.244.1.5 up", "10.244.1.5"), &want(POD, "203.0.113.7"), not);
        let foreign = "the pod has a device of its own under the tunnel's name (dummy)";
        check(&seen(POD, "dummy", "203.0.113.7"), &want(POD, "203.0.113.7"), foreign);
        check(&seen(POD, "dummy", "203.0.113.7"), &want(POD, ""), "");
        let foreign = ["192.0.2.9/24".parse().expect("a prefix")].into();
        let shared = Seen { foreign, ..seen(POD, "10.244.1.5 up", "203.0.113.7") };
        check(&shared, &want(POD, ""), "delete 203.0.113.7");
        assert_eq!(lines(&removal(&shared)), "delete 203.0.113.7");
        assert_eq!(lines(&removal(&seen(POD, "dummy", ""))), "");
    }

    #[test]
    fn of_two_addresses_of_a_pod_the_lower_one_has_the_tunnel() {
        let both = "10.244.1.5 10.244.1.6";
        let taken = "the pod's tunnel serves its other address 10.244.1.5";
        check(&seen(both, "10.244.1.5 up", "203.0.113.7"), &want("10.244.1.6", "203.0.113.7"), taken);
        check(&seen(both, "10.244.1.6 up", "203.0.113.7"), &want("10.244.1.5", "203.0.113.7"), "change 10.244.1.5");
        let alone = changes(&seen(both, "10.244.1.5 up", ""), &want("10.244.1.6", "203.0.113.7"), |_| false);
        assert_eq!(lines(&alone.expect("nobody else wants it")), "change 10.244.1.6, add 203.0.113.7");
    }

    #[test]
    fn whatever_is_there_ends_as_wanted_after_any_number_of_changes() {
        let found = ["", "10.244.1.5 up", "10.244.1.5 down", "10.244.1.4 up", "10.244.1.5 up one"];
        for device in found {
            for services in ["", "203.0.113.7", "203.0.113.7 203.0.113.9"] {
                for wanted in ["", "203.0.113.7", "203.0.113.8"] {
                    let want = want(POD, wanted);
                    let first = seen(POD, device, if device.is_empty() { "" } else { services });
                    let all = changes(&first, &want, |_| false).expect("it is ours");
                    // Killed before the n-th change, and begun again without memory.
                    for count in 0..=all.len() {
                        let mut now = all.iter().take(count).fold(first.clone(), after);
                        let rest = changes(&now, &want, |_| false).expect("it is still ours");
                        now = rest.iter().fold(now, after);
                        assert_eq!(
                            changes(&now, &want, |_| false),
                            Ok(Vec::new()),
                            "{device} {services} {wanted} {count}"
                        );
                        let is_there = |found: &SeenDevice| matches!(found, SeenDevice::Tunnel { local, .. } if *local == address(POD));
                        assert_eq!(now.device.as_ref().is_some_and(is_there), !wanted.is_empty());
                    }
                }
            }
        }
    }

    /// Applies a change as the kernel does; a new device filters strictly.
    fn after(mut seen: Seen, change: &Change) -> Seen {
        match change {
            Change::Device { local, is_there } => {
                assert_eq!(seen.device.is_some(), *is_there, "the kernel refuses it");
                seen.filters_strictly |= !is_there;
                seen.device = Some(SeenDevice::Tunnel { local: *local, takes_all: true, up: true });
            }
            Change::LoosenFilter => seen.filters_strictly = false,
            Change::EnableIpv6 => seen.lacks_ipv6 = false,
            Change::Add(address) => assert!(seen.device.is_some() && seen.services.insert(*address)),
            Change::Delete(address) => assert!(seen.services.remove(address)),
            Change::DeleteDevice => {
                assert!(seen.device.take().is_some());
                seen.services.clear();
                seen.filters_strictly = false;
            }
        }
        seen
    }
}
