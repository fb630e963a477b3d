//! Files of this host that are replaced as a whole, and what is left where an agent was killed while it did so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::router::cni::is_conf;

/// Longest time that an agent, on the slowest disk, is between the making of a file and its renaming.
pub(super) const WRITING: Duration = Duration::from_secs(600);

/// The longest chain of links that is followed, as in the kernel (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Where a link leads.
pub(in crate::router) struct Links {
    /// The targets of it and of the links behind it, as they are written there.
    written: Vec<PathBuf>,
    /// The last target. It is no link, and need not be there.
    pub(in crate::router) end: PathBuf,
}

impl Links {
    /// Returns the error of a link whose last target this process does not see.
    pub(in crate::router) fn unseen(&self, error: &io::Error) -> io::Error {
        let targets: Vec<String> = self.written.iter().map(|target| target.display().to_string()).collect();
        let targets = targets.join(", and that to ");
        io::Error::new(
            error.kind(),
            format!("it is a link to {targets}, which is not there, or not mounted here: {error}"),
        )
    }
}

/// Follows a link, and the links behind it, name by name. Returns `None` where there is no link, be it that nothing is there.
///
/// # Errors
/// The links lead in a circle, or one of them cannot be read.
pub(in crate::router) fn followed(path: &Path) -> io::Result<Option<Links>> {
    let mut links = Links { written: Vec::new(), end: path.to_owned() };
    loop {
        let target = match fs::read_link(&links.end) {
            Ok(target) => target,
            // The kernel says so of everything that is no link.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => break,
            Err(error) => return Err(error),
        };
        if links.written.len() == MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        // Steps upwards (`..`) are left to the kernel, because the folder may itself be a link.
        links.end = links.end.parent().unwrap_or(Path::new("/")).join(&target);
        links.written.push(target);
    }
    Ok(Some(links).filter(|links| !links.written.is_empty()))
}

/// Returns the error of a file that is not there but whose name is a link, with where that leads: runtimes of the host may find it.
/// `None` where there is no link either.
pub fn link_to_nothing(path: &Path, error: &io::Error) -> Option<io::Error> {
    match followed(path) {
        Ok(links) => links.map(|links| links.unseen(error)),
        Err(error) => Some(error),
    }
}

/// Returns the files that agents began to write for CNI files of a folder and never renamed, because they were killed, or still write. They are in
/// that folder, and for a link in the folder of its last target.
pub(super) fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let is_unfinished = |path: &PathBuf| finished_name(path).is_some_and(|name| is_conf(Path::new(name)));
    let (mut found, others): (Vec<PathBuf>, Vec<PathBuf>) = entries(directory).partition(is_unfinished);
    let links = others.iter().filter(|path| is_conf(path)).filter_map(|path| followed(path).ok().flatten());
    found.extend(links.flat_map(|links| unfinished_behind(&links)));
    found
}

/// Returns the unfinished files for the last target of a link. Whatever else is in its folder is somebody else's.
fn unfinished_behind(links: &Links) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (links.end.parent(), links.end.file_name()) else { return Vec::new() };
    let name = name.to_string_lossy();
    entries(folder).filter(|path| finished_name(path) == Some(&*name)).collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Returns the name of the file that an unfinished one was to replace, if its own is one that [`replace`] gives: `.NAME.PROCESS.TIME.new`.
fn finished_name(path: &Path) -> Option<&str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let own = path.file_name()?.to_str()?;
    let mut parts = own.strip_prefix('.')?.strip_suffix(".new")?.rsplitn(3, '.');
    let (time, process, name) = (parts.next()?, parts.next()?, parts.next()?);
    (is_number(time) && is_number(process)).then_some(name)
}

/// Removes unfinished files that no agent still writes.
pub(in crate::router) fn remove_unfinished(directory: &Path) {
    for unfinished in unfinished(directory) {
        let written = fs::metadata(&unfinished).and_then(|of| of.modified()).ok();
        if written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > WRITING) {
            // One that cannot be removed is in nobody's way, and is tried again the next time.
            let _ = fs::remove_file(&unfinished);
        }
    }
}

/// Returns the file that a name leads to: a link stays one.
///
/// # Errors
/// It leads to nothing that this process sees, where runtimes of the host may find a file with more in it than a new one would have; or in a circle.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            link_to_nothing(path, &error).map_or(Ok(path.to_owned()), Err)
        }
        place => place,
    }
}

/// Replaces a file atomically: readers find all of the old or all of the new text. Who may read it stays as it is. `read`: the text
/// from which the new one was made, `None` where there was no file. Of a link it is the target.
///
/// # Errors
/// The file is another one now, or cannot be written; or it is a link to nothing.
pub(in crate::router) fn replace(path: &Path, read: Option<&[u8]>, text: &str) -> io::Result<()> {
    let path = &behind_links(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    // Files whose names begin with a dot are ignored by readers of the directory. In a container each run may have the same
    // number of a process.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = directory.join(format!(".{name}.{}.{}.new", process::id(), since.as_nanos()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    let replaced = filled(file, path, text).and_then(|()| match present(path)?.as_deref() == read {
        true => fs::rename(&new, path),
        false => Err(io::Error::other("another program changed it meanwhile")),
    });
    if replaced.is_err() {
        // It may be what failed.
        let _ = fs::remove_file(&new);
    }
    replaced?;
    File::open(directory)?.sync_all()
}

/// Writes the text to the new file, with the permissions of the one that it is to replace.
fn filled(mut new: File, path: &Path, text: &str) -> io::Result<()> {
    if let Ok(present) = fs::metadata(path) {
        new.set_permissions(present.permissions())?;
    }
    new.write_all(text.as_bytes())?;
    new.sync_all()
}

fn present(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_the_last_target_be_it_there_or_not_and_those_in_a_circle_are_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), "").expect("writable");
        for (name, target) in [
            ("first", "second"),
            ("second", "./file"),
            ("gone", "../nowhere/file"),
            ("there", "back"),
            ("back", "there"),
        ] {
            symlink(target, path(name)).expect("writable");
        }
        let end = |name: &str| followed(&path(name)).expect("no circle").map(|links| links.end);
        assert_eq!((end("file"), end("missing")), (None, None));
        assert_eq!((end("first"), end("second")), (Some(path("file")), Some(path("file"))));
        assert_eq!(end("gone"), Some(path("../nowhere/file")));
        let error = followed(&path("there")).err().expect("a circle");
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(replace(&path("there"), None, "ours").is_err() && path("there").is_symlink());
    }

    #[test]
    fn what_another_program_wrote_meanwhile_is_not_overwritten_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("10-other.conflist");
        fs::write(&path, "newer").expect("writable");
        for read in [None, Some(&b"older"[..])] {
            assert!(replace(&path, read, "ours").is_err());
        }
        let gone = directory.path().join("20-gone.conflist");
        assert!(replace(&gone, Some(b"older"), "ours").is_err());
        let names = || fs::read_dir(directory.path()).expect("readable").count();
        assert_eq!((fs::read_to_string(&path).expect("it is there"), names()), ("newer".to_owned(), 1));
        // A name that somebody else has for what is not finished.
        fs::write(directory.path().join(".10-other.conflist.new"), "somebody else's").expect("writable");
        replace(&path, Some(b"newer"), "ours").expect("writable");
        assert_eq!((fs::read_to_string(&path).expect("it is there"), names()), ("ours".to_owned(), 2));
    }
}
