//! A neighbour that says what a test wants it to say, byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use ipnet::IpNet;
use sluice::bgp::message::{self, Attributes, Capabilities, Dialect, Framing, Message, Notification, Open, Packing};
use sluice::net::{Family, PerFamily};

use crate::ground::{Host, look};

/// As whom it comes: what it says in its OPEN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who {
    pub asn: u32,
    pub families: PerFamily<bool>,
    pub four_octets: bool,
    /// It takes long messages (RFC 8654).
    pub long: bool,
    /// It takes IPv6 next hops of IPv4 routes (RFC 8950).
    pub other_next_hop: bool,
}

/// In another autonomous system, with everything that we can do.
pub const OUT: Who =
    Who { asn: 65002, families: PerFamily { v4: true, v6: true }, four_octets: true, long: true, other_next_hop: true };
/// In our own.
pub const IN: Who = Who { asn: 65001, ..OUT };
/// Outside, with nothing beyond RFC 4271 and RFC 4760.
pub const OLD: Who = Who { four_octets: false, long: false, other_next_hop: false, ..OUT };
pub const FOUR: Who = Who { families: PerFamily { v4: true, v6: false }, ..OUT };
pub const SIX: Who = Who { families: PerFamily { v4: false, v6: true }, ..OUT };

pub struct Raw {
    stream: TcpStream,
    framing: Framing,
    who: Who,
}

impl Who {
    pub fn open(&self, identifier: Ipv4Addr) -> Vec<u8> {
        let capabilities = Capabilities {
            families: self.families,
            multiprotocol: true,
            refresh: true,
            enhanced_refresh: true,
            asn: self.four_octets.then_some(self.asn),
            extended_next_hop: self.other_next_hop,
            extended_message: self.long,
            ..Capabilities::default()
        };
        message::open(&Open { asn: self.asn, hold_time: 90, identifier, capabilities })
    }

    pub fn dialect(&self) -> Dialect {
        Dialect {
            internal: true,
            four_octets: self.four_octets,
            families: self.families,
            extended_next_hop: self.other_next_hop,
            extended_message: self.long,
        }
    }

    /// Routes as it announces them.
    pub fn update(&self, attributes: &Attributes, prefixes: &[IpNet]) -> Vec<u8> {
        let mut packing = Packing::new(self.dialect());
        let family = prefixes.first().map_or(Family::V4, |prefix| Family::from(*prefix));
        assert!(packing.announce(family, attributes, prefixes), "the attributes fit");
        packing.finish().0
    }
}

impl Raw {
    /// A connection over which nothing has been said yet.
    pub fn dial(from: &Host, to: &Host, who: Who) -> Raw {
        let to = SocketAddr::new(to.address(Family::V4), 179);
        let connect = || TcpStream::connect(to).ok();
        let stream = look(|| from.inside(connect)).expect("it is listened on");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        Raw { stream, framing: Framing::default(), who }
    }

    /// A session that stands for both. Who has just been refused is let in a little later.
    pub fn session(from: &Host, to: &Host, who: Who) -> Raw {
        let IpAddr::V4(identifier) = from.address(Family::V4) else { unreachable!("it is IPv4") };
        let hello = [who.open(identifier), message::keepalive()].concat();
        let session = look(|| {
            let mut raw = Raw::dial(from, to, who);
            raw.say(&hello);
            let opened = matches!(raw.hear()?, Message::Open(_));
            (opened && raw.hear()? == Message::Keepalive).then_some(raw)
        });
        session.expect("a session")
    }

    /// Says something, if it is still listened to.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next message; `None` at the end.
    pub fn hear(&mut self) -> Option<Message> {
        let dialect = self.who.dialect();
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.framing.next(self.who.long).expect("we write what can be read") {
                return Some(message::decode(frame, Some(&dialect)).expect("we write what can be read"));
            }
            match self.stream.read(&mut buffer) {
                Ok(read @ 1..) => self.framing.push(&buffer[..read]),
                Ok(_) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing is said: {error}"),
            }
        }
    }

    /// Returns whether the other side has closed the connection by now.
    pub fn is_closed(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a setting");
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(1..) => {}
                Ok(_) => return true,
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Hears it out: why it ends, when that is said.
    pub fn last_word(&mut self) -> Option<Notification> {
        let mut last = None;
        while let Some(message) = self.hear() {
            if let Message::Notification(notification) = message {
                last = Some(notification);
            }
        }
        last
    }
}

/// Bytes from text: two digits each, however they are spaced.
pub fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text}");
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A message of a kind, with its head.
pub fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() + 19) as u16;
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// A NOTIFICATION as the tables write it: `3/2 40630101`.
pub fn written(notification: &Notification) -> String {
    let reason = notification.reason;
    let data: String = notification.data.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}/{} {data}", reason.code, reason.subcode).trim_end().to_owned()
}
