//! Words for addresses: families, protocols, prefixes.
//!
//! Both address families are values here, never generic parameters: code is written once and asks
//! a [`Family`] where the two differ. Prefixes are `ipnet::IpNet`, addresses `std::net::IpAddr`.

mod family;
mod protocol;

pub use family::{Family, PerFamily};
pub use protocol::Protocol;
