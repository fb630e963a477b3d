//! The files with this node's private keys, in `--state-dir`: the present one, and while it changes the one that follows.
//!
//! A key is made where there is no file, of the kernel's randomness, and written before it is used: a device never has a key that a restart
//! would not find again. The next one takes the place of the present one by a rename. Files are written as `wg` takes them, in base64, for root alone.
//! One that others may read or write, as a backup may have restored it, is for root alone from the first reading on. A lock of another process on the directory is not
//! waited for: nothing is made or renamed, which fails and is tried again as any other change.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tracing::{info, warn};

use crate::net::{Secret, base64};

/// Most bytes that are read of a file that should hold 45.
const MOST: u64 = 4096;
/// The mode of a file for root alone.
const OWN: u32 = 0o600;
/// Those bits of a mode by which others than the owner may read, write or execute.
const OF_OTHERS: u32 = 0o077;

/// Removes the files of the private keys, and what an interrupted write has left; returns what was removed.
///
/// # Errors
/// One of them is there and cannot be removed.
pub fn remove_key(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let next = next_file(file);
    for path in [file.to_owned(), unfinished(file), unfinished(&next), next] {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Reads the private key, or makes one where there is no file. Of several agents with one directory the first one makes it, and the others read it.
/// A key that follows goes before the first one is made: it followed another one, which somebody has deleted because others may have the files.
pub(super) fn key_of(path: &Path) -> io::Result<Secret> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let directory = locked(path)?;
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    match fs::remove_file(next_file(path)) {
        Ok(()) => {
            info!(path = %path.display(), "Next private key of this node for WireGuard removed, as the first one was")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    made(path, &directory)
}

/// Opens the directory of a file, and keeps other agents from changing what is in it for as long as that is open. Fails at once while another process has the lock: the router's
/// thread does more than keys, and nobody knows for how long a backup, say, keeps it.
fn locked(path: &Path) -> io::Result<File> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = File::open(parent)?;
    // It ends with the file, or with the process. A file system without locks has one agent.
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(directory),
        Err(Errno::WOULDBLOCK) => Err(io::Error::other(format!(
            "another process has locked the directory {} (flock); no key is made or replaced before it lets go",
            parent.display()
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Returns the file of the key that follows the one in this file.
fn next_file(path: &Path) -> PathBuf {
    path.with_extension("key.next")
}

/// Reads the key that follows the one in this file; `None` where there is none.
pub(super) fn next_of(path: &Path) -> io::Result<Option<Secret>> {
    read(&next_file(path))
}

/// Returns the time since the key in this file was made, as far as the file tells; `None` for one in the future.
pub(super) fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).and_then(|file| file.modified()).ok()?.elapsed().ok()
}

/// Makes the key that follows the one in this file, in the place of what cannot be read of an earlier one. One that another agent has made meanwhile is read.
/// `first`: the one in this file, as this process knows it.
pub(super) fn make_next(path: &Path, first: &Secret) -> io::Result<Secret> {
    let directory = locked(path)?;
    has_first(path, first)?;
    match next_of(path) {
        Ok(Some(key)) => Ok(key),
        Ok(None) | Err(_) => made(&next_file(path), &directory),
    }
}

/// Has the key that follows, which is `next`, take the place of the one in this file, which is `first`.
pub(super) fn take_next(path: &Path, first: &Secret, next: &Secret) -> io::Result<()> {
    let directory = locked(path)?;
    has_first(path, first)?;
    // Others know the key of this process; another one in its place would be known by nobody.
    if next_of(path)?.as_ref() != Some(next) {
        return Err(io::Error::other(
            "the next private key is not the one that this process has told; it is read anew",
        ));
    }
    fs::rename(next_file(path), path)?;
    directory.sync_all()
}

/// Fails where the key in this file is not the one that this process knows: whoever has deleted it meanwhile wants neither that one nor the one that follows.
fn has_first(path: &Path, first: &Secret) -> io::Result<()> {
    if read(path)?.as_ref() == Some(first) {
        return Ok(());
    }
    Err(io::Error::other("the private key is not the one that this process has read, or is gone; it is read anew"))
}

/// Reads the private key; `None` where there is no file.
fn read(path: &Path) -> io::Result<Option<Secret>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    close_to_others(path, &file)?;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    let bytes = base64::decoded(text.trim_end()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let is_none = || io::Error::other("the file holds no private key; delete it, and another one is made");
    bytes.map(Secret::private_key).ok_or_else(is_none).map(Some)
}

/// Takes a file with a private key from others than its owner where they may open it, and says so. That is said once where the file system has modes, because it is another one then.
fn close_to_others(path: &Path, file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if !is_open_to_others(mode) {
        return Ok(());
    }
    let (path, mode) = (path.display(), format!("{mode:04o}"));
    // Some file systems take a mode and keep the former one.
    let is_kept = |now: fs::Metadata| is_open_to_others(now.permissions().mode());
    let changed = file.set_permissions(Permissions::from_mode(OWN)).and_then(|()| file.metadata().map(is_kept));
    match changed.and_then(|kept| if kept { Err(io::Error::other("the file system keeps the mode")) } else { Ok(()) }) {
        Ok(()) => warn!(
            %path,
            mode,
            "Private key of this node for WireGuard was open to others than root; its file has mode 0600 now. Where somebody may have copied the key, delete the file and restart the agent: another one is made"
        ),
        // The key serves all the same: without it the node's pods would be cut off.
        Err(error) => {
            warn!(%path, mode, %error, "Private key of this node for WireGuard is open to others than root, and its file's mode cannot be changed")
        }
    }
    Ok(())
}

/// Returns whether others than the owner may do anything with a file of this mode.
fn is_open_to_others(mode: u32) -> bool {
    mode & OF_OTHERS != 0
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
    let mut file = OpenOptions::new().write(true).create_new(true).mode(OWN).open(&new)?;
    file.write_all(format!("{}\n", base64::encoded(key.key())).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    directory.sync_all()?;
    info!(path = %path.display(), "Private key of this node for WireGuard made");
    Ok(key)
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bits of a file's mode that say who may do what.
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_for_root_alone_and_found_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state").join("wireguard.key");
        fs::create_dir(directory.path().join("state")).expect("a directory");
        fs::write(unfinished(&path), "cut off").expect("it is written");
        let made = key_of(&path).expect("it is made");
        assert_eq!(key_of(&path).expect("it is read"), made);
        assert_eq!(mode(&path), 0o600);
        assert!(!unfinished(&path).exists());
        assert_eq!(remove_key(&path).expect("it goes"), std::slice::from_ref(&path));
        assert_ne!(key_of(&path).expect("another one"), made);
    }

    #[test]
    fn the_next_key_is_for_root_alone_and_takes_the_place_of_the_first_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let first = key_of(&path).expect("it is made");
        assert_eq!(next_of(&path).expect("it is looked for"), None);
        fs::write(next_file(&path), "cut off").expect("it is written");
        assert!(next_of(&path).is_err(), "what cannot be read is no key");
        let next = make_next(&path, &first).expect("it is made");
        assert_ne!(next, first);
        assert_eq!(
            (next_of(&path).expect("it is read"), key_of(&path).expect("it stays")),
            (Some(next.clone()), first.clone())
        );
        assert_eq!(mode(&next_file(&path)), 0o600);
        take_next(&path, &first, &next).expect("it is renamed");
        let now = (next_of(&path).expect("it is looked for"), key_of(&path).expect("it is read"));
        assert_eq!(now, (None, next.clone()));
        assert!(age(&path).is_some_and(|age| age < Duration::from_secs(60)));
        make_next(&path, &next).expect("it is made");
        assert_eq!(remove_key(&path).expect("they go").len(), 2);
        assert!(fs::read_dir(directory.path()).expect("a directory").next().is_none(), "nothing is left");
    }

    #[test]
    fn a_first_key_that_was_deleted_takes_the_next_one_along() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let first = key_of(&path).expect("it is made");
        let next = make_next(&path, &first).expect("it is made");
        fs::remove_file(&path).expect("it is deleted");
        let anew = key_of(&path).expect("another one is made");
        assert!(anew != first && anew != next);
        assert_eq!(next_of(&path).expect("it is looked for"), None, "somebody else may have it");
    }

    #[test]
    fn of_several_agents_none_takes_a_next_key_that_is_not_the_one_that_it_tells() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let first = key_of(&path).expect("it is made");
        let next = make_next(&path, &first).expect("it is made");
        assert_eq!(make_next(&path, &first).expect("it is there"), next, "another agent has made it");
        let other = made(&next_file(&path), &locked(&path).expect("it is open")).expect("it is made");
        take_next(&path, &first, &next).expect_err("it is another one");
        let now = (key_of(&path).expect("it stays"), next_of(&path).expect("it stays"));
        assert_eq!(now, (first.clone(), Some(other.clone())));
        take_next(&path, &first, &other).expect("it is renamed");
        assert_eq!(key_of(&path).expect("it is read"), other);
    }

    #[test]
    fn agents_that_start_at_one_moment_on_one_directory_have_one_key() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("state").join("wireguard.key");
            let start = std::sync::Barrier::new(8);
            let take = || {
                start.wait();
                let mut tries = std::iter::repeat_with(|| key_of(&path)).take(1000);
                // As the mirror of the devices tries again, which waits longer.
                let key = tries.find_map(|key| key.inspect_err(|_| std::thread::sleep(Duration::from_millis(5))).ok());
                key.expect("there is one")
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
    fn a_key_that_a_backup_has_restored_for_everybody_is_for_root_alone_from_its_first_reading_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let first = key_of(&path).expect("it is made");
        let next = make_next(&path, &first).expect("it is made");
        for open in [0o644, 0o640, 0o604, 0o620, 0o777] {
            for file in [&path, &next_file(&path)] {
                fs::set_permissions(file, Permissions::from_mode(open)).expect("it is changed");
            }
            assert_eq!(key_of(&path).expect("it is read"), first);
            assert_eq!(next_of(&path).expect("it is read"), Some(next.clone()));
            assert_eq!((mode(&path), mode(&next_file(&path))), (0o600, 0o600), "{open:o}");
        }
        // An owner that may only read is nobody else.
        fs::set_permissions(&path, Permissions::from_mode(0o400)).expect("it is changed");
        assert_eq!(key_of(&path).expect("it is read"), first);
        assert_eq!(mode(&path), 0o400);
        assert_eq!([0o600, 0o400, 0o700, 0o640, 0o601].map(is_open_to_others), [false, false, false, true, true]);
    }

    #[test]
    fn a_directory_that_another_process_has_locked_stops_no_thread_and_keys_come_when_it_lets_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let is_refused = |error: io::Error| {
            let text = error.to_string();
            text.contains("another process has locked") && text.contains(&directory.path().display().to_string())
        };
        // A lock belongs to whoever has opened the directory, so another opening is like another process.
        let other = locked(&path).expect("nobody has it");
        assert!(is_refused(key_of(&path).expect_err("it is locked")));
        assert!(!path.exists());
        drop(other);
        let first = key_of(&path).expect("it is made");
        let other = locked(&path).expect("nobody has it");
        assert_eq!(key_of(&path).expect("to read takes no lock"), first);
        assert!(is_refused(make_next(&path, &first).expect_err("it is locked")));
        drop(other);
        let next = make_next(&path, &first).expect("it is made");
        let other = locked(&path).expect("nobody has it");
        assert!(is_refused(take_next(&path, &first, &next).expect_err("it is locked")));
        drop(other);
        take_next(&path, &first, &next).expect("it is renamed");
        assert_eq!(key_of(&path).expect("it is read"), next);
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
