//! The end of a tunnel inside a pod, where packets for service addresses arrive with direct server return.
//!
//! In the pod's network namespace, with the namespace's own sockets, opened by a thread that is inside:
//!
//! ```text
//! ip link add kube-tunnel-if type ipip local 10.244.1.5 remote any
//! ip link set kube-tunnel-if up
//! sysctl net.ipv4.conf.kube-tunnel-if.rp_filter=2
//! ip address add 203.0.113.7/32 dev kube-tunnel-if scope link
//!
//! ip link add kube-tunnel-v6 type ip6tnl mode any local fd00:10:244:1::5 remote any encaplimit none
//! sysctl net.ipv6.conf.kube-tunnel-v6.disable_ipv6=0
//! ip address add 2001:db8:1::7/128 dev kube-tunnel-v6 nodad
//! ```
//!
//! Ours: the devices of these names and types, which are kube-router's too, and the addresses on them that are as long as an
//! address. Everything else in the pod is the pod's.
//!
//! Limits and surprises:
//! - Packets come out of the tunnel with the client's address, whose route leads elsewhere. Strict reverse path filtering would
//!   drop them, so the device is given the loose one; the kernel takes the greater of `all` and the device's own, so no other
//!   device and not `all` has to be changed, and it goes with the device. IPv6 has no such filter.
//! - Where a pod's `net.ipv6.conf.default.disable_ipv6` is 1, a new device takes no IPv6 address although others have some; so that is turned off for ours.
//! - Who may change the pod's network decides how many devices and addresses there are and how often they change, so reading has bounds ([`BOUNDS`]): nobody else's pods wait for one.
//! - `/proc/sys/net` shows the network of the thread that opens a file, not that of the process.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use compact_str::CompactString;
use ipnet::IpNet;
use rustix::io::Errno;

use super::Error;
use super::address::{AddressKey, Addresses, HostAddress, addresses_within, is_link_local};
use super::link::{Link, LinkKind, LinkName, Links};
use super::netlink::DumpBounds;
use super::sysctl;
use super::tunnel::{Tunnel, Tunnels};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The device for packets of IPv4 in IPv4.
pub const DEVICE_V4: &str = "kube-tunnel-if";
/// The device for packets in IPv6.
pub const DEVICE_V6: &str = "kube-tunnel-v6";
/// Kernel modules behind the two types of devices.
pub const MODULES: [&str; 2] = ["ipip", "ip6_tunnel"];

/// Loose reverse path filtering (RFC 3704 2.4).
const LOOSE: &str = "2";

/// The device of a family.
pub fn device(family: Family) -> LinkName {
    LinkName(CompactString::const_new(match family {
        Family::V4 => DEVICE_V4,
        Family::V6 => DEVICE_V6,
    }))
}

/// State of a pod's namespace, in one family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// Addresses of other devices than ours: those that packets for the pod have.
    pub pod_addresses: BTreeSet<IpAddr>,
    pub device: Option<SeenDevice>,
    /// Service addresses on our device.
    pub services: BTreeSet<IpAddr>,
    /// Addresses on our device that are not ours: they keep it from being deleted.
    pub foreign: BTreeSet<IpNet>,
    /// The reverse path filter of our device is strict.
    pub filters_strictly: bool,
    /// Our device, or a new one, takes no IPv6 addresses.
    pub lacks_ipv6: bool,
}

/// A device of our name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SeenDevice {
    Tunnel {
        local: IpAddr,
        takes_all: bool,
        up: bool,
    },
    /// Of a type that we never make, named as the kernel names it. It is the pod's own.
    Other(CompactString),
}

/// One change inside a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Makes the device, or changes it to be like this.
    Device {
        local: IpAddr,
        is_there: bool,
    },
    LoosenFilter,
    /// Has our device take IPv6 addresses.
    EnableIpv6,
    Add(IpAddr),
    Delete(IpAddr),
    DeleteDevice,
}

/// How much reading a pod's namespace may cost: devices, addresses of one family, and tries while they change.
pub const BOUNDS: DumpBounds = DumpBounds { tries: 3, most: 4096 };

/// Returns the addresses of the network namespace of the calling thread, which is a pod's.
///
/// # Errors
/// The kernel does not answer, or there are more devices or addresses than [`BOUNDS`] allow, or they change all the time.
pub fn addresses_of_pod() -> Result<Vec<HostAddress>, Error> {
    addresses_within(BOUNDS)
}

/// Reads and changes the network namespace of the calling thread.
pub struct PodNetwork {
    family: Family,
    name: LinkName,
    links: Links,
    tunnels: Tunnels,
    addresses: Addresses,
}

impl PodNetwork {
    /// Opens sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(family: Family) -> Result<PodNetwork, Error> {
        let name = device(family);
        let is_ours: fn(&str) -> bool = match family {
            Family::V4 => |name| name == DEVICE_V4,
            Family::V6 => |name| name == DEVICE_V6,
        };
        Ok(PodNetwork {
            family,
            links: Links::open([name.clone()])?,
            tunnels: Tunnels::open(is_ours, false)?,
            addresses: Addresses::open([name.clone()])?,
            name,
        })
    }

    /// Returns what is there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn read(&mut self) -> Result<Seen, Error> {
        let mut seen = Seen::default();
        let found = addresses_of_pod()?;
        for one in found.iter().filter(|one| Family::from(one.address) == self.family) {
            let address = one.address.addr();
            match one.link == self.name {
                false => drop(seen.pod_addresses.insert(address)),
                true if is_link_local(address) => {}
                true if one.address.prefix_len() == self.family.host_bits() => drop(seen.services.insert(address)),
                true => drop(seen.foreign.insert(one.address)),
            }
        }
        seen.device = self.read_device()?;
        if self.family == Family::V4 {
            let strict = |name: &str| read_filter(name).map(|value| value == "1");
            // Loose prevails over strict, strict over none.
            let is_loose = [DEVICE_V4, "all"].into_iter().any(|name| read_filter(name).is_some_and(|one| one == LOOSE));
            seen.filters_strictly =
                !is_loose && [DEVICE_V4, "all"].into_iter().any(|name| strict(name).unwrap_or_default());
        } else {
            let device = if seen.device.is_some() { DEVICE_V6 } else { "default" };
            seen.lacks_ipv6 = read_setting(&ipv6_path(device)).is_some_and(|value| value == "1");
        }
        Ok(seen)
    }

    fn read_device(&mut self) -> Result<Option<SeenDevice>, Error> {
        let Some(Link { kind, up }) = self.links.read()?.remove(&self.name) else { return Ok(None) };
        Ok(Some(match self.tunnels.find(&self.name)? {
            Some(tunnel) => {
                let takes_all = tunnel.remote.is_unspecified() && tunnel.udp_port.is_none();
                SeenDevice::Tunnel { local: tunnel.local, takes_all, up: up && tunnel.up }
            }
            None => SeenDevice::Other(match kind {
                LinkKind::Other(kind) => kind,
                LinkKind::Dummy => "dummy".into(),
            }),
        }))
    }

    /// Makes one change.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn apply(&mut self, change: &Change) -> Result<(), Error> {
        match change {
            Change::Device { local, is_there } => {
                let want = end(*local);
                // What it was like does not matter: all of it is written.
                let have = is_there.then_some(&want);
                self.tunnel_step(have, Some(&want))
            }
            Change::DeleteDevice => {
                let any = end(match self.family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                });
                self.tunnel_step(Some(&any), None)
            }
            Change::LoosenFilter => write_setting(&filter_path(DEVICE_V4), LOOSE),
            Change::EnableIpv6 => write_setting(&ipv6_path(DEVICE_V6), "0"),
            Change::Add(address) => self.address_step(*address, true),
            Change::Delete(address) => self.address_step(*address, false),
        }
    }

    fn tunnel_step(&mut self, have: Option<&Tunnel>, want: Option<&Tunnel>) -> Result<(), Error> {
        let phase = if want.is_some() { Phase::Grow } else { Phase::Shrink };
        outcome(self.tunnels.apply(phase, &[Step { key: &self.name, have, want }]))
    }

    fn address_step(&mut self, address: IpAddr, is_wanted: bool) -> Result<(), Error> {
        let key = AddressKey { link: self.name.clone(), address: IpNet::from(address) };
        let (phase, have, want) = match is_wanted {
            true => (Phase::Grow, None, Some(&())),
            false => (Phase::Shrink, Some(&()), None),
        };
        match outcome(self.addresses.apply(phase, &[Step { key: &key, have, want }])) {
            Err(error) if is_wanted && error.is_exists() => Ok(()),
            Err(error) if !is_wanted && error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }
}

/// The pod's end: packets from anywhere, to the pod's address.
fn end(local: IpAddr) -> Tunnel {
    let remote = match local {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // It has the addresses of services.
    Tunnel { local, remote, udp_port: None, ttl: 0, mtu: None, up: true, has_options: true, is_numbered: false }
}

fn outcome(failures: Vec<Failure<Error>>) -> Result<(), Error> {
    failures.into_iter().next().map_or(Ok(()), |failure| Err(failure.error))
}

fn filter_path(device: &str) -> PathBuf {
    sysctl::root().join(format!("net/ipv4/conf/{device}/rp_filter"))
}

fn ipv6_path(device: &str) -> PathBuf {
    sysctl::root().join(format!("net/ipv6/conf/{device}/disable_ipv6"))
}

fn read_filter(device: &str) -> Option<String> {
    read_setting(&filter_path(device))
}

fn read_setting(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn write_setting(path: &Path, value: &str) -> Result<(), Error> {
    match fs::write(path, value) {
        // The device has gone meanwhile, and the setting with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::errno("write setting", path.display().to_string(), errno)
        }),
    }
}
