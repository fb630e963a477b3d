//! The device of `wireguard` with this node's private key, which is kept in a file of `--state-dir`.
//!
//! The key is made where there is no file, of the kernel's randomness, and written before it is used: a device never has a key that a restart
//! would not find again. Who deletes the file gets another key at the next start. It is written as `wg` takes it, in base64, for root alone.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tracing::{info, warn};

use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Devices, Wireguard};
use crate::kernel::{Cause, Error};
use crate::net::{PublicKey, Secret, base64};
use crate::reconcile::{Failure, Phase, Step, Target};
use crate::router::apply::HasKeys;
use crate::router::names::{WIREGUARD, is_wireguard};

/// Our devices, with the file of the key.
pub struct KeyedDevices {
    devices: Devices,
    /// `None` where no device is wanted.
    file: Option<PathBuf>,
    has_key: bool,
}

/// Most bytes that are read of a file that should hold 45.
const MOST: u64 = 4096;

impl KeyedDevices {
    /// Opens sockets in the network namespace of the calling thread. `file`: where the private key is, where a device is wanted.
    pub(super) fn open(file: Option<PathBuf>, compares_mtu: bool) -> Result<KeyedDevices, Error> {
        Ok(KeyedDevices { devices: Devices::open(is_wireguard, compares_mtu)?, file, has_key: false })
    }

    /// Has the key read, or made. Tried again with each reading and each change until there is one.
    fn take_key(&mut self) -> Option<Error> {
        let file = self.file.as_ref().filter(|_| !self.has_key)?;
        match key_of(file) {
            Ok(key) => {
                self.devices.set_keys(BTreeMap::from([(LinkName(WIREGUARD.into()), key)]));
                self.has_key = true;
                None
            }
            Err(error) => {
                let cause = Cause::File(error.to_string());
                Some(Error::new("read or make private key", file.display().to_string(), cause))
            }
        }
    }
}

impl HasKeys for KeyedDevices {
    fn public_key(&self, link: &LinkName) -> Option<PublicKey> {
        self.devices.public_keys().get(link).copied()
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
        if let Some(error) = self.take_key() {
            warn!(%error, "The private key of this node is not usable");
        }
        self.devices.read()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, LinkName, Wireguard>]) -> Vec<Failure<Error>> {
        let needs_key = steps.iter().any(|step| step.want.is_some());
        if let Some(error) = needs_key.then(|| self.take_key()).flatten() {
            let step = steps.iter().position(|step| step.want.is_some()).unwrap_or_default();
            return vec![Failure { step, error }];
        }
        self.devices.apply(phase, steps)
    }
}

/// Removes the file of the private key, and what an interrupted write has left; returns what was removed.
///
/// # Errors
/// One of them is there and cannot be removed.
pub fn remove_key(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in [file.to_owned(), unfinished(file)] {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Reads the private key, or makes one where there is no file. Of several agents with one directory the first one makes it, and the others read it.
fn key_of(path: &Path) -> io::Result<Secret> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let directory = File::open(directory)?;
    // It ends with the file, or with the process. A file system without locks has one agent.
    match rustix::fs::flock(&directory, FlockOperation::LockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {}
        Err(error) => return Err(error.into()),
    }
    match read(path)? {
        Some(key) => Ok(key),
        None => made(path, &directory),
    }
}

/// Reads the private key; `None` where there is no file.
fn read(path: &Path) -> io::Result<Option<Secret>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(MOST).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bytes = base64::decoded(text.trim_end()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let is_none = || io::Error::other("the file holds no private key; delete it, and another one is made");
    bytes.map(Secret::private_key).ok_or_else(is_none).map(Some)
}

fn made(path: &Path, directory: &File) -> io::Result<Secret> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
    let key = Secret::private_key(bytes);
    let new = unfinished(path);
    // One left behind by an earlier try may have other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(format!("{}\n", base64::encoded(key.key())).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    directory.sync_all()?;
    info!(path = %path.display(), "Private key of this node for WireGuard made");
    Ok(key)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("key.new")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_for_root_alone_and_found_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state").join("wireguard.key");
        fs::create_dir(directory.path().join("state")).expect("a directory");
        fs::write(unfinished(&path), "cut off").expect("it is written");
        let made = key_of(&path).expect("it is made");
        assert_eq!(key_of(&path).expect("it is read"), made);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!unfinished(&path).exists());
        assert_eq!(remove_key(&path).expect("it goes"), std::slice::from_ref(&path));
        assert_ne!(key_of(&path).expect("another one"), made);
    }

    #[test]
    fn agents_that_start_at_one_moment_on_one_directory_have_one_key() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("state").join("wireguard.key");
            let start = std::sync::Barrier::new(8);
            let take = || {
                start.wait();
                key_of(&path).expect("there is one")
            };
            let keys: Vec<Secret> = std::thread::scope(|scope| {
                let agents: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
                agents.into_iter().map(|agent| agent.join().expect("a key")).collect()
            });
            let there = key_of(&path).expect("it is read");
            assert!(keys.iter().all(|key| *key == there), "they have different ones");
        }
    }

    #[test]
    fn a_file_that_is_no_key_is_left_as_it_is_and_named_without_its_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        for text in ["", "cGFzcw==", "not base64 at all, of a length that somebody may have written by hand"] {
            fs::write(&path, text).expect("it is written");
            let error = key_of(&path).expect_err("it is none").to_string();
            assert!(error.contains("delete it") && (text.is_empty() || !error.contains(text)), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        }
    }
}
