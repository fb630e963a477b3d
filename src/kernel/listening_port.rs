//! Ports on which somebody listens, of TCP and UDP, in the network namespace of the calling thread (`/proc/net/tcp` and its like, proc(5)).

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A socket that listens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ListeningPort {
    pub transport: Transport,
    /// Address and port. `[::]` may mean both address families or IPv6 alone, which these files do not say.
    pub at: SocketAddr,
    /// Of the socket, as `/proc/PID/fd` has it.
    pub inode: u64,
}

/// Returns all of them; none of a protocol that this kernel has not.
pub fn listening_ports() -> BTreeSet<ListeningPort> {
    let files = [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)];
    let ports = files.into_iter().flat_map(|(file, transport)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        text.lines().filter_map(|line| listening_port(line, transport)).collect::<Vec<_>>()
    });
    ports.collect()
}

/// Reads a line like `0: 0100007F:1F90 00000000:0000 0A … 23456 …`: state 0A is TCP's LISTEN, 07 is a socket of UDP without a peer.
fn listening_port(line: &str, transport: Transport) -> Option<ListeningPort> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    let listens = match transport {
        Transport::Tcp => "0A",
        Transport::Udp => "07",
    };
    let (address, port) = local.rsplit_once(':')?;
    let at = SocketAddr::new(local_address(address)?, u16::from_str_radix(port, 16).ok()?);
    let inode = words.nth(5)?.parse().ok()?;
    (state == listens).then_some(ListeningPort { transport, at, inode })
}

/// Reads an address as the kernel prints it: each 32 bits of it as a number in the byte order of this machine.
fn local_address(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let octets: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let line = |state: &str| {
            format!(
                "   0: 00000000000000000000000000000000:4F14 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 23456 1"
            )
        };
        let at: SocketAddr = "[::]:20244".parse().expect("an address");
        let of = |transport| Some(ListeningPort { transport, at, inode: 23456 });
        assert_eq!(listening_port(&line("0A"), Transport::Tcp), of(Transport::Tcp));
        assert_eq!(listening_port(&line("01"), Transport::Tcp), None);
        assert_eq!(listening_port(&line("07"), Transport::Udp), of(Transport::Udp));
        assert_eq!(listening_port("  sl  local_address rem_address   st", Transport::Tcp), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found_at_its_address() {
        for typed in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(typed).expect("a free port");
            let at = listener.local_addr().expect("it is bound");
            let found = listening_ports();
            assert!(found.iter().any(|one| one.transport == Transport::Tcp && one.at == at), "{at}: {found:?}");
        }
    }
}
