//! How a node finds the addresses by which other nodes route to it (`--node-ip-autodetect`), and the choice among those of the host.
//!
//! Methods, as users of Calico know them: the source address towards a destination, the first address of an interface by its name, and the first
//! address in a network. Each family is chosen for itself.
//!
//! No other node could reach, or should keep, an address that is link-local or of the host alone, belongs to Services or to our own devices, is
//! not proven to be unique yet, or is to go: none of these is chosen by any method.
//!
//! The choice prefers what is used already: an address is left for a better expression or network of the list, and not for another one that
//! is as good. Without that, the order is that of the list, then of the interfaces' numbers; on one interface IPv4 addresses are in
//! the kernel's order, which has secondary ones last, and of IPv6 addresses, which the kernel lists in the reverse order of their making, the
//! smallest is first.

mod choice;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use regex_lite::Regex;

pub use self::choice::{CARRY_SERVICE_ADDRESSES, Candidate, Choice, choose};
use super::{Family, PerFamily};

/// A method of `--node-ip-autodetect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressDetection {
    /// The source address that the kernel's routes give to packets to these; the family of an absent one is not detected.
    CanReach(PerFamily<Option<IpAddr>>),
    /// The first address of the first interface that matches, in the order of the expressions.
    Interface(Vec<Expression>),
    /// The first address of the first interface that matches none of these, and is no virtual one by its name or kind.
    SkipInterface(Vec<Expression>),
    /// The first address in one of these networks, in their order.
    Cidr(Vec<IpNet>),
}

/// A regular expression, which matches a name where any part of it matches.
#[derive(Clone, Debug)]
pub struct Expression(Regex);

impl Expression {
    fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Expression) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Expression {}

impl AddressDetection {
    /// Returns whether this method looks for an address of a family at all.
    pub fn looks_for(&self, family: Family) -> bool {
        match self {
            AddressDetection::CanReach(targets) => targets.of(family).is_some(),
            AddressDetection::Cidr(networks) => networks.iter().any(|network| Family::from(*network) == family),
            AddressDetection::Interface(_) | AddressDetection::SkipInterface(_) => true,
        }
    }

    /// Returns the destinations whose source addresses are asked for.
    pub fn targets(&self) -> PerFamily<Option<IpAddr>> {
        match self {
            AddressDetection::CanReach(targets) => *targets,
            AddressDetection::Interface(_) | AddressDetection::SkipInterface(_) | AddressDetection::Cidr(_) => {
                PerFamily::default()
            }
        }
    }
}

/// A value that names no method. The text is the end of a sentence that begins with the name of the flag.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoDetection(String);

const METHODS: &str = "can-reach=ADDRESS, interface=REGEX, skip-interface=REGEX or cidr=LIST";

impl FromStr for AddressDetection {
    type Err = NoDetection;

    fn from_str(text: &str) -> Result<AddressDetection, NoDetection> {
        let (method, list) = text.split_once('=').unwrap_or((text, ""));
        let (method, list) = (method.trim(), list.trim());
        let items: Vec<&str> = list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        let needs = |what: &str| NoDetection(format!("{method} needs {what} behind the sign =; it is {text:?}"));
        match (method, items.is_empty()) {
            ("can-reach", true) => Err(needs("an address")),
            ("interface" | "skip-interface", true) => Err(needs("a regular expression")),
            ("cidr", true) => Err(needs("a network")),
            ("can-reach", false) => targets(&items).map(AddressDetection::CanReach),
            ("interface", false) => expressions(&items).map(AddressDetection::Interface),
            ("skip-interface", false) => expressions(&items).map(AddressDetection::SkipInterface),
            ("cidr", false) => networks(&items).map(AddressDetection::Cidr),
            _ => Err(NoDetection(format!("must be {METHODS}; it is {text:?}"))),
        }
    }
}

fn targets(items: &[&str]) -> Result<PerFamily<Option<IpAddr>>, NoDetection> {
    let mut targets: PerFamily<Option<IpAddr>> = PerFamily::default();
    for item in items {
        let address: IpAddr = item.parse().map_err(|_| {
            NoDetection(format!("can-reach needs an IP address, not a name, for which DNS would have to answer before the network is up; it has {item:?}"))
        })?;
        let is_reached = !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
        if !is_reached || is_link_local(address) {
            return Err(NoDetection(format!(
                "can-reach needs a unicast address beyond this host's links; it has {item}"
            )));
        }
        let family = Family::from(address);
        if targets.of_mut(family).replace(address).is_some() {
            return Err(NoDetection(format!("can-reach takes one address of each family; it has two of {family}")));
        }
    }
    Ok(targets)
}

fn expressions(items: &[&str]) -> Result<Vec<Expression>, NoDetection> {
    let expression = |item: &&str| {
        let why =
            |error| NoDetection(format!("needs regular expressions, separated by commas; {item:?} is none: {error}"));
        Regex::new(item).map(Expression).map_err(why)
    };
    items.iter().map(expression).collect()
}

fn networks(items: &[&str]) -> Result<Vec<IpNet>, NoDetection> {
    let network = |item: &&str| {
        let network = item.parse::<IpNet>().map(|network| network.trunc());
        network.map_err(|_| NoDetection(format!("cidr needs networks such as 192.0.2.0/24; {item:?} is none")))
    };
    items.iter().map(network).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl fmt::Display for AddressDetection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |texts: Vec<String>| texts.join(",");
        let names = |all: &[Expression]| joined(all.iter().map(|one| one.0.as_str().to_owned()).collect());
        match self {
            AddressDetection::CanReach(targets) => {
                let targets = targets.iter().filter_map(|(_, target)| target.as_ref());
                write!(f, "can-reach={}", joined(targets.map(ToString::to_string).collect()))
            }
            AddressDetection::Interface(all) => write!(f, "interface={}", names(all)),
            AddressDetection::SkipInterface(all) => write!(f, "skip-interface={}", names(all)),
            AddressDetection::Cidr(all) => write!(f, "cidr={}", joined(all.iter().map(ToString::to_string).collect())),
        }
    }
}

#[cfg(test)]
mod tests;
