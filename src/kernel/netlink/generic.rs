//! Generic netlink: families that are found by name.
//!
//! A family's number is given out when its module is loaded, so it changes when the module is reloaded;
//! then the old number answers `ENOENT`. Asking for a family by name loads its module.
//!
//! Kernel: include/uapi/linux/genetlink.h, the family `nlctrl`.

use super::answer::Answer;
use super::bus::Bus;
use super::fault::{Fault, Refusal};
use super::message::Messages;
use super::socket::Socket;
use crate::kernel::{Error, module};

const CONTROL_FAMILY: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const CONTROL_VERSION: u8 = 2;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Command, version, two reserved bytes.
const HEADER: usize = 4;

/// A socket that speaks to one generic family. Messages are built with [`Messages::begin_generic`].
#[derive(Debug)]
pub struct GenericSocket {
    socket: Socket,
    family: &'static str,
    number: Option<u16>,
}

impl GenericSocket {
    /// Opens a socket in the network namespace of the calling thread. The family is looked up when it is
    /// first spoken to.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(family: &'static str) -> Result<GenericSocket, Error> {
        Ok(GenericSocket { socket: Socket::open(Bus::Generic)?, family, number: None })
    }

    /// As [`Socket::with_short_dumps`].
    pub fn with_short_dumps(self) -> GenericSocket {
        GenericSocket { socket: self.socket.with_short_dumps(), ..self }
    }

    /// As [`Socket::batch`].
    ///
    /// # Errors
    /// As for [`Socket::batch`], or the kernel does not have the family.
    pub fn batch(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Fault> {
        messages.retype(self.number()?);
        let refusals = self.socket.batch(messages)?;
        // A family that is gone refuses everything.
        let gone = refusals.len() == messages.len() && refusals.iter().all(|refusal| refusal.errno == libc::ENOENT);
        if gone && !messages.is_empty() && self.has_moved()? {
            messages.retype(self.number()?);
            return self.socket.batch(messages);
        }
        Ok(refusals)
    }

    /// As [`Socket::request`].
    ///
    /// # Errors
    /// As for [`Socket::request`], or the kernel does not have the family.
    pub fn request<T>(
        &mut self,
        message: &mut Messages,
        mut parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        message.retype(self.number()?);
        match self.socket.request(message, &mut parse) {
            Err(fault) if fault.is_absent() && self.has_moved()? => {
                message.retype(self.number()?);
                self.socket.request(message, parse)
            }
            result => result,
        }
    }

    /// As [`Socket::dump`].
    ///
    /// # Errors
    /// As for [`Socket::dump`], or the kernel does not have the family.
    pub fn dump<T>(
        &mut self,
        message: &mut Messages,
        mut parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        message.retype(self.number()?);
        match self.socket.dump(message, &mut parse) {
            Err(fault) if fault.is_absent() && self.has_moved()? => {
                message.retype(self.number()?);
                self.socket.dump(message, parse)
            }
            result => result,
        }
    }

    /// Returns whether the kernel has the family, be it as a module that can be loaded.
    ///
    /// # Errors
    /// The kernel does not answer, or refuses for another reason than that the family is missing.
    pub fn exists(&mut self) -> Result<bool, Fault> {
        match self.number() {
            Ok(_) => Ok(true),
            Err(fault) if fault.is_absent() => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    fn number(&mut self) -> Result<u16, Fault> {
        if let Some(number) = self.number {
            return Ok(number);
        }
        let number = self.look_up()?;
        self.number = Some(number);
        Ok(number)
    }

    /// Looks the family up again; returns whether its number has changed.
    fn has_moved(&mut self) -> Result<bool, Fault> {
        let before = self.number.take();
        Ok(Some(self.number()?) != before)
    }

    /// Asks the kernel for the number, which has it load the module.
    fn look_up(&mut self) -> Result<u16, Fault> {
        let mut message = Messages::new();
        message.begin(CONTROL_FAMILY, 0).header(&[GET_FAMILY, CONTROL_VERSION, 0, 0]).text(FAMILY_NAME, self.family);
        let found = self.socket.request(&mut message, |answer| answer.attributes(HEADER).get(FAMILY_ID)?.u16());
        match found {
            Ok(numbers) => numbers.into_iter().next().ok_or(Fault::Malformed("a generic family without a number")),
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ENOENT => {
                let module = module_of(self.family);
                let family = self.family;
                let text = format!(
                    "the kernel has no netlink family {family}, of module {module}; {}",
                    module::remedy(module)
                );
                Err(Fault::Refused(Refusal { text: Some(text), ..refusal }))
            }
            Err(fault) => Err(fault),
        }
    }
}

/// The module that brings a family.
fn module_of(family: &'static str) -> &'static str {
    match family {
        "IPVS" => "ip_vs",
        other => other,
    }
}
