//! Whether files of a directory outlive the container in which they are written, as far as the file system under it tells.
//!
//! Linux: the magic number of statfs(2) (include/uapi/linux/magic.h). Nothing here is ours, and nothing is changed.
//!
//! Limits: what is on a disk of the host counts as lasting, and an `emptyDir` of the kubelet is on one, although it goes with the pod. So is the root of a container whose
//! runtime unpacks images without layers of `overlay`.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The reason why files of a directory do not last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passing {
    /// They are in the layers of this process's own root file system.
    WithContainer,
    /// They are in memory.
    Memory,
}

impl fmt::Display for Passing {
    /// The reason as the end of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Passing::WithContainer => {
                "it is part of the root file system (overlayfs), as what a container writes is, and goes with the container"
            }
            Passing::Memory => "it is in memory (tmpfs), and goes with the pod, or when the host starts again",
        })
    }
}

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: u32 = 0x794c_7630;
/// `TMPFS_MAGIC`.
const TMPFS: u32 = 0x0102_1994;
/// `RAMFS_MAGIC`.
const RAMFS: u32 = 0x8584_58f6;

/// Returns why files of a directory do not last; `None` where they do, as far as is known. Of one that is not there, it is that of the one in which it will be made.
pub fn passing(directory: &Path) -> Option<Passing> {
    let there = directory.ancestors().find(|place| place.is_dir())?;
    let magic = magic(there)?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let is_root = device(there).is_some() && device(there) == device(Path::new("/"));
    judged(magic, is_root)
}

/// Returns whether a directory is a part of the container in which this process runs, and none of the host: nothing is mounted there.
pub fn is_of_container(directory: &Path) -> bool {
    passing(directory) == Some(Passing::WithContainer)
}

/// Returns whether a directory is on the layers of an image (overlayfs), as those of a container are that nothing is mounted at.
pub fn is_on_layers(directory: &Path) -> bool {
    magic(directory) == Some(OVERLAY)
}

/// Returns the magic number of the file system under a directory: 32 bits of the kernel, in a word that is longer on some machines and signed on most.
fn magic(directory: &Path) -> Option<u32> {
    Some(rustix::fs::statfs(directory).ok()?.f_type as u32)
}

/// Judges a file system by its magic number. `is_root`: it is the one of `/`. Layers elsewhere are a directory of a host that has them itself, as a node that is a container.
fn judged(magic: u32, is_root: bool) -> Option<Passing> {
    match magic {
        TMPFS | RAMFS => Some(Passing::Memory),
        OVERLAY if is_root => Some(Passing::WithContainer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_and_in_the_layers_of_a_container_do_not_last_and_those_on_disks_do() {
        for (magic, elsewhere, in_root) in [
            (OVERLAY, None, Some(Passing::WithContainer)),
            (TMPFS, Some(Passing::Memory), Some(Passing::Memory)),
            (RAMFS, Some(Passing::Memory), Some(Passing::Memory)),
            // ext4, XFS, Btrfs, ZFS, NFS.
            (0xef53, None, None),
            (0x5846_5342, None, None),
            (0x9123_683e, None, None),
            (0x2fc1_2fc1, None, None),
            (0x6969, None, None),
        ] {
            assert_eq!((judged(magic, false), judged(magic, true)), (elsewhere, in_root), "{magic:#x}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_lasts_as_long_as_the_one_in_which_it_will_be_made() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(passing(&directory.path().join("state/of/later")), passing(directory.path()));
        let memory = Path::new("/dev/shm");
        if fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(" /dev/shm tmpfs ")) {
            assert_eq!(passing(&memory.join("sluice")), Some(Passing::Memory));
        }
        assert_eq!(passing(Path::new("/proc/self")), None);
        assert_eq!(passing(Path::new("")), None);
    }
}
