//! TCP sockets with the options that routing protocols need and that the standard library does not know.
//!
//! tcp(7), ip(7), ipv6(7): `TCP_MD5SIG` (RFC 2385), `IP_MINTTL` and `IPV6_MINHOPCOUNT` (RFC 5082), `TCP_SAVE_SYN`, `IP_FREEBIND`, and the class
//! of service CS6, which is meant for what keeps the network itself alive (RFC 4594 3.1).
//!
//! Nothing of this outlives the process: sockets go with it.
//!
//! Options of a listening socket apply to the answers to connections that are being established; accepted ones get
//! their own, because neighbours differ. A key of TCP MD5 belongs to a neighbour's address and a socket: on one that
//! listens the kernel drops what comes from there with another key or without one, before anybody sees it. The least TTL of a neighbour counts from when its connection
//! is accepted on: what came before, as with the acknowledgement of the handshake, was compared with none. So the segment that opened the connection is kept, and tells from how far it comes.
#![expect(unsafe_code, reason = "some socket options are known neither to the standard library nor to rustix")]

use std::ffi::c_int;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, ipproto, listen as listen_on, socket_with, sockopt,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::Error;
use crate::net::Family;
use crate::net::link_local::{to_socket, without_link};

/// TTL of sent packets, and the least TTL that received ones must have left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hops {
    /// `None` for the system's default.
    pub sent: Option<u8>,
    /// `None` for any.
    pub least: Option<u8>,
}

/// Connections that may wait to be accepted: a whole cluster may dial at once. The kernel has a bound of its own,
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Class selector 6, *network control*.
const CLASS: u8 = 0xc0;
const KEY: usize = libc::TCP_MD5SIG_MAXKEYLEN;
/// `TCP_MD5SIG_FLAG_PREFIX` of `linux/tcp.h`.
const BY_PREFIX: u8 = 1;

/// A socket that is to listen, so that it can have keys before anybody connects. An address that is not there yet will do: IPv6 addresses need
/// a moment when they are new.
///
/// # Errors
/// The port is in use, or the kernel lacks the family.
pub fn bound(on: SocketAddr) -> Result<TcpListener, Error> {
    let bound = || -> rustix::io::Result<OwnedFd> {
        let socket = open(on.ip())?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        match on {
            SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
            SocketAddr::V6(_) => {
                sockopt::set_ipv6_v6only(&socket, true)?;
                sockopt::set_ipv6_freebind(&socket, true)?;
            }
        }
        // A neighbour that counts hops does so from the first answer on; for the others it is more than enough.
        set(&socket, on.ip(), Hops { sent: Some(u8::MAX), least: None })?;
        set_raw(&socket, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &c_int::from(true).to_ne_bytes())?;
        bind(&socket, &on)?;
        Ok(socket)
    };
    bound().map(TcpListener::from).map_err(|errno| Error::errno("listen on", on.to_string(), errno))
}

/// Listens, without waiting. `on` is the socket's address.
///
/// # Errors
/// The port is in use.
pub fn listen(socket: impl AsFd, on: SocketAddr) -> Result<(), Error> {
    listen_on(socket, BACKLOG).map_err(|errno| Error::errno("listen on", on.to_string(), errno))
}

/// Takes one of the connections that wait to be accepted, and whose it is; `None` where there is none.
///
/// # Errors
/// Others may wait, and cannot be accepted.
pub fn waiting(socket: impl AsFd) -> Result<Option<(TcpStream, SocketAddr)>, Error> {
    loop {
        match acceptfrom_with(&socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((stream, from)) => {
                let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                // Without an address it is nobody's.
                let Some(from) = from else { continue };
                return Ok(Some((TcpStream::from(stream), from)));
            }
            Err(Errno::AGAIN) => return Ok(None),
            // It was gone before it was accepted.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("accept connections on", "a socket", errno)),
        }
    }
}

/// A socket that is to connect to a neighbour, without waiting. `local` is the address that it connects from.
///
/// # Errors
/// `local` is not ours, the kernel lacks something, or there are too many open files.
pub fn dialling(to: IpAddr, local: Option<IpAddr>, hops: Hops, key: Option<&[u8]>) -> Result<TcpStream, Error> {
    let socket = || -> rustix::io::Result<OwnedFd> {
        let socket = open(to)?;
        set(&socket, to, hops)?;
        if let Some(local) = local {
            bind(&socket, &to_socket(local, 0))?;
        }
        Ok(socket)
    };
    let socket = socket().map_err(|errno| Error::errno("connect to", to.to_string(), errno))?;
    if key.is_some() {
        set_key(&socket, to.into(), key)?;
    }
    Ok(TcpStream::from(socket))
}

/// Returns the TTL or hop limit with which the segment came that opened an accepted connection; `None` where the kernel has not kept it, as while it answers a flood of them
/// with cookies, and the second time.
pub fn opened_with_ttl(socket: impl AsFd) -> Option<u8> {
    // The headers of IP, with what extends them, and of TCP.
    let mut headers = [0_u8; 1024];
    let length = read_raw(socket, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, &mut headers).ok()?;
    let headers = headers.get(..length)?;
    // Version, in the upper half; time to live of IPv4 (RFC 791 3.1), hop limit of IPv6 (RFC 8200 3).
    let at = match headers.first()? >> 4 {
        4 => 8,
        6 => 7,
        _ => return None,
    };
    headers.get(at).copied()
}

/// Sets the options of the neighbour on an accepted connection.
///
/// # Errors
/// The kernel lacks something.
pub fn adopt(socket: impl AsFd, from: IpAddr, hops: Hops, key: Option<&[u8]>) -> Result<(), Error> {
    let nodelay = sockopt::set_tcp_nodelay(&socket, true).and_then(|()| set(&socket, from, hops));
    nodelay.map_err(|errno| Error::errno("accept a connection from", from.to_string(), errno))?;
    // The connection may be older than the key of the socket that listened, or have one that is gone by now.
    set_key(socket, from.into(), key)
}

/// A socket is reported as readable from so many received bytes on (`SO_RCVLOWAT`, socket(7)), and at the end of the stream
/// as ever.
///
/// # Errors
/// The socket is none that receives.
pub fn wake_at(socket: impl AsFd, bytes: u32) -> Result<(), Error> {
    let set = set_raw(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes.to_ne_bytes());
    set.map_err(|errno| Error::errno("set the least number of bytes of", "a connection", errno))
}

/// Time since a connection has received data (`TCP_INFO`, tcp(7)), in whole milliseconds, read or not.
///
/// # Errors
/// The socket is no connection.
pub fn since_received(socket: impl AsFd) -> Result<Duration, Error> {
    // The beginning of `struct tcp_info`: eight bytes, and numbers as far as `tcpi_last_data_recv`.
    let mut info = [0_u8; 14 * size_of::<u32>()];
    read_raw(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .map_err(|errno| Error::errno("read the state of", "a connection", errno))?;
    let last = info.last_chunk().map(|last| u32::from_ne_bytes(*last)).unwrap_or_default();
    Ok(Duration::from_millis(u64::from(last)))
}

/// Has the kernel end a connection whose other end acknowledges nothing for 90 seconds, also while nothing is sent (`SO_KEEPALIVE`,
/// `TCP_USER_TIMEOUT`, tcp(7)).
///
/// # Errors
/// The socket is none of TCP.
pub fn watch(socket: impl AsFd) -> Result<(), Error> {
    let set = || {
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(30))?;
        sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(&socket, 6)?;
        sockopt::set_tcp_user_timeout(&socket, 90_000)?;
        sockopt::set_socket_keepalive(&socket, true)
    };
    set().map_err(|errno| Error::errno("watch", "a connection", errno))
}

/// From now on packets from these addresses need this key, or none. On a connection that stands, what is sent again has the new
/// key as well; of several keys that of the longest prefix counts.
///
/// # Errors
/// The kernel has no TCP MD5, or no memory left for options (`net.core.optmem_max`).
pub fn set_key(socket: impl AsFd, of: IpNet, key: Option<&[u8]>) -> Result<(), Error> {
    let option = signature(of, key.unwrap_or_default());
    let name = if of.prefix_len() == of.max_prefix_len() { libc::TCP_MD5SIG } else { libc::TCP_MD5SIG_EXT };
    match set_raw(&socket, libc::IPPROTO_TCP, name, &option) {
        // There was none to take away; a kernel without TCP MD5 never has one.
        Err(Errno::NOENT | Errno::NOPROTOOPT) if key.is_none() => Ok(()),
        result => result.map_err(|errno| Error::errno("set the password of", of.to_string(), errno)),
    }
}

/// Raises the process's limit of open files to its maximum: one for each connection.
///
/// # Errors
/// The system refuses the maximum that it has reported.
pub fn raise_open_files() -> Result<(), Error> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|errno| Error::errno("raise the number of", "open files", errno))
}

fn open(family_of: IpAddr) -> rustix::io::Result<OwnedFd> {
    let family = match Family::from(family_of) {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    // Multipath TCP would be another protocol; it cannot have keys.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match Family::from(family_of) {
        Family::V4 => sockopt::set_ip_tos(&socket, CLASS)?,
        Family::V6 => sockopt::set_ipv6_tclass(&socket, u32::from(CLASS))?,
    }
    Ok(socket)
}

fn set(socket: impl AsFd, family_of: IpAddr, hops: Hops) -> rustix::io::Result<()> {
    let least = c_int::from(hops.least.unwrap_or(0)).to_ne_bytes();
    match Family::from(family_of) {
        Family::V4 => {
            // -1 is the system's default.
            sockopt::set_ip_ttl(&socket, hops.sent.map_or(u32::MAX, u32::from))?;
            set_raw(&socket, libc::IPPROTO_IP, libc::IP_MINTTL, &least)
        }
        Family::V6 => {
            sockopt::set_ipv6_unicast_hops(&socket, hops.sent)?;
            set_raw(&socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &least)
        }
    }
}

/// `struct tcp_md5sig` of `linux/tcp.h`: a `sockaddr_storage` of 128 bytes, flags, the prefix's length, the key's length in two
/// bytes, the number of a device, and the key.
fn signature(of: IpNet, key: &[u8]) -> [u8; 136 + KEY] {
    let mut option = [0; 136 + KEY];
    let mut put = |at: usize, bytes: &[u8]| {
        option.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    // The kernel tells neighbours with one link-local address on several links apart by the socket, which is on one link.
    match without_link(of.addr()) {
        IpAddr::V4(of) => {
            put(0, &(libc::AF_INET as u16).to_ne_bytes());
            put(4, &of.octets());
        }
        IpAddr::V6(of) => {
            put(0, &(libc::AF_INET6 as u16).to_ne_bytes());
            put(8, &Ipv6Addr::octets(&of));
        }
    }
    if of.prefix_len() < of.max_prefix_len() {
        put(128, &[BY_PREFIX, of.prefix_len()]);
    }
    let key = key.get(..KEY).unwrap_or(key);
    put(130, &(key.len() as u16).to_ne_bytes());
    put(136, key);
    option
}

fn set_raw(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> rustix::io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads no more than the length that is given,
    // which is that of the value.
    let result =
        unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) };
    succeeded(result)
}

/// Reads an option; returns how many of the bytes the kernel has written.
fn read_raw(socket: impl AsFd, level: c_int, name: c_int, value: &mut [u8]) -> rustix::io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel writes no more than the length that is given,
    // which is that of the value.
    let result = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    succeeded(result).map(|()| length as usize)
}

fn succeeded(result: c_int) -> rustix::io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn few_bytes_do_not_make_a_socket_readable_and_the_end_of_the_stream_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let readable = |within: i64| {
            let mut asked = [rustix::event::PollFd::new(&theirs, rustix::event::PollFlags::IN)];
            let time = rustix::event::Timespec { tv_sec: within, tv_nsec: 0 };
            rustix::event::poll(&mut asked, Some(&time)).unwrap() > 0
        };
        wake_at(&theirs, 20).unwrap();
        ours.write_all(&[0; 19]).unwrap();
        let waiting = |bytes: usize| while theirs.peek(&mut [0; 64]).unwrap_or(0) < bytes {};
        waiting(19);
        assert!(!readable(0), "it is there, and nobody is woken");
        assert!(since_received(&theirs).unwrap() < Duration::from_secs(60));
        wake_at(&theirs, 1).unwrap();
        assert!(readable(0), "what is there already counts as well");
        wake_at(&theirs, 20).unwrap();
        ours.write_all(&[0; 1]).unwrap();
        assert!(readable(10));
        wake_at(&theirs, 40).unwrap();
        assert!(!readable(0));
        drop(ours);
        assert!(readable(10));
    }

    /// A client at one of the addresses of the loopback.
    fn dial(from: [u8; 4], to: SocketAddr) -> rustix::io::Result<TcpStream> {
        let socket = open(from.into())?;
        bind(&socket, &SocketAddr::new(from.into(), 0))?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
            Err(errno) => Err(errno),
        }
    }

    #[test]
    fn the_segment_that_opened_a_connection_tells_from_how_far_it_comes() {
        for on in ["127.0.0.1:0", "[::1]:0"] {
            let on: SocketAddr = on.parse().unwrap();
            let socket = bound(on).unwrap();
            let on = socket.local_addr().unwrap();
            listen(&socket, on).unwrap();
            for sent in [64, 254, 255] {
                let dialling = dialling(on.ip(), None, Hops { sent: Some(sent), least: None }, None).unwrap();
                let _ = rustix::net::connect(&dialling, &on);
                let (ours, _) = (0..500)
                    .find_map(|_| {
                        std::thread::sleep(Duration::from_millis(10));
                        waiting(&socket).unwrap()
                    })
                    .expect("it is connected");
                assert_eq!(opened_with_ttl(&ours), Some(sent), "{on}");
                assert_eq!(opened_with_ttl(&ours), None, "the kernel keeps it until it is told");
                assert_eq!(opened_with_ttl(&dialling), None);
            }
        }
    }

    #[test]
    fn a_socket_that_gets_its_keys_before_it_listens_never_takes_a_connection_without_them() {
        let socket = bound("127.0.0.1:0".parse().unwrap()).unwrap();
        let on = socket.local_addr().unwrap();
        set_key(&socket, "127.0.0.3/32".parse().unwrap(), Some(b"hush")).unwrap();
        listen(&socket, on).unwrap();
        let without_key = dial([127, 0, 0, 3], on).unwrap();
        let other = dial([127, 0, 0, 4], on).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let from = |taken: Option<(TcpStream, SocketAddr)>| taken.map(|(_, from)| from);
        assert_eq!(from(waiting(&socket).unwrap()), Some(other.local_addr().unwrap()));
        assert_eq!(from(waiting(&socket).unwrap()), None);
        drop(without_key);
    }

    #[test]
    fn a_key_stands_where_the_kernel_looks_for_it() {
        let option = signature("192.0.2.7/32".parse().unwrap(), b"key");
        assert_eq!(option.len(), 216, "sizeof(struct tcp_md5sig)");
        assert_eq!(option[..8], [2, 0, 0, 0, 192, 0, 2, 7]);
        assert_eq!((&option[130..132], &option[136..140]), (&3_u16.to_ne_bytes()[..], &b"key\0"[..]));
        let option = signature("192.0.2.0/24".parse().unwrap(), b"key");
        assert_eq!(option[128..130], [1, 24]);
        let option = signature("2001:db8::7/128".parse().unwrap(), b"key");
        assert_eq!(option[128..130], [0, 0]);
        assert_eq!((option[0], &option[8..12], option[23]), (10, &[0x20, 1, 0xd, 0xb8][..], 7));
    }
}
