//! Values of which there are many, without a frame around each: addresses, ranges, and columns of numbers.
//!
//! An address is its length in bytes (4 or 16) and itself; a range is an address and the length of its prefix. A column
//! holds one number for each row of a table. Zeros at its end are left out, so that a column of zeros takes no
//! room, and a column that an earlier program did not know reads as zeros.

use std::iter;
use std::net::IpAddr;

use ipnet::IpNet;

/// Addresses, one behind the other.
pub fn addresses<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    addresses.into_iter().for_each(|address| put_address(&mut bytes, address));
    bytes
}

/// Adds one more address.
pub fn put_address(bytes: &mut Vec<u8>, address: &IpAddr) {
    match address {
        IpAddr::V4(address) => {
            bytes.push(4);
            bytes.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes.push(16);
            bytes.extend_from_slice(&address.octets());
        }
    }
}

/// Ranges, one behind the other.
pub fn ranges<'a>(ranges: impl IntoIterator<Item = &'a IpNet>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for range in ranges {
        put_address(&mut bytes, &range.addr());
        bytes.push(range.prefix_len());
    }
    bytes
}

/// A column as it is written.
pub fn column(numbers: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut numbers: Vec<u32> = numbers.into_iter().collect();
    let used = numbers.iter().rposition(|number| *number != 0).map_or(0, |last| last + 1);
    numbers.truncate(used);
    numbers
}

/// The numbers of a column, with those that were left out.
pub fn rows(column: Vec<u32>) -> impl Iterator<Item = u32> {
    column.into_iter().chain(iter::repeat(0))
}

/// Reads what was packed, from the front.
pub struct Packed<'a>(&'a [u8]);

impl<'a> Packed<'a> {
    pub fn new(bytes: &'a [u8]) -> Packed<'a> {
        Packed(bytes)
    }

    /// The next address; `None` at the end and where there is something else.
    pub fn address(&mut self) -> Option<IpAddr> {
        let (length, rest) = self.0.split_first()?;
        let (address, rest) = match length {
            4 => rest.split_first_chunk::<4>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
            16 => rest.split_first_chunk::<16>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
            _ => return None,
        };
        self.0 = rest;
        Some(address)
    }

    /// The next range.
    fn range(&mut self) -> Option<IpNet> {
        let address = self.address()?;
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        IpNet::new(address, *length).ok()
    }

    /// So many addresses; `None` if there are fewer.
    pub fn take(&mut self, count: u32) -> Option<Vec<IpAddr>> {
        (0..count).map(|_| self.address()).collect()
    }

    /// All addresses that are left; `None` if there is something else.
    pub fn all(mut self) -> Option<Vec<IpAddr>> {
        self.all_of(Packed::address)
    }

    /// All ranges that are left; `None` if there is something else.
    pub fn all_ranges(mut self) -> Option<Vec<IpNet>> {
        self.all_of(Packed::range)
    }

    fn all_of<T>(&mut self, next: fn(&mut Packed<'a>) -> Option<T>) -> Option<Vec<T>> {
        let mut all = Vec::new();
        while !self.0.is_empty() {
            all.push(next(self)?);
        }
        Some(all)
    }
}

/// The only address; `None` if there is none, more than one, or something else.
pub fn only_address(bytes: &[u8]) -> Option<IpAddr> {
    let mut packed = Packed::new(bytes);
    packed.address().filter(|_| packed.0.is_empty())
}

/// The only range.
pub fn only_range(bytes: &[u8]) -> Option<IpNet> {
    let mut packed = Packed::new(bytes);
    packed.range().filter(|_| packed.0.is_empty())
}
