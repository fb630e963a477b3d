//! Routes as a kind of kernel objects: ours are read, compared and changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::wire::{self, DELETE_ROUTE, Filter, Hop, NEW_ROUTE, Numbered};
use super::{NextHop, Ownership, Route, RouteKey};
use crate::kernel::Error;
use crate::kernel::link::{LinkName, Names, no_device};
use crate::kernel::netlink::{Bus, Fault, Messages, Socket, failed_steps, flag};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The routes of one network namespace that are ours by one rule.
pub struct Routes {
    socket: Socket,
    ownership: Ownership,
    messages: Messages,
}

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

    fn list(&mut self, family: Family, filter: Filter) -> Result<Vec<Numbered>, Error> {
        self.messages.clear();
        wire::list(&mut self.messages, family, filter);
        match self
            .socket
            .dump(&mut self.messages, |answer| wire::route(answer).filter(|route| fits(route, family, filter)))
        {
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

    /// Writes the messages of a step; fails with the name of a missing device.
    fn write(&mut self, names: &mut Names, step: &Step<'_, RouteKey, Route>) -> Result<(), LinkName> {
        // ip route add|replace|delete [local] DESTINATION [via GATEWAY] dev DEVICE table TABLE metric METRIC
        let (command, flags, route) = match (step.have, step.want) {
            (None, Some(want)) => (NEW_ROUTE, flag::CREATE | flag::EXCLUSIVE, want),
            (Some(_), Some(want)) => (NEW_ROUTE, flag::CREATE | flag::REPLACE, want),
            (Some(have), None) => (DELETE_ROUTE, 0, have),
            (None, None) => return Ok(()),
        };
        let mut hops = Vec::with_capacity(route.next_hops.len());
        for hop in &*route.next_hops {
            let device = names.number(&self.socket, &hop.link).ok_or_else(|| hop.link.clone())?;
            hops.push(Hop { device, gateway: hop.gateway });
        }
        let numbered =
            Numbered { key: step.key.clone(), kind: route.kind, protocol: route.protocol, source: route.source, hops };
        wire::describe(&mut self.messages, command, flags, &numbered);
        Ok(())
    }
}

impl Target for Routes {
    type Key = RouteKey;
    type Value = Route;
    type Error = Error;

    fn name(&self) -> &'static str {
        "routes"
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Route>, Error> {
        let mut names = Names::default();
        let filters: Vec<Filter> = match &self.ownership {
            Ownership::Device { table, link } => {
                let Some(device) = names.number(&self.socket, link) else { return Ok(BTreeMap::new()) };
                vec![Filter { table: *table, device: Some(device), protocol: None }]
            }
            Ownership::Protocols(protocols) => protocols
                .iter()
                .map(|of| Filter { table: of.table, device: None, protocol: Some(of.protocol) })
                .collect(),
        };
        let mut found = BTreeMap::new();
        let mut known: BTreeSet<Arc<[NextHop]>> = BTreeSet::new();
        let both = |filter| Family::BOTH.map(|family| (family, filter));
        for (family, filter) in filters.into_iter().flat_map(both) {
            for listed in self.list(family, filter)? {
                let mut next_hops = Vec::with_capacity(listed.hops.len());
                for hop in listed.hops {
                    // A device that has gone meanwhile took its routes along.
                    let Some(link) = names.name(&self.socket, hop.device) else { continue };
                    next_hops.push(NextHop { link, gateway: hop.gateway });
                }
                let next_hops = known.get(&next_hops[..]).cloned().unwrap_or_else(|| next_hops.into());
                known.insert(next_hops.clone());
                let Numbered { key, kind, protocol, source, .. } = listed;
                // Of IPv4 routes with the same key the kernel uses the one that it lists first.
                found.entry(key).or_insert(Route { kind, protocol, source, next_hops });
            }
        }
        Ok(found)
    }

    fn portion(&self) -> usize {
        PORTION
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, RouteKey, Route>]) -> Vec<Failure<Error>> {
        self.messages.clear();
        let mut owners = Vec::with_capacity(steps.len());
        let mut failures = Vec::new();
        let mut names = Names::default();
        for (index, step) in steps.iter().enumerate() {
            match self.write(&mut names, step) {
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
        failures
    }
}

fn operation(step: &Step<'_, RouteKey, Route>) -> &'static str {
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
