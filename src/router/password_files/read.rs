//! Reads the files with one password each, again and again: a mounted Secret changes at any time.
//!
//! A file that cannot be read, or has no password, leaves the last one that was read in force, and is said once. The file of
//! the nodes may be empty while somebody writes it: a password is given up when it is empty at two looks in a row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use compact_str::CompactString;
use tracing::{info, warn};

use super::{FilePasswords, password};
use crate::config::RouterConfig;
use crate::net::Password;

/// These files, and what was last read.
#[derive(Debug)]
pub struct PasswordFiles {
    directory: Option<PathBuf>,
    mesh: Option<PathBuf>,
    known: FilePasswords,
    /// The file of the nodes was empty at the last look, and their password is still in force.
    is_emptied: bool,
    /// Why a file has no password now.
    failing: BTreeMap<PathBuf, String>,
}

/// Longest text: 80 bytes in base64, with room for line breaks.
const LONGEST: u64 = 1024;

impl PasswordFiles {
    pub fn new(config: &RouterConfig) -> PasswordFiles {
        PasswordFiles {
            directory: config.passwords_dir.clone(),
            mesh: config.mesh_password_file.clone(),
            known: FilePasswords::default(),
            is_emptied: false,
            failing: BTreeMap::new(),
        }
    }

    /// Reads all files, those of peers by these names. Returns the passwords if they have changed.
    pub fn look(&mut self, names: &BTreeSet<CompactString>) -> Option<FilePasswords> {
        let before = self.known.clone();
        self.read_mesh();
        self.read_named(names);
        (self.known != before).then(|| self.known.clone())
    }

    /// Reads the files of peers alone, by these names. Returns the passwords if they have changed.
    pub fn look_at_named(&mut self, names: &BTreeSet<CompactString>) -> Option<FilePasswords> {
        let before = self.known.clone();
        self.read_named(names);
        (self.known != before).then(|| self.known.clone())
    }

    fn read_mesh(&mut self) {
        let Some(path) = self.mesh.clone() else { return };
        let read = self.read(&path, Some(Password::None));
        let had_one = matches!(self.known.mesh, Password::Key(_));
        let is_emptied = had_one && matches!(read, Some(Password::None));
        let is_first = !std::mem::replace(&mut self.is_emptied, is_emptied);
        match read {
            Some(Password::None) if is_emptied && is_first => {
                warn!(path = %path.display(), "BGP password file of the nodes is empty; their password stays in force until the next look");
            }
            Some(Password::None) if is_emptied => {
                self.is_emptied = false;
                self.known.mesh = Password::None;
                warn!(path = %path.display(), "BGP password of the nodes is gone: sessions with them have none now");
            }
            Some(read) => {
                if read != self.known.mesh && self.known.mesh != Password::Unknown {
                    info!(path = %path.display(), "BGP password of the nodes changed");
                }
                self.known.mesh = read;
            }
            None => {}
        }
    }

    fn read_named(&mut self, names: &BTreeSet<CompactString>) {
        let directory = self.directory.clone();
        let path_of = |name: &CompactString| directory.as_ref().map(|directory| directory.join(name.as_str()));
        let read: BTreeSet<PathBuf> = names.iter().filter_map(path_of).chain(self.mesh.clone()).collect();
        self.failing.retain(|path, _| read.contains(path));
        self.known.named.retain(|name, _| names.contains(name));
        for name in names {
            if let Some(path) = path_of(name)
                && let Some(read) = self.read(&path, None)
            {
                let before = self.known.named.insert(name.clone(), read.clone());
                if before.is_some_and(|before| before != read) {
                    info!(path = %path.display(), "BGP password of a peer changed");
                }
            }
        }
    }

    fn read(&mut self, path: &Path, empty: Option<Password>) -> Option<Password> {
        let read = text(path, LONGEST).map_err(|error| error.to_string()).and_then(|text| password(&text, empty));
        match read {
            Ok(read) => {
                if self.failing.remove(path).is_some() {
                    info!(path = %path.display(), "Reading a BGP password file recovered");
                }
                Some(read)
            }
            Err(error) => {
                if self.failing.get(path) != Some(&error) {
                    warn!(path = %path.display(), error, "Reading a BGP password file failed; the last known password stays in force");
                    self.failing.insert(path.to_owned(), error);
                }
                None
            }
        }
    }
}

/// Returns the text of a file with passwords of at most so many bytes: of nothing that would make a reader wait.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn text(path: &Path, longest: u64) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(longest + 1).read_to_string(&mut text)?;
    match text.len() as u64 <= longest {
        true => Ok(text),
        false => Err(io::Error::other("it is longer than any password")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(directory: &Path) -> PasswordFiles {
        PasswordFiles {
            directory: Some(directory.join("peers")),
            mesh: Some(directory.join("mesh")),
            known: FilePasswords::default(),
            is_emptied: false,
            failing: BTreeMap::new(),
        }
    }

    fn shown(password: &Password) -> String {
        match password {
            Password::Key(secret) => String::from_utf8_lossy(secret.key()).into_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_file_of_the_nodes_is_followed_and_its_last_password_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = files(directory.path());
        let mesh = directory.path().join("mesh");
        let mut look = || files.look(&BTreeSet::new()).map(|found| shown(&found.mesh));
        assert_eq!(look(), None, "it is not there: not known, as before");
        for (text, expected) in [
            ("", Some("None")),
            ("cGFzcw==\n", Some("pass")),
            ("cGFzcw==", None),
            ("pass!", None),
            ("Zm9vYmE=", Some("fooba")),
            (" \n", None),
            ("Zm9vYmE=", None),
            ("", None),
            ("pass!", None),
            ("", None),
            (" \n", Some("None")),
            ("", None),
            ("cGFzcw==", Some("pass")),
        ] {
            fs::write(&mesh, text).expect("a file");
            assert_eq!(look().as_deref(), expected, "{text:?}");
        }
        fs::remove_file(&mesh).expect("it is there");
        assert_eq!(look(), None);
    }

    #[test]
    fn files_of_peers_are_read_by_their_names_as_long_as_somebody_names_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let peers = directory.path().join("peers");
        fs::create_dir_all(peers.join("..data")).expect("a directory");
        // As the kubelet mounts a Secret.
        fs::write(peers.join("..data/tor"), "cGFzcw==").expect("a file");
        std::os::unix::fs::symlink("..data/tor", peers.join("tor")).expect("a link");
        fs::write(peers.join("empty"), "").expect("a file");
        fs::write(peers.join("long"), "A".repeat(2000)).expect("a file");
        fs::create_dir(peers.join("directory")).expect("a directory");
        let mut files = files(directory.path());
        let names = |names: &[&str]| names.iter().map(|name| CompactString::from(*name)).collect::<BTreeSet<_>>();
        let found = files.look(&names(&["tor", "empty", "long", "directory", "absent"])).expect("one is new");
        assert_eq!(
            found.named.iter().map(|(name, one)| (name.as_str(), shown(one))).collect::<Vec<_>>(),
            [("tor", "pass".to_owned())]
        );
        let of = |name: &str| Password::File(name.into());
        assert_eq!((shown(found.known(&of("tor"))), found.known(&of("empty"))), ("pass".to_owned(), &of("empty")));
        assert_eq!(files.failing.len(), 5, "with that of the nodes: {:?}", files.failing);
        assert!(!format!("{:?}", files.failing).contains("AAAA"));
        assert_eq!(files.look(&names(&[])).map(|found| found.named.len()), Some(0));
        assert_eq!(files.failing.len(), 1, "that of the nodes alone: who named the others does so no more");
        let found = files.look_at_named(&names(&["tor"])).expect("it is new again");
        assert_eq!(found.named.len(), 1);
    }
}
