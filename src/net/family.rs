//! The two address families, and a pair of values with one for each.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both families, in the order in which they are always worked on.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The length of a host prefix, in bits: 32 or 128.
    pub fn host_bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Returns the minimum length of a prefix that is neither a default route nor a part of one. No network is wider: IPv4
    /// is allocated in blocks of /8, and the widest block of IPv6 that is no part of the Internet is fc00::/7. Announcing
    /// 0.0.0.0/1 and 128.0.0.0/1, or 2000::/3, means the Internet.
    pub fn narrowest_default(self) -> u8 {
        match self {
            Family::V4 => 8,
            Family::V6 => 7,
        }
    }

    /// The family's number in Linux: `AF_INET` or `AF_INET6`, which netfilter shares.
    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// The family with this number in Linux; `None` for one that is neither.
    pub fn from_number(number: u8) -> Option<Family> {
        Family::BOTH.into_iter().find(|family| family.number() == number)
    }

    /// The prefix that covers one address and nothing else.
    pub fn host_prefix(address: IpAddr) -> IpNet {
        IpNet::from(address)
    }
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl From<IpNet> for Family {
    fn from(prefix: IpNet) -> Family {
        Family::from(prefix.addr())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One value for each address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PerFamily<T> {
    pub v4: T,
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Builds both values by asking for each family in turn.
    pub fn from_fn(mut value: impl FnMut(Family) -> T) -> PerFamily<T> {
        PerFamily { v4: value(Family::V4), v6: value(Family::V6) }
    }

    /// The value of one family.
    pub fn of(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The value of one family, to change it.
    pub fn of_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Both values with their families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        [(Family::V4, &self.v4), (Family::V6, &self.v6)].into_iter()
    }
}
