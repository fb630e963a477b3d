//! Devices of the type `vxlan`, over netlink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Vxlan;
use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket, flag};
use crate::kernel::{Error, address, module};
use crate::net::LinkAddress;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The devices of one network namespace that are ours by their names.
pub struct Devices {
    socket: Socket,
    is_ours: fn(&str) -> bool,
    compares_mtu: bool,
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const KIND: &str = "vxlan";
const UP: u32 = 0x1;

/// `IFLA_VXLAN_*`.
mod data {
    pub const ID: u16 = 1;
    pub const GROUP: u16 = 2;
    pub const LOCAL: u16 = 4;
    pub const LEARNING: u16 = 7;
    pub const PORT: u16 = 15;
    pub const GROUP_V6: u16 = 16;
    pub const LOCAL_V6: u16 = 17;
    pub const COLLECT_METADATA: u16 = 25;
}

impl Devices {
    /// Opens a socket in the network namespace of the calling thread. `is_ours` decides by a device's name.
    /// `compares_mtu`: whether MTUs are ours to set, until a change decides; where they are not, they read as `None`.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(is_ours: fn(&str) -> bool, compares_mtu: bool) -> Result<Devices, Error> {
        Ok(Devices { socket: Socket::open(Bus::Route)?, is_ours, compares_mtu })
    }

    fn perform(&mut self, step: &Step<'_, LinkName, Vxlan>) -> Result<(), Error> {
        let name = step.key;
        let (operation, result) = match (step.have, step.want) {
            (Some(have), Some(want)) if is_same_device(have, want) => {
                let moves = have.local != want.local;
                match self.change(name, have, want) {
                    // A kernel that cannot change the local address.
                    Err(Fault::Refused(refusal)) if moves && refusal.errno == libc::EOPNOTSUPP => {
                        ("replace device", self.replace(name, want))
                    }
                    changed => ("change device", changed),
                }
            }
            (Some(_), Some(want)) => ("replace device", self.replace(name, want)),
            (None, Some(want)) => ("add device", self.add(name, want)),
            (Some(_), None) => ("delete device", self.send(delete(name)).or_else(already_gone)),
            (None, None) => return Ok(()),
        };
        result.map_err(|fault| module::named_in(Error::new(operation, name.to_string(), fault.into()), KIND))?;
        self.compares_mtu = step.want.map_or(self.compares_mtu, |want| want.mtu.is_some());
        Ok(())
    }

    /// Its routes and entries go with it; they are read back and made again in the same round.
    fn replace(&mut self, name: &LinkName, want: &Vxlan) -> Result<(), Fault> {
        self.send(delete(name)).or_else(already_gone).and_then(|()| self.add(name, want))
    }

    fn add(&mut self, name: &LinkName, want: &Vxlan) -> Result<(), Fault> {
        self.send(add(name, want))?;
        if want.local.is_ipv4() { address::number(&mut self.socket, name) } else { Ok(()) }
    }

    fn change(&mut self, name: &LinkName, have: &Vxlan, want: &Vxlan) -> Result<(), Fault> {
        if !have.is_numbered {
            address::number(&mut self.socket, name)?;
        }
        // A device that lacks the address alone is not touched otherwise.
        if (Vxlan { is_numbered: want.is_numbered, ..*have }) == *want && have != want {
            return Ok(());
        }
        self.send(change(name, want, have.local != want.local))
    }

    fn send(&mut self, mut messages: Messages) -> Result<(), Fault> {
        match self.socket.batch(&mut messages)?.into_iter().next() {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(()),
        }
    }
}

impl Target for Devices {
    type Key = LinkName;
    type Value = Vxlan;
    type Error = Error;

    fn name(&self) -> &'static str {
        "overlay devices"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Vxlan>, Error> {
        let (is_ours, compares_mtu) = (self.is_ours, self.compares_mtu);
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        let failed = |fault: Fault| Error::new("list overlay devices", "", fault.into());
        let listed = self.socket.dump(&mut message, |answer| listed(answer).filter(|one| is_ours(&one.name.0)));
        let listed = listed.map_err(failed)?;
        let needs_address = |one: &Listed| one.device.local.is_ipv4();
        let unsure = listed.iter().filter(|one| needs_address(one)).map(|one| one.index);
        let numbered = address::numbered(&mut self.socket, unsure).map_err(failed)?;
        let read = |one: Listed| {
            let is_numbered = !needs_address(&one) || numbered.contains(&one.index);
            (one.name, Vxlan { is_numbered, mtu: one.device.mtu.filter(|_| compares_mtu), ..one.device })
        };
        Ok(listed.into_iter().map(read).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Vxlan>]) -> Vec<Failure<Error>> {
        let failed = |(index, step)| self.perform(step).err().map(|error| Failure { step: index, error });
        steps.iter().enumerate().filter_map(failed).collect()
    }
}

/// Returns all devices of the type in the network namespace of the calling thread, whoever made them, without their MTUs.
///
/// # Errors
/// The kernel does not list them.
pub fn all() -> Result<BTreeMap<LinkName, Vxlan>, Error> {
    Devices::open(|_| true, false)?.read()
}

/// Returns whether one becomes the other without being created again, so that its routes stay.
pub fn is_same_device(have: &Vxlan, want: &Vxlan) -> bool {
    let of_kernel = |device: &Vxlan| (device.local.is_ipv4(), device.id, device.port, device.is_fixed);
    of_kernel(have) == of_kernel(want)
}

fn already_gone(fault: Fault) -> Result<(), Fault> {
    match fault {
        Fault::Refused(refusal) if refusal.errno == libc::ENODEV => Ok(()),
        fault => Err(fault),
    }
}

// ip link add NAME address ADDRESS mtu MTU up type vxlan id ID dstport PORT local ADDRESS nolearning
fn add(name: &LinkName, device: &Vxlan) -> Messages {
    let mut message = Messages::new();
    begin(&mut message, name, device, flag::CREATE | flag::EXCLUSIVE);
    message.nest(LINK_INFO).text(INFO_KIND, KIND).nest(INFO_DATA);
    message.u32(data::ID, device.id).address(local_of(device), device.local).u8(data::LEARNING, 0);
    message.u16_be(data::PORT, device.port);
    message.end().end();
    message
}

// ip link set NAME address ADDRESS mtu MTU up [type vxlan id ID local ADDRESS]
fn change(name: &LinkName, device: &Vxlan, moves: bool) -> Messages {
    let mut message = Messages::new();
    begin(&mut message, name, device, 0);
    if moves {
        message.nest(LINK_INFO).text(INFO_KIND, KIND).nest(INFO_DATA);
        message.u32(data::ID, device.id).address(local_of(device), device.local);
        message.end().end();
    }
    message
}

fn local_of(device: &Vxlan) -> u16 {
    if device.local.is_ipv4() { data::LOCAL } else { data::LOCAL_V6 }
}

// ip link delete NAME
fn delete(name: &LinkName) -> Messages {
    let mut message = Messages::new();
    message.begin(DELETE_LINK, 0).header(&[0; HEADER]).text(NAME, &name.0);
    message
}

/// Begins a message with what can be changed of a device that is there.
fn begin(message: &mut Messages, name: &LinkName, device: &Vxlan, flags: u16) {
    let LinkAddress(octets) = device.address;
    message.begin(NEW_LINK, flags).header(&header(device.up)).text(NAME, &name.0).attribute(ADDRESS, &octets);
    if let Some(mtu) = device.mtu {
        message.u32(MTU, mtu);
    }
}

/// `struct ifinfomsg` that sets only whether the device is up.
fn header(up: bool) -> [u8; HEADER] {
    let [f0, f1, f2, f3] = if up { UP } else { 0 }.to_ne_bytes();
    let [c0, c1, c2, c3] = UP.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3, c0, c1, c2, c3]
}

/// A device as rtnetlink describes it: its addresses are not part of that.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Listed {
    index: u32,
    name: LinkName,
    device: Vxlan,
}

/// The device that an answer describes; `None` for one of another type.
fn listed(answer: &Answer<'_>) -> Option<Listed> {
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *answer.header::<HEADER>()?;
    if family != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let info = attributes.get(LINK_INFO)?.attributes();
    if info.get(INFO_KIND)?.text()? != KIND {
        return None;
    }
    let inside = info.get(INFO_DATA)?.attributes();
    let address = attributes.get(ADDRESS).and_then(|address| <[u8; 6]>::try_from(address.value).ok());
    let device = Vxlan {
        local: local(&inside),
        id: inside.get(data::ID).and_then(|id| id.u32()).unwrap_or_default(),
        port: inside.get(data::PORT).and_then(|port| port.u16_be()).unwrap_or_default(),
        address: LinkAddress(address.unwrap_or_default()),
        mtu: attributes.get(MTU).and_then(|mtu| mtu.u32()),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & UP != 0,
        is_fixed: is_fixed(&inside),
        is_numbered: false,
    };
    let name = LinkName(attributes.get(NAME)?.text()?.into());
    Some(Listed { index: u32::from_ne_bytes([i0, i1, i2, i3]), name, device })
}

/// A device without a local address reads as one that nobody wants, so that it is put right.
fn local(inside: &Attributes<'_>) -> IpAddr {
    let of = |kind: u16| inside.get(kind).and_then(|address| address.address());
    of(data::LOCAL).or_else(|| of(data::LOCAL_V6)).unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn is_fixed(inside: &Attributes<'_>) -> bool {
    let is_on = |kind: u16| inside.get(kind).and_then(|value| value.u8()).is_some_and(|value| value != 0);
    let has_group = [data::GROUP, data::GROUP_V6].into_iter().any(|kind| inside.get(kind).is_some());
    !is_on(data::LEARNING) && !is_on(data::COLLECT_METADATA) && !has_group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use crate::kernel::vxlan::link_address;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = listed(&Answer { kind: NEW_LINK, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }

    #[test]
    fn a_device_reads_back_as_it_was_written() {
        for local in ["192.0.2.1", "2001:db8::1"] {
            let local: IpAddr = local.parse().expect("an address");
            let address = link_address(local);
            let (mtu, is_fixed, is_numbered) = (Some(1450), true, false);
            let device = Vxlan { local, id: 7, port: 4789, address, mtu, up: true, is_fixed, is_numbered };
            let name = LinkName("sluice-vxlan4".into());
            let bytes = add(&name, &device).bytes().to_vec();
            let read: Vec<_> = answers(&bytes).filter_map(|answer| listed(&answer)).collect();
            assert_eq!(read, [Listed { index: 0, name, device }]);
        }
    }
}
