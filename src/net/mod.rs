//! Types for addresses and neighbours: families, protocols, prefixes; autonomous systems and secrets.
//!
//! Both address families are values here, never generic parameters: code is written once and asks
//! a [`Family`] where the two differ. Prefixes are `ipnet::IpNet`, addresses `std::net::IpAddr`.

pub mod address_detection;
mod address_range;
pub mod asn;
pub mod base64;
mod bfd;
mod external_peer;
mod family;
pub mod go;
pub mod icmp;
mod link_address;
pub mod link_local;
mod node_annotations;
mod port_range;
mod prefixes;
mod protocol;
mod public_key;
mod secret;
pub mod server_url;
pub mod service_mark;
pub mod ttl_security;

pub use address_detection::AddressDetection;
pub use address_range::{AddressRange, NOT_OF_HOSTS, address_of, number_of};
pub use bfd::Bfd;
pub use external_peer::{Distance, ExternalPeer, Password, Remote, RemoteAs};
pub use family::{Family, PerFamily};
pub use link_address::LinkAddress;
pub use link_local::{LinkLocal, LinkNames};
pub use node_annotations::NodeAnnotations;
pub use port_range::PortRange;
pub use prefixes::Prefixes;
pub use protocol::Protocol;
pub use public_key::{NoPublicKey, PublicKey};
pub use secret::{NoSecret, Secret};
