//! Which connections that others open become a neighbour's: from its address, to ours, with its password, and from no farther away than it may be.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

use super::apply::hops;
use super::news::Refusal;
use super::{CONNECTIONS, Driver};
use crate::bgp::speaker::Input;
use crate::kernel::{Error, tcp};
use crate::net::link_local::of_socket;

impl Driver {
    /// Takes a connection that a listener has accepted, or closes it.
    pub(super) fn accept(&mut self, on: SocketAddr, stream: TcpStream, from: IpAddr) {
        match self.admit(on, &stream, from) {
            Err(refusal) => self.news.refused(from, refusal),
            // The neighbour has disconnected in the meantime.
            Ok(Err(_)) => {}
            Ok(Ok(())) => {
                let link = self.links.add(&self.waits, from, stream);
                self.step(Input::Accepted(from, link));
            }
        }
    }

    /// Returns whether a connection is admitted, and the result of applying the neighbour's options to it.
    fn admit(&self, on: SocketAddr, stream: &TcpStream, from: IpAddr) -> Result<Result<(), Error>, Refusal> {
        let neighbour = self.speaker.neighbour(from).ok_or(Refusal::Stranger)?;
        let transport = &neighbour.wanted().transport;
        let local = stream.local_addr().ok().map(of_socket);
        if transport.local.is_some() && transport.local != local {
            return Err(Refusal::OtherAddress);
        }
        if !self.listeners.has_key(on, from) {
            return Err(Refusal::NoPassword);
        }
        if self.links.count(from) >= CONNECTIONS {
            return Err(Refusal::TooMany);
        }
        let comes_within = |least| tcp::opened_with_ttl(stream).is_some_and(|ttl| ttl >= least);
        if !transport.time_to_live.least().is_none_or(comes_within) {
            return Err(Refusal::TooFar);
        }
        let key = transport.password.as_ref().map(|password| password.key());
        Ok(tcp::adopt(stream, from, hops(transport.time_to_live), key))
    }
}
