//! The address by which other nodes route to this one: what was chosen last, and the next choice (`--node-ip-autodetect`).
//!
//! The rules of the choice are in [`crate::net::address_detection`]. The choice is made again whenever the facts of the host are read.

use std::net::IpAddr;

use crate::kernel::address::HostAddress;
use crate::model::DetectedAddresses;
use crate::net::address_detection::{Candidate, choose};
use crate::net::{AddressDetection, PerFamily};

/// The method, and what it has chosen.
pub struct Detection {
    method: AddressDetection,
    families: PerFamily<bool>,
    chosen: PerFamily<Option<IpAddr>>,
}

impl Detection {
    /// Nothing is chosen at first. `families` are those that are on.
    pub fn new(method: AddressDetection, families: PerFamily<bool>) -> Detection {
        Detection { method, families, chosen: PerFamily::default() }
    }

    pub fn method(&self) -> &AddressDetection {
        &self.method
    }

    pub fn chosen(&self) -> PerFamily<Option<IpAddr>> {
        self.chosen
    }

    /// The destinations whose source addresses the choice depends on.
    pub fn targets(&self) -> PerFamily<Option<IpAddr>> {
        let targets = self.method.targets();
        PerFamily::from_fn(|family| targets.of(family).filter(|_| *self.families.of(family)))
    }

    /// Chooses among these addresses of the host, which are in the kernel's order; `sources` are those towards the destinations.
    pub fn choose(&mut self, all: &[HostAddress], sources: PerFamily<Option<IpAddr>>) -> DetectedAddresses {
        let all: Vec<Candidate> = all.iter().map(Candidate::from).collect();
        let choice = choose(&self.method, self.families, &all, sources, self.chosen);
        self.chosen = choice.addresses;
        DetectedAddresses { addresses: choice.addresses, problems: choice.problems(&self.method) }
    }
}
