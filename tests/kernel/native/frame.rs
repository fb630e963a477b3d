//! Frames as a pod with a raw socket sends them: UDP of both families, with any addresses and any tags of VLANs.
#![expect(unsafe_code, reason = "rustix has no address of a packet socket")]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// Of Ethernet.
pub type LinkAddress = [u8; 6];

pub const BROADCAST: LinkAddress = [0xff; 6];

/// One packet of UDP in its frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub from: LinkAddress,
    pub to: LinkAddress,
    /// Identifiers of VLANs, the outermost first; each in a tag of 802.1Q.
    pub tags: Vec<u16>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
}

/// Returns the link address to which packets with this destination go: that of a group, or everybody's.
pub fn group_address(destination: IpAddr) -> LinkAddress {
    match destination {
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, high, middle, low] = address.octets();
            [0x01, 0x00, 0x5e, high & 0x7f, middle, low]
        }
        IpAddr::V4(_) => BROADCAST,
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

impl Frame {
    /// Sends it by a device of the calling thread's namespace, given by its number.
    pub fn send(&self, device: u32) {
        send(device, &self.bytes());
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        for tag in &self.tags {
            bytes.extend([[0x81, 0x00], tag.to_be_bytes()].concat());
        }
        let udp = self.udp();
        let length = u16::try_from(udp.len()).expect("it is short");
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
                header.extend([source.octets(), destination.octets()].concat());
                let sum = checksum(&header).to_be_bytes();
                header.splice(10..12, sum);
                bytes.extend([0x08, 0x00]);
                bytes.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(length.to_be_bytes());
                bytes.extend([17, 64]);
                bytes.extend([source.octets(), destination.octets()].concat());
            }
            (source, destination) => panic!("two families: {source} {destination}"),
        }
        bytes.extend(udp);
        bytes
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).expect("it is short").to_be_bytes();
        let mut udp = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes(), length].concat();
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        // IPv4 does without; IPv6 sums up a header that stands for the real one (RFC 8200 8.1).
        if let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.source.ip(), self.destination.ip()) {
            let mut summed = [source.octets(), destination.octets()].concat();
            summed.extend([0, 0]);
            summed.extend(length);
            summed.extend([0, 0, 0, 17]);
            summed.extend(&udp);
            let sum = checksum(&summed).to_be_bytes();
            udp.splice(6..8, sum);
        }
        udp
    }
}

/// Sends a frame by a device of the calling thread's namespace, given by its number.
pub fn send(device: u32, bytes: &[u8]) {
    let socket =
        socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None).expect("root may send frames");
    // SAFETY: an address of zeros is one, if of no use.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(device).expect("devices have small numbers");
    let length = size_of_val(&to) as libc::socklen_t;
    // SAFETY: both pointers are to values that outlive the call, with their lengths.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), length)
    };
    assert_eq!(sent, isize::try_from(bytes.len()).expect("it is short"), "{}", std::io::Error::last_os_error());
}

/// All frames of a namespace, from now on. Of a tag the kernel takes off one.
pub struct Capture(OwnedFd);

impl Capture {
    /// Of the namespace of the calling thread.
    pub fn open() -> Capture {
        let all = NonZeroU32::new(u32::from((libc::ETH_P_ALL as u16).to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Capture(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, all).expect("root may hear frames"))
    }

    /// The next frame, if there is one.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 2048];
        let (_, length) = recv(&self.0, bytes.as_mut_slice(), RecvFlags::empty()).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| pair.iter().chain([&0]).take(2).fold(0, |word: u32, byte| word << 8 | u32::from(*byte));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
