//! Packets that rules log to a group (NFLOG), as their headers say.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_ULOG` (include/uapi/linux/netfilter/nfnetlink_log.h). A group has one reader in
//! a network namespace: while another program has it, opening fails. Nothing is logged, and nothing costs anything, while nobody has
//! it. The group goes back when the reader gives it back, or when the socket is closed: the kernel lets changes of rules wait while it closes
//! one of netfilter, so a reader that may come again keeps its socket.
//!
//! The kernel collects packets for a moment and sends them together; what the socket cannot hold is lost, and counted by the
//! sequence numbers of the packets. Payloads are foreign bytes and are read without indexing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use rustix::net::netdevice;

use super::netlink::{Answer, Bus, Fault, Listener, Messages};
use super::{Cause, Error};

/// A reader of one group.
#[derive(Debug)]
pub struct PacketLog {
    group: u16,
    listener: Listener,
    /// Sequence number of the next packet, from the first one on.
    next: Option<u32>,
    /// Number of packets that were lost since the start.
    lost: u64,
}

/// A packet that was logged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub transport: Transport,
    /// The links by which it came and would have left; `None` for what this host sends or receives itself, and for a link that
    /// has gone.
    pub input: Option<CompactString>,
    pub output: Option<CompactString>,
    /// `--nflog-prefix` of the rule; empty without.
    pub prefix: CompactString,
}

/// The protocol of a packet and what of its header is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, UDP or SCTP (the number in the IP header), with its ports.
    Ports { protocol: u8, source: u16, destination: u16 },
    /// ICMP or ICMPv6, with its type.
    Icmp { kind: u8 },
    /// Another protocol, or a fragment that is not the first.
    Other { protocol: u8 },
}

/// Why a group cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another program reads NFLOG group {0}; only one can")]
    Taken(u16),
    #[error(transparent)]
    Kernel(#[from] Error),
}

const CONFIG: u16 = 4 << 8 | 1;
const PACKET: u16 = 4 << 8;
/// The header that every netfilter message has: family, version, resource.
const HEADER: usize = 4;

/// Attributes of a configuration.
mod config {
    pub const COMMAND: u16 = 1;
    pub const MODE: u16 = 2;
    pub const TIMEOUT: u16 = 4;
    pub const FLAGS: u16 = 6;
}
const BIND: u8 = 1;
const UNBIND: u8 = 2;
const COPY_PACKET: u8 = 2;
const FLAG_SEQUENCE: u16 = 1;

/// Attributes of a packet.
mod packet {
    pub const INPUT: u16 = 4;
    pub const OUTPUT: u16 = 5;
    pub const PAYLOAD: u16 = 9;
    pub const PREFIX: u16 = 10;
    pub const SEQUENCE: u16 = 12;
}

/// Bytes of each packet that are copied: an IPv6 header with extension headers, and the ports.
const COPIED: u32 = 192;
/// Time for which the kernel collects packets, in hundredths of a second.
const COLLECTED: u32 = 10;
/// The most datagrams that are read at a time.
const DATAGRAMS: usize = 256;
/// Longest time for emptying the socket.
const EMPTIED: Duration = Duration::from_millis(100);
/// The most extension headers of IPv6 that are skipped.
const EXTENSIONS: usize = 8;

impl PacketLog {
    /// Opens a group in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Another program reads the group, or the kernel has no NFLOG.
    pub fn open(group: u16) -> Result<PacketLog, OpenError> {
        let mut log = PacketLog { group, listener: Listener::open(Bus::Netfilter, &[])?, next: None, lost: 0 };
        log.bind()?;
        Ok(log)
    }

    /// Takes the group again after it was [given back](Self::release). Packets from before are not passed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn acquire(&mut self) -> Result<(), OpenError> {
        self.discard();
        self.bind()
    }

    /// Gives the group back, and keeps the socket: another program may read the group, and nothing is logged to this one.
    ///
    /// # Errors
    /// The kernel refuses, or the socket failed.
    pub fn release(&mut self) -> Result<(), Error> {
        self.discard();
        let mut message = self.command(UNBIND);
        let error = |cause| Error::new("give back NFLOG group", self.group.to_string(), cause);
        let refusals = self.listener.configure(&mut message).map_err(|fault| error(fault.into()))?;
        refusals.into_iter().next().map_or(Ok(()), |refusal| Err(error(Cause::from(refusal))))
    }

    fn bind(&mut self) -> Result<(), OpenError> {
        let [m0, m1, m2, m3] = COPIED.to_be_bytes();
        let mut message = self.command(BIND);
        message.attribute(config::MODE, &[m0, m1, m2, m3, COPY_PACKET, 0]);
        message.u32_be(config::TIMEOUT, COLLECTED).u16_be(config::FLAGS, FLAG_SEQUENCE);
        let error = |cause| OpenError::Kernel(Error::new("read NFLOG group", self.group.to_string(), cause));
        let refusals = self.listener.configure(&mut message).map_err(|fault| error(fault.into()))?;
        match refusals.into_iter().next() {
            // The kernel's word for a group of another socket.
            Some(refusal) if matches!(refusal.errno, libc::EPERM | libc::EBUSY) => Err(OpenError::Taken(self.group)),
            Some(refusal) => Err(error(Cause::from(refusal))),
            None => {
                (self.next, self.lost) = (None, 0);
                Ok(())
            }
        }
    }

    fn command(&self, command: u8) -> Messages {
        let mut message = Messages::new();
        let [high, low] = self.group.to_be_bytes();
        message.begin(CONFIG, 0).header(&[0, 0, high, low]).u8(config::COMMAND, command);
        message
    }

    /// Empties the socket, as far as it does not fill faster: the kernel drops answers, too, from the moment at which it was full until it is empty. A failure shows in what is
    /// asked of it next.
    fn discard(&mut self) {
        let until = Instant::now() + EMPTIED;
        while !matches!(self.listener.receive_one(|_| {}), Ok(false)) && Instant::now() < until {}
    }

    /// Passes the packets that have arrived to `each`, at most `most`, without waiting.
    ///
    /// # Errors
    /// The socket failed.
    pub fn receive(&mut self, most: usize, mut each: impl FnMut(Logged)) -> Result<(), Fault> {
        let mut arrived = Vec::new();
        // Rules of others may log faster than this reads; what stays in the socket is read the next time, or lost and counted.
        for _ in 0..DATAGRAMS {
            match self.listener.receive_one(|answer| arrived.extend(sequenced(answer))) {
                Ok(true) => {}
                Ok(false) => break,
                // The sequence numbers say how many.
                Err(Fault::Lost) => {}
                Err(fault) => return Err(fault),
            }
        }
        let mut passed = 0;
        for (sequence, link_numbers, logged) in arrived {
            if let Some(sequence) = sequence {
                let missing = self.next.map_or(0, |next| sequence.wrapping_sub(next));
                // Numbers that go backwards are those of a group that was opened anew.
                self.lost += u64::from(if missing < u32::MAX / 2 { missing } else { 0 });
                self.next = Some(sequence.wrapping_add(1));
            }
            if passed == most {
                self.lost += 1;
                continue;
            }
            passed += 1;
            let [input, output] = link_numbers.map(|number| self.link(number?));
            each(Logged { input, output, ..logged });
        }
        Ok(())
    }

    /// Returns the number of packets that were logged and lost since the start, because they came too fast.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn link(&self, number: u32) -> Option<CompactString> {
        let name = netdevice::index_to_name(self.listener.as_fd(), number).ok()?;
        Some(name.as_str().into())
    }
}

/// Reads one message: the packet, its number and the numbers of its links; `None` for one that is not about IP.
fn sequenced(answer: &Answer<'_>) -> Option<(Option<u32>, [Option<u32>; 2], Logged)> {
    if answer.kind != PACKET {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let (source, destination, transport) = headers(attributes.get(packet::PAYLOAD)?.value)?;
    let number = |kind| attributes.get(kind).and_then(|number| number.u32_be());
    let prefix = attributes.get(packet::PREFIX).and_then(|prefix| prefix.text()).unwrap_or_default();
    let logged = Logged { source, destination, transport, input: None, output: None, prefix: prefix.into() };
    Some((number(packet::SEQUENCE), [number(packet::INPUT), number(packet::OUTPUT)], logged))
}

/// Reads the headers of a packet of either family.
fn headers(bytes: &[u8]) -> Option<(IpAddr, IpAddr, Transport)> {
    match bytes.first()? >> 4 {
        4 => headers_v4(bytes),
        6 => headers_v6(bytes),
        _ => None,
    }
}

fn headers_v4(bytes: &[u8]) -> Option<(IpAddr, IpAddr, Transport)> {
    let fixed = bytes.first_chunk::<20>()?;
    let [first, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    let is_later_fragment = u16::from_be_bytes([f0, f1]) & 0x1fff != 0;
    let behind = bytes.get(usize::from(first & 0xf) * 4..).filter(|_| !is_later_fragment);
    let (source, destination) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    Some((source.into(), destination.into(), transport(protocol, behind)))
}

fn headers_v6(bytes: &[u8]) -> Option<(IpAddr, IpAddr, Transport)> {
    let (fixed, mut behind) = bytes.split_first_chunk::<40>()?;
    let address = |at: usize| fixed.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
    let (source, destination): (IpAddr, IpAddr) = (address(8)?, address(24)?);
    let mut next = *fixed.get(6)?;
    for _ in 0..EXTENSIONS {
        let Some([following, length, high, low]) = behind.first_chunk::<4>().copied() else { break };
        let skipped = match next {
            // Hop-by-hop, routing, destination options (RFC 8200): in units of eight bytes, the first not counted.
            0 | 43 | 60 => (usize::from(length) + 1) * 8,
            // A fragment other than the first has no header of its transport.
            44 if u16::from_be_bytes([high, low]) & 0xfff8 != 0 => {
                return Some((source, destination, Transport::Other { protocol: following }));
            }
            44 => 8,
            // Authentication: in units of four bytes, the first two not counted.
            51 => (usize::from(length) + 2) * 4,
            _ => break,
        };
        next = following;
        behind = behind.get(skipped..).unwrap_or_default();
    }
    Some((source, destination, transport(next, Some(behind))))
}

fn transport(protocol: u8, behind: Option<&[u8]>) -> Transport {
    let read = behind.and_then(|behind| match protocol {
        6 | 17 | 132 => {
            let [s0, s1, d0, d1] = *behind.first_chunk::<4>()?;
            let (source, destination) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
            Some(Transport::Ports { protocol, source, destination })
        }
        1 | 58 => Some(Transport::Icmp { kind: *behind.first()? }),
        _ => None,
    });
    read.unwrap_or(Transport::Other { protocol })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = headers(&bytes);
            let _ = sequenced(&Answer { kind: PACKET, flags: 0, sequence: 1, port: 0, payload: &bytes });
        }

        #[test]
        fn no_packet_that_is_cut_short_makes_the_reader_panic(length in 0_usize..80, first in any::<u8>(), next in any::<u8>()) {
            let mut bytes = vec![first; length];
            for at in [6, 9] {
                if let Some(place) = bytes.get_mut(at) {
                    *place = next;
                }
            }
            let _ = headers(&bytes);
        }
    }

    fn v4(protocol: u8, fragment: u16, behind: &[u8]) -> Vec<u8> {
        let [f0, f1] = fragment.to_be_bytes();
        let head = [0x46, 0, 0, 0, 0, 0, f0, f1, 64, protocol, 0, 0, 10, 244, 1, 7, 10, 244, 1, 8];
        [&head[..], &[1, 1, 1, 1], behind].concat()
    }

    fn v6(next: u8, behind: &[u8]) -> Vec<u8> {
        let [source, destination] =
            ["fd00::7", "fd00::8"].map(|text| text.parse::<Ipv6Addr>().expect("an address").octets());
        [&[0x60, 0, 0, 0, 0, 0, next, 64][..], &source, &destination, behind].concat()
    }

    const PORTS: [u8; 4] = [0x9c, 0x40, 0, 80];
    const TCP: Transport = Transport::Ports { protocol: 6, source: 40000, destination: 80 };

    fn read(bytes: &[u8]) -> Option<Transport> {
        headers(bytes).map(|(_, _, transport)| transport)
    }

    #[test]
    fn ports_are_found_behind_options_and_extension_headers() {
        assert_eq!(read(&v4(6, 0, &PORTS)), Some(TCP));
        assert_eq!(read(&v6(6, &PORTS)), Some(TCP));
        let hop_by_hop = [60, 0, 5, 2, 0, 0, 1, 0];
        let options = [44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first_fragment = [6, 0, 0, 1, 0, 0, 0, 9];
        assert_eq!(read(&v6(0, &[&hop_by_hop[..], &options, &first_fragment, &PORTS].concat())), Some(TCP));
        let (source, destination, _) = headers(&v6(6, &PORTS)).expect("a packet");
        assert_eq!((source.to_string(), destination.to_string()), ("fd00::7".to_owned(), "fd00::8".to_owned()));
        let (source, destination, _) = headers(&v4(6, 0, &PORTS)).expect("a packet");
        assert_eq!((source.to_string(), destination.to_string()), ("10.244.1.7".to_owned(), "10.244.1.8".to_owned()));
    }

    #[test]
    fn what_has_no_ports_is_named_by_its_protocol() {
        assert_eq!(read(&v4(1, 0, &[8, 0])), Some(Transport::Icmp { kind: 8 }));
        assert_eq!(read(&v6(58, &[128, 0])), Some(Transport::Icmp { kind: 128 }));
        assert_eq!(read(&v4(6, 1, &PORTS)), Some(Transport::Other { protocol: 6 }), "a later fragment");
        assert_eq!(read(&v6(44, &[6, 0, 0, 8, 0, 0, 0, 9, 1, 2, 3, 4])), Some(Transport::Other { protocol: 6 }));
        assert_eq!(read(&v4(47, 0, &PORTS)), Some(Transport::Other { protocol: 47 }));
        assert_eq!(read(&v4(6, 0, &[1])), Some(Transport::Other { protocol: 6 }), "cut short");
        assert_eq!(read(&[0x50; 60]), None);
    }
}
