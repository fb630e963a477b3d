//! A cluster in lowered form, for tests of what is decided about the kernel's objects.

use std::ffi::OsString;
use std::sync::Arc;

use super::super::plan::Plan;
use super::lowering::Lowering;
use crate::config::{Config, Environment, FirewallConfig, Request, request};
use crate::model::World;
use crate::net::PerFamily;

/// Returns the rule set of `node1` in this cluster and its objects in both families, by the flags of a node without a router.
pub fn lowered(world: &World) -> (Plan, Lowering, Arc<FirewallConfig>) {
    let words = ["sluice", "--run-router=false", "--hostname-override=node1"].map(OsString::from);
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let config = Config::from_flags(&flags, verbosity, &Environment::default()).expect("the flags are sound");
    let config = Arc::new(config.firewall.expect("the firewall runs"));
    let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config.clone(), PerFamily { v4: true, v6: true }));
    let changed = plan.update(world);
    lowering.update(plan.rules(), world, &changed);
    (plan, lowering, config)
}
