//! AS_PATH: the autonomous systems that a route has traversed, the nearest first.
//!
//! RFC 4271 4.3 and 5.1.2, with four-octet AS numbers everywhere inside (RFC 6793). A peer with two-octet numbers is
//! sent AS_TRANS (23456) for those that do not fit, and the whole path in AS4_PATH; both are merged on receipt. AS 0 is
//! malformed (RFC 7607). We are in no confederation, so that its segments are malformed, too (RFC 5065 5).
//!
//! A path is stored in its four-octet encoding: it is copied into messages much more often than it is examined.

use std::fmt;

use super::reader::Reader;

/// Placeholder for an AS number that does not fit into two octets.
pub const AS_TRANS: u32 = 23456;

const SET: u8 = 1;
const SEQUENCE: u8 = 2;
const CONFEDERATION_SEQUENCE: u8 = 3;
const CONFEDERATION_SET: u8 = 4;
const LONGEST_SEGMENT: usize = 255;

/// Well-formed AS path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AsPath(Box<[u8]>);

/// Segment of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// An unordered AS_SET, which counts as one hop; otherwise an AS_SEQUENCE.
    pub is_set: bool,
    /// AS numbers of four bytes each.
    numbers: &'a [u8],
}

/// Attribute that is decoded: AS_PATH must not have confederation segments, AS4_PATH drops them (RFC 6793 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    AsPath,
    As4Path,
}

impl AsPath {
    /// Builds a path of one AS_SEQUENCE.
    pub fn sequence(numbers: &[u32]) -> AsPath {
        let mut bytes = Vec::with_capacity(2 + 4 * numbers.len());
        for part in numbers.chunks(LONGEST_SEGMENT) {
            push_segment(&mut bytes, false, part.iter().copied());
        }
        AsPath(bytes.into())
    }

    /// Decodes an attribute with four-octet or two-octet AS numbers; `None` when it is malformed.
    pub(super) fn decode(bytes: &[u8], four_octets: bool, kind: Kind) -> Option<AsPath> {
        let mut reader = Reader::new(bytes);
        let width = if four_octets { 4 } else { 2 };
        let mut path = Vec::with_capacity(if four_octets { bytes.len() } else { bytes.len() * 2 });
        while !reader.is_empty() {
            let (segment, count) = (reader.u8()?, reader.u8()?);
            let mut numbers = reader.part(usize::from(count) * width)?;
            match segment {
                CONFEDERATION_SEQUENCE | CONFEDERATION_SET if kind == Kind::As4Path => continue,
                SET | SEQUENCE if count > 0 => path.extend_from_slice(&[segment, count]),
                _ => return None,
            }
            while !numbers.is_empty() {
                let number = if four_octets { numbers.u32()? } else { u32::from(numbers.u16()?) };
                if number == 0 {
                    return None;
                }
                path.extend_from_slice(&number.to_be_bytes());
            }
        }
        Some(AsPath(path.into()))
    }

    /// Four-octet encoding.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Two-octet encoding.
    pub(super) fn two_octets(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len());
        for segment in self.segments() {
            out.extend_from_slice(&[if segment.is_set { SET } else { SEQUENCE }, segment.len() as u8]);
            for number in segment.numbers() {
                let short = u16::try_from(number).unwrap_or(AS_TRANS as u16);
                out.extend_from_slice(&short.to_be_bytes());
            }
        }
        out
    }

    /// Returns whether an AS number does not fit into two octets.
    pub(super) fn needs_four_octets(&self) -> bool {
        self.numbers().any(|number| number > u32::from(u16::MAX))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length for best-path selection: an AS_SET counts as one (RFC 4271 9.1.2.2 a).
    pub fn length(&self) -> usize {
        self.segments().map(|segment| if segment.is_set { 1 } else { segment.len() }).sum()
    }

    /// All AS numbers in order, including those of sets.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments().flat_map(|segment| segment.numbers())
    }

    /// Neighbouring AS: the first number, if the path begins with a sequence.
    pub fn neighbour(&self) -> Option<u32> {
        self.segments().next().filter(|segment| !segment.is_set)?.numbers().next()
    }

    /// Origin AS: the last number, if the path ends with a sequence.
    pub fn origin(&self) -> Option<u32> {
        self.segments().last().filter(|segment| !segment.is_set)?.numbers().last()
    }

    pub fn contains(&self, number: u32) -> bool {
        self.numbers().any(|one| one == number)
    }

    /// Segments in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let mut reader = Reader::new(&self.0);
        std::iter::from_fn(move || {
            let (kind, count) = (reader.u8()?, reader.u8()?);
            Some(Segment { is_set: kind == SET, numbers: reader.bytes(usize::from(count) * 4)? })
        })
    }

    /// Prepends an AS number the given number of times (RFC 4271 5.1.2 b).
    pub fn prepended(&self, number: u32, times: usize) -> AsPath {
        let own = std::iter::repeat_n(number, times);
        self.behind(own.collect())
    }

    /// Prepends a sequence, which is merged with a leading sequence of the path as far as there is room.
    fn behind(&self, mut front: Vec<u32>) -> AsPath {
        let mut rest = self.0.as_ref();
        if let Some(first) = self.segments().next().filter(|first| !first.is_set && !front.is_empty()) {
            let joined = front.len() + first.len();
            if joined <= LONGEST_SEGMENT {
                front.extend(first.numbers());
                rest = rest.get(2 + first.numbers.len()..).unwrap_or_default();
            }
        }
        let mut bytes = Vec::with_capacity(2 + 4 * front.len() + rest.len());
        // A remainder is written first, so that full segments follow it and the path can still grow at its front.
        let (head, full) = front.split_at(front.len() % LONGEST_SEGMENT);
        for part in std::iter::once(head).chain(full.chunks(LONGEST_SEGMENT)).filter(|part| !part.is_empty()) {
            push_segment(&mut bytes, false, part.iter().copied());
        }
        bytes.extend_from_slice(rest);
        AsPath(bytes.into())
    }

    /// Merges the AS_PATH (`self`) and the AS4_PATH (`four`) of a peer with two-octet numbers; AS4_PATH may lack
    /// numbers that speakers with two octets have prepended (RFC 6793 4.2.3).
    pub(super) fn merged(&self, four: &AsPath) -> AsPath {
        let Some(mut missing) = self.length().checked_sub(four.length()) else { return self.clone() };
        let mut bytes = Vec::new();
        for segment in self.segments() {
            let taken = if segment.is_set { missing.min(1) * segment.len() } else { missing.min(segment.len()) };
            if taken == 0 {
                break;
            }
            missing -= if segment.is_set { 1 } else { taken };
            push_segment(&mut bytes, segment.is_set, segment.numbers().take(taken));
        }
        let front = AsPath(bytes.into());
        match front.segments().collect::<Vec<_>>().as_slice() {
            [only] if !only.is_set => four.behind(only.numbers().collect()),
            _ => AsPath([front.bytes(), four.bytes()].concat().into()),
        }
    }
}

fn push_segment(out: &mut Vec<u8>, is_set: bool, numbers: impl ExactSizeIterator<Item = u32>) {
    out.extend_from_slice(&[if is_set { SET } else { SEQUENCE }, numbers.len() as u8]);
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

impl<'a> Segment<'a> {
    /// Number of AS numbers; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a segment without numbers is malformed and never here")]
    pub fn len(&self) -> usize {
        self.numbers.len() / 4
    }

    pub fn numbers(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.numbers.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

impl fmt::Display for AsPath {
    /// Formats the path as routers print it: `65001 65002 {65003,65004}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments().enumerate() {
            let words: Vec<String> = segment.numbers().map(|number| number.to_string()).collect();
            let space = if index == 0 { "" } else { " " };
            match segment.is_set {
                true => write!(f, "{space}{{{}}}", words.join(","))?,
                false => write!(f, "{space}{}", words.join(" "))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(bytes: &[u8]) -> Option<String> {
        AsPath::decode(bytes, true, Kind::AsPath).map(|path| path.to_string())
    }

    #[test]
    fn sequences_and_sets_are_read() {
        let bytes = [2, 2, 0, 0, 0xfd, 0xe9, 0, 1, 0, 0, 1, 2, 0, 0, 0, 7, 0, 0, 0, 8];
        assert_eq!(four(&bytes).as_deref(), Some("65001 65536 {7,8}"));
        let path = AsPath::decode(&bytes, true, Kind::AsPath).unwrap();
        assert_eq!((path.length(), path.neighbour(), path.origin()), (3, Some(65001), None));
        assert_eq!(four(&[]).as_deref(), Some(""), "the path inside of an autonomous system");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        assert_eq!(four(&[2]), None, "an end within the head of a segment");
        assert_eq!(four(&[2, 0]), None, "a segment of nothing");
        assert_eq!(four(&[2, 1, 0, 0, 0]), None, "an end within a number");
        assert_eq!(four(&[5, 1, 0, 0, 0, 1]), None, "a kind that does not exist");
        assert_eq!(four(&[3, 1, 0, 0, 0, 1]), None, "a confederation");
        assert_eq!(four(&[2, 2, 0, 0, 0, 1, 0, 0, 0, 0]), None, "AS 0");
    }

    #[test]
    fn a_number_in_front_joins_the_sequence() {
        let path = AsPath::sequence(&[2, 3]);
        assert_eq!(path.prepended(1, 2), AsPath::sequence(&[1, 1, 2, 3]));
        assert_eq!(path.prepended(1, 0), path);
        assert_eq!(AsPath::default().prepended(9, 1).to_string(), "9");
        let set = AsPath::decode(&[1, 1, 0, 0, 0, 7], true, Kind::AsPath).unwrap();
        assert_eq!(set.prepended(9, 1).to_string(), "9 {7}");
    }

    #[test]
    fn a_path_grows_beyond_what_one_segment_holds() {
        let long = AsPath::sequence(&[5; 255]);
        let longer = long.prepended(9, 1);
        assert_eq!(longer.segments().map(|segment| segment.len()).collect::<Vec<_>>(), [1, 255]);
        assert_eq!(longer.prepended(9, 300).length(), 556);
        assert_eq!(AsPath::decode(longer.bytes(), true, Kind::AsPath), Some(longer));
    }

    #[test]
    fn two_octets_and_the_path_beside_them_become_one_again() {
        let path = AsPath::sequence(&[65001, 70000, 80000]);
        let short = AsPath::decode(&path.two_octets(), false, Kind::AsPath).unwrap();
        assert_eq!(short.to_string(), "65001 23456 23456");
        assert_eq!(short.merged(&path), path);
        // Two speakers without AS4_PATH support have prepended themselves.
        assert_eq!(short.prepended(64999, 2).merged(&path), path.prepended(64999, 2));
        // An AS4_PATH longer than the AS_PATH is ignored: RFC 6793 4.2.3.
        assert_eq!(AsPath::sequence(&[1]).merged(&path), AsPath::sequence(&[1]));
    }

    #[test]
    fn a_set_in_front_stays_a_set() {
        let bytes = [1, 2, 0, 1, 0, 2, 2, 1, 0x5b, 0xa0];
        let short = AsPath::decode(&bytes, false, Kind::AsPath).unwrap();
        assert_eq!(short.merged(&AsPath::sequence(&[70000])).to_string(), "{1,2} 70000");
    }

    #[test]
    fn a_confederation_is_left_out_of_what_is_beside() {
        let bytes = [3, 1, 0, 0, 0, 9, 2, 1, 0, 1, 0x11, 0x70];
        let path = AsPath::decode(&bytes, true, Kind::As4Path);
        assert_eq!(path, Some(AsPath::sequence(&[70000])));
    }
}
