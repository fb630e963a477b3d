//! The files of this host that the router reads and writes: the CNI file and the password file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::config::RouterConfig;
use crate::model::Authority;
use crate::net::{ExternalPeer, Password};

use super::cni::{CniFileForm, Conf, Other, is_conf, is_ours, text};
use super::password_files::list::PasswordList;
use super::password_files::read::text as text_of_passwords;
use super::problem::{About, Problem};

mod replaced;

pub use self::replaced::link_to_nothing;
use self::replaced::unfinished;
pub(super) use self::replaced::{followed, remove_unfinished, replace};

/// State of these files when last handled.
pub struct HostFiles {
    cni: Option<PathBuf>,
    /// The CNI file has to be checked.
    stale: bool,
    retry_at: Option<Instant>,
    trouble: Option<String>,
    /// Why container runtimes use another file in place of ours, as a sentence.
    preferred: Option<String>,
    passwords: Option<PathBuf>,
    /// The passwords of that file.
    list: PasswordList,
    /// Why it cannot be read now.
    unread: Option<String>,
}

/// Longest text of the password file: as much as a few hundred routers with the longest password need.
const LONGEST: u64 = 64 << 10;
const RETRY: Duration = Duration::from_secs(5);

impl HostFiles {
    pub fn new(config: &RouterConfig) -> HostFiles {
        HostFiles {
            cni: config.cni_file.clone(),
            stale: true,
            retry_at: None,
            trouble: None,
            preferred: None,
            passwords: config.passwords_file.clone(),
            list: PasswordList::default(),
            unread: None,
        }
    }

    /// Notes whether the desired CNI file, or the file itself, may have changed.
    pub fn mark(&mut self, changed: bool) {
        self.stale |= changed;
    }

    /// Writes the desired CNI file. Returns the reason if it is not as desired. A remembered cluster changes no file.
    pub fn write(&mut self, wanted: Option<&Conf>, authority: Authority, now: Instant) -> Option<String> {
        let is_due = self.stale || self.retry_at.is_some_and(|at| at <= now);
        let (Some(path), Some(wanted), true) = (&self.cni, wanted, is_due && authority > Authority::Remembered) else {
            return self.trouble.clone();
        };
        (self.stale, self.retry_at) = (false, None);
        self.trouble = match brought_about(path, wanted) {
            Ok(unusable) => unusable,
            Err(error) => {
                self.retry_at = Some(now + RETRY);
                Some(format!("{}: {error}", path.display()))
            }
        };
        self.preferred = preferred(path).map(|other| in_place_of_ours(&other, path));
        path.parent().into_iter().for_each(remove_unfinished);
        self.trouble.clone()
    }

    /// Returns the problem of another file that container runtimes use in place of ours.
    pub fn problem(&self) -> Option<Problem> {
        Some(Problem::new(About::CniFile, self.preferred.clone()?))
    }

    /// Returns our problems together with these.
    pub fn problems<'a>(&self, others: &'a BTreeSet<Problem>) -> Cow<'a, BTreeSet<Problem>> {
        match self.problem() {
            None => Cow::Borrowed(others),
            Some(problem) => Cow::Owned(others.iter().cloned().chain([problem]).collect()),
        }
    }

    /// Returns the passwords of the password file for these peers, if they have changed.
    pub fn passwords(&mut self, peers: &[ExternalPeer]) -> Option<Vec<Password>> {
        let path = self.passwords.as_ref()?;
        // Each time, as its modification time may be the same although somebody has gone on writing.
        let text = match text_of_passwords(path, LONGEST) {
            Ok(text) => text,
            Err(error) => {
                let error = Some(error.to_string());
                if self.unread != error {
                    warn!(path = %path.display(), error, "Reading the peer passwords file failed; the last known passwords stay in force");
                    self.unread = error;
                }
                return None;
            }
        };
        if self.unread.take().is_some() {
            info!(path = %path.display(), "Reading the peer passwords file recovered");
        }
        let (passwords, sentences) = self.list.look(&text, peers);
        for sentence in sentences {
            warn!(path = %path.display(), reason = sentence, "Peer passwords file is invalid");
        }
        passwords
    }
}

/// Removes the CNI file in both of its forms (`.conf`, `.conflist`), if it uses our bridge: a container runtime that
/// reads it would go on attaching pods to an unmanaged bridge. Then all unfinished files beside it, and beside the targets of links there.
/// Returns what was removed.
///
/// # Errors
/// If a file is ours and cannot be removed, the first of several; the others go all the same.
pub fn remove_cni(path: &Path) -> io::Result<Vec<PathBuf>> {
    let forms = BTreeSet::from([path.to_owned(), path.with_extension("conf"), path.with_extension("conflist")]);
    let ours = forms.into_iter().filter(|path| is_own_file(path));
    let unfinished = path.parent().map(unfinished).unwrap_or_default();
    let (mut removed, mut failed) = (Vec::new(), None);
    for path in ours.chain(unfinished) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            // It has been finished meanwhile, or somebody else removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Returns the list of plugins (`.conflist`) of this name where it is ours and the only form there that describes a network: an agent that
/// nobody named a file goes on with it. A `.conf` beside it would take its place, without the other plugins of the list.
pub fn list_in_place_of(path: &Path) -> Option<PathBuf> {
    let list = path.with_extension("conflist");
    (!describes_network(path) && is_own_file(&list)).then_some(list)
}

/// Returns the file that runtimes use in place of ours: the first by name that describes a network. It is another program's, or the other form of our own.
pub fn preferred(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let entries = fs::read_dir(path.parent()?).ok()?.flatten().map(|entry| entry.path());
    let before = entries.filter(|one| one.file_name().is_some_and(|other| other < name));
    let before: BTreeSet<PathBuf> = before.filter(|one| is_conf(one)).collect();
    before.into_iter().find(|one| describes_network(one))
}

/// Says that container runtimes use another file in place of ours, and what to do. That of an older release is what pods start by until ours is there.
/// Where ours is there as well, pods start by that without the other, which may stay for ever: a part of ours cannot be written, or the other not be removed.
fn in_place_of_ours(other: &Path, path: &Path) -> String {
    let (name, todo) = (
        other.display(),
        if is_older_form(other, path) && !describes_network(path) {
            "it is of an older release and goes when ours is written, so leave it"
        } else {
            "remove it, or rename it"
        },
    );
    format!("{name} sorts before it, so that container runtimes use that one: {todo}")
}

/// Returns whether a file is the other form of ours, as an older release wrote it: it goes when ours is written as a whole.
pub fn is_older_form(other: &Path, path: &Path) -> bool {
    other == other_form(path) && is_own_file(other)
}

/// Writes the desired file. Returns what keeps a part of it from being written.
fn brought_about(path: &Path, wanted: &Conf) -> io::Result<Option<String>> {
    let present = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let (new, unusable) = text(present.as_deref(), CniFileForm::of(path), wanted);
    if let Some(new) = new.filter(|new| present.as_ref() != Some(new)) {
        replace(path, present.as_deref().map(str::as_bytes), &new)?;
        info!(path = %path.display(), ranges = ?wanted.ranges, mtu = wanted.mtu, "CNI configuration written");
    }
    if unusable.is_none() && !wanted.ranges.is_empty() {
        remove_other_form(path)?;
    }
    Ok(unusable.map(|why| format!("{}: {why}", path.display())))
}

/// Removes the file of the same name in the other form (`.conf`, `.conflist`), if it uses our bridge, as that of an older
/// release does. Only behind our own: pods get their network by one of them at any time, and runtimes take the `.conf` first.
fn remove_other_form(path: &Path) -> io::Result<()> {
    let other = other_form(path);
    if is_own_file(&other) {
        fs::remove_file(&other).map_err(|error| {
            let name = other.display();
            io::Error::new(
                error.kind(),
                format!("{name}, of an older release, cannot be removed, and runtimes may use it: {error}"),
            )
        })?;
        info!(path = %other.display(), "CNI configuration of an older release removed");
    }
    Ok(())
}

/// Returns the path of the other form of a file.
fn other_form(path: &Path) -> PathBuf {
    path.with_extension(match CniFileForm::of(path) {
        CniFileForm::List => "conf",
        CniFileForm::Single => "conflist",
    })
}

/// Returns whether there is a file that can be read and describes the network of pods.
fn describes_network(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| Other::of(&text) == Other::Network)
}

/// Returns whether there is a file that can be read and uses our bridge.
fn is_own_file(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| is_ours(&text, CniFileForm::of(path)))
}

#[cfg(test)]
mod tests;
