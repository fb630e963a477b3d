//! Parts of the World that the router knows, and acts upon.

use compact_str::CompactString;

use super::{Plan, RouterChanges, Stale};
use crate::model::{Authority, Endpoints, Node, ObjectName, Service, Table, World};

/// The known parts of the World, which are acted upon.
#[derive(Clone, Default)]
pub(super) struct Known {
    pub has_nodes: bool,
    pub has_services: bool,
    pub nodes: Table<CompactString, Node>,
    pub services: Table<ObjectName, Service>,
    pub endpoints: Table<ObjectName, Endpoints>,
}

impl Known {
    pub fn of(world: &World) -> Known {
        let has_nodes = world.authority.router > Authority::Nothing;
        let has_services = world.authority.proxy > Authority::Nothing;
        let cluster = &world.cluster;
        Known {
            has_nodes,
            has_services,
            nodes: if has_nodes { cluster.nodes.clone() } else { Table::default() },
            services: if has_services { cluster.services.clone() } else { Table::default() },
            endpoints: if has_services { cluster.endpoints.clone() } else { Table::default() },
        }
    }
}

impl Plan {
    /// Returns whether enough is known for a speaker.
    pub(super) fn may_speak(&self) -> bool {
        self.known.has_nodes && (self.known.has_services || self.goes_without_services)
    }

    /// Returns whether a speaker is to run once more is known.
    pub fn may_speak_later(&self) -> bool {
        self.own.asn.is_some() && self.own.router_id.is_some() && !self.may_speak()
    }

    /// Waits for Services no longer: a speaker runs. Those that come later are announced from [`Plan::announce_services`] on.
    pub fn go_without_services(&mut self) -> RouterChanges {
        let mut changed = RouterChanges::default();
        self.goes_without_services = true;
        self.holds_services = true;
        let known = self.known.clone();
        self.replace_own(&mut changed);
        self.update_nodes(&known, true, &mut changed);
        self.stale = Stale::ALL;
        self.routes.look_at_all_again();
        self.mark_all_peers();
        self.settle(&mut changed);
        changed
    }
}
