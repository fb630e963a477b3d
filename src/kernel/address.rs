//! Addresses on network devices.
//!
//! Kernel: rtnetlink `RTM_*ADDR` (include/uapi/linux/if_addr.h). Ours: every address on a device that is
//! ours, but for the link-local ones (`fe80::/10`) that the kernel puts there by itself.

use std::fmt;

use ipnet::IpNet;

use super::link::LinkName;

/// An address on a device. The prefix keeps its host bits: `10.244.1.1/24`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AddressKey {
    pub link: LinkName,
    pub address: IpNet,
}

impl fmt::Display for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}
