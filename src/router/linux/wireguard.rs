//! The devices of `wireguard` with this node's private keys, which are kept in files of `--state-dir` (`key_files.rs`).
//!
//! Who deletes the file of the present key gets another one at the next start. How the key changes without a lost packet: `router/rotation.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use super::key_files;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Devices, PeerKey, Peers, Session, Wireguard};
use crate::kernel::{Cause, Error};
use crate::net::{PublicKey, Secret};
use crate::reconcile::{Failure, Phase, Step, Target};
use crate::router::apply::{HasKeys, HasSessions};
use crate::router::names::{WIREGUARD, WIREGUARD_SECOND, is_wireguard};

/// Our devices, with the files of the keys.
pub struct KeyedDevices {
    devices: Devices,
    /// `None` where no device is wanted.
    file: Option<PathBuf>,
    keys: Option<Keys>,
    /// The second device gets the next key although it has the first one.
    insists: bool,
    /// The public one of the next key, once the kernel has made it.
    next: Option<PublicKey>,
}

struct Keys {
    first: Secret,
    next: Option<Secret>,
}

impl KeyedDevices {
    /// Opens sockets in the network namespace of the calling thread. `file`: where the private key is, where a device is wanted.
    pub(super) fn open(file: Option<PathBuf>, compares_mtu: bool) -> Result<KeyedDevices, Error> {
        let devices = Devices::open(is_wireguard, compares_mtu)?;
        Ok(KeyedDevices { devices, file, keys: None, insists: false, next: None })
    }

    /// Has the keys read, the first one made where there is none. Tried again with each reading and each change until there is one.
    fn take_keys(&mut self) -> Option<Error> {
        let file = self.file.as_ref().filter(|_| self.keys.is_none())?;
        match key_files::key_of(file) {
            Ok(first) => {
                let next = key_files::next_of(file).unwrap_or_else(|error| {
                    warn!(%error, "The next private key of this node is not usable, and counts as none");
                    None
                });
                self.keys = Some(Keys { first, next });
                self.set_keys();
                None
            }
            Err(error) => Some(failed("read or make private key", file, &error)),
        }
    }

    /// The second device keeps the key that it has: packets may be on their way in its sessions.
    fn set_keys(&mut self) {
        let Some(Keys { first, next }) = &self.keys else { return };
        let others = Some(first.clone()).filter(|_| next.is_none() || !self.insists);
        let of_second = next.iter().cloned().chain(others).collect();
        self.devices.set_keys(BTreeMap::from([
            (LinkName(WIREGUARD.into()), vec![first.clone()]),
            (LinkName(WIREGUARD_SECOND.into()), of_second),
        ]));
        if next.is_none() {
            self.next = None;
        }
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
        self.keys.as_ref().is_some_and(|keys| keys.next.is_some())
    }

    fn is_changing(&self) -> bool {
        let next = self.keys.as_ref().and_then(|keys| keys.next.as_ref());
        next.is_some() && self.devices.held(&LinkName(WIREGUARD_SECOND.into())) == next
    }

    fn key_age(&self) -> Option<Duration> {
        key_files::age(self.file.as_ref()?)
    }

    fn make_next(&mut self) -> Result<(), Error> {
        let (Some(file), Some(keys)) = (&self.file, &mut self.keys) else { return Ok(()) };
        if keys.next.is_none() {
            let made = key_files::make_next(file).map_err(|error| failed("make private key", file, &error))?;
            keys.next = Some(made);
        }
        self.insists = true;
        self.set_keys();
        Ok(())
    }

    fn take_next(&mut self) -> Result<(), Error> {
        let (Some(file), Some(keys)) = (&self.file, &mut self.keys) else { return Ok(()) };
        let Some(next) = keys.next.clone() else { return Ok(()) };
        key_files::take_next(file).map_err(|error| failed("replace private key", file, &error))?;
        info!(path = %file.display(), "Next private key of this node for WireGuard took the place of the first");
        self.keys = Some(Keys { first: next, next: None });
        self.insists = false;
        self.set_keys();
        Ok(())
    }
}

impl HasSessions for Peers {
    fn sessions(&mut self) -> Result<BTreeMap<PeerKey, Session>, Error> {
        Peers::sessions(self)
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
            let step = steps.iter().position(|step| step.want.is_some()).unwrap_or_default();
            return vec![Failure { step, error }];
        }
        let failures = self.devices.apply(phase, steps);
        self.note_next();
        failures
    }
}

fn failed(operation: &'static str, file: &std::path::Path, error: &std::io::Error) -> Error {
    Error::new(operation, file.display().to_string(), Cause::File(error.to_string()))
}
