//! Ports on which somebody listens, of TCP and UDP, in the network namespace of the calling thread (`/proc/net/tcp` and its like, proc(5)).

use std::collections::BTreeSet;
use std::fs;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A socket that listens, at whichever addresses of both families.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ListeningPort {
    pub transport: Transport,
    pub port: u16,
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
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    (state == listens).then_some(ListeningPort { transport, port, inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let line = |state: &str| {
            format!(
                "   0: 00000000000000000000000000000000:4F14 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 23456 1"
            )
        };
        let of = |transport| Some(ListeningPort { transport, port: 20244, inode: 23456 });
        assert_eq!(listening_port(&line("0A"), Transport::Tcp), of(Transport::Tcp));
        assert_eq!(listening_port(&line("01"), Transport::Tcp), None);
        assert_eq!(listening_port(&line("07"), Transport::Udp), of(Transport::Udp));
        assert_eq!(listening_port("  sl  local_address rem_address   st", Transport::Tcp), None);
    }
}
