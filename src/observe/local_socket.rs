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

/// Where the kernel lists the unix sockets of this network namespace.
const LIST: &str = "/proc/thread-self/net/unix";

/// How somebody who listens was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// It takes connections.
    Answers,
    /// A socket of this inode is in the kernel's list under the name, and nothing here could be connected to. Any process of the network namespace can bring
    /// that about, in mounts of its own.
    Listed(u64),
}

/// Why whether somebody listens is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// The name is there and may not be asked (access control of the host).
    Forbidden(Errno),
    /// Nothing answers here, and the kernel's list of sockets cannot be read.
    Unlisted(Errno),
}

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

/// Returns who listens there or, where nothing of this name answers (the folder is not mounted), at this name in whatever mounts another process of this
/// network namespace has.
///
/// # Errors
/// The name is there and may not be asked; or nothing answers, and the kernel's list of sockets cannot be read, as where `/proc` is not mounted: then nobody
/// is seen, which does not mean that nobody is there.
pub fn listener_at(path: &Path) -> Result<Option<Listener>, Unknown> {
    match connected(path) {
        Ok(()) | Err(Errno::AGAIN) => Ok(Some(Listener::Answers)),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => Err(Unknown::Forbidden(error)),
        Err(_) => listed(Path::new(LIST), path),
    }
}

/// The listener that the kernel's list, which is this file, has under this name.
fn listed(list: &Path, path: &Path) -> Result<Option<Listener>, Unknown> {
    let inodes = listeners(list, path).map_err(Unknown::Unlisted)?;
    Ok(inodes.first().copied().map(Listener::Listed))
}

/// Returns the inodes of all sockets of the processes that listen there, as far as this process sees them: in its own network
/// namespace, and among the processes of its own.
pub fn sockets_of_listener(path: &Path) -> BTreeSet<u64> {
    let named = listeners(Path::new(LIST), path).unwrap_or_default();
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

/// The inodes of the sockets of this network namespace, in the kernel's list, that listen under this name.
fn listeners(list: &Path, path: &Path) -> Result<BTreeSet<u64>, Errno> {
    // Names in it are what others have chosen, and need not be text.
    let content = fs::read(list).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(content.split(|byte| *byte == b'\n').filter_map(|line| listening(line, path)).collect())
}

/// The inode of a line like `0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/sluice.sock` of a socket that listens
/// (flag `__SO_ACCEPTCON`) under this name.
fn listening(line: &[u8], path: &Path) -> Option<u64> {
    // A name may have line breaks, and what is behind one looks like a line. That each field has to be as wide as the kernel makes it (`unix_seq_show`) shuts
    // out most of what somebody could put there, not all: such a line fits into an abstract name, and whoever writes it like the kernel is believed.
    let mut fields = line.splitn(7, |byte| *byte == b' ');
    let pointer = fields.next()?.strip_suffix(b":")?;
    let numbers: Vec<&[u8]> = fields.by_ref().take(5).collect();
    let rest = fields.next()?;
    let are_hexadecimal = numbers.iter().copied().flatten().all(u8::is_ascii_hexdigit);
    let are_as_wide = numbers.iter().map(|number| number.len()).eq([8_usize, 8, 8, 4, 2]);
    // The pointer is 32 or 64 bits, and until the kernel has random numbers to hide it by, a word of the same width.
    if !are_hexadecimal || !are_as_wide || !matches!(pointer.len(), 8 | 16) {
        return None;
    }
    let digits = rest.trim_ascii_start().split(|byte| *byte == b' ').next()?;
    let inode: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    let name = Path::new(OsStr::from_bytes(rest.strip_prefix(format!("{inode:>5} ").as_bytes())?));
    let is_listener = numbers.get(2).is_some_and(|flags| *flags == b"00010000");
    (is_listener && (name == path || is_aside(name, path))).then_some(inode)
}

/// The inode in `socket:[23456]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

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
        // A name that is no text, as any process may have one, hides nobody.
        let no_text = [directory.path().as_os_str().as_bytes(), b"\xff".as_slice()].concat();
        let no_text = SocketAddr::from_abstract_name(no_text).expect("a short name");
        let _of_another = UnixListener::bind_addr(&no_text).expect("free");
        assert_eq!(listener_at(&path), Ok(None));
        let agent = UnixListener::bind(aside(&path)).expect("writable");
        fs::rename(directory.path().join("run"), elsewhere).expect("writable");
        assert!(!is_listened_on(&path));
        let inode = rustix::fs::fstat(agent.as_fd()).expect("it is open").st_ino;
        assert_eq!(listener_at(&path), Ok(Some(Listener::Listed(inode))));
        drop(agent);
        assert_eq!(listener_at(&path), Ok(None));
    }

    #[test]
    fn whether_somebody_listens_is_not_known_where_the_list_of_sockets_cannot_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        assert_eq!(listed(&directory.path().join("unix"), &path), Err(Unknown::Unlisted(Errno::NOENT)));
        assert_eq!(listed(Path::new(LIST), &path), Ok(None));
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
        let of = |line: &str| listening(line.as_bytes(), Path::new("/run/a b.sock"));
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/a b.sock"), Some(23456));
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01   456 /run/a b.sock"), Some(456));
        assert_eq!(
            of("0000000000000000: 00000003 00000000 00000000 0001 03 23457 /run/a b.sock"),
            None,
            "a connection"
        );
        assert_eq!(of("0000000000000000: 00000002 00000000 00010000 0001 01 23456"), None, "it has no name");
        assert_eq!(of("Num       RefCount Protocol Flags    Type St Inode Path"), None);
        let early = "(____ptrval____): 00000002 00000000 00010000 0001 01 23456 /run/a b.sock";
        assert_eq!(of(early), Some(23456), "the kernel has no random numbers yet");
        assert_eq!(of("c1d2e3f4: 00000002 00000000 00010000 0001 01 1234567 /run/a b.sock"), Some(1_234_567));
    }

    #[test]
    fn a_line_that_the_kernel_would_not_write_so_is_part_of_a_name() {
        let path = Path::new("/run/sluice/sluice.sock");
        for line in [
            "0: 2 0 00010000 1 1 7 /run/sluice/sluice.sock",
            "0000000000000000: 00000002 00000000 00010000 0001 01 7 /run/sluice/sluice.sock",
            "0000000000000000: 00000002 00000000 00010000 0001 01 00007 /run/sluice/sluice.sock",
            "0000000000000000: 00000002 00000000 00010000 0001 01   +77 /run/sluice/sluice.sock",
            "0000000000000000: 00000002 00000000 00010000 0001 01  23456 /run/sluice/sluice.sock",
            "0000000000000000: 00000002  00000000 00010000 0001 01 23456 /run/sluice/sluice.sock",
            "0000000000000000: 0000000x 00000000 00010000 0001 01 23456 /run/sluice/sluice.sock",
            "00000000000000: 00000002 00000000 00010000 0001 01 23456 /run/sluice/sluice.sock",
            "0000000000000000 00000002 00000000 00010000 0001 01 23456 /run/sluice/sluice.sock",
        ] {
            assert_eq!(listening(line.as_bytes(), path), None, "{line}");
        }
        let of_kernel = "0000000000000000: 00000002 00000000 00010000 0001 01     7 /run/sluice/sluice.sock";
        assert_eq!(listening(of_kernel.as_bytes(), path), Some(7));
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
