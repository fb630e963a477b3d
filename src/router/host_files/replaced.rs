//! Files of this host that are replaced as a whole, and what is left where an agent was killed while it did so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::router::cni::is_conf;

/// Longest time that an agent, on the slowest disk, is between the making of a file and its renaming.
pub(super) const WRITING: Duration = Duration::from_secs(600);

/// Returns the files that agents began to write in a folder of CNI files and never renamed, because they were killed, or still write.
pub(super) fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_unfinished)).map(|entry| entry.path()).collect()
}

/// Returns whether a name is one that [`replace`] gives to a CNI file: `.10-kuberouter.conflist.PROCESS.TIME.new`.
fn is_unfinished(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".new"));
    let mut parts = parts.into_iter().flat_map(|rest| rest.rsplitn(3, '.'));
    let (time, process, file) = (parts.next(), parts.next(), parts.next());
    [time, process].iter().all(|part| part.is_some_and(is_number)) && file.is_some_and(|file| is_conf(Path::new(file)))
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
/// It leads to nothing that this process sees, where runtimes of the host may find a file with more in it than a new one would have.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let Ok(target) = fs::read_link(path) else { return Ok(path.to_owned()) };
    fs::canonicalize(path).map_err(|error| {
        let target = target.display();
        io::Error::new(
            error.kind(),
            format!("it is a link to {target}, which is not there, or not mounted here: {error}"),
        )
    })
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
