//! Traffic as the kernel knows it, behind an interface: the connections that are tracked, and the packets that rules log.
//!
//! A connection is judged by the packet that policies saw of it: from who began it to who answers, after translation.

use crate::config::FirewallConfig;
use crate::kernel::Error;
use crate::kernel::conntrack::{self, Connection, TrackedConnection, Transport};
use crate::kernel::nflog::{Logged, OpenError, PacketLog};
use crate::model::World;
use crate::net::Family;

use super::explain::is_this_node;
use super::rules::RuleSet;
use super::verdict::{Packet, Traffic, Verdict, verdict};

/// The connections and the logged packets of a network namespace.
pub trait Flows: Send + Sync {
    /// Lists the connections of a family that are wanted.
    ///
    /// # Errors
    /// The kernel does not list them.
    fn connections(
        &self,
        family: Family,
        wanted: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<Vec<TrackedConnection>, Error>;

    /// Ends these connections: their next packets count as new. Returns their number.
    ///
    /// # Errors
    /// The kernel refused for one of them.
    fn end(&self, connections: &[TrackedConnection]) -> Result<usize, Error>;

    /// Opens the group to which rules log refused packets.
    ///
    /// # Errors
    /// Another program reads it, or the kernel has none.
    fn open_log(&self) -> Result<Box<dyn Log>, OpenError>;
}

/// The packets that rules log, from the time of opening on.
pub trait Log: Send {
    /// Passes the packets that have arrived to `each`, at most `most`, without waiting.
    ///
    /// # Errors
    /// Why they cannot be read, as a sentence without its end.
    fn receive(&mut self, most: usize, each: &mut dyn FnMut(Logged)) -> Result<(), String>;

    /// Returns the number of packets that came too fast and were lost.
    fn lost(&self) -> u64;
}

/// The group to which rules log refused packets: kube-router's.
pub const LOG_GROUP: u16 = 100;

/// The network namespace of the threads that ask.
pub struct Kernel;

impl Flows for Kernel {
    fn connections(
        &self,
        family: Family,
        wanted: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<Vec<TrackedConnection>, Error> {
        conntrack::connections(family, wanted)
    }

    fn end(&self, connections: &[TrackedConnection]) -> Result<usize, Error> {
        conntrack::end(connections)
    }

    fn open_log(&self) -> Result<Box<dyn Log>, OpenError> {
        Ok(Box::new(PacketLog::open(LOG_GROUP)?))
    }
}

impl Log for PacketLog {
    fn receive(&mut self, most: usize, each: &mut dyn FnMut(Logged)) -> Result<(), String> {
        PacketLog::receive(self, most, each)
            .map_err(|fault| Error::new("read logged packets", "", fault.into()).to_string())
    }

    fn lost(&self) -> u64 {
        PacketLog::lost(self)
    }
}

/// Returns this node's verdict on a connection, by policies.
pub fn verdict_on(
    rules: &RuleSet,
    (world, config): (&World, &FirewallConfig),
    connection: &Connection,
) -> Option<Verdict> {
    let Connection { source, destination, replier, transport } = *connection;
    let traffic = match transport {
        Transport::Ports { protocol, replier: port, .. } => Traffic::Port { protocol, port },
        Transport::Icmp { kind } => Traffic::Icmp { kind },
    };
    let to_node_port = matches!(transport, Transport::Ports { destination: port, .. } if config.service_node_port_range.contains(&port));
    // A pod always reaches the node ports of its own node; behind one, the endpoint is judged.
    if to_node_port && destination == replier && is_this_node(world, destination) {
        return None;
    }
    let packet = Packet { source, destination: replier, traffic, from_this_node: is_this_node(world, source) };
    Some(verdict(rules, &packet))
}
