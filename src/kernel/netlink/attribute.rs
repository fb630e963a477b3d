//! Attributes of the kernel's answers.
//!
//! Kernel: `struct nlattr`. The two highest bits of the kind are flags; they are taken off here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const KIND: u16 = 0x3fff;
const HEADER: usize = 4;

/// Walks over attributes, and ends where the bytes end or stop making sense.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

/// One attribute. The readers answer `None` when the value is too short; longer values are read from
/// their beginning, as the kernel does with structures that have grown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    /// The first attribute of this kind.
    pub fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        self.clone().find(|attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let (header, _) = self.rest.split_first_chunk::<HEADER>()?;
        let [l0, l1, k0, k1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & KIND, value })
    }
}

impl<'a> Attribute<'a> {
    /// The attributes inside.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub fn u16(&self) -> Option<u16> {
        self.value.first_chunk().copied().map(u16::from_ne_bytes)
    }

    pub fn u16_be(&self) -> Option<u16> {
        self.value.first_chunk().copied().map(u16::from_be_bytes)
    }

    pub fn u32(&self) -> Option<u32> {
        self.value.first_chunk().copied().map(u32::from_ne_bytes)
    }

    pub fn u32_be(&self) -> Option<u32> {
        self.value.first_chunk().copied().map(u32::from_be_bytes)
    }

    pub fn u64(&self) -> Option<u64> {
        self.value.first_chunk().copied().map(u64::from_ne_bytes)
    }

    pub fn u64_be(&self) -> Option<u64> {
        self.value.first_chunk().copied().map(u64::from_be_bytes)
    }

    /// Text up to the zero byte, or all of it; `None` when it is not UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        let bytes = self.value.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(bytes).ok()
    }

    /// An address whose length determines its family: exactly 4 or 16 bytes.
    pub fn address(&self) -> Option<IpAddr> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.value) {
            return Some(IpAddr::V4(Ipv4Addr::from(octets)));
        }
        <[u8; 16]>::try_from(self.value).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
    }
}
