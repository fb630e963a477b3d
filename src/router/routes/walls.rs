//! Walls: routes that refuse packets to pods where an encrypted tunnel is wanted and there is none.
//!
//! Without them a packet would leave by the host's default route, readable for everybody on the way, while a session is down or the device is
//! missing. In the kernel, behind every other route to the same range:
//!
//! ```text
//! ip route add unreachable 10.244.2.0/24 metric 4294967295 proto 17
//! ```

use std::sync::Arc;

use ipnet::IpNet;

use super::{RouteTableChanges, Routes};
use crate::kernel::route::{Route, RouteKey, RouteKind, TABLE_MAIN};
use crate::router::names::{PROTOCOL, WALL_METRIC};

impl Routes {
    /// Updates the wall behind the route to a range.
    pub fn put_wall(&mut self, range: IpNet, is_wanted: bool, changed: &mut RouteTableChanges) {
        let route = Route { kind: RouteKind::Unreachable, protocol: PROTOCOL, source: None, next_hops: [].into() };
        let route = is_wanted.then(|| self.lists.routes.intern_owned(Arc::new(route)));
        self.put_route(wall(range), route, changed);
    }
}

/// The key of the wall behind the route to a range.
pub fn wall(range: IpNet) -> RouteKey {
    RouteKey { metric: WALL_METRIC, ..RouteKey::new(TABLE_MAIN, range) }
}
