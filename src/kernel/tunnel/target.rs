//! Tunnels, over netlink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Tunnel;
use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket, flag};
use crate::kernel::{Error, address, module};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The tunnels of one network namespace that are ours by their names.
pub struct Tunnels {
    socket: Socket,
    is_ours: fn(&str) -> bool,
    compares_mtu: bool,
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const UP: u32 = 0x1;

/// `IFLA_IPTUN_*`.
mod data {
    pub const LOCAL: u16 = 2;
    pub const REMOTE: u16 = 3;
    pub const TTL: u16 = 4;
    pub const TOS: u16 = 5;
    pub const FLOW: u16 = 7;
    pub const FLAGS: u16 = 8;
    pub const PROTOCOL: u16 = 9;
    pub const PATH_MTU_DISCOVERY: u16 = 10;
    pub const ENCAP_TYPE: u16 = 15;
    pub const ENCAP_FLAGS: u16 = 16;
    pub const ENCAP_SOURCE_PORT: u16 = 17;
    pub const ENCAP_DESTINATION_PORT: u16 = 18;
}

/// `TUNNEL_ENCAP_NONE`.
const NO_ENCAP: u16 = 0;
/// `TUNNEL_ENCAP_GUE`.
const GUE: u16 = 2;
/// `TUNNEL_ENCAP_FLAG_CSUM6`: UDP over IPv6 has a checksum (RFC 8200 8.1).
const CHECKSUM_V6: u16 = 2;
/// `IP6_TNL_F_IGN_ENCAP_LIMIT`: no option that limits how often a packet is encapsulated, which takes eight bytes.
const NO_ENCAP_LIMIT: u32 = 0x1;
/// Flags of `ip6tnl` that users set (`IP6_TNL_F_…`, include/uapi/linux/ip6_tunnel.h); the kernel keeps its own, about which ways there are between the ends, above.
const FLAGS_OF_USERS: u32 = 0x7f;

impl Tunnels {
    /// Opens a socket in the network namespace of the calling thread. `is_ours` decides by a device's name.
    /// `compares_mtu`: whether MTUs are ours to set, until a change decides; where they are not, they read as `None`.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(is_ours: fn(&str) -> bool, compares_mtu: bool) -> Result<Tunnels, Error> {
        Ok(Tunnels { socket: Socket::open(Bus::Route)?, is_ours, compares_mtu })
    }

    /// Returns one tunnel; `None` where there is no device of this name, or none of these types. The other devices are not looked at, however many there are, and no addresses: it reads
    /// as one that is not numbered.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn find(&mut self, name: &LinkName) -> Result<Option<Tunnel>, Error> {
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]).text(NAME, &name.0);
        let compares_mtu = self.compares_mtu;
        match self.socket.request(&mut message, |answer| Some(decided(listed(answer)?.tunnel, compares_mtu))) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Err(fault) => Err(Error::new("read tunnel", name.to_string(), fault.into())),
        }
    }

    /// One message for each, because replacing is two acts which nothing may come between.
    fn perform(&mut self, step: &Step<'_, LinkName, Tunnel>) -> Result<(), Error> {
        let name = step.key;
        let stays = |have: &&Tunnel, want: &Tunnel| is_same_device(have, want);
        let (operation, result) = match (step.have, step.want) {
            (Some(have), Some(want)) if stays(&have, want) => ("change tunnel", self.change(name, have, want)),
            (Some(_), Some(want)) => {
                // Its routes go with it; they are read back and made again in the same round.
                let deleted = self.send(delete(name)).or_else(already_gone);
                ("replace tunnel", deleted.and_then(|()| self.add(name, want)))
            }
            (None, Some(want)) => ("add tunnel", self.add(name, want)),
            (Some(_), None) => ("delete tunnel", self.send(delete(name)).or_else(already_gone)),
            (None, None) => return Ok(()),
        };
        let family = step.want.or(step.have).map_or(Family::V4, |tunnel| Family::from(tunnel.local));
        result
            .map_err(|fault| module::named_in(Error::new(operation, name.to_string(), fault.into()), kind(family)))?;
        self.compares_mtu = step.want.map_or(self.compares_mtu, |want| want.mtu.is_some());
        Ok(())
    }

    fn add(&mut self, name: &LinkName, want: &Tunnel) -> Result<(), Fault> {
        self.send(add(name, want))?;
        let is_over_ipv4 = Family::from(want.local) == Family::V4;
        if want.is_numbered && is_over_ipv4 { address::number(&mut self.socket, name) } else { Ok(()) }
    }

    fn change(&mut self, name: &LinkName, have: &Tunnel, want: &Tunnel) -> Result<(), Fault> {
        if want.is_numbered && !have.is_numbered {
            address::number(&mut self.socket, name)?;
        }
        // A device that lacks the address alone is not touched otherwise.
        if (Tunnel { is_numbered: want.is_numbered, ..*have }) == *want && have != want {
            return Ok(());
        }
        self.send(change(name, want))
    }

    fn send(&mut self, mut messages: Messages) -> Result<(), Fault> {
        match self.socket.batch(&mut messages)?.into_iter().next() {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(()),
        }
    }
}

impl Target for Tunnels {
    type Key = LinkName;
    type Value = Tunnel;
    type Error = Error;

    fn name(&self) -> &'static str {
        "tunnels"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, Tunnel>, Error> {
        let (is_ours, compares_mtu) = (self.is_ours, self.compares_mtu);
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        let failed = |fault: Fault| Error::new("list tunnels", "", fault.into());
        let listed = self.socket.dump(&mut message, |answer| listed(answer).filter(|device| is_ours(&device.name.0)));
        let listed = listed.map_err(failed)?;
        let needs_address = |device: &Listed| device.tunnel.local.is_ipv4();
        let unsure = listed.iter().filter(|device| needs_address(device)).map(|device| device.index);
        let numbered = address::numbered(&mut self.socket, unsure).map_err(failed)?;
        let read = |device: Listed| {
            let is_numbered = !needs_address(&device) || numbered.contains(&device.index);
            (device.name, Tunnel { is_numbered, ..decided(device.tunnel, compares_mtu) })
        };
        Ok(listed.into_iter().map(read).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, Tunnel>]) -> Vec<Failure<Error>> {
        let failed = |(index, step)| self.perform(step).err().map(|error| Failure { step: index, error });
        steps.iter().enumerate().filter_map(failed).collect()
    }
}

/// Returns a tunnel as it reads where MTUs are ours to set, or are not.
fn decided(tunnel: Tunnel, compares_mtu: bool) -> Tunnel {
    Tunnel { mtu: tunnel.mtu.filter(|_| compares_mtu), ..tunnel }
}

/// Returns whether one becomes the other without being created again.
fn is_same_device(have: &Tunnel, want: &Tunnel) -> bool {
    Family::from(have.local) == Family::from(want.local)
}

fn already_gone(fault: Fault) -> Result<(), Fault> {
    match fault {
        Fault::Refused(refusal) if refusal.errno == libc::ENODEV => Ok(()),
        fault => Err(fault),
    }
}

// ip link add NAME type ipip|ip6tnl local ADDRESS remote ADDRESS …
fn add(name: &LinkName, tunnel: &Tunnel) -> Messages {
    describe(name, tunnel, flag::CREATE | flag::EXCLUSIVE)
}

// ip link change NAME type ipip|ip6tnl local ADDRESS remote ADDRESS …
fn change(name: &LinkName, tunnel: &Tunnel) -> Messages {
    describe(name, tunnel, 0)
}

// ip link delete NAME
fn delete(name: &LinkName) -> Messages {
    let mut message = Messages::new();
    message.begin(DELETE_LINK, 0).header(&[0; HEADER]).text(NAME, &name.0);
    message
}

fn describe(name: &LinkName, tunnel: &Tunnel, flags: u16) -> Messages {
    let mut message = Messages::new();
    message.begin(NEW_LINK, flags).header(&header(tunnel.up)).text(NAME, &name.0);
    if let Some(mtu) = tunnel.mtu {
        message.u32(MTU, mtu);
    }
    let family = Family::from(tunnel.local);
    message.nest(LINK_INFO).text(INFO_KIND, kind(family)).nest(INFO_DATA);
    message.address(data::LOCAL, tunnel.local).address(data::REMOTE, tunnel.remote).u8(data::TTL, tunnel.ttl);
    match family {
        Family::V4 => message.u8(data::PATH_MTU_DISCOVERY, 1),
        Family::V6 => message.u32(data::FLAGS, NO_ENCAP_LIMIT),
    };
    message.u8(data::PROTOCOL, protocol(tunnel.udp_port, family));
    if let Some(port) = tunnel.udp_port {
        message.u16(data::ENCAP_TYPE, GUE).u16(data::ENCAP_FLAGS, CHECKSUM_V6);
        // Another source port for each flow, so that the network in between can share the load.
        message.u16_be(data::ENCAP_SOURCE_PORT, 0).u16_be(data::ENCAP_DESTINATION_PORT, port);
    } else if flags & flag::CREATE == 0 {
        // A device that was inside UDP is not any more.
        message.u16(data::ENCAP_TYPE, NO_ENCAP);
    }
    message.end().end();
    message
}

fn kind(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipip",
        Family::V6 => "ip6tnl",
    }
}

/// The protocol inside: any for a plain tunnel, the tunnel's own family inside UDP.
fn protocol(udp_port: Option<u16>, family: Family) -> u8 {
    match (udp_port, family) {
        (None, _) => 0,
        (Some(_), Family::V4) => 4,
        (Some(_), Family::V6) => 41,
    }
}

/// `struct ifinfomsg` that sets only whether the device is up.
fn header(up: bool) -> [u8; HEADER] {
    let [f0, f1, f2, f3] = if up { UP } else { 0 }.to_ne_bytes();
    let [c0, c1, c2, c3] = UP.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, f0, f1, f2, f3, c0, c1, c2, c3]
}

/// A tunnel as rtnetlink describes it: its addresses are not part of that.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Listed {
    index: u32,
    name: LinkName,
    tunnel: Tunnel,
}

/// The tunnel that an answer describes; `None` for a device of another type, and for a tunnel without two ends.
fn listed(answer: &Answer<'_>) -> Option<Listed> {
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *answer.header::<HEADER>()?;
    if family != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let info = attributes.get(LINK_INFO)?.attributes();
    let written = info.get(INFO_KIND)?.text()?;
    let inside = info.get(INFO_DATA)?.attributes();
    let end = |which: u16| inside.get(which)?.address();
    let (local, remote): (IpAddr, IpAddr) = (end(data::LOCAL)?, end(data::REMOTE)?);
    if kind(Family::from(local)) != written || Family::from(local) != Family::from(remote) {
        return None;
    }
    let tunnel = Tunnel {
        local,
        remote,
        udp_port: udp_port(&inside),
        ttl: inside.get(data::TTL).and_then(|ttl| ttl.u8()).unwrap_or_default(),
        mtu: attributes.get(MTU).and_then(|mtu| mtu.u32()),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & UP != 0,
        has_options: has_options(&inside, Family::from(local)),
        is_numbered: false,
    };
    let name = LinkName(attributes.get(NAME)?.text()?.into());
    Some(Listed { index: u32::from_ne_bytes([i0, i1, i2, i3]), name, tunnel })
}

/// Returns whether a device has the options that [`describe`] writes. One of which the kernel says nothing counts as had, because no change would have it said.
fn has_options(inside: &Attributes<'_>, family: Family) -> bool {
    match family {
        Family::V4 => {
            let option = |which: u16| inside.get(which).and_then(|option| option.u8());
            option(data::PATH_MTU_DISCOVERY).is_none_or(|option| option != 0) && option(data::TOS).is_none_or(is_unset)
        }
        Family::V6 => {
            let option = |which: u16| inside.get(which).and_then(|option| option.u32());
            let carried = inside.get(data::PROTOCOL).and_then(|protocol| protocol.u8());
            option(data::FLAGS).is_none_or(|flags| flags & FLAGS_OF_USERS == NO_ENCAP_LIMIT)
                && option(data::FLOW).is_none_or(is_unset)
                && carried.is_none_or(|carried| carried == protocol(udp_port(inside), family))
        }
    }
}

/// Our devices leave the fields of an outer header to the kernel: [`describe`] writes none, which unsets them.
fn is_unset<T: Default + PartialEq>(option: T) -> bool {
    option == T::default()
}

/// Encapsulation that is not GUE reads as a port that nobody wants, so that it is put right.
fn udp_port(inside: &Attributes<'_>) -> Option<u16> {
    match inside.get(data::ENCAP_TYPE).and_then(|kind| kind.u16()).unwrap_or_default() {
        0 => None,
        GUE => inside.get(data::ENCAP_DESTINATION_PORT).and_then(|port| port.u16_be()),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = listed(&Answer { kind: NEW_LINK, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }

    #[test]
    fn a_tunnel_reads_back_as_it_was_written() {
        for (local, remote, udp_port) in [
            ("192.0.2.1", "192.0.2.2", None),
            ("192.0.2.1", "192.0.2.2", Some(5555)),
            ("2001:db8::1", "2001:db8::2", None),
            ("2001:db8::1", "2001:db8::2", Some(6000)),
        ] {
            let end = |text: &str| text.parse().expect("an address");
            let (local, remote) = (end(local), end(remote));
            let (ttl, mtu) = (225, Some(1400));
            let written = Tunnel { local, remote, udp_port, ttl, mtu, up: true, has_options: true, is_numbered: false };
            let name = LinkName("tun-0123456789a".into());
            let bytes = add(&name, &written).bytes().to_vec();
            let read: Vec<_> = answers(&bytes).filter_map(|answer| listed(&answer)).collect();
            assert_eq!(read, [Listed { index: 0, name, tunnel: written }]);
        }
    }

    /// A plain tunnel as the kernel lists it, with these options.
    fn listed_with(local: &str, remote: &str, options: impl Fn(&mut Messages)) -> Tunnel {
        let end = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let (local, remote) = (end(local), end(remote));
        let mut message = Messages::new();
        message.begin(NEW_LINK, 0).header(&header(true)).text(NAME, "tun-0123456789a");
        message.nest(LINK_INFO).text(INFO_KIND, kind(Family::from(local))).nest(INFO_DATA);
        message.address(data::LOCAL, local).address(data::REMOTE, remote);
        options(&mut message);
        message.end().end();
        let bytes = message.bytes().to_vec();
        let read = answers(&bytes).find_map(|answer| listed(&answer));
        read.expect("it is a tunnel").tunnel
    }

    #[test]
    fn a_device_with_other_options_is_told_from_ours_and_one_with_the_kernels_own_flags_is_not() {
        let over_ipv4 = |options: &dyn Fn(&mut Messages)| listed_with("192.0.2.1", "192.0.2.2", options).has_options;
        let over_ipv6 = |flags: u32, protocol: u8| {
            let options = |message: &mut Messages| {
                message.u32(data::FLAGS, flags).u8(data::PROTOCOL, protocol);
            };
            listed_with("2001:db8::1", "2001:db8::2", options).has_options
        };
        let discovers = |on: u8| {
            over_ipv4(&|message| {
                message.u8(data::PATH_MTU_DISCOVERY, on);
            })
        };
        assert_eq!((discovers(1), discovers(0)), (true, false));
        // What `ip` makes with `mode ipip`: the kernel keeps that, and it carries all that ours do.
        assert!(over_ipv4(&|message| {
            message.u8(data::PATH_MTU_DISCOVERY, 1).u8(data::PROTOCOL, 4);
        }));
        // `encaplimit none`, with the flags of the kernel's own; `encaplimit 0`; `mode ip6ip6`.
        assert_eq!((over_ipv6(0x7_0001, 0), over_ipv6(0x7_0000, 0), over_ipv6(0x1, 41)), (true, false, false));
        // `dscp inherit`, `flowlabel inherit`, and a class and a label of their own.
        assert_eq!([0x7_0003, 0x7_0005, 0x7_0011].map(|flags| over_ipv6(flags, 0)), [false; 3]);
        let labelled = |label: u32| {
            let options = |message: &mut Messages| {
                message.u32(data::FLAGS, 1).u32(data::FLOW, label);
            };
            listed_with("2001:db8::1", "2001:db8::2", options).has_options
        };
        assert_eq!((labelled(0), labelled(0x2000_0000_u32.to_be())), (true, false));
        let of_class = |tos: u8| {
            over_ipv4(&|message| {
                message.u8(data::TOS, tos);
            })
        };
        assert_eq!((of_class(0), of_class(0x20)), (true, false));
        assert!(over_ipv4(&|_| {}), "an option that is not told is not changed with every reading");
    }

    #[test]
    fn an_option_is_changed_on_the_device_that_there_is() {
        let have = listed_with("2001:db8::1", "2001:db8::2", |message| {
            message.u32(data::FLAGS, 0);
        });
        let want = Tunnel { has_options: true, is_numbered: true, ..have };
        assert!(have != want && is_same_device(&have, &want));
        let bytes = change(&LinkName("tun-0123456789a".into()), &want).bytes().to_vec();
        let read = answers(&bytes).find_map(|answer| listed(&answer)).expect("it is a tunnel");
        assert!(read.tunnel.has_options);
    }
}
