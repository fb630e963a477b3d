//! Network devices.
//!
//! Ours: the devices whose names the owner of a [`Links`] target lists; the names are a contract with running
//! nodes. A device under such a name whose type we never make is somebody's mistake: it is reported, set up
//! where that is wanted, and never deleted.
//!
//! Kernel: rtnetlink `RTM_*LINK` (include/uapi/linux/if_link.h).

use std::collections::BTreeMap;
use std::fmt;

use compact_str::CompactString;
use rustix::io::Errno;
use rustix::net::netdevice;

use super::netlink::{Answer, Bus, Fault, Messages, Socket, failed_steps, flag};
use super::{Cause, Error, module};
use crate::reconcile::{Failure, Phase, Step, Target};

/// The name of a device: at most 15 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkName(pub CompactString);

/// Desired properties of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub kind: LinkKind,
    pub up: bool,
}

/// Device types that we create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Dummy,
    /// A device that exists under our name with a type that we never make, named as the kernel names it.
    /// It is read so that it can be reported; it is never deleted.
    Other(CompactString),
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkKind::Dummy => f.write_str(DUMMY),
            LinkKind::Other(kind) if kind.is_empty() => f.write_str("hardware"),
            LinkKind::Other(kind) => f.write_str(kind),
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Devices known by their names.
pub struct Links {
    socket: Socket,
    names: Vec<LinkName>,
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
const DUMMY: &str = "dummy";

const UP: u32 = 0x1;
/// `IFF_LOWER_UP`: there is a carrier.
const CARRIER: u32 = 0x1_0000;

impl Links {
    /// Opens sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(names: impl IntoIterator<Item = LinkName>) -> Result<Links, Error> {
        Ok(Links { socket: Socket::open(Bus::Route)?, names: names.into_iter().collect() })
    }

    fn find(&mut self, name: &LinkName) -> Result<Option<Link>, Error> {
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]).text(NAME, &name.0);
        match self.socket.request(&mut message, device) {
            Ok(found) => Ok(found.into_iter().next().map(|device| Link { kind: device.kind, up: device.up })),
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Err(fault) => Err(Error::new("read device", name.to_string(), fault.into())),
        }
    }
}

impl Target for Links {
    type Key = LinkName;
    type Value = Link;
    type Error = Error;

    fn name(&self) -> &'static str {
        "links"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Link>, Error> {
        let names = self.names.clone();
        self.read_some(&names)
    }

    fn read_some(&mut self, keys: &[LinkName]) -> Result<BTreeMap<LinkName, Link>, Error> {
        let mut found = BTreeMap::new();
        for name in keys.iter().filter(|key| self.names.contains(key)).cloned().collect::<Vec<_>>() {
            if let Some(link) = self.find(&name)? {
                found.insert(name, link);
            }
        }
        Ok(found)
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Link>]) -> Vec<Failure<Error>> {
        let mut messages = Messages::new();
        let mut owners = Vec::new();
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            match write(&mut messages, step) {
                Ok(()) => owners.push(index),
                Err(error) => failures.push(Failure { step: index, error }),
            }
        }
        failures.extend(failed_steps(self.socket.batch(&mut messages), &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            module::named_in(Error::new(operation(step), step.key.to_string(), cause), DUMMY)
        }));
        failures
    }
}

fn operation(step: &Step<'_, LinkName, Link>) -> &'static str {
    match (step.have, step.want) {
        (None, _) => "add device",
        (_, None) => "delete device",
        _ => "change device",
    }
}

/// Writes the message of a step; fails where there can be none.
fn write(messages: &mut Messages, step: &Step<'_, LinkName, Link>) -> Result<(), Error> {
    match (step.have, step.want) {
        // ip link add NAME type dummy up
        (None, Some(Link { kind: LinkKind::Dummy, up })) => {
            messages.begin(NEW_LINK, flag::CREATE | flag::EXCLUSIVE).header(&header(*up)).text(NAME, &step.key.0);
            messages.nest(LINK_INFO).text(INFO_KIND, DUMMY).end();
            Ok(())
        }
        // ip link set NAME up
        (Some(have), Some(want)) if have.kind == want.kind => {
            messages.begin(NEW_LINK, 0).header(&header(want.up)).text(NAME, &step.key.0);
            Ok(())
        }
        // ip link delete NAME
        (Some(Link { kind: LinkKind::Dummy, .. }), None) => {
            messages.begin(DELETE_LINK, 0).header(&[0; HEADER]).text(NAME, &step.key.0);
            Ok(())
        }
        (Some(Link { kind, .. }), _) => {
            let text = format!("a device of this name exists, of type {kind}, which is not made by us");
            Err(Error::new(operation(step), step.key.to_string(), Cause::Errno(Errno::EXIST, Some(text))))
        }
        (None, _) => {
            let text = "devices of this type are not made by us".to_owned();
            Err(Error::new(operation(step), step.key.to_string(), Cause::Errno(Errno::OPNOTSUPP, Some(text))))
        }
    }
}

/// `struct ifinfomsg` that sets only whether the device is up.
fn header(up: bool) -> [u8; HEADER] {
    let [f0, f1, f2, f3] = if up { UP } else { 0 }.to_ne_bytes();
    let [c0, c1, c2, c3] = UP.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3, c0, c1, c2, c3]
}

/// A device as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    pub index: u32,
    pub name: LinkName,
    pub kind: LinkKind,
    pub up: bool,
    /// The link has a carrier.
    pub carrier: bool,
    /// It is a port of another device, as those of pods are; that one's index.
    pub master: Option<u32>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// All devices of the network namespace of the calling thread.
///
/// # Errors
/// The socket cannot be opened, or the kernel does not answer.
pub fn all() -> Result<Vec<Device>, Error> {
    devices(&mut Socket::open(Bus::Route)?)
}

/// The device of a name, in the network namespace of the calling thread; `None` where there is none.
///
/// # Errors
/// The socket cannot be opened, or the kernel does not answer.
pub fn named(name: &LinkName) -> Result<Option<Device>, Error> {
    let mut socket = Socket::open(Bus::Route)?;
    let Ok(index) = netdevice::name_to_index(&socket, &name.0) else { return Ok(None) };
    let mut header = [0; HEADER];
    header.iter_mut().skip(4).zip(index.to_ne_bytes()).for_each(|(to, byte)| *to = byte);
    let mut message = Messages::new();
    message.begin(GET_LINK, 0).header(&header);
    match socket.request(&mut message, device) {
        Ok(found) => Ok(found.into_iter().next()),
        Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
        Err(fault) => Err(Error::new("read device", name.to_string(), fault.into())),
    }
}

/// All devices of the socket's network namespace.
pub(super) fn devices(socket: &mut Socket) -> Result<Vec<Device>, Error> {
    let mut message = Messages::new();
    message.begin(GET_LINK, 0).header(&[0; HEADER]);
    socket.dump(&mut message, device).map_err(|fault| Error::new("list devices", "", fault.into()))
}

/// The device that a message describes, be it an answer or a notification.
pub(in crate::kernel) fn device(answer: &Answer<'_>) -> Option<Device> {
    if answer.kind != NEW_LINK && answer.kind != DELETE_LINK {
        return None;
    }
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *answer.header::<HEADER>()?;
    // Bridges report their ports in messages of the family AF_BRIDGE, which are not about devices.
    if family != 0 {
        return None;
    }
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let attributes = answer.attributes(HEADER);
    let kind = attributes.get(LINK_INFO).and_then(|info| info.attributes().get(INFO_KIND)?.text());
    Some(Device {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name: LinkName(attributes.get(NAME)?.text()?.into()),
        kind: if kind == Some(DUMMY) { LinkKind::Dummy } else { LinkKind::Other(kind.unwrap_or_default().into()) },
        up: flags & UP != 0,
        carrier: flags & CARRIER != 0,
        master: attributes.get(MASTER).and_then(|master| master.u32()),
        mtu: attributes.get(MTU).and_then(|mtu| mtu.u32()).unwrap_or_default(),
    })
}

/// Indexes and names of devices, requested once per batch. An index changes when a device is created again, so
/// nothing is kept for longer.
#[derive(Default)]
pub(super) struct Names {
    numbers: BTreeMap<LinkName, Option<u32>>,
    names: BTreeMap<u32, Option<LinkName>>,
}

impl Names {
    /// Returns the index of a device; `None` where there is none of this name.
    pub fn number(&mut self, socket: &Socket, name: &LinkName) -> Option<u32> {
        if let Some(known) = self.numbers.get(name) {
            return *known;
        }
        let number = netdevice::name_to_index(socket, &name.0).ok();
        self.numbers.insert(name.clone(), number);
        number
    }

    /// The name of a device; `None` where it has gone.
    pub fn name(&mut self, socket: &Socket, number: u32) -> Option<LinkName> {
        let name = || netdevice::index_to_name(socket, number).ok().map(|name| LinkName(name.into()));
        self.names.entry(number).or_insert_with(name).clone()
    }
}

/// The answer to a step that needs a device that is not there.
pub(super) fn no_device(operation: &'static str, object: String, name: &LinkName) -> Error {
    Error::new(operation, object, Cause::Errno(Errno::NODEV, Some(format!("there is no device {name}"))))
}
