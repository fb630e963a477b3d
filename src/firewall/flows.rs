//! Traffic as the kernel knows it, behind an interface: the connections that are tracked, and the packets that rules log.
//!
//! A connection is judged by the packet that policies saw of it: from who began it to who answers, after translation.

use std::sync::{Mutex, PoisonError};

use crate::config::FirewallConfig;
use crate::kernel::Error;
use crate::kernel::conntrack::{self, Connection, ConnectionFilter, TrackedConnection, Transport};
use crate::kernel::netlink::{Bus, Socket};
use crate::kernel::nflog::{Logged, OpenError, PacketLog};
use crate::model::World;
use crate::net::Family;

use super::established::ENDED;
use super::explain::is_this_node;
use super::rules::RuleSet;
use super::verdict::{Packet, Traffic, Verdict, routed};

/// The connections and the logged packets of a network namespace.
pub trait Flows: Send + Sync {
    /// Lists the connections of a family that are wanted; with `marked` only those that have these bits in their mark.
    ///
    /// # Errors
    /// The kernel does not list them.
    fn connections(
        &self,
        family: Family,
        marked: Option<u32>,
        wanted: ConnectionFilter<'_>,
    ) -> Result<Vec<TrackedConnection>, Error>;

    /// Marks these connections as ended ([`ENDED`]), so that rules refuse their packets, or takes the mark from them. Returns how
    /// many of them still exist.
    ///
    /// # Errors
    /// The kernel refused for one of them.
    fn mark(&self, connections: &[TrackedConnection], ended: bool) -> Result<usize, Error>;

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

    /// Returns the number of packets that came too fast and were lost, since the group was opened or taken again.
    fn lost(&self) -> u64;

    /// Gives the group back, so that another program can read it, and keeps what taking it again needs: the kernel lets changes of rules
    /// wait, 12 to 24 ms, while it closes a socket of netfilter.
    ///
    /// # Errors
    /// Why it cannot be given back, as a sentence without its end.
    fn release(&mut self) -> Result<(), String>;

    /// Takes the group again.
    ///
    /// # Errors
    /// As [`Flows::open_log`].
    fn acquire(&mut self) -> Result<(), OpenError>;
}

/// The group to which rules log refused packets: kube-router's.
pub const LOG_GROUP: u16 = 100;

/// The network namespace of the thread that asks first. Its socket stays open: the kernel lets rules wait while it closes one. Threads take
/// turns with it, for as long as the kernel answers; the firewall's loop lists and marks nothing itself, so it never waits for them.
#[derive(Default)]
pub struct Kernel(Mutex<Option<Socket>>);

impl Kernel {
    fn with_socket<T>(&self, act: impl FnOnce(&mut Socket) -> Result<T, Error>) -> Result<T, Error> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => Socket::open(Bus::Netfilter)?,
        };
        // After an error the next question begins with a new one.
        let done = act(&mut socket)?;
        *kept = Some(socket);
        Ok(done)
    }
}

impl Flows for Kernel {
    fn connections(
        &self,
        family: Family,
        marked: Option<u32>,
        wanted: ConnectionFilter<'_>,
    ) -> Result<Vec<TrackedConnection>, Error> {
        self.with_socket(|socket| conntrack::connections(socket, family, marked, wanted))
    }

    fn mark(&self, connections: &[TrackedConnection], ended: bool) -> Result<usize, Error> {
        self.with_socket(|socket| conntrack::set_mark(socket, connections, ENDED, ended))
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

    fn release(&mut self) -> Result<(), String> {
        PacketLog::release(self).map_err(|error| error.to_string())
    }

    fn acquire(&mut self) -> Result<(), OpenError> {
        PacketLog::acquire(self)
    }
}

/// Returns this node's verdict on a connection, by policies.
pub fn verdict_on(rules: &RuleSet, world: &World, config: &FirewallConfig, connection: &Connection) -> Option<Verdict> {
    let Connection { source, destination, replier, transport } = *connection;
    let traffic = match transport {
        Transport::Ports { protocol, replier: port, .. } => Traffic::Port { protocol, port },
        Transport::Icmp { kind } => Traffic::Icmp { kind },
    };
    let to_node_port = matches!(transport, Transport::Ports { destination: port, .. } if config.service_node_port_range.contains(&port));
    // Nothing was translated: a pod always reaches the node ports of its own node, and addresses of Services that something on
    // this node answers itself. Behind them the endpoint is judged.
    let is_exempt = config.ranges.contain(destination) || to_node_port && is_this_node(world, destination);
    if destination == replier && is_exempt {
        return None;
    }
    let packet = Packet { source, destination: replier, traffic, from_this_node: is_this_node(world, source) };
    // What is closed on bridges of pods is so whatever the policies say.
    Some(routed(rules, &packet))
}
