//! `vxlan`: one device for each family, and an entry there for each node, which packets have as their gateway.

use std::net::IpAddr;

use super::super::{RouteTableChanges, Routes};
use crate::kernel::route::NextHop;
use crate::kernel::vxlan::{Entry, EntryKey, gateway};
use crate::net::Family;
use crate::router::names::vxlan;

pub(super) fn next_hop(remote: IpAddr) -> NextHop {
    let gateway = gateway(remote);
    NextHop { link: vxlan(Family::from(remote)), gateway: Some(gateway), on_link: gateway.is_ipv4() }
}

fn entry(remote: IpAddr) -> EntryKey {
    EntryKey { link: vxlan(Family::from(remote)), remote }
}

impl Routes {
    pub(super) fn has_entry(&self, remote: IpAddr) -> bool {
        self.entries.contains_key(&entry(remote))
    }

    /// Updates what the device knows of a node. No route leads to one whose link address is another one's (`is_distinct`), so that no two entries have one.
    pub(super) fn put_entry(&mut self, remote: IpAddr, is_used: bool, changed: &mut RouteTableChanges) {
        let key = entry(remote);
        let before = match is_used {
            true => self.entries.insert(key.clone(), Entry::of(remote)),
            false => self.entries.remove(&key),
        };
        if before.is_some() != is_used {
            changed.entries.push(key);
        }
    }
}
