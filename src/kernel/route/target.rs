//! Routes as a kind of kernel objects: ours are read, compared and changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::wire::{self, DELETE_ROUTE, Filter, Hop, NEW_ROUTE, Numbered};
use super::{Foreign, NextHop, Ownership, Route, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN, Through};
use crate::kernel::Error;
use crate::kernel::link::{LinkName, Names, no_device};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket, failed_steps, flag};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The routes of one network namespace that are ours by one rule.
pub struct Routes {
    socket: Socket,
    ownership: Ownership,
    messages: Messages,
}

/// Our routes, by their keys.
type Ours = BTreeMap<RouteKey, Arc<Route>>;

/// Whether others' routes to a destination are of interest.
type Interest<'a> = &'a dyn Fn(IpNet) -> bool;

/// Number of routes changed at once.
const PORTION: usize = 8192;

impl Routes {
    /// Opens sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(ownership: Ownership) -> Result<Routes, Error> {
        Ok(Routes { socket: Socket::open(Bus::Route)?, ownership, messages: Messages::new() })
    }

    /// Reads our routes, and others' routes of the main table to destinations of interest, in one listing.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    pub fn read_beside(&mut self, of_interest: Interest<'_>) -> Result<(Ours, Vec<Foreign>), Error> {
        self.read_both(Some(of_interest))
    }

    fn read_both(&mut self, of_interest: Option<Interest<'_>>) -> Result<(Ours, Vec<Foreign>), Error> {
        let mut names = Names::default();
        // With whether only local default routes count.
        let filters: Vec<(Filter, bool)> = match &self.ownership {
            Ownership::Device { table, link } => {
                through(names.number(&self.socket, link), *table).map(|filter| (filter, false)).into_iter().collect()
            }
            Ownership::Devices(devices) => {
                let mut filters = Vec::new();
                for Through { table, link, local_default } in devices {
                    let filter = through(names.number(&self.socket, link), *table);
                    filters.extend(filter.map(|filter| (filter, *local_default)));
                }
                filters
            }
            Ownership::Protocols(protocols) => protocols
                .iter()
                .map(|of| (Filter { table: of.table, device: None, protocol: Some(of.protocol) }, false))
                .collect(),
        };
        let (mut found, mut foreign) = (BTreeMap::new(), Vec::new());
        let mut hops_known: BTreeSet<Arc<[NextHop]>> = BTreeSet::new();
        let mut known: HashSet<Arc<Route>> = HashSet::new();
        // Thousands in a row are alike but for their keys: the addresses of Services.
        let (mut last_hops, mut last): (Option<Arc<[NextHop]>>, Option<Arc<Route>>) = (None, None);
        let both = |filter| Family::BOTH.map(|family| (family, filter));
        for (family, (filter, local_default)) in filters.into_iter().flat_map(both) {
            for (listed, is_ours) in self.list(family, filter, of_interest)? {
                let Numbered { key, kind, protocol, source, hops } = listed;
                if local_default && (key.destination.prefix_len() > 0 || kind != RouteKind::Local) {
                    continue;
                }
                let mut next_hops = Vec::with_capacity(hops.len());
                for hop in hops {
                    // A device that has gone meanwhile took its routes along.
                    let Some(link) = names.name(&self.socket, hop.device) else { continue };
                    next_hops.push(NextHop { link, gateway: hop.gateway, on_link: hop.on_link });
                }
                let next_hops = last_hops.take().filter(|last| **last == next_hops[..]).unwrap_or_else(|| {
                    let shared = hops_known.get(&next_hops[..]).cloned().unwrap_or_else(|| next_hops.into());
                    hops_known.insert(shared.clone());
                    shared
                });
                last_hops = Some(next_hops.clone());
                if !is_ours {
                    let is_first = !found.contains_key(&key);
                    foreign.push(Foreign { key, kind, protocol, next_hops, is_first });
                    continue;
                }
                // Of IPv4 routes with the same key the kernel uses the one that it lists first.
                let route = Route { kind, protocol, source, next_hops };
                let route = last.take().filter(|last| **last == route).unwrap_or_else(|| {
                    let shared = known.get(&route).cloned().unwrap_or_else(|| route.into());
                    known.insert(shared.clone());
                    shared
                });
                last = Some(route.clone());
                found.entry(key).or_insert(route);
            }
        }
        Ok((found, foreign))
    }

    /// Lists routes of ours, and those of others that are of interest; the flag says which it is.
    fn list(
        &mut self,
        family: Family,
        filter: Filter,
        of_interest: Option<Interest<'_>>,
    ) -> Result<Vec<(Numbered, bool)>, Error> {
        let of_interest = of_interest.filter(|_| filter.table == TABLE_MAIN);
        let all = Filter { protocol: None, ..filter };
        self.messages.clear();
        wire::list(&mut self.messages, family, if of_interest.is_some() { all } else { filter });
        let parse = |answer: &Answer<'_>| {
            let route = wire::route(answer)?;
            let is_ours = fits(&route, family, filter);
            let is_of_interest = || {
                let concerns = of_interest.is_some_and(|of_interest| of_interest(route.key.destination));
                concerns && fits(&route, family, all) && wire::is_for_all(answer)
            };
            let listed = is_ours || is_of_interest();
            listed.then_some((route, is_ours))
        };
        match self.socket.dump(&mut self.messages, parse) {
            Ok(listed) => Ok(listed),
            // No table of this number, no such device any more, no such family in this kernel.
            Err(Fault::Refused(refusal))
                if matches!(refusal.errno, libc::ENOENT | libc::ENODEV | libc::EAFNOSUPPORT) =>
            {
                Ok(Vec::new())
            }
            Err(fault) => Err(Error::new("list routes", format!("table {}", filter.table), fault.into())),
        }
    }

    /// Adds an IPv4 route behind those of others with the same key, where it does nothing until they go. IPv6 has no such
    /// place: there it would become another next hop of theirs.
    ///
    /// # Errors
    /// A device is missing, or the kernel refuses the route.
    pub fn append(&mut self, key: &RouteKey, route: &Route) -> Result<(), Error> {
        let error = |cause| Error::new("append route", key.to_string(), cause);
        self.messages.clear();
        // ip route append
        let written = self.write(
            &mut Names::default(),
            Request { command: NEW_ROUTE, flags: flag::CREATE | flag::APPEND },
            key,
            route,
        );
        written.map_err(|link| no_device("append route", key.to_string(), &link))?;
        let failed = failed_steps(self.socket.batch(&mut self.messages), &[0], |_, cause| error(cause)).pop();
        match failed.map(|failure| failure.error) {
            // The same one is there.
            Some(error) if error.is_exists() => Ok(()),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Writes the messages of a step; fails with the name of a missing device. Of a local route that changes it is the first half (`delete_former_local_routes`).
    fn write_step(&mut self, names: &mut Names, step: &Step<'_, RouteKey, Arc<Route>>) -> Result<(), LinkName> {
        // ip route add|append|replace|delete [local] DESTINATION [via GATEWAY] dev DEVICE table TABLE metric METRIC
        let (command, flags, route) = match (step.have, step.want) {
            (None, Some(want)) => (NEW_ROUTE, flag::CREATE | flag::EXCLUSIVE, want),
            // The kernel replaces the first one with this key, which may be another device's.
            (Some(_), Some(want)) if is_local(step.key) => (NEW_ROUTE, flag::CREATE | flag::APPEND, want),
            (Some(_), Some(want)) => (NEW_ROUTE, flag::CREATE | flag::REPLACE, want),
            (Some(have), None) => (DELETE_ROUTE, 0, have),
            (None, None) => return Ok(()),
        };
        self.write(names, Request { command, flags }, step.key, route)
    }

    /// Writes a message about a route; fails with the name of a missing device.
    fn write(&mut self, names: &mut Names, request: Request, key: &RouteKey, route: &Route) -> Result<(), LinkName> {
        let mut hops = Vec::with_capacity(route.next_hops.len());
        for hop in &*route.next_hops {
            let device = names.number(&self.socket, &hop.link).ok_or_else(|| hop.link.clone())?;
            hops.push(Hop { device, gateway: hop.gateway, on_link: hop.on_link });
        }
        let numbered =
            Numbered { key: key.clone(), kind: route.kind, protocol: route.protocol, source: route.source, hops };
        wire::describe(&mut self.messages, request.command, request.flags, &numbered);
        Ok(())
    }
}

/// Head of a message about a route.
struct Request {
    /// Type of the message, of rtnetlink.
    command: u16,
    /// Of netlink ([`flag`]).
    flags: u16,
}

impl Target for Routes {
    type Key = RouteKey;
    type Value = Arc<Route>;
    type Error = Error;

    fn name(&self) -> &'static str {
        "routes"
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Arc<Route>>, Error> {
        Ok(self.read_both(None)?.0)
    }

    fn portion(&self) -> usize {
        PORTION
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, RouteKey, Arc<Route>>]) -> Vec<Failure<Error>> {
        self.messages.clear();
        let mut owners = Vec::with_capacity(steps.len());
        let mut failures = Vec::new();
        let mut names = Names::default();
        for (index, step) in steps.iter().enumerate() {
            match self.write_step(&mut names, step) {
                Ok(()) => owners.push(index),
                Err(link) => {
                    let error = no_device(operation(step), step.key.to_string(), &link);
                    failures.push(Failure { step: index, error });
                }
            }
        }
        failures.extend(failed_steps(self.socket.batch(&mut self.messages), &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            Error::new(operation(step), step.key.to_string(), cause)
        }));
        self.delete_former_local_routes(steps, &mut failures);
        self.append_those_behind_others(steps, &mut failures);
        failures
    }
}

impl Routes {
    /// Deletes the routes of ours in whose place others have been appended: an address is local all the time.
    fn delete_former_local_routes(
        &mut self,
        steps: &[Step<'_, RouteKey, Arc<Route>>],
        failures: &mut Vec<Failure<Error>>,
    ) {
        let changed = |index: &usize| {
            let step = steps.get(*index);
            step.is_some_and(|step| step.have.is_some() && step.want.is_some() && is_local(step.key))
        };
        // The new one is there already where a process ended between the two.
        failures.retain(|failure| !(changed(&failure.step) && failure.error.is_exists()));
        let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.step).collect();
        let done: Vec<usize> = (0..steps.len()).filter(|index| changed(index) && !failed.contains(index)).collect();
        if done.is_empty() {
            return;
        }
        self.messages.clear();
        let mut names = Names::default();
        let mut owners = Vec::with_capacity(done.len());
        for index in done {
            let Some(Step { key, have: Some(have), .. }) = steps.get(index) else { continue };
            // A device that has gone meanwhile took its routes along.
            if self.write(&mut names, Request { command: DELETE_ROUTE, flags: 0 }, key, have).is_ok() {
                owners.push(index);
            }
        }
        let mut undone = failed_steps(self.socket.batch(&mut self.messages), &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            Error::new("delete route", step.key.to_string(), cause)
        });
        // Somebody was faster.
        undone.retain(|failure| !failure.error.is_absent());
        // Where the former one had no source and was gone already, the new one is what the kernel has deleted.
        for index in owners {
            let Some(Step { key, have: Some(have), want: Some(want) }) = steps.get(index) else { continue };
            if have.source.is_none() && undone.iter().all(|failure| failure.step != index) {
                undone.extend(self.append(key, want).err().map(|error| Failure { step: index, error }));
            }
        }
        failures.extend(undone);
    }

    /// Appends local routes that could not be added because another device has their addresses; they are no failures then.
    fn append_those_behind_others(
        &mut self,
        steps: &[Step<'_, RouteKey, Arc<Route>>],
        failures: &mut Vec<Failure<Error>>,
    ) {
        let is_in_place = |failure: &Failure<Error>| {
            let step = steps.get(failure.step);
            step.is_some_and(|step| step.have.is_none() && is_local(step.key)) && failure.error.is_exists()
        };
        if !failures.iter().any(is_in_place) {
            return;
        }
        // One of ours in its place is drift, which the next comparison finds.
        let Ok(ours) = self.read() else { return };
        failures.retain_mut(|failure| match steps.get(failure.step) {
            Some(Step { key, want: Some(want), .. }) if is_in_place(failure) && !ours.contains_key(*key) => {
                self.append(key, want).map_err(|error| failure.error = error).is_err()
            }
            _ => true,
        });
    }
}

/// Returns whether a route makes an IPv4 address one of this host. Another device may have that address as well (kube-proxy's, or the one of a DNS cache on the node),
/// and the kernel has made a route for it: ours has its place behind, also when it changes, and stays when that device goes. IPv6 keeps both by their metrics.
fn is_local(key: &RouteKey) -> bool {
    key.table == TABLE_LOCAL && key.destination.addr().is_ipv4()
}

/// The routes of a table through a device, if there is such a device.
fn through(device: Option<u32>, table: u32) -> Option<Filter> {
    Some(Filter { table, device: Some(device?), protocol: None })
}

fn operation(step: &Step<'_, RouteKey, Arc<Route>>) -> &'static str {
    match (step.have, step.want) {
        (None, _) => "add route",
        (_, None) => "delete route",
        _ => "replace route",
    }
}

/// Old kernels ignore filters, and one without IPv6 lists IPv4 instead: every answer is checked.
fn fits(route: &Numbered, family: Family, filter: Filter) -> bool {
    let device =
        filter.device.is_none_or(|device| !route.hops.is_empty() && route.hops.iter().all(|hop| hop.device == device));
    Family::from(route.key.destination) == family
        && route.key.table == filter.table
        && filter.protocol.is_none_or(|protocol| route.protocol == protocol)
        && device
}
