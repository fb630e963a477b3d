//! Parts of the World that the router knows, and acts upon.

use compact_str::CompactString;

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
