//! Whether bridges send a packet back through the port it came from, where it is for the pod behind that port.
//!
//! A pod that is sent to itself through its Service needs that: the packet comes back to the bridge, and the bridge drops what would leave by
//! the port it entered by. The option of a port is `hairpin`, which a CNI plugin of type `bridge` sets where its file says `hairpinMode`.
//!
//! Ours: the option of those ports of some bridges that are pods': a `veth` whose other end is in another network namespace. A bridge may have a port to the network outside, be it by way of
//! another bridge of the host, which must not get its own frames back. It is never reset: nobody knows its former value, and it is the port's, which goes with the pod.
//!
//! Kernel: rtnetlink `RTM_NEWLINK` with `IFLA_INFO_SLAVE_DATA` (include/uapi/linux/if_link.h, `IFLA_BRPORT_MODE`).

use std::collections::BTreeMap;

use crate::kernel::Error;
use crate::kernel::link::{Device, LinkKind, LinkName, device};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket};
use crate::reconcile::{Failure, Phase, Step, Target};

/// The option of the pods' ports of some bridges.
pub struct HairpinPorts {
    socket: Socket,
    bridges: Vec<LinkName>,
}

/// No pod's port of the bridge lacks the option. So it is with a bridge without ports, and one that does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hairpin;

/// A device, and whether it is a port without the option.
struct Port {
    device: Device,
    lacks: bool,
}

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const BRIDGE: &str = "bridge";
/// The type of devices of which one end is a pod's.
const PAIR: &str = "veth";
/// `IFLA_BRPORT_MODE`.
const MODE: u16 = 4;
/// `IFLA_MASTER`.
const MASTER: u16 = 10;
/// `IFLA_LINK_NETNSID`, which a device has whose other end is in another network namespace.
const OTHER_NAMESPACE: u16 = 37;
/// `IFLA_PROTINFO`: in messages of the family `AF_BRIDGE`, the options of a port.
const PORT_OPTIONS: u16 = 12;
const AF_BRIDGE: u8 = 7;
/// The answers of the kernel where a port has gone, and where it is no port of a bridge any more.
const GONE: [i32; 2] = [libc::ENODEV, libc::EOPNOTSUPP];

impl HairpinPorts {
    /// Opens a socket in the network namespace of the calling thread, for the ports of these bridges.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(bridges: impl IntoIterator<Item = LinkName>) -> Result<HairpinPorts, Error> {
        Ok(HairpinPorts { socket: Socket::open(Bus::Route)?, bridges: bridges.into_iter().collect() })
    }

    /// Lists the pods' ports of each bridge that lack the option.
    fn lacking(&mut self) -> Result<BTreeMap<LinkName, Vec<LinkName>>, Error> {
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        let listed = self.socket.dump(&mut message, port);
        let ports = listed.map_err(|fault| Error::new("list bridge ports", "", fault.into()))?;
        let bridges = self.bridges.iter().map(|bridge| {
            let index = ports.iter().find(|port| port.device.name == *bridge).map(|port| port.device.index);
            let of_bridge = |port: &&Port| port.lacks && index.is_some() && port.device.master == index;
            (bridge.clone(), ports.iter().filter(of_bridge).map(|port| port.device.name.clone()).collect())
        });
        Ok(bridges.collect())
    }

    /// Sets the option of these ports, and returns the first error. One that has gone meanwhile needs it no more.
    fn set(&mut self, ports: &[LinkName]) -> Result<(), Error> {
        let mut first = Ok(());
        for port in ports {
            let mut message = Messages::new();
            // ip link set NAME type bridge_slave hairpin on
            message.begin(NEW_LINK, 0).header(&[0; HEADER]).text(NAME, &port.0);
            message.nest(LINK_INFO).text(INFO_SLAVE_KIND, BRIDGE).nest(INFO_SLAVE_DATA).u8(MODE, 1).end().end();
            let refusal = match self.socket.batch(&mut message) {
                Ok(refusals) => refusals.into_iter().next().map(Fault::Refused),
                Err(fault) => Some(fault),
            };
            match refusal {
                None => {}
                Some(Fault::Refused(refusal)) if GONE.contains(&refusal.errno) => {}
                Some(fault) => {
                    let error = Error::new("set hairpin mode of bridge port", port.to_string(), fault.into());
                    first = first.and(Err(error));
                }
            }
        }
        first
    }
}

impl Target for HairpinPorts {
    type Key = LinkName;
    type Value = Hairpin;
    type Error = Error;

    fn name(&self) -> &'static str {
        "hairpin mode of bridge ports"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Hairpin>, Error> {
        if self.bridges.is_empty() {
            return Ok(BTreeMap::new());
        }
        let settled = self.lacking()?.into_iter().filter(|(_, ports)| ports.is_empty());
        Ok(settled.map(|(bridge, _)| (bridge, Hairpin)).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Hairpin>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.want.is_some()) {
            let ports = self.lacking().map(|mut lacking| lacking.remove(step.key).unwrap_or_default());
            if let Err(error) = ports.and_then(|ports| self.set(&ports)) {
                failures.push(Failure { step: index, error });
            }
        }
        failures
    }
}

/// The device that a message describes.
fn port(answer: &Answer<'_>) -> Option<Port> {
    let device = device(answer)?;
    let attributes = answer.attributes(HEADER);
    let mode = attributes.get(LINK_INFO).and_then(|info| {
        let info = info.attributes();
        (info.get(INFO_SLAVE_KIND)?.text() == Some(BRIDGE)).then_some(())?;
        info.get(INFO_SLAVE_DATA)?.attributes().get(MODE)?.u8()
    });
    let is_pair = matches!(&device.kind, LinkKind::Other(kind) if kind == PAIR);
    let lacks = mode == Some(0) && is_pair && attributes.get(OTHER_NAMESPACE).is_some();
    Some(Port { device, lacks })
}

/// Returns the index of the bridge that tells of a port that it has no hairpin mode: it was made so, or somebody switched it off.
pub fn tells_of_port_without_hairpin(answer: &Answer<'_>) -> Option<u32> {
    let [family, ..] = answer.header::<HEADER>().filter(|_| answer.kind == NEW_LINK)?;
    let attributes = answer.attributes(HEADER);
    let mode = attributes.get(PORT_OPTIONS)?.attributes().get(MODE)?.u8()?;
    attributes.get(MASTER)?.u32().filter(|_| *family == AF_BRIDGE && mode == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let answer = Answer { kind: 16, flags: 0, sequence: 0, port: 0, payload: &bytes };
            let _ = (port(&answer), tells_of_port_without_hairpin(&answer));
        }
    }
}
