//! The private keys of this node, as their files have them (`key_files.rs`), and what is known of files whose change has failed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::key_files;
use crate::net::Secret;

/// The keys in the files.
pub(super) struct Keyring {
    file: PathBuf,
    keys: Option<Keys>,
    /// A file may have changed although that has failed (a rename whose directory cannot be synced), so they are to be read again. Keys that are known serve until then.
    is_doubtful: bool,
}

struct Keys {
    first: Secret,
    next: Option<Secret>,
}

impl Keyring {
    /// `file`: where the first key is.
    pub(super) fn new(file: PathBuf) -> Keyring {
        Keyring { file, keys: None, is_doubtful: false }
    }

    /// Returns the file of the first key.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Has the keys read where they are not known, the first one made where there is none.
    ///
    /// # Errors
    /// The first one can be neither read nor made.
    pub(super) fn load(&mut self) -> io::Result<()> {
        if self.keys.is_some() && !self.is_doubtful {
            return Ok(());
        }
        let first = key_files::key_of(&self.file)?;
        let next = key_files::next_of(&self.file).unwrap_or_else(|error| {
            warn!(%error, "The next private key of this node is not usable, and counts as none");
            None
        });
        self.keys = Some(Keys { first, next });
        self.is_doubtful = false;
        Ok(())
    }

    pub(super) fn first(&self) -> Option<&Secret> {
        self.keys.as_ref().map(|keys| &keys.first)
    }

    pub(super) fn next(&self) -> Option<&Secret> {
        self.keys.as_ref()?.next.as_ref()
    }

    /// Returns the time since the first key was made, as far as its file tells.
    pub(super) fn age(&self) -> Option<Duration> {
        key_files::age(&self.file)
    }

    /// Makes the key that follows, where the keys are known and there is none.
    ///
    /// # Errors
    /// It cannot be written, or nobody knows whether it was, or the first one is not the one that is known.
    pub(super) fn make_next(&mut self) -> io::Result<()> {
        if let Some(keys) = self.keys.as_mut().filter(|keys| keys.next.is_none()) {
            self.is_doubtful = true;
            keys.next = Some(key_files::make_next(&self.file, &keys.first)?);
            self.is_doubtful = false;
        }
        Ok(())
    }

    /// Has the key that follows take the place of the first one, where there is one.
    ///
    /// # Errors
    /// It cannot be written, or nobody knows whether it was, or the keys in the files are not those that are known.
    pub(super) fn take_next(&mut self) -> io::Result<()> {
        let Some((first, next)) = self.first().cloned().zip(self.next().cloned()) else { return Ok(()) };
        self.is_doubtful = true;
        key_files::take_next(&self.file, &first, &next)?;
        self.is_doubtful = false;
        info!(path = %self.file.display(), "Next private key of this node for WireGuard took the place of the first");
        self.keys = Some(Keys { first: next, next: None });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_process_finds_its_keys_where_another_one_was_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("wireguard.key");
        let loaded = || {
            let mut keys = Keyring::new(file.clone());
            keys.load().expect("they are read");
            keys
        };
        let mut keys = loaded();
        keys.make_next().expect("it is made");
        let next = keys.next().cloned().expect("there is one");
        let mut keys = loaded();
        assert_eq!(keys.next(), Some(&next));
        keys.make_next().expect("there is one already");
        assert_eq!(keys.next(), Some(&next));
        keys.take_next().expect("it is renamed");
        let after = loaded();
        for keys in [keys, after] {
            assert_eq!((keys.first(), keys.next()), (Some(&next), None));
        }
    }

    #[test]
    fn a_first_key_that_was_deleted_before_the_next_step_of_a_change_is_replaced_by_another_one_and_ends_the_change() {
        for is_made in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("wireguard.key");
            let mut keys = Keyring::new(file.clone());
            keys.load().expect("they are made");
            if is_made {
                keys.make_next().expect("it is made");
            }
            let (first, next) = (keys.first().cloned(), keys.next().cloned());
            fs::remove_file(&file).expect("it is deleted");
            let done = if is_made { keys.take_next() } else { keys.make_next() };
            done.expect_err("somebody else may have both");
            assert!(!file.exists());
            assert_eq!(
                (keys.first().cloned(), keys.next().cloned()),
                (first.clone(), next.clone()),
                "they serve still"
            );
            keys.load().expect("they are read");
            let now = keys.first().cloned();
            assert!(now.is_some() && now != first && now != next && keys.next().is_none(), "is made: {is_made}");
            assert!(!file.with_extension("key.next").exists());
        }
    }

    #[test]
    fn a_key_whose_rename_is_there_although_it_has_failed_is_the_first_at_the_next_reading() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("wireguard.key");
        let mut keys = Keyring::new(file.clone());
        keys.load().expect("they are made");
        keys.make_next().expect("it is made");
        let (first, next) = (keys.first().cloned(), keys.next().cloned());
        // As a rename does it whose directory cannot be synced.
        fs::rename(file.with_extension("key.next"), &file).expect("it is renamed");
        keys.take_next().expect_err("there is nothing to rename");
        assert_eq!((keys.first().cloned(), keys.next().cloned()), (first, next.clone()), "they serve until then");
        keys.load().expect("they are read");
        assert_eq!((keys.first().cloned(), keys.next()), (next, None));
    }
}
