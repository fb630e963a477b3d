//! Passwords of neighbours on all sockets: those that listen, connections that stand, and those that come about.

use std::net::IpAddr;
use std::time::Instant;

use tokio::net::TcpStream;

use super::super::speaker::{Input, Neighbour};
use super::Driver;
use crate::kernel::{Error, tcp};

impl Driver {
    /// Installs the passwords of the configured neighbours on the listening sockets, and those that have changed on connections.
    pub(super) fn set_passwords(&mut self) {
        let password =
            |(address, neighbour): (IpAddr, &Neighbour)| (address, neighbour.wanted().transport.password.clone());
        let passwords = self.speaker.neighbours().map(password).collect();
        let at = self.moments.at(Instant::now());
        for (address, password) in self.listeners.set_passwords(passwords, at, &mut self.news) {
            for (link, error) in self.links.set_key(address, password.as_ref().map(|password| password.key())) {
                self.listeners.refused(address, error, at, &mut self.news);
                self.step(Input::Closed(link));
                self.links.close(link, Instant::now());
            }
        }
        self.undialled.retain(|address| self.speaker.neighbour(*address).is_some());
    }

    /// Sets the present key on a connection that was dialled: the password may have changed meanwhile.
    pub(super) fn with_present_key(&self, address: IpAddr, stream: TcpStream) -> Result<TcpStream, Error> {
        if let Some(neighbour) = self.speaker.neighbour(address) {
            let password = neighbour.wanted().transport.password.as_ref();
            tcp::set_key(&stream, address.into(), password.map(|password| password.key()))?;
        }
        Ok(stream)
    }
}
