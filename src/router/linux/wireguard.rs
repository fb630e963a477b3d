//! The devices of `wireguard` with this node's private keys, which are kept in files of `--state-dir` (`key_files.rs`).
//!
//! Who deletes the file of the present key gets another one at the next start. How the key changes without a lost packet: `router/rotation.rs`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tracing::warn;

use super::keyring::Keyring;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Contact, Devices, PeerKey, Peers, Wireguard};
use crate::kernel::{Cause, Error};
use crate::net::PublicKey;
use crate::reconcile::{Failure, Phase, Step, Target};
use crate::router::apply::{HasKeys, HasSessions};
use crate::router::names::{WIREGUARD, WIREGUARD_SECOND, is_wireguard};

/// Our devices, with their keys.
pub struct KeyedDevices {
    devices: Devices,
    /// `None` where no device is wanted.
    keys: Option<Keyring>,
    /// The public one of the next key, once the kernel has made it.
    next: Option<PublicKey>,
}

impl KeyedDevices {
    /// Opens sockets in the network namespace of the calling thread. `file`: where the private key is, where a device is wanted.
    pub(super) fn open(file: Option<PathBuf>, compares_mtu: bool) -> Result<KeyedDevices, Error> {
        let devices = Devices::open(is_wireguard, compares_mtu)?.with_loose(|name| name == WIREGUARD_SECOND);
        Ok(KeyedDevices { devices, keys: file.map(Keyring::new), next: None })
    }

    /// Has the keys read, the first one made where there is none. Tried again with each reading and each change until there is one.
    fn take_keys(&mut self) -> Option<Error> {
        let error = self.change_keys("read or make private key", Keyring::load).err();
        self.set_keys();
        error
    }

    /// The second device keeps the key that it has, which may be the first one: packets may be on their way in its sessions. A new one gets the key that follows, where there is one.
    fn set_keys(&mut self) {
        let Some(keys) = &self.keys else { return };
        let Some(first) = keys.first() else { return };
        let of_second = keys.next().into_iter().chain([first]).cloned().collect();
        self.devices.set_keys(BTreeMap::from([
            (LinkName(WIREGUARD.into()), vec![first.clone()]),
            (LinkName(WIREGUARD_SECOND.into()), of_second),
        ]));
        if keys.next().is_none() {
            self.next = None;
        }
    }

    fn change_keys(
        &mut self,
        operation: &'static str,
        change: impl FnOnce(&mut Keyring) -> io::Result<()>,
    ) -> Result<(), Error> {
        let Some(keys) = &mut self.keys else { return Ok(()) };
        let changed = change(&mut *keys);
        let file = || keys.file().display().to_string();
        changed.map_err(|error| Error::new(operation, file(), Cause::File(error.to_string())))
    }

    fn note_next(&mut self) {
        if self.is_changing() {
            let second = LinkName(WIREGUARD_SECOND.into());
            self.next = self.devices.public_keys().get(&second).copied().or(self.next);
        }
    }
}

impl HasKeys for KeyedDevices {
    fn public_key(&self, link: &LinkName) -> Option<PublicKey> {
        self.devices.public_keys().get(link).copied()
    }

    fn next_key(&self) -> Option<PublicKey> {
        self.next
    }

    fn has_next(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.next().is_some())
    }

    fn is_changing(&self) -> bool {
        let next = self.keys.as_ref().and_then(Keyring::next);
        next.is_some() && self.devices.held(&LinkName(WIREGUARD_SECOND.into())) == next
    }

    fn key_age(&self) -> Option<Duration> {
        self.keys.as_ref()?.age()
    }

    fn make_next(&mut self) -> Result<(), Error> {
        let made = self.change_keys("make private key", Keyring::make_next);
        self.set_keys();
        made
    }

    fn take_next(&mut self) -> Result<(), Error> {
        let taken = self.change_keys("replace private key", Keyring::take_next);
        self.set_keys();
        taken
    }
}

impl HasSessions for Peers {
    fn contacts(&mut self) -> Result<BTreeMap<PeerKey, Contact>, Error> {
        Peers::contacts(self)
    }
}

impl Target for KeyedDevices {
    type Key = LinkName;
    type Value = Wireguard;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.devices.name()
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Wireguard>, Error> {
        if let Some(error) = self.take_keys() {
            warn!(%error, "The private key of this node is not usable");
        }
        let found = self.devices.read();
        self.note_next();
        found
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, LinkName, Wireguard>]) -> Vec<Failure<Error>> {
        let needs_key = steps.iter().any(|step| step.want.is_some());
        if let Some(error) = needs_key.then(|| self.take_keys()).flatten() {
            // None of the steps was taken.
            return (0..steps.len()).map(|step| Failure { step, error: error.clone() }).collect();
        }
        let failures = self.devices.apply(phase, steps);
        self.note_next();
        failures
    }
}
