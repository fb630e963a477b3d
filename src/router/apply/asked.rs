//! Routes and tunnels as last seen, and the kernel's own lookup, for users who ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Kernel, Mirrors, PodRoutes, RIVALS, RouteInKernel};
use crate::kernel::link::LinkName;
use crate::kernel::route::{RouteKey, TABLE_MAIN, Taken};
use crate::reconcile::Reflection;
use crate::router::desired::Desired;
use crate::router::routes::Routes;

impl<K: Kernel> Mirrors<K> {
    /// Compares the routes to some prefixes with what was last seen of the kernel; nothing is read.
    pub fn routes_in_kernel(&self, prefixes: &[IpNet], learned: &Routes) -> Vec<RouteInKernel> {
        let keys = prefixes.iter().map(|prefix| RouteKey::new(TABLE_MAIN, *prefix));
        self.compared(keys, learned)
    }

    /// Compares one route, of any table of ours, with what was last seen of the kernel; nothing is read.
    pub fn route_in_kernel(&self, key: &RouteKey, learned: &Routes) -> RouteInKernel {
        self.compared([key.clone()].into_iter(), learned).pop().unwrap_or(RouteInKernel::Absent)
    }

    fn compared(&self, keys: impl Iterator<Item = RouteKey>, learned: &Routes) -> Vec<RouteInKernel> {
        let error: Arc<str> = self.routes.trouble().map_or("it has not been read yet", |trouble| &trouble.error).into();
        let failing: BTreeSet<&RouteKey> = self.routes.failing_to_grow().chain(self.routes.doubts()).collect();
        let compare = |key: RouteKey| {
            let desired = learned.routes().get(&key).cloned();
            let Some(all) = self.routes.seen() else { return RouteInKernel::Unread(error.clone()) };
            match (desired, all.get(&key).cloned()) {
                (Some(desired), _) if failing.contains(&key) => RouteInKernel::Failed { desired, error: error.clone() },
                (Some(desired), Some(seen)) if desired == seen => RouteInKernel::InPlace(seen),
                (Some(desired), seen) => RouteInKernel::Waiting { desired, seen },
                (None, Some(seen)) => RouteInKernel::Kept(seen),
                (None, None) => RouteInKernel::Absent,
            }
        };
        keys.map(compare).collect()
    }

    /// Returns the routes of others that take packets of these prefixes away from ours; of each prefix ten at most.
    pub fn routes_in_the_way(&self, prefixes: &[IpNet]) -> Vec<(IpNet, String)> {
        let mut left: BTreeMap<&IpNet, usize> = prefixes.iter().map(|prefix| (prefix, RIVALS)).collect();
        let mut may_be_named = |range: &IpNet| {
            let left = left.get_mut(range).filter(|left| **left > 0);
            left.map(|left| *left -= 1).is_some()
        };
        let staying = self.routes.peek().staying().into_iter().filter(|(range, _)| may_be_named(range));
        staying.map(|(range, rival)| (range, rival.to_string())).collect()
    }

    /// Returns whether the device of a tunnel was last seen as desired; `None` where it cannot be read.
    pub fn tunnel_is_in_place(&self, link: &LinkName, desired: &Desired, learned: &Routes) -> Option<bool> {
        if let Some(wanted) = learned.tunnels().get(link) {
            return self.tunnels.seen().map(|seen| seen.get(link) == Some(wanted));
        }
        if let Some(wanted) = desired.wireguard_devices.get(link) {
            return self.wireguard_devices.seen().map(|seen| seen.get(link) == Some(wanted));
        }
        let wanted = desired.overlay_devices.get(link)?;
        self.overlay_devices.seen().map(|seen| seen.get(link) == Some(wanted))
    }

    /// Looks up the way that the kernel gives to a packet now: [`Kernel::way_to`].
    ///
    /// # Errors
    /// It cannot be looked up: why, as a sentence without its end.
    pub fn way_to(&mut self, to: IpAddr, pod: Option<(IpAddr, IpNet)>) -> Result<Option<Taken>, String> {
        self.kernel.way_to(to, pod)
    }
}
