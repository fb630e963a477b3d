//! Passwords of BGP sessions in files with one each: that of sessions between nodes, and those of external peers.
//!
//! Flags `--bgp-mesh-password-file` and `--peer-router-passwords-dir`; `passwordfile` in the annotation `kube-router.io/peers`
//! names a file in that directory, and nothing else: who may annotate a Node must not have the agent read files of its host.
//!
//! A file has what `password` has: base64 of up to 80 bytes, with white space around it ignored. As long as the file of the
//! nodes is empty their sessions have no password, so that one can be brought to a running cluster: the flag first, with an
//! empty file everywhere, and then the password. A password that was there is given up when the file is empty twice in a row.
//! An empty file of a peer is a mistake. `read` reads them. `list` is about the one file with the passwords of all routers of the flags.

pub mod list;
pub mod read;

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;

use crate::net::{ExternalPeer, Password, Secret};

/// The passwords in files, as far as they are known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilePasswords {
    pub mesh: Password,
    /// By the name of the file.
    pub named: BTreeMap<CompactString, Password>,
}

impl Default for FilePasswords {
    fn default() -> FilePasswords {
        FilePasswords { mesh: Password::Unknown, named: BTreeMap::new() }
    }
}

impl FilePasswords {
    /// Returns the password that stands for one in a file; where it is not known, the name stays.
    pub fn known<'a>(&'a self, password: &'a Password) -> &'a Password {
        match password {
            Password::File(name) => self.named.get(name).unwrap_or(password),
            Password::None | Password::Key(_) | Password::Unknown => password,
        }
    }
}

/// Returns the names of the files that these peers have their passwords in.
pub fn names(peers: &[ExternalPeer]) -> BTreeSet<CompactString> {
    let name = |peer: &ExternalPeer| match &peer.password {
        Password::File(name) => Some(name.clone()),
        Password::None | Password::Key(_) | Password::Unknown => None,
    };
    peers.iter().filter_map(name).collect()
}

/// Returns the names of the files to read before a World counts that names these, while peers are as before; `None` where it
/// names no other ones. Those of before stay among them: until then their peers need their passwords.
pub fn names_meanwhile(before: &[ExternalPeer], named: BTreeSet<CompactString>) -> Option<BTreeSet<CompactString>> {
    let before = names(before);
    (!named.is_subset(&before)).then(|| before.into_iter().chain(named).collect())
}

/// Reads the text of a file. `empty`: what an empty one means.
///
/// # Errors
/// It is no password, in words that end a sentence and do not repeat the text.
fn password(text: &str, empty: Option<Password>) -> Result<Password, String> {
    let text = text.trim();
    match Secret::from_base64(text) {
        Ok(Some(secret)) => Ok(Password::Key(secret)),
        Ok(None) => empty.ok_or_else(|| "it is empty".to_owned()),
        Err(why) => Err(format!("its text, of length {}, is {why}", text.len())),
    }
}
