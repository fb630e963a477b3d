//! The floor: how fast this kernel takes the state of a service proxy from a program that does nothing else.
//!
//! `floor SERVICES ENDPOINTS [ROLLED]`, in a network namespace with a device `kube-dummy-if` and the sets `kube-router-svip` and
//! `kube-router-svip-prt`, all without content. Everything is written into buffers first; then the clock runs while
//! they are sent, each 64 KiB of messages at once with one acknowledgement, on the last. The state is the cheapest
//! correct one: set elements some thousand in a message, a local route for each address, a virtual service with its
//! destinations. Then destinations are exchanged for others one at a time; or with a third number, all of so many services at once (a rolling update), in a namespace where
//! none was deleted before: the kernel looks through those at each new one, for two minutes. Prints one JSON object; times in microseconds.
//!
//! `scripts/bench proxy` runs it beside the product, in the same kernel.
#![expect(clippy::indexing_slicing, reason = "it reads what it has just written; a broken answer shall stop it")]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with, sockopt,
};
use sluice::kernel::netlink::{Bus, Messages, Socket, answers, flag};

const PORTION: usize = 64 << 10;
const ELEMENTS_IN_MESSAGE: usize = 1500;
const CHANGES: usize = 1000;
/// Numbers of endpoints that take the place of others begin there.
const ANOTHER: usize = 1000;
const ACK: u16 = 0x4;
const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (services, endpoints, rolled) = match numbers[..] {
        [services, endpoints] => (services, endpoints, None),
        [services, endpoints, rolled] => (services, endpoints, Some(rolled)),
        _ => panic!("floor SERVICES ENDPOINTS [ROLLED]"),
    };
    let (ipvs, device) = (ipvs_number(), device_number("kube-dummy-if"));
    let (elements, virtuals, routes) =
        (elements(services), virtuals(ipvs, services, endpoints), routes(device, services));
    let elements = send_all(Some(netlink::NETFILTER), &elements);
    let virtuals = send_all(Some(netlink::GENERIC), &virtuals);
    let routes = send_all(None, &routes);
    let then = match rolled {
        None => {
            let mut changes = changes(ipvs, services, endpoints);
            changes.sort_unstable();
            let [median, late] = [CHANGES / 2, CHANGES * 99 / 100].map(|place| changes[place].as_micros());
            format!("\"change_p50\":{median},\"change_p99\":{late}")
        }
        Some(rolled) => {
            let rolling = rolling(ipvs, rolled.min(services), endpoints);
            format!("\"rolling\":{}", send_all(Some(netlink::GENERIC), &rolling).as_micros())
        }
    };
    let [elements, virtuals, routes] = [elements, virtuals, routes].map(|took| took.as_micros());
    let total = elements + virtuals + routes;
    println!("{{\"elements\":{elements},\"virtuals\":{virtuals},\"routes\":{routes},\"total\":{total},{then}}}");
}

/// Messages cut into sends.
#[derive(Default)]
struct Buffers {
    full: Vec<Vec<u8>>,
    messages: Messages,
    last: usize,
}

impl Buffers {
    fn add(&mut self, write: impl FnOnce(&mut Messages)) {
        if self.messages.bytes().len() >= PORTION {
            self.cut();
        }
        self.last = self.messages.bytes().len();
        write(&mut self.messages);
    }

    fn cut(&mut self) {
        let mut bytes = self.messages.bytes().to_vec();
        let flags = u16::from_ne_bytes([bytes[self.last + 6], bytes[self.last + 7]]) | ACK;
        bytes[self.last + 6..self.last + 8].copy_from_slice(&flags.to_ne_bytes());
        self.full.push(bytes);
        self.messages.clear();
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.messages.is_empty() {
            self.cut();
        }
        self.full
    }
}

fn service_address(index: usize) -> [u8; 4] {
    (0x0a60_0100 + index as u32).to_be_bytes()
}

fn endpoint_address(index: usize, number: usize) -> [u8; 4] {
    (0x0af4_0001 + ((index * 7 + number) % 60_000) as u32).to_be_bytes()
}

fn elements(services: usize) -> Vec<Vec<u8>> {
    const ADD: u16 = 6 << 8 | 9;
    let mut buffers = Buffers::default();
    for (set, has_port) in [("kube-router-svip", false), ("kube-router-svip-prt", true)] {
        for first in (0..services).step_by(ELEMENTS_IN_MESSAGE) {
            buffers.add(|messages| {
                messages.begin(ADD, 0).header(&[0; 4]).u8(1, 7).text(2, set).u32(9, 0).nest(8);
                for index in first..services.min(first + ELEMENTS_IN_MESSAGE) {
                    messages.nest(7).nest(1);
                    messages.attribute(Messages::network_order(1), &service_address(index)).end();
                    if has_port {
                        messages.u16_be(Messages::network_order(4), SERVICE_PORT).u8(7, 6);
                    }
                    messages.end();
                }
                messages.end();
            });
        }
    }
    buffers.finish()
}

fn virtuals(family: u16, services: usize, endpoints: usize) -> Vec<Vec<u8>> {
    let mut buffers = Buffers::default();
    for index in 0..services {
        buffers.add(|messages| new_service(messages, family, index));
        for number in 0..endpoints {
            buffers.add(|messages| new_destination(messages, family, index, endpoint_address(index, number)));
        }
    }
    buffers.finish()
}

fn new_service(messages: &mut Messages, family: u16, index: usize) {
    messages.begin(family, 0).header(&[1, 1, 0, 0]).nest(1);
    name_service(messages, index);
    messages.text(6, "rr").attribute(7, &[0, 0, 0, 0, 255, 255, 255, 255]).u32(8, 0).u32(9, u32::MAX).end();
}

fn new_destination(messages: &mut Messages, family: u16, index: usize, address: [u8; 4]) {
    messages.begin(family, 0).header(&[5, 1, 0, 0]).nest(1);
    name_service(messages, index);
    messages.end().nest(2);
    name_destination(messages, address);
    messages.u32(3, 0).u32(4, 1).u32(5, 0).u32(6, 0).end();
}

fn delete_destination(messages: &mut Messages, family: u16, index: usize, address: [u8; 4]) {
    messages.begin(family, 0).header(&[7, 1, 0, 0]).nest(1);
    name_service(messages, index);
    messages.end().nest(2);
    name_destination(messages, address);
    messages.end();
}

fn name_service(messages: &mut Messages, index: usize) {
    messages.u16(1, 2).u16(2, 6).attribute(3, &sixteen(service_address(index))).u16_be(4, SERVICE_PORT);
}

fn name_destination(messages: &mut Messages, address: [u8; 4]) {
    messages.attribute(1, &sixteen(address)).u16_be(2, TARGET_PORT).u16(11, 2);
}

fn sixteen(address: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&address);
    bytes
}

fn routes(device: u32, services: usize) -> Vec<Vec<u8>> {
    const NEW_ROUTE: u16 = 24;
    const LOCAL: u8 = 2;
    const KERNEL: u8 = 2;
    const HOST: u8 = 254;
    let mut buffers = Buffers::default();
    for index in 0..services {
        buffers.add(|messages| {
            // Family, lengths of destination and source, service, table, protocol, scope, type, flags.
            let header = [2, 32, 0, 0, 255, KERNEL, HOST, LOCAL, 0, 0, 0, 0];
            messages.begin(NEW_ROUTE, flag::CREATE | flag::EXCLUSIVE).header(&header);
            messages.attribute(1, &service_address(index)).u32(4, device);
        });
    }
    buffers.finish()
}

/// One destination against another, many times.
fn changes(family: u16, services: usize, endpoints: usize) -> Vec<Duration> {
    let socket = open(Some(netlink::GENERIC));
    let prepared: Vec<Vec<Vec<u8>>> = (0..CHANGES)
        .map(|change| {
            let index = change % services;
            let turn = change / services;
            let old = if turn == 0 { endpoint_address(index, 0) } else { endpoint_address(index, ANOTHER + turn - 1) };
            let mut buffers = Buffers::default();
            buffers.add(|messages| new_destination(messages, family, index, endpoint_address(index, ANOTHER + turn)));
            buffers.add(|messages| delete_destination(messages, family, index, old));
            assert!(endpoints > 0, "there is an endpoint to change");
            buffers.finish()
        })
        .collect();
    prepared.iter().map(|buffers| timed(&socket, buffers)).collect()
}

/// All destinations of so many services against others, service by service: the new ones come before the old ones go.
fn rolling(family: u16, services: usize, endpoints: usize) -> Vec<Vec<u8>> {
    let mut buffers = Buffers::default();
    for index in 0..services {
        for number in 0..endpoints {
            let address = endpoint_address(index, ANOTHER + number);
            buffers.add(|messages| new_destination(messages, family, index, address));
        }
        for number in 0..endpoints {
            buffers.add(|messages| delete_destination(messages, family, index, endpoint_address(index, number)));
        }
    }
    buffers.finish()
}

fn send_all(bus: Option<Protocol>, buffers: &[Vec<u8>]) -> Duration {
    timed(&open(bus), buffers)
}

fn timed(socket: &OwnedFd, buffers: &[Vec<u8>]) -> Duration {
    let begun = Instant::now();
    let mut answer = [0; 4096];
    for buffer in buffers {
        let sent =
            sendto(socket, buffer, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).expect("the kernel takes it");
        assert_eq!(sent, buffer.len());
        let (length, _) = recv(socket, &mut answer, RecvFlags::empty()).expect("an acknowledgement");
        let acknowledged = answers(&answer[..length]).next().expect("an answer");
        let errno = i32::from_ne_bytes(*acknowledged.header().expect("an error number"));
        assert_eq!(errno, 0, "the kernel refused something; is the namespace empty?");
    }
    begun.elapsed()
}

fn open(bus: Option<Protocol>) -> OwnedFd {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, bus).expect("a netlink socket");
    sockopt::set_socket_send_buffer_size_force(&socket, 4 << 20).expect("CAP_NET_ADMIN");
    bind(&socket, &SocketAddrNetlink::new(0, 0)).expect("a port");
    socket
}

fn ipvs_number() -> u16 {
    let mut socket = Socket::open(Bus::Generic).expect("generic netlink");
    let mut message = Messages::new();
    message.begin(16, 0).header(&[3, 2, 0, 0]).text(2, "IPVS");
    let found = socket.request(&mut message, |answer| answer.attributes(4).get(1)?.u16());
    found.expect("the module ip_vs").first().copied().expect("the number of the family IPVS")
}

fn device_number(name: &str) -> u32 {
    let socket = Socket::open(Bus::Route).expect("rtnetlink");
    rustix::net::netdevice::name_to_index(&socket, name).expect("the device kube-dummy-if")
}
