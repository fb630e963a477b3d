//! Devices of the type `wireguard`, over netlink.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::io::Errno;

use super::Wireguard;
use super::wire::{self, FAMILY, Head};
use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Bus, Fault, GenericSocket, Messages, Socket, flag};
use crate::kernel::{Error, address, module, sysctl};
use crate::net::{PublicKey, Secret};
use crate::reconcile::{Failure, Phase, Step, Target};

/// The devices of one network namespace that are ours by their names.
pub struct Devices {
    links: Socket,
    wireguard: GenericSocket,
    is_ours: fn(&str) -> bool,
    is_loose: fn(&str) -> bool,
    compares_mtu: bool,
    /// The private keys that the devices may have: one that has none of them gets the first.
    keys: BTreeMap<LinkName, Vec<Secret>>,
    /// Those that devices were seen to have.
    held: BTreeMap<LinkName, Secret>,
    /// The public keys of devices that have theirs.
    public_keys: BTreeMap<LinkName, PublicKey>,
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const KIND: &str = "wireguard";
const UP: u32 = 0x1;
/// RFC 3704 2.4: a packet passes where any route leads back to its sender. The larger of this value and that of `all` counts.
const LOOSE: &str = "2";
/// RFC 3704 2.2: a packet passes by the device alone that leads back to its sender.
const STRICT: &str = "1";

/// A device as rtnetlink describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Listed {
    index: u32,
    name: LinkName,
    mtu: Option<u32>,
    up: bool,
}

impl Devices {
    /// Opens sockets in the network namespace of the calling thread. `is_ours` decides by a device's name. `compares_mtu`: whether MTUs are
    /// ours to set, until a change decides; where they are not, they read as `None`.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(is_ours: fn(&str) -> bool, compares_mtu: bool) -> Result<Devices, Error> {
        Ok(Devices {
            links: Socket::open(Bus::Route)?,
            wireguard: GenericSocket::open(FAMILY)?,
            is_ours,
            is_loose: |_| false,
            compares_mtu,
            keys: BTreeMap::new(),
            held: BTreeMap::new(),
            public_keys: BTreeMap::new(),
        })
    }

    /// The same, where devices of some names take packets whichever device leads back to their senders, from the first one on.
    pub fn with_loose(self, is_loose: fn(&str) -> bool) -> Devices {
        Devices { is_loose, ..self }
    }

    /// Sets the private keys that devices may have. One that has any of its own keeps it; another one gets the first.
    pub fn set_keys(&mut self, keys: BTreeMap<LinkName, Vec<Secret>>) {
        self.keys = keys;
    }

    /// Returns the private key that a device was seen to have, if it is one of those that it may have.
    pub fn held(&self, name: &LinkName) -> Option<&Secret> {
        self.held.get(name)
    }

    /// Returns the public keys of the devices that were seen to have their private ones.
    pub fn public_keys(&self) -> &BTreeMap<LinkName, PublicKey> {
        &self.public_keys
    }

    fn list(&mut self) -> Result<Vec<Listed>, Error> {
        let is_ours = self.is_ours;
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        self.links
            .dump(&mut message, |answer| listed(answer).filter(|device| is_ours(&device.name.0)))
            .map_err(|fault| Error::new("list wireguard devices", "", fault.into()))
    }

    /// The device without its peers; `None` where it has gone.
    fn head(&mut self, name: &LinkName) -> Result<Option<Head>, Fault> {
        match self.wireguard.dump(&mut wire::get(name), |answer| wire::piece(answer)?.head) {
            Ok(heads) => Ok(heads.into_iter().next()),
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Reads whether a device has its key, and takes down the public one.
    fn has_key(&mut self, name: &LinkName, head: &Head) -> bool {
        let mut keys = self.keys.get(name).into_iter().flatten();
        let held = keys.find(|key| *key.key() == head.private_key).filter(|_| head.mark == 0).cloned();
        let has_key = held.is_some();
        match head.public_key.zip(held) {
            Some((public, held)) => {
                self.public_keys.insert(name.clone(), public);
                self.held.insert(name.clone(), held);
            }
            None => self.forget(name),
        }
        has_key
    }

    fn forget(&mut self, name: &LinkName) {
        self.public_keys.remove(name);
        self.held.remove(name);
    }

    fn perform(&mut self, step: &Step<'_, LinkName, Wireguard>) -> Result<(), Error> {
        let name = step.key;
        let (operation, result) = match (step.have, step.want) {
            (Some(have), Some(want)) => ("change device", self.change(name, have, want)),
            (None, Some(want)) => ("add device", self.add(name, want)),
            (Some(_), None) => ("delete device", self.delete(name)),
            (None, None) => return Ok(()),
        };
        result.map_err(|fault| module::named_in(Error::new(operation, name.to_string(), fault.into()), KIND))?;
        self.compares_mtu = step.want.map_or(self.compares_mtu, |want| want.mtu.is_some());
        Ok(())
    }

    /// A device gets its key before it is up, so that it never receives without one.
    fn add(&mut self, name: &LinkName, want: &Wireguard) -> Result<(), Fault> {
        self.send(link(name, None, false, flag::CREATE | flag::EXCLUSIVE))?;
        self.configure(name, want)?;
        address::number(&mut self.links, name)?;
        self.loosen(name)?;
        self.send(link(name, want.mtu, want.up, 0))
    }

    fn change(&mut self, name: &LinkName, have: &Wireguard, want: &Wireguard) -> Result<(), Fault> {
        if (have.port, have.has_key) != (want.port, want.has_key) {
            self.configure(name, want)?;
        }
        // Without an address loose filtering drops what another device leads back to (`address::STAND_IN`), and none does not.
        if !have.is_numbered {
            address::number(&mut self.links, name)?;
        }
        self.loosen(name)?;
        self.send(link(name, want.mtu, want.up, 0))
    }

    fn configure(&mut self, name: &LinkName, want: &Wireguard) -> Result<(), Fault> {
        let key = self
            .keys
            .get(name)
            .and_then(|keys| keys.first())
            .ok_or(Fault::Malformed("this node has no private key yet"))?;
        let mut message = wire::configure(name, key, want.port);
        if let Some(refusal) = self.wireguard.batch(&mut message)?.into_iter().next() {
            return Err(Fault::Refused(refusal));
        }
        if let Some(head) = self.head(name)? {
            self.has_key(name, &head);
        }
        Ok(())
    }

    fn loosen(&self, name: &LinkName) -> Result<(), Fault> {
        if (self.is_loose)(&name.0) { set_loose(name) } else { Ok(()) }
    }

    // ip link delete NAME
    fn delete(&mut self, name: &LinkName) -> Result<(), Fault> {
        self.forget(name);
        let mut message = Messages::new();
        message.begin(DELETE_LINK, 0).header(&[0; HEADER]).text(NAME, &name.0);
        match self.send(message) {
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(()),
            result => result,
        }
    }

    fn send(&mut self, mut messages: Messages) -> Result<(), Fault> {
        match self.links.batch(&mut messages)?.into_iter().next() {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(()),
        }
    }
}

impl Target for Devices {
    type Key = LinkName;
    type Value = Wireguard;
    type Error = Error;

    fn name(&self) -> &'static str {
        "wireguard devices"
    }

    /// A host without such devices is not asked about them, which would load the module.
    fn read(&mut self) -> Result<BTreeMap<LinkName, Wireguard>, Error> {
        let mut found = BTreeMap::new();
        self.public_keys.clear();
        self.held.clear();
        let listed = self.list()?;
        let numbered = address::numbered(&mut self.links, listed.iter().map(|device| device.index))
            .map_err(|fault| Error::new("list addresses of wireguard devices", "", fault.into()))?;
        for Listed { index, name, mtu, up } in listed {
            let head = self.head(&name).map_err(|fault| Error::new("read device", name.to_string(), fault.into()))?;
            let Some(head) = head else { continue };
            let has_key = self.has_key(&name, &head);
            let mtu = mtu.filter(|_| self.compares_mtu);
            let is_numbered = numbered.contains(&index);
            found.insert(name, Wireguard { port: head.port, mtu, up, has_key, is_numbered });
        }
        Ok(found)
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Wireguard>]) -> Vec<Failure<Error>> {
        let failed = |(index, step)| self.perform(step).err().map(|error| Failure { step: index, error });
        steps.iter().enumerate().filter_map(failed).collect()
    }
}

fn rp_filter(name: &str) -> PathBuf {
    sysctl::root().join("net/ipv4/conf").join(name).join("rp_filter")
}

/// Where it cannot be written that is a failure if it is strict, because packets would be lost.
// sysctl -w net.ipv4.conf.NAME.rp_filter=2
fn set_loose(name: &LinkName) -> Result<(), Fault> {
    let value = |name: &str| fs::read_to_string(rp_filter(name)).unwrap_or_default().trim().to_owned();
    if value(&name.0) == LOOSE {
        return Ok(());
    }
    let is_strict = || ["all", &*name.0].into_iter().any(|name| value(name) == STRICT);
    match fs::write(rp_filter(&name.0), LOOSE) {
        Err(error) if error.kind() != ErrorKind::NotFound && is_strict() => {
            Err(Fault::System(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
        }
        _ => Ok(()),
    }
}

// ip link add NAME mtu MTU [up] type wireguard
// ip link set NAME mtu MTU [up]
fn link(name: &LinkName, mtu: Option<u32>, up: bool, flags: u16) -> Messages {
    let mut message = Messages::new();
    let [f0, f1, f2, f3] = if up { UP } else { 0 }.to_ne_bytes();
    let [c0, c1, c2, c3] = UP.to_ne_bytes();
    message
        .begin(NEW_LINK, flags)
        .header(&[0, 0, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3, c0, c1, c2, c3])
        .text(NAME, &name.0);
    if let Some(mtu) = mtu {
        message.u32(MTU, mtu);
    }
    if flags & flag::CREATE != 0 {
        message.nest(LINK_INFO).text(INFO_KIND, KIND).end();
    }
    message
}

/// The device that an answer describes; `None` for one of another type.
fn listed(answer: &Answer<'_>) -> Option<Listed> {
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *answer.header::<HEADER>()?;
    if family != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    if attributes.get(LINK_INFO)?.attributes().get(INFO_KIND)?.text()? != KIND {
        return None;
    }
    Some(Listed {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name: LinkName(attributes.get(NAME)?.text()?.into()),
        mtu: attributes.get(MTU).and_then(|mtu| mtu.u32()),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & UP != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = listed(&Answer { kind: NEW_LINK, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }

    #[test]
    fn a_device_reads_back_as_it_was_written() {
        let name = LinkName("sluice-wg0".into());
        let bytes = link(&name, Some(1420), true, flag::CREATE).bytes().to_vec();
        let read: Vec<_> = answers(&bytes).filter_map(|answer| listed(&answer)).collect();
        assert_eq!(read, [Listed { index: 0, name, mtu: Some(1420), up: true }]);
    }
}
