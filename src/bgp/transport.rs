//! Transport of a neighbour: the TCP connection under its session, as configured.
//!
//! RFC 4271 8.1.1 (port, passive), RFC 2385 (TCP MD5), RFC 5082 (GTSM, *TTL security*). This is a value; `driver`
//! applies it.
//!
//! In the kernel: a password is a key of `TCP_MD5SIG` on the dialling socket and, under the neighbour's address, on the
//! listening sockets. Hops are `IP_TTL` and `IPV6_UNICAST_HOPS`, the required remainder `IP_MINTTL` and
//! `IPV6_MINHOPCOUNT`.
//!
//! A neighbour with a link-local address is on a link, whose index is in the address (`net::link_local`). Its session has link-local
//! addresses on both ends, and a listening socket of its own on that link.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::net::ttl_security::least_ttl;

/// The TCP port of BGP.
pub const PORT: u16 = 179;

/// Transport of one neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transport {
    /// Destination port.
    pub port: u16,
    /// Local address: the source of dials, and the only destination of accepted connections. `None` for any, as the
    /// kernel chooses.
    pub local: Option<IpAddr>,
    /// TCP MD5. Connections without it, or with another one, are refused.
    pub password: Option<Password>,
    pub time_to_live: TimeToLive,
    /// Name of the link of a neighbour with a link-local address, for texts.
    pub link: Option<CompactString>,
}

impl Default for Transport {
    fn default() -> Transport {
        Transport { port: PORT, local: None, password: None, time_to_live: TimeToLive::System, link: None }
    }
}

/// TTL (hop limit) of sent packets, and the minimum required of received ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeToLive {
    /// System default: for IBGP neighbours.
    System,
    /// Number of hops: 1 for an EBGP neighbour on our link, more for *multihop*.
    Hops(u8),
    /// GTSM: packets are sent with 255, and received ones that have passed more hops are dropped by the kernel. 1 for a
    /// neighbour on our link. Both sides have to do it.
    Secured { hops: u8 },
}

/// Password for TCP MD5, from 1 to 80 bytes. It is never displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Box<[u8]>);

/// Reason for rejecting a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a password has from 1 to {} bytes, and this one has {length}", Password::LONGEST)]
pub struct Unfit {
    pub length: usize,
}

impl TimeToLive {
    /// TTL of sent packets.
    pub fn sent(self) -> Option<u8> {
        match self {
            TimeToLive::System => None,
            TimeToLive::Hops(hops) => Some(hops.max(1)),
            TimeToLive::Secured { .. } => Some(u8::MAX),
        }
    }

    /// Minimum TTL of received packets.
    pub fn least(self) -> Option<u8> {
        match self {
            TimeToLive::System | TimeToLive::Hops(_) => None,
            TimeToLive::Secured { hops } => Some(least_ttl(hops)),
        }
    }
}

impl Password {
    /// Limit of the kernel (`TCP_MD5SIG_MAXKEYLEN`).
    pub const LONGEST: usize = 80;

    /// Builds a password of these bytes.
    ///
    /// # Errors
    /// There are none, or more than [`Password::LONGEST`].
    pub fn new(text: impl AsRef<[u8]>) -> Result<Password, Unfit> {
        let length = text.as_ref().len();
        match length {
            1..=Self::LONGEST => Ok(Password(text.as_ref().into())),
            _ => Err(Unfit { length }),
        }
    }

    /// Key for the kernel, and for nothing else.
    pub(in crate::bgp) fn key(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_so_many_hops_away_leaves_so_much_of_the_255() {
        let least = [1, 2, 255, 0].map(|hops| TimeToLive::Secured { hops }.least());
        assert_eq!(least, [Some(255), Some(254), Some(1), Some(255)]);
        assert_eq!(TimeToLive::Hops(0).sent(), Some(1), "with 0 nothing would leave");
    }

    #[test]
    fn a_password_is_never_shown() {
        let password = Password::new("open sesame").unwrap();
        let transport = Transport { password: Some(password), ..Transport::default() };
        assert!(!format!("{transport:?} {transport:#?}").contains("sesame"));
    }

    #[test]
    fn a_password_has_the_length_that_the_kernel_takes() {
        assert_eq!(Password::new(""), Err(Unfit { length: 0 }));
        assert!(Password::new([b'x'; 80]).is_ok());
        assert_eq!(
            Password::new([b'x'; 81]).unwrap_err().to_string(),
            "a password has from 1 to 80 bytes, and this one has 81"
        );
    }
}
