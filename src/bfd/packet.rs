//! BFD Control packet: RFC 5880 4.1, and the checks of 6.8.6 that need no session.
//!
//! A packet that is not as the RFC wants it is discarded without an answer. Intervals are microseconds on the wire.

use std::fmt;

/// Session state (RFC 5880 4.1, *Sta*).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

/// Reason for the last change of a session's state (RFC 5880 4.1, *Diag*); unassigned codes are kept as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Diagnostic(u8);

/// BFD Control packet without authentication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    /// P: an answer is requested.
    pub poll: bool,
    /// F: the answer.
    pub is_final: bool,
    /// C: the sender's BFD does not share fate with its control plane.
    pub independent: bool,
    /// D: the sender knows otherwise that the path is up, and wishes no periodic packets.
    pub demand: bool,
    /// Detect Mult; not zero.
    pub multiplier: u8,
    /// Discriminator of the sender; not zero.
    pub mine: u32,
    /// Discriminator of the receiver; zero while the sender does not know it.
    pub yours: u32,
    /// Desired Min TX Interval, in microseconds.
    pub send: u32,
    /// Required Min RX Interval, in microseconds.
    pub receive: u32,
    /// Required Min Echo RX Interval, in microseconds.
    pub echo: u32,
}

/// Reason for discarding a packet (RFC 5880 6.8.6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Discarded {
    /// The version is not 1.
    Version,
    /// The length field is too small, or more than the datagram has.
    Length,
    /// Detect Mult is zero.
    Multiplier,
    /// The bit that is reserved for point-to-multipoint is set.
    Multipoint,
    /// My Discriminator is zero.
    NoDiscriminator,
    /// Your Discriminator is zero although the sender has a session with us.
    Unaddressed,
    /// It has authentication, and no session of ours uses any.
    Authenticated,
}

/// Length of a packet without authentication, in bytes.
pub const LENGTH: usize = 24;
/// Least length with authentication.
const WITH_AUTHENTICATION: u8 = 26;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

impl State {
    fn number(self) -> u8 {
        match self {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3,
        }
    }

    /// Reads the two high bits of a byte.
    fn of_bits(byte: u8) -> State {
        match byte >> 6 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::AdminDown => "AdminDown",
            State::Down => "Down",
            State::Init => "Init",
            State::Up => "Up",
        })
    }
}

impl Diagnostic {
    pub const NONE: Diagnostic = Diagnostic(0);
    pub const TIME_EXPIRED: Diagnostic = Diagnostic(1);
    pub const NEIGHBOR_SIGNALED_DOWN: Diagnostic = Diagnostic(3);
    pub const ADMINISTRATIVELY_DOWN: Diagnostic = Diagnostic(7);

    /// Number on the wire, below 32.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // IANA, *BFD Diagnostic Codes*.
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            9 => "mis-connectivity defect",
            other => return write!(f, "diagnostic {other}"),
        })
    }
}

impl Packet {
    /// Reads a datagram. What follows the packet's own length is ignored.
    ///
    /// # Errors
    /// The packet is to be discarded. The checks are made in the order of RFC 5880 6.8.6.
    pub fn decode(datagram: &[u8]) -> Result<Packet, Discarded> {
        let [first, second, multiplier, length, rest @ ..] = datagram else { return Err(Discarded::Length) };
        if first >> 5 != VERSION {
            return Err(Discarded::Version);
        }
        let is_authenticated = second & AUTHENTICATION != 0;
        let least = if is_authenticated { WITH_AUTHENTICATION } else { LENGTH as u8 };
        if *length < least || usize::from(*length) > datagram.len() {
            return Err(Discarded::Length);
        }
        if *multiplier == 0 {
            return Err(Discarded::Multiplier);
        }
        if second & MULTIPOINT != 0 {
            return Err(Discarded::Multipoint);
        }
        let mut words = rest.chunks_exact(4).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
        let mut word = || words.next().ok_or(Discarded::Length);
        let (mine, yours, send, receive, echo) = (word()?, word()?, word()?, word()?, word()?);
        if mine == 0 {
            return Err(Discarded::NoDiscriminator);
        }
        let state = State::of_bits(*second);
        if yours == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(Discarded::Unaddressed);
        }
        if is_authenticated {
            return Err(Discarded::Authenticated);
        }
        Ok(Packet {
            diagnostic: Diagnostic(first & 0x1f),
            state,
            poll: second & POLL != 0,
            is_final: second & FINAL != 0,
            independent: second & INDEPENDENT != 0,
            demand: second & DEMAND != 0,
            multiplier: *multiplier,
            mine,
            yours,
            send,
            receive,
            echo,
        })
    }

    pub fn encode(&self) -> [u8; LENGTH] {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = bit(self.poll, POLL)
            | bit(self.is_final, FINAL)
            | bit(self.independent, INDEPENDENT)
            | bit(self.demand, DEMAND);
        let head =
            [VERSION << 5 | self.diagnostic.0 & 0x1f, self.state.number() << 6 | flags, self.multiplier, LENGTH as u8];
        let words = [self.mine, self.yours, self.send, self.receive, self.echo].map(u32::to_be_bytes);
        let mut bytes = [0; LENGTH];
        let all = head.into_iter().chain(words.into_iter().flatten());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet of a session that is up, as the RFC's figure lays it out.
    const UP: [u8; LENGTH] =
        [0x20, 0xc0, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0x04, 0x93, 0xe0, 0, 0x04, 0x93, 0xe0, 0, 0, 0, 0];

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Packet, Discarded> {
        let mut bytes = UP.to_vec();
        change(&mut bytes);
        Packet::decode(&bytes)
    }

    #[test]
    fn a_packet_is_laid_out_as_the_rfc_draws_it() {
        let packet = Packet {
            diagnostic: Diagnostic::NONE,
            state: State::Up,
            poll: false,
            is_final: false,
            independent: false,
            demand: false,
            multiplier: 3,
            mine: 7,
            yours: 9,
            send: 300_000,
            receive: 300_000,
            echo: 0,
        };
        assert_eq!(packet.encode(), UP);
        assert_eq!(Packet::decode(&UP), Ok(packet));
        let poll = Packet { poll: true, independent: true, diagnostic: Diagnostic(31), ..packet };
        assert_eq!(poll.encode()[..2], [0x3f, 0xe8]);
        let answer = Packet { is_final: true, demand: true, state: State::Init, ..packet };
        assert_eq!(answer.encode()[1], 0x92);
    }

    #[test]
    fn what_the_rfc_discards_is_discarded() {
        let check = |discarded, change: &dyn Fn(&mut Vec<u8>)| assert_eq!(with(|bytes| change(bytes)), Err(discarded));
        check(Discarded::Version, &|bytes| bytes[0] = 0x00);
        check(Discarded::Version, &|bytes| bytes[0] = 0x40);
        check(Discarded::Length, &|bytes| bytes[3] = 23);
        check(Discarded::Length, &|bytes| bytes[3] = 25);
        check(Discarded::Length, &|bytes| bytes.truncate(23));
        check(Discarded::Length, &|bytes| bytes.truncate(3));
        check(Discarded::Length, &|bytes| bytes.clear());
        check(Discarded::Length, &|bytes| bytes[1] |= AUTHENTICATION);
        check(Discarded::Multiplier, &|bytes| bytes[2] = 0);
        check(Discarded::Multipoint, &|bytes| bytes[1] |= MULTIPOINT);
        check(Discarded::NoDiscriminator, &|bytes| bytes[7] = 0);
        check(Discarded::Unaddressed, &|bytes| bytes[11] = 0);
        check(Discarded::Authenticated, &|bytes| {
            (bytes[1], bytes[3]) = (bytes[1] | AUTHENTICATION, 28);
            bytes.extend([1, 4, 0, 0]);
        });
    }

    #[test]
    fn a_session_begins_with_packets_to_nobody() {
        for (bits, state) in [(0x00, State::AdminDown), (0x40, State::Down)] {
            let packet = with(|bytes| (bytes[1], bytes[11]) = (bits, 0));
            assert_eq!(packet.map(|packet| (packet.state, packet.yours)), Ok((state, 0)));
        }
        assert_eq!(with(|bytes| (bytes[1], bytes[11]) = (0x80, 0)), Err(Discarded::Unaddressed), "Init");
    }

    #[test]
    fn bytes_behind_the_packet_do_not_count() {
        assert_eq!(with(|bytes| bytes.extend([1, 2, 3])), Packet::decode(&UP));
    }

    prop_compose! {
        fn packets()(
            bytes in any::<[u8; 2]>(), multiplier in 1..=u8::MAX, mine in 1..=u32::MAX, words in any::<[u32; 4]>()
        ) -> Packet {
            let [first, second] = bytes;
            let [yours, send, receive, echo] = words;
            let state = State::of_bits(second);
            Packet {
                diagnostic: Diagnostic(first & 0x1f),
                state,
                poll: second & POLL != 0,
                is_final: second & FINAL != 0,
                independent: second & INDEPENDENT != 0,
                demand: second & DEMAND != 0,
                multiplier,
                mine,
                yours: if matches!(state, State::Init | State::Up) { yours.max(1) } else { yours },
                send,
                receive,
                echo,
            }
        }
    }

    proptest! {
        #[test]
        fn every_packet_is_read_as_it_was_written(packet in packets()) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }

        #[test]
        fn bytes_by_chance_break_nothing(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            }
        }

        #[test]
        fn a_packet_with_changed_bits_is_read_or_refused_and_never_misread(
            packet in packets(), at in 0..LENGTH, bits in 1..=u8::MAX, cut in 0..=LENGTH
        ) {
            let mut bytes = packet.encode();
            bytes[at] ^= bits;
            if let Ok(read) = Packet::decode(&bytes) {
                prop_assert!(read != packet, "the change is seen");
            }
            prop_assert!(cut == LENGTH || Packet::decode(&bytes[..cut]).is_err());
        }
    }
}
