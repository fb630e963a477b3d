//! Whether somebody listens on a unix socket, and which ports that process listens on. Nothing is changed, and nothing is said to it.
//!
//! unix(7), connect(2): a connection is there when the other side has a place for it in its queue, without its doing anything; where the queue is full
//! connect(2) would wait, so it is asked not to. proc(5): `/proc/net/unix`, `/proc/PID/fd`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Returns a name for a socket that is to have this one: of this call alone, in the same folder, and no longer than any other, because names of sockets are
/// bounded. The kernel goes on listing a socket by the name that it was bound to ([`sockets_of_listener`]).
pub fn aside(path: &Path) -> PathBuf {
    path.with_extension(format!("{:04x}", RandomState::new().hash_one(path) & 0xffff))
}

/// Returns whether a socket of this name is one that is to have another name, or has it by now.
fn is_aside(name: &Path, path: &Path) -> bool {
    let is_number = |text: &OsStr| text.len() == 4 && text.as_bytes().iter().all(u8::is_ascii_hexdigit);
    name.parent() == path.parent() && name.file_stem() == path.file_stem() && name.extension().is_some_and(is_number)
}

/// Age from which a socket without a listener is one that was left.
const OLD: Duration = Duration::from_secs(10);

/// Removes names beside this one that runs have left which were killed before they gave their sockets their own.
pub fn remove_left_asides(path: &Path) {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    // Who binds one listens a moment later.
    let is_old_socket = |name: &PathBuf| {
        fs::symlink_metadata(name).is_ok_and(|found| {
            let age = found.modified().ok().and_then(|made| made.elapsed().ok());
            found.file_type().is_socket() && age.is_some_and(|age| age >= OLD)
        })
    };
    for name in names.filter(|name| is_aside(name, path) && is_old_socket(name) && !is_listened_on(name)) {
        // It is in nobody's way.
        let _ = fs::remove_file(name);
    }
}

/// Returns whether somebody listens there. A name that an earlier process left behind is nobody.
pub fn is_listened_on(path: &Path) -> bool {
    matches!(connected(path), Ok(()) | Err(Errno::AGAIN))
}

fn connected(path: &Path) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)
}

/// Returns whether somebody listens there or, where nothing of this name is seen (the folder is not mounted), at this name in whatever mounts another
/// process of this network namespace has.
///
/// # Errors
/// The name is there and may not be asked (access control of the host).
pub fn has_listener(path: &Path) -> Result<bool, Errno> {
    match connected(path) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => Err(error),
        Err(_) => Ok(!listeners(path).is_empty()),
    }
}

/// Returns the inodes of all sockets of the processes that listen there, as far as this process sees them: in its own network
/// namespace, and among the processes of its own.
pub fn sockets_of_listener(path: &Path) -> BTreeSet<u64> {
    let named = listeners(path);
    if named.is_empty() {
        return named;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path().join("fd"));
    let of_process = |descriptors| -> BTreeSet<u64> {
        let links = fs::read_dir(descriptors).into_iter().flatten().flatten();
        links.filter_map(|link| inode(fs::read_link(link.path()).ok()?.to_str()?)).collect()
    };
    processes.map(of_process).filter(|sockets| !sockets.is_disjoint(&named)).flatten().collect()
}

/// The inodes of the sockets of this network namespace that listen under this name.
fn listeners(path: &Path) -> BTreeSet<u64> {
    let listed = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    listed.lines().filter_map(|line| listening(line, path)).collect()
}

/// The inode of a line like `0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/sluice.sock` of a socket that listens
/// (flag `__SO_ACCEPTCON`) under this name.
fn listening(line: &str, path: &Path) -> Option<u64> {
    let (mut words, mut rest) = (Vec::new(), line);
    for _ in 0..7 {
        let (word, behind) = rest.trim_start().split_once(' ')?;
        words.push(word);
        rest = behind;
    }
    let (flags, inode) = (words.get(3)?, words.get(6)?);
    let name = Path::new(rest);
    (*flags == "00010000" && (name == path || is_aside(name, path))).then(|| inode.parse().ok())?
}

/// The inode in `socket:[23456]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    use super::*;

    #[test]
    fn a_listener_is_told_from_a_name_that_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        assert!(!is_listened_on(&path));
        let listener = UnixListener::bind(&path).expect("writable");
        assert!(is_listened_on(&path));
        drop(listener);
        assert!(path.exists() && !is_listened_on(&path));
        let bound = directory.path().join("b.sock");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&bound).expect("a short path")).expect("free");
        assert!(!is_listened_on(&bound), "nobody listens yet");
    }

    #[test]
    fn a_listener_whose_folder_is_not_mounted_here_is_found_in_the_network_namespace() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, elsewhere) = (directory.path().join("run/a.sock"), directory.path().join("elsewhere"));
        fs::create_dir(directory.path().join("run")).expect("writable");
        assert_eq!(has_listener(&path), Ok(false));
        let listener = UnixListener::bind(aside(&path)).expect("writable");
        fs::rename(directory.path().join("run"), elsewhere).expect("writable");
        assert!(!is_listened_on(&path));
        assert_eq!(has_listener(&path), Ok(true));
        drop(listener);
        assert_eq!(has_listener(&path), Ok(false));
    }

    #[test]
    fn a_listener_that_takes_nobody_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("writable");
        rustix::net::listen(&listener, 0).expect("it is a listener");
        let waiting: Vec<_> = (0..8)
            .filter_map(|_| {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).ok()?;
                connect(&socket, &SocketAddrUnix::new(&path).ok()?).ok().map(|()| socket)
            })
            .collect();
        assert!(waiting.len() < 8, "its queue is full");
        assert!(is_listened_on(&path));
    }

    #[test]
    fn a_line_names_the_socket_that_listens_under_a_name() {
        let of = |line: &str| listening(line, Path::new("/run/a b.sock"));
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/a b.sock"), Some(23456));
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01   456 /run/a b.sock"), Some(456));
        assert_eq!(
            of("0000000000000000: 00000003 00000000 00000000 0001 03 23457 /run/a b.sock"),
            None,
            "a connection"
        );
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01 23456"), None, "it has no name");
        assert_eq!(of("Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }

    #[test]
    fn what_a_killed_run_has_left_beside_a_name_goes_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sluice.sock");
        let names = ["sluice.1a2b", "sluice.00ff", "sluice.0a0a", "sluice.2024", "cni.1a2b"];
        let [left, listened, young, no_socket, of_other] = names.map(|name| directory.path().join(name));
        let _listener = UnixListener::bind(&listened).expect("writable");
        for name in [&left, &young, &of_other] {
            drop(UnixListener::bind(name).expect("writable"));
        }
        fs::write(&no_socket, "a log that was rotated").expect("writable");
        for name in [&left, &listened, &no_socket, &of_other] {
            let long_ago = Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = Timestamps { last_access: long_ago, last_modification: long_ago };
            utimensat(CWD, name, &times, AtFlags::empty()).expect("it is ours");
        }
        remove_left_asides(&path);
        let there = [&left, &listened, &young, &no_socket, &of_other].map(|name| name.exists());
        assert_eq!(there, [false, true, true, true, true]);
    }

    #[test]
    fn the_ports_of_a_listener_are_found_by_its_sockets() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        assert_eq!(sockets_of_listener(&path), BTreeSet::new());
        // As the program gets its name.
        let _listener = UnixListener::bind(aside(&path)).expect("writable");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = rustix::fs::fstat(port.as_fd()).expect("it is open").st_ino;
        assert!(sockets_of_listener(&path).contains(&own), "it is of the same process");
    }
}
