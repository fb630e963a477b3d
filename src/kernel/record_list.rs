//! A list of records in a small file beside the sockets: what a restart of the agent must not lose, and a boot may.
//!
//! JSON, a list of objects. The file is replaced as a whole, before what it says has any effect; it is not synced, because a host that
//! loses power makes all sandboxes anew. Only its owner may read it.
//!
//! Ours: the file by its name, and the one with the extension `new` beside it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The list on disk.
#[derive(Clone, Debug)]
pub struct RecordList(PathBuf);

impl RecordList {
    /// The file of this name beside this socket.
    pub fn beside(socket: &Path, name: &str) -> RecordList {
        RecordList(socket.with_file_name(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the records; none where there is no file.
    ///
    /// # Errors
    /// There is one, and it cannot be read, is no list, or holds something that is no such record.
    pub fn read<R: DeserializeOwned>(&self) -> io::Result<Vec<R>> {
        match fs::read(&self.0) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the records.
    ///
    /// # Errors
    /// The directory is missing or cannot be written to; the former file is still there then.
    pub fn write<R: Serialize>(&self, records: &[R]) -> io::Result<()> {
        let new = self.unfinished();
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(records)?)?;
        fs::rename(&new, &self.0)
    }

    /// Removes the file, and what a writer that was killed has left beside it; returns whether there was one.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self) -> io::Result<bool> {
        let [unfinished, list] = [&self.unfinished(), &self.0].map(|path| match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        });
        Ok(unfinished? | list?)
    }

    fn unfinished(&self) -> PathBuf {
        self.0.with_extension("new")
    }
}
