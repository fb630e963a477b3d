//! Network namespaces of others: opened once, and entered by a thread that ends there.
//!
//! A namespace belongs to a thread (setns(2)). A thread that comes back may fail to, and would do its next work in the wrong
//! network; so none comes back: each entry is a thread of its own, which ends with the work, whatever becomes of it. Everything
//! about a namespace is done through one open file: a path may lead elsewhere in the next moment, and a process number may be
//! another process's.
//!
//! Kernel: files of the file system `nsfs` (`/proc/PID/ns/net`, and what is bound to `/run/netns/NAME`). Two files with the same
//! device and inode stand for the same namespace; numbers are used again when a namespace is gone.
//!
//! Ours: nothing. An open file keeps a namespace alive, and with it the devices in it, so files are not kept.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{OFlags, fstatfs};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Error;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: NamespaceId,
    /// Where it was found, for messages.
    path: String,
}

/// Identity of a network namespace, as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NamespaceId {
    pub device: u64,
    pub inode: u64,
}

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS: i64 = 0x6e73_6673;

impl NamespaceId {
    /// The namespace of this process: the host's, for an agent in the host's network.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn of_process() -> Result<NamespaceId, Error> {
        Namespace::open(Path::new("/proc/self/ns/net")).map(|namespace| namespace.id)
    }

    /// Returns the namespace that a path leads to now; `None` where there is none any more.
    pub fn at(path: &Path) -> Option<NamespaceId> {
        std::fs::metadata(path).ok().map(|found| NamespaceId { device: found.dev(), inode: found.ino() })
    }
}

impl Namespace {
    /// Opens what the path leads to. [`Error::is_absent`] means that there is nothing.
    ///
    /// # Errors
    /// There is nothing, or it is no file of a namespace, or it may not be opened.
    pub fn open(path: &Path) -> Result<Namespace, Error> {
        let shown = path.display().to_string();
        let failed = |error: &io::Error| {
            let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
            // A process that has ended has no namespaces.
            let errno = if errno == Errno::SRCH { Errno::NOENT } else { errno };
            Error::errno("open network namespace", shown.clone(), errno)
        };
        // A path of others may lead to a pipe, which must not hold us up.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
        let file = file.map_err(|error| failed(&error))?;
        let system = fstatfs(&file).map_err(|errno| failed(&errno.into()))?;
        if system.f_type != NSFS {
            // What a namespace was bound to stays behind as an empty file when it is gone.
            return Err(Error::errno("open network namespace", shown, Errno::NOENT));
        }
        let found = file.metadata().map_err(|error| failed(&error))?;
        let id = NamespaceId { device: found.dev(), inode: found.ino() };
        Ok(Namespace { file, id, path: shown })
    }

    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Does `work` in this namespace, on a thread that ends with it.
    ///
    /// # Errors
    /// It is a namespace of another kind, the namespace is that of this process, or it may not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let refused = |errno| Error::errno("enter network namespace", self.path.clone(), errno);
        if NamespaceId::of_process()? == self.id {
            return Err(refused(Errno::PERM));
        }
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(refused)?;
                // No work is done in a namespace that is not the one that was looked at.
                match NamespaceId::at(Path::new("/proc/thread-self/ns/net")) {
                    Some(id) if id == self.id => Ok(work()),
                    _ => Err(refused(Errno::PERM)),
                }
            });
            let inside = inside.map_err(|error| refused(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
            inside.join().expect("what is done in a namespace does not panic")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_not_opened_and_the_hosts_own_is_not_entered() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("left-behind");
        std::fs::write(&file, "").expect("writable");
        for path in [&directory.path().join("nothing"), &file, directory.path(), Path::new("/proc/4194304/ns/net")] {
            let error = Namespace::open(path).expect_err("there is no namespace");
            assert!(error.is_absent(), "{error}");
        }
        let own = Namespace::open(Path::new("/proc/self/ns/net")).expect("it is always there");
        assert_eq!(Some(own.id()), NamespaceId::at(Path::new("/proc/self/ns/net")));
        let error = own.run(|| panic!("nothing is done in the host's network")).expect_err("it is the host's");
        assert!(error.to_string().starts_with("enter network namespace /proc/self/ns/net"), "{error}");
        let other = Namespace::open(Path::new("/proc/self/ns/mnt")).expect("a namespace of another kind");
        assert!(other.run(|| ()).is_err());
    }
}
