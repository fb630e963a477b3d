//! The file of a bundle: a tar archive that only its owner may read.
//!
//! It gets its name when it is whole; until then it has none, where the file system can do so, and goes with whoever writes it. Standard output takes
//! it as it comes, for `kubectl exec`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};

use crate::k8s::manifests::bundle::names::DIRECTORY;

/// An archive that is being written.
pub struct Archive {
    tar: tar::Builder<BufWriter<Counted>>,
    place: Place,
    /// Seconds since 1970, of all parts.
    time: u64,
}

enum Place {
    StandardOutput,
    /// The file gets its name at the end.
    File {
        /// Its name until then, or at the very end: of this process alone, so that two that write one file do not take each other's.
        aside: Aside,
        has_name: bool,
        name: PathBuf,
    },
}

/// A file that goes unless it got its name.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // It has another name by now, where all went well.
        let _ = fs::remove_file(&self.0);
    }
}

/// Where bytes go, and how many went there.
struct Counted {
    out: Box<dyn Write>,
    file: Option<File>,
    bytes: u64,
}

impl Archive {
    /// Begins an archive; `-` is standard output.
    ///
    /// # Errors
    /// The file cannot be made, or its name is that of something else than a regular file.
    pub fn create(path: &Path) -> anyhow::Result<Archive> {
        if path == Path::new("-") {
            return Ok(Archive::as_it_comes(Box::new(io::stdout())));
        }
        let cannot = || format!("{} cannot be written", path.display());
        // Whoever renames replaces a name, also that of a device or a link.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            let why = "it is there and no regular file; - is standard output";
            return Err(anyhow::anyhow!(why)).with_context(cannot);
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}.new", std::process::id()));
        let aside = PathBuf::from(aside);
        let (file, has_name) = match unnamed(path) {
            Ok(file) => (file, false),
            // This one stays where its writer is killed.
            Err(_) => {
                let named = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
                (named.with_context(cannot)?, true)
            }
        };
        let place = Place::File { aside: Aside(aside), has_name, name: path.to_owned() };
        let out = Box::new(file.try_clone().with_context(cannot)?);
        Ok(Archive::begun(Counted { out, file: Some(file), bytes: 0 }, place))
    }

    /// Begins an archive for standard output, or whoever takes it in its place.
    pub fn as_it_comes(out: Box<dyn Write>) -> Archive {
        Archive::begun(Counted { out, file: None, bytes: 0 }, Place::StandardOutput)
    }

    fn begun(out: Counted, place: Place) -> Archive {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Archive { tar: tar::Builder::new(BufWriter::with_capacity(256 << 10, out)), place, time }
    }

    /// Adds a file below the directory of the bundle.
    ///
    /// # Errors
    /// It cannot be written: the disk is full, or nobody reads standard output any more.
    pub fn put(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        let added = self.tar.append_data(&mut header, format!("{DIRECTORY}/{name}"), content);
        added.context("the bundle cannot be written")
    }

    pub fn is_standard_output(&self) -> bool {
        matches!(self.place, Place::StandardOutput)
    }

    /// Ends the archive and gives it its name. Returns its size in bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> anyhow::Result<u64> {
        let Archive { tar, place, .. } = self;
        let written = "the bundle cannot be written";
        let counted = tar.into_inner().context(written)?.into_inner().map_err(io::IntoInnerError::into_error);
        let mut counted = counted.context(written)?;
        counted.out.flush().context(written)?;
        if let (Some(file), Place::File { aside, has_name, name }) = (counted.file, place) {
            file.sync_all().context(written)?;
            if !has_name {
                let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, opened, CWD, &aside.0, AtFlags::SYMLINK_FOLLOW).context(written)?;
            }
            fs::rename(&aside.0, name).context(written)?;
        }
        Ok(counted.bytes)
    }
}

/// A file without a name beside this path (open(2), `O_TMPFILE`).
///
/// # Errors
/// The folder cannot be written, or its file system has no such files.
fn unnamed(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = openat(CWD, folder, OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
    Ok(File::from(file))
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
