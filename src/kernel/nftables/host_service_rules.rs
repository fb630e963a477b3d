//! Rules of iptables about one service port, read as `iptables-nft` writes them into nf_tables: those by which direct server return gives packets a
//! mark, and has answers announce smaller segments.
//!
//! Two shapes are read, and everything else is somebody else's:
//!
//! ```text
//! -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff
//! -s 203.0.113.7/32 -i kube-bridge -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440
//! ```
//!
//! Targets are structures of the modules of iptables (`nft_compat`). Ports and flags are, too, or expressions of nf_tables since iptables 1.8.8; the order in
//! which addresses, protocol and link come has changed as well, and says nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::host_masquerades::HANDLE;
use super::numbers::{base, compare, meta, tcp};
use super::wire::{data, rule};
use crate::kernel::netlink::{Attribute, Attributes};
use crate::net::Protocol;

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const CONTENT: u16 = 2;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`; a target has the same.
const EXTENSION_NAME: u16 = 1;
const EXTENSION_REVISION: u16 = 2;
const EXTENSION_INFO: u16 = 3;
/// `NFTA_PAYLOAD_BASE`, `NFTA_PAYLOAD_OFFSET`, `NFTA_PAYLOAD_LEN`.
const BASE: u16 = 2;
const OFFSET: u16 = 3;
const LENGTH: u16 = 4;
/// `NFTA_META_KEY`.
const META_KEY: u16 = 2;
/// `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`.
const MASK: u16 = 4;
const XOR: u16 = 5;
/// `NFTA_CMP_OP`, `NFTA_CMP_DATA`.
const OPERATION: u16 = 2;
const COMPARED: u16 = 3;

/// The flags of TCP: SYN and RST, of which an opening segment has the first.
const SYN_RST: u8 = 6;
const SYN: u8 = 2;

/// A rule about packets to or from one service port, which does nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRule {
    /// Its number in the table.
    pub handle: u64,
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    pub does: Does,
}

/// The packets of the port that such a rule is about, and what it does to them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Does {
    /// The bits of the mark of packets to the port that the mask names become those of the value.
    Mark { value: u32, mask: u32 },
    /// Segments from the port that open a connection, and came by this link, announce this size at most.
    SmallerSegments { link: String, size: u16 },
}

/// The state after some expressions of a rule.
#[derive(Default)]
struct Reading<'a> {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    link: Option<&'a str>,
    opens: bool,
    loaded: Option<Loaded<'a>>,
    target: Option<Target>,
}

/// A value of a packet in a register.
#[derive(Clone, Copy)]
struct Loaded<'a> {
    from: Place,
    mask: Option<&'a [u8]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Base, offset and length in bytes.
    Header(u32, u32, u32),
    Meta(u32),
}

#[derive(Clone, Copy)]
enum Target {
    Mark { value: u32, mask: u32 },
    SegmentSize(u16),
}

/// Reads a rule; `None` if it asks or does anything else.
pub fn service_rule(of_rule: &Attributes<'_>) -> Option<ServiceRule> {
    let mut reading = Reading::default();
    for item in of_rule.get(rule::EXPRESSIONS)?.attributes() {
        reading.expression(&item.attributes())?;
    }
    reading.rule(of_rule.get(HANDLE)?.u64_be()?)
}

impl<'a> Reading<'a> {
    /// Reads the next expression; `None` if no rule of these shapes has it.
    fn expression(&mut self, item: &Attributes<'a>) -> Option<()> {
        let content = item.get(CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        let number = |of| content.get(of).and_then(|one: Attribute<'_>| one.u32_be());
        match item.get(NAME)?.text()? {
            "counter" => Some(()),
            "payload" => self.load(Place::Header(number(BASE)?, number(OFFSET)?, number(LENGTH)?)),
            "meta" => self.load(Place::Meta(number(META_KEY)?)),
            "bitwise" => {
                let is_kept = value(&content, XOR)?.iter().all(|byte| *byte == 0);
                let loaded = self.loaded.as_mut().filter(|loaded| is_kept && loaded.mask.is_none())?;
                loaded.mask = Some(value(&content, MASK)?);
                Some(())
            }
            "cmp" => {
                let loaded = self.loaded.take().filter(|_| number(OPERATION) == Some(compare::EQUAL))?;
                self.condition(loaded, value(&content, COMPARED)?)
            }
            "match" => self.matching(content.get(EXTENSION_NAME)?.text()?, content.get(EXTENSION_INFO)?.value),
            "target" => once(&mut self.target, target(&content)?),
            _ => None,
        }
    }

    fn load(&mut self, from: Place) -> Option<()> {
        once(&mut self.loaded, Loaded { from, mask: None })
    }

    /// Takes the condition that a value of the packet equals this one.
    fn condition(&mut self, loaded: Loaded<'a>, with: &'a [u8]) -> Option<()> {
        let port = || Some(u16::from_be_bytes(with.try_into().ok()?));
        match (loaded.from, loaded.mask) {
            (Place::Header(base::TRANSPORT, tcp::FLAGS, 1), Some(mask)) => {
                (mask == [SYN_RST] && with == [SYN] && !self.opens).then(|| self.opens = true)
            }
            (_, Some(_)) => None,
            (Place::Header(base::NETWORK, 12, 4) | Place::Header(base::NETWORK, 8, 16), None) => {
                once(&mut self.source, address(with)?)
            }
            (Place::Header(base::NETWORK, 16, 4) | Place::Header(base::NETWORK, 24, 16), None) => {
                once(&mut self.destination, address(with)?)
            }
            (Place::Header(base::NETWORK, 9, 1) | Place::Meta(meta::PROTOCOL), None) => {
                once(&mut self.protocol, *with.first()?)
            }
            (Place::Header(base::TRANSPORT, 0, 2), None) => once(&mut self.source_port, port()?),
            (Place::Header(base::TRANSPORT, 2, 2), None) => once(&mut self.destination_port, port()?),
            // Without its end it is the beginning of many names.
            (Place::Meta(meta::INPUT_LINK), None) => once(&mut self.link, text(with)?),
            _ => None,
        }
    }

    /// Takes a match of iptables: ports, and flags of TCP.
    fn matching(&mut self, name: &str, info: &[u8]) -> Option<()> {
        let two = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
        let four = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        let one = |at: usize| info.get(at).copied();
        // Of `struct xt_tcp`, `struct xt_udp` and `struct xt_sctp_info`: ports of the source, ports of the destination, and whether nothing is inverted or asked besides.
        let (protocol, source, destination, is_plain) = match name {
            "tcp" => {
                let flags = (one(9)?, one(10)?);
                if flags.0 != 0 {
                    (flags == (SYN_RST, SYN) && !self.opens).then(|| self.opens = true)?;
                }
                (Protocol::Tcp, [two(0)?, two(2)?], [two(4)?, two(6)?], one(8)? == 0 && one(11)? == 0)
            }
            "udp" => (Protocol::Udp, [two(0)?, two(2)?], [two(4)?, two(6)?], one(8)? == 0),
            "sctp" => {
                // Ports of the destination come first. `XT_SCTP_DEST_PORTS` alone: neither chunks nor ports of the source.
                let is_plain = four(284)? == 2 && four(288)? == 0;
                (Protocol::Sctp, [0, u16::MAX], [two(0)?, two(2)?], is_plain)
            }
            _ => return None,
        };
        (is_plain && self.protocol == Some(protocol.number())).then_some(())?;
        for (ports, of) in [(source, &mut self.source_port), (destination, &mut self.destination_port)] {
            match ports {
                [0, u16::MAX] => {}
                [first, last] => once(of, (first == last).then_some(first)?)?,
            }
        }
        Some(())
    }

    fn rule(self, handle: u64) -> Option<ServiceRule> {
        let protocol = Protocol::from_number(self.protocol?)?;
        let asked = (self.source, self.source_port, self.link, self.opens, self.destination, self.destination_port);
        let (address, port, does) = match (asked, self.target?) {
            ((None, None, None, false, Some(address), Some(port)), Target::Mark { value, mask }) => {
                (address, port, Does::Mark { value, mask })
            }
            ((Some(address), Some(port), Some(link), true, None, None), Target::SegmentSize(size)) => {
                (address, port, Does::SmallerSegments { link: link.to_owned(), size })
            }
            _ => return None,
        };
        let opens_by_tcp = !self.opens || protocol == Protocol::Tcp;
        opens_by_tcp.then_some(ServiceRule { handle, address, protocol, port, does })
    }
}

/// Puts a value where there is none yet: a rule of these shapes asks for each once.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}

fn target(content: &Attributes<'_>) -> Option<Target> {
    let info = content.get(EXTENSION_INFO)?.value;
    let revision = content.get(EXTENSION_REVISION)?.u32_be()?;
    match (content.get(EXTENSION_NAME)?.text()?, revision) {
        // `struct xt_mark_tginfo2`
        ("MARK", 2) => {
            let at = |place: usize| Some(u32::from_ne_bytes(info.get(place..place + 4)?.try_into().ok()?));
            Some(Target::Mark { value: at(0)?, mask: at(4)? })
        }
        // `struct xt_tcpmss_info`; all bits are `XT_TCPMSS_CLAMP_PMTU`.
        ("TCPMSS", 0) => {
            let size = u16::from_ne_bytes(info.get(..2)?.try_into().ok()?);
            (size != u16::MAX).then_some(Target::SegmentSize(size))
        }
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Returns the text in front of the zero that ends it.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

fn value<'a>(content: &Attributes<'a>, of: u16) -> Option<&'a [u8]> {
    Some(content.get(of)?.attributes().get(data::VALUE)?.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Messages;
    use crate::kernel::nftables::wire::{HEADER, ITEM};
    use proptest::prelude::*;

    type Writes = Box<dyn Fn(&mut Messages)>;
    type Expressions = Vec<(&'static str, Writes)>;

    /// Reads a rule of these expressions.
    fn read(expressions: &[&Expressions]) -> Option<ServiceRule> {
        let mut messages = Messages::new();
        messages.begin(0, 0).header(&[2, 0, 0, 0]).attribute(HANDLE, &7_u64.to_be_bytes()).nest(rule::EXPRESSIONS);
        for (name, write) in expressions.iter().copied().flatten() {
            messages.nest(ITEM).text(NAME, name).nest(CONTENT);
            write(&mut messages);
            messages.end().end();
        }
        messages.end();
        service_rule(&Attributes::new(&messages.bytes()[16 + HEADER..]))
    }

    /// A part of a header is this, or with another operation something else.
    fn header(base: u32, offset: u32, value: &[u8], operation: u32) -> Expressions {
        let (value, length) = (value.to_vec(), u32::try_from(value.len()).expect("it is short"));
        let load: Writes = Box::new(move |messages| {
            messages.u32_be(BASE, base).u32_be(OFFSET, offset).u32_be(LENGTH, length);
        });
        vec![("payload", load), ("cmp", compared(value, operation))]
    }

    fn known(key: u32, value: &[u8]) -> Expressions {
        let load: Writes = Box::new(move |messages| {
            messages.u32_be(META_KEY, key);
        });
        vec![("meta", load), ("cmp", compared(value.to_vec(), compare::EQUAL))]
    }

    fn compared(value: Vec<u8>, operation: u32) -> Writes {
        Box::new(move |messages| {
            messages.u32_be(OPERATION, operation).nest(COMPARED).attribute(data::VALUE, &value).end();
        })
    }

    /// `--tcp-flags SYN,RST SYN` as iptables 1.8.8 and newer write it, or the same with other flags and another mask.
    fn flags(mask: u8, value: u8) -> Expressions {
        let [load, compare] = <[_; 2]>::try_from(header(base::TRANSPORT, tcp::FLAGS, &[value], compare::EQUAL))
            .unwrap_or_else(|_| panic!("two expressions"));
        let masked: Writes = Box::new(move |messages| {
            messages.nest(MASK).attribute(data::VALUE, &[mask]).end().nest(XOR).attribute(data::VALUE, &[0]).end();
        });
        vec![load, ("bitwise", masked), compare]
    }

    fn extension(kind: &'static str, name: &'static str, revision: u32, info: Vec<u8>) -> Expressions {
        let write: Writes = Box::new(move |messages| {
            messages.text(EXTENSION_NAME, name).u32_be(EXTENSION_REVISION, revision).attribute(EXTENSION_INFO, &info);
        });
        vec![(kind, write)]
    }

    /// `struct xt_tcp`: ports of the source and of the destination, an option, the flags' mask and value, what is inverted.
    fn tcp_match(ports: [u16; 4], rest: [u8; 4]) -> Expressions {
        let info = ports.iter().flat_map(|port| port.to_ne_bytes()).chain(rest).chain([0; 4]).collect();
        extension("match", "tcp", 0, info)
    }

    fn mark(value: u32, mask: u32) -> Expressions {
        extension("target", "MARK", 2, [value.to_ne_bytes(), mask.to_ne_bytes()].concat())
    }

    fn segments(size: u16) -> Expressions {
        extension("target", "TCPMSS", 0, [&size.to_ne_bytes()[..], &[0; 6]].concat())
    }

    const ADDRESS: [u8; 4] = [203, 0, 113, 7];

    fn to() -> Expressions {
        header(base::NETWORK, 16, &ADDRESS, compare::EQUAL)
    }

    fn from() -> Expressions {
        header(base::NETWORK, 12, &ADDRESS, compare::EQUAL)
    }

    fn of_tcp() -> Expressions {
        known(meta::PROTOCOL, &[6])
    }

    fn by(link: &str) -> Expressions {
        known(meta::INPUT_LINK, link.as_bytes())
    }

    fn port(offset: u32) -> Expressions {
        header(base::TRANSPORT, offset, &80_u16.to_be_bytes(), compare::EQUAL)
    }

    #[test]
    fn rules_that_mark_packets_to_a_port_are_read_as_any_version_writes_them() {
        let expected = |address: IpAddr| ServiceRule {
            handle: 7,
            address,
            protocol: Protocol::Tcp,
            port: 80,
            does: Does::Mark { value: 0x35c6, mask: u32::MAX },
        };
        let counter: Expressions = vec![("counter", Box::new(|_| {}))];
        let by_module = tcp_match([0, u16::MAX, 80, 80], [0; 4]);
        let v4 = Some(expected(ADDRESS.into()));
        for port in [port(2), by_module] {
            let marks = mark(0x35c6, u32::MAX);
            assert_eq!(read(&[&to(), &of_tcp(), &port, &counter, &marks]), v4);
            assert_eq!(read(&[&of_tcp(), &to(), &port, &marks]), v4);
            assert_eq!(read(&[&header(base::NETWORK, 9, &[6], compare::EQUAL), &to(), &port, &marks]), v4);
            let v6: Ipv6Addr = "2001:db8::7".parse().expect("an address");
            let to = header(base::NETWORK, 24, &v6.octets(), compare::EQUAL);
            assert_eq!(read(&[&to, &of_tcp(), &port, &marks]), Some(expected(v6.into())));
        }
        let udp = extension("match", "udp", 0, [0_u16, u16::MAX, 80, 80, 0].map(u16::to_ne_bytes).concat());
        let found = read(&[&to(), &known(meta::PROTOCOL, &[17]), &udp, &mark(5, 7)]).expect("it is of this shape");
        assert_eq!((found.protocol, found.does), (Protocol::Udp, Does::Mark { value: 5, mask: 7 }));
        for (flags, is_read) in [(2_u32, true), (3, false), (6, false)] {
            let mut info = [0; 296];
            for (at, bytes) in [(0, &80_u16.to_ne_bytes()[..]), (2, &80_u16.to_ne_bytes()), (284, &flags.to_ne_bytes())]
            {
                info[at..at + bytes.len()].copy_from_slice(bytes);
            }
            let sctp = extension("match", "sctp", 0, info.to_vec());
            let found = read(&[&to(), &known(meta::PROTOCOL, &[132]), &sctp, &mark(5, 7)]);
            assert_eq!(found.map(|found| (found.protocol, found.port)), is_read.then_some((Protocol::Sctp, 80)));
        }
    }

    #[test]
    fn rules_that_have_answers_announce_smaller_segments_are_read_as_any_version_writes_them() {
        let by_module = tcp_match([80, 80, 0, u16::MAX], [0, SYN_RST, SYN, 0]);
        let newer: Expressions = port(0).into_iter().chain(flags(SYN_RST, SYN)).collect();
        for opening in [newer, by_module] {
            let found = read(&[&from(), &by("kube-bridge\0"), &of_tcp(), &opening, &segments(1440)]);
            let does = Does::SmallerSegments { link: "kube-bridge".to_owned(), size: 1440 };
            let expected = ServiceRule { handle: 7, address: ADDRESS.into(), protocol: Protocol::Tcp, port: 80, does };
            assert_eq!(found, Some(expected));
            for other in [
                read(&[&from(), &by("kube-"), &of_tcp(), &opening, &segments(1440)]),
                read(&[&from(), &of_tcp(), &opening, &segments(1440)]),
                read(&[&from(), &by("kube-bridge\0"), &of_tcp(), &opening, &segments(u16::MAX)]),
                read(&[&to(), &by("kube-bridge\0"), &of_tcp(), &opening, &segments(1440)]),
            ] {
                assert_eq!(other, None);
            }
        }
        for other in [flags(SYN_RST, SYN_RST), flags(SYN_RST | 1, SYN), Vec::new()] {
            assert_eq!(read(&[&from(), &by("kube-bridge\0"), &of_tcp(), &port(0), &other, &segments(1440)]), None);
        }
    }

    #[test]
    fn what_asks_or_does_anything_else_is_somebody_elses() {
        let marks = || mark(0x35c6, u32::MAX);
        let network = header(base::NETWORK, 16, &ADDRESS[..3], compare::EQUAL);
        let elsewhere = header(base::NETWORK, 16, &ADDRESS, compare::UNEQUAL);
        let comment = extension("match", "comment", 0, b"mine\0\0\0\0".to_vec());
        let accept: Expressions = vec![("immediate", Box::new(|_| {}))];
        for others in [
            read(&[&network, &of_tcp(), &port(2), &marks()]),
            read(&[&elsewhere, &of_tcp(), &port(2), &marks()]),
            read(&[&to(), &of_tcp(), &marks()]),
            read(&[&to(), &port(2), &marks()]),
            read(&[&to(), &of_tcp(), &port(2)]),
            read(&[&to(), &of_tcp(), &port(2), &accept]),
            read(&[&to(), &of_tcp(), &port(2), &comment, &marks()]),
            read(&[&to(), &from(), &of_tcp(), &port(2), &marks()]),
            read(&[&to(), &to(), &of_tcp(), &port(2), &marks()]),
            read(&[&to(), &of_tcp(), &port(0), &marks()]),
            read(&[&to(), &by("eth0\0"), &of_tcp(), &port(2), &marks()]),
            read(&[&to(), &of_tcp(), &port(2), &flags(SYN_RST, SYN), &marks()]),
            read(&[&to(), &of_tcp(), &port(2), &extension("target", "MARK", 1, vec![0; 8])]),
            read(&[&to(), &of_tcp(), &port(2), &extension("target", "CONNMARK", 2, vec![0; 8])]),
            read(&[&to(), &of_tcp(), &tcp_match([0, u16::MAX, 80, 81], [0; 4]), &marks()]),
            read(&[&to(), &of_tcp(), &tcp_match([0, u16::MAX, 80, 80], [0, 0, 0, 2]), &marks()]),
            read(&[&to(), &of_tcp(), &tcp_match([0, u16::MAX, 80, 80], [3, 0, 0, 0]), &marks()]),
            read(&[&to(), &known(meta::PROTOCOL, &[17]), &tcp_match([0, u16::MAX, 80, 80], [0; 4]), &marks()]),
        ] {
            assert_eq!(others, None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            info in proptest::collection::vec(any::<u8>(), 0..300),
            value in proptest::collection::vec(any::<u8>(), 0..20),
            offset in 0_u32..30,
        ) {
            for name in ["tcp", "udp", "sctp"] {
                let matching = extension("match", name, 0, info.clone());
                let _ = read(&[&to(), &known(meta::PROTOCOL, &value), &matching, &mark(1, 2)]);
            }
            for (name, revision) in [("MARK", 2), ("TCPMSS", 0)] {
                let _ = read(&[&to(), &of_tcp(), &port(2), &extension("target", name, revision, info.clone())]);
            }
            let _ = read(&[&header(1 + offset % 2, offset, &value, compare::EQUAL), &by("x"), &flags(1, 1)]);
            let _ = service_rule(&Attributes::new(&info));
        }
    }
}
