//! The bridge, over netlink.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::Bridge;
use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket, flag};
use crate::kernel::{Cause, Error, module};
use crate::reconcile::{Failure, Phase, Step, Target};

/// One bridge, by its name.
pub struct Bridges {
    socket: Socket,
    name: LinkName,
    /// Whether the MTU is ours to set, as of the last change.
    compares_mtu: bool,
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const BRIDGE: &str = "bridge";
const UP: u32 = 0x1;

/// The properties of a device that matter here.
struct Found {
    index: u32,
    name: String,
    kind: String,
    master: Option<u32>,
    mtu: u32,
    up: bool,
}

impl Bridges {
    /// Opens a socket in the network namespace of the calling thread. `compares_mtu`: whether the MTU is ours to set,
    /// until a change decides; where it is not, it reads as `None`.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(name: LinkName, compares_mtu: bool) -> Result<Bridges, Error> {
        Ok(Bridges { socket: Socket::open(Bus::Route)?, name, compares_mtu })
    }

    /// Returns whether the bridge has ports; a missing bridge has none.
    ///
    /// # Errors
    /// The devices cannot be listed.
    pub fn has_ports(&mut self) -> Result<bool, Error> {
        let Some(bridge) = self.find()? else { return Ok(false) };
        Ok(self.devices()?.iter().any(|device| device.master == Some(bridge.index)))
    }

    fn devices(&mut self) -> Result<Vec<Found>, Error> {
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        self.socket.dump(&mut message, found).map_err(|fault| Error::new("list devices", "", fault.into()))
    }

    fn find(&mut self) -> Result<Option<Found>, Error> {
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]).text(NAME, &self.name.0);
        match self.socket.request(&mut message, found) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Err(fault) => Err(Error::new("read bridge", self.name.to_string(), fault.into())),
        }
    }

    fn perform(&mut self, step: &Step<'_, LinkName, Bridge>) -> Result<(), Error> {
        let mut message = Messages::new();
        let operation = match (step.have, step.want) {
            // ip link add NAME type bridge; ip link set NAME up mtu MTU
            (have, Some(want)) => {
                let flags = if have.is_none() { flag::CREATE | flag::EXCLUSIVE } else { 0 };
                message.begin(NEW_LINK, flags).header(&header(want.up)).text(NAME, &step.key.0);
                if let Some(mtu) = want.mtu {
                    message.u32(MTU, mtu);
                }
                if have.is_none() {
                    message.nest(LINK_INFO).text(INFO_KIND, BRIDGE).end();
                }
                if have.is_none() { "add bridge" } else { "change bridge" }
            }
            // ip link delete NAME
            (_, None) => {
                if self.has_ports()? {
                    let text = "pods are on it".to_owned();
                    let cause = Cause::Errno(Errno::BUSY, Some(text));
                    return Err(Error::new("delete bridge", step.key.to_string(), cause));
                }
                message.begin(DELETE_LINK, 0).header(&[0; HEADER]).text(NAME, &step.key.0);
                "delete bridge"
            }
        };
        let failed = |cause: Cause| module::named_in(Error::new(operation, step.key.to_string(), cause), BRIDGE);
        match self.socket.batch(&mut message) {
            Ok(refusals) => refusals.into_iter().next().map_or(Ok(()), |refusal| Err(failed(refusal.into())))?,
            Err(fault) => return Err(failed(fault.into())),
        }
        self.compares_mtu = step.want.map_or(self.compares_mtu, |want| want.mtu.is_some());
        Ok(())
    }
}

impl Target for Bridges {
    type Key = LinkName;
    type Value = Bridge;
    type Error = Error;

    fn name(&self) -> &'static str {
        "bridges"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Bridge>, Error> {
        let Some(found) = self.find()? else { return Ok(BTreeMap::new()) };
        if found.kind != BRIDGE || found.name != self.name.0 {
            let text = format!("a device of this name exists, of type {:?}", found.kind);
            return Err(Error::new("read bridge", self.name.to_string(), Cause::Errno(Errno::EXIST, Some(text))));
        }
        let bridge = Bridge { mtu: Some(found.mtu).filter(|_| self.compares_mtu), up: found.up };
        Ok(BTreeMap::from([(self.name.clone(), bridge)]))
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Bridge>]) -> Vec<Failure<Error>> {
        let failed = |(index, step)| self.perform(step).err().map(|error| Failure { step: index, error });
        steps.iter().enumerate().filter_map(failed).collect()
    }
}

/// `struct ifinfomsg` that sets only whether the device is up.
fn header(up: bool) -> [u8; HEADER] {
    let [f0, f1, f2, f3] = if up { UP } else { 0 }.to_ne_bytes();
    let [c0, c1, c2, c3] = UP.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3, c0, c1, c2, c3]
}

fn found(answer: &Answer<'_>) -> Option<Found> {
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *answer.header::<HEADER>()?;
    if family != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let kind = attributes.get(LINK_INFO).and_then(|info| info.attributes().get(INFO_KIND)?.text().map(str::to_owned));
    Some(Found {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name: attributes.get(NAME)?.text()?.to_owned(),
        kind: kind.unwrap_or_default(),
        master: attributes.get(MASTER).and_then(|master| master.u32()),
        mtu: attributes.get(MTU).and_then(|mtu| mtu.u32()).unwrap_or_default(),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & UP != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = found(&Answer { kind: 16, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }
}
