//! Errors of kernel operations.

use std::fmt;

use rustix::io::Errno;

/// A failed kernel operation: what was done, to what, and the kernel's answer.
///
/// Matched by the methods below, never by text.
#[derive(Clone, Debug)]
pub struct Error {
    /// The attempted operation, in an administrator's words: `add virtual service`, `list routes`.
    pub operation: &'static str,
    /// The object, in the notation of the kernel's own tools. Empty where the operation says it all.
    pub object: String,
    /// The kernel's answer.
    pub cause: Cause,
}

/// The kernel's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// An error number of the system, with the extended acknowledgement's text where the kernel gave one.
    Errno(Errno, Option<String>),
    /// An error number above 4096, which ipset defines for itself; the text is from our own table.
    Ipset(i32, &'static str),
    /// A program (`iptables-restore`, `modprobe`) failed: its exit status and what it wrote to stderr.
    Program(String),
    /// The answer could not be understood: truncated, of the wrong type, or missing.
    Malformed(&'static str),
    /// No answer within the time limit.
    Timeout,
    /// The kernel took it, and another program's object prevails over it: which, as a sentence.
    Rival(String),
    /// A file of ours that it needs cannot be used: why, as a sentence.
    File(String),
}

impl Error {
    pub fn new(operation: &'static str, object: impl Into<String>, cause: Cause) -> Error {
        Error { operation, object: object.into(), cause }
    }

    pub fn errno(operation: &'static str, object: impl Into<String>, errno: Errno) -> Error {
        Error::new(operation, object, Cause::Errno(errno, None))
    }

    /// Returns whether the object existed already.
    pub fn is_exists(&self) -> bool {
        matches!(self.cause, Cause::Errno(Errno::EXIST, _))
    }

    /// Returns whether the object, or what it depends on, did not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self.cause, Cause::Errno(Errno::NOENT | Errno::SRCH | Errno::NODEV | Errno::ADDRNOTAVAIL, _))
    }

    /// Returns whether somebody else uses the object, or sends a request at the same moment.
    pub fn is_busy(&self) -> bool {
        matches!(self.cause, Cause::Errno(Errno::BUSY, _))
    }

    /// Returns whether somebody else has the port.
    pub fn is_port_taken(&self) -> bool {
        matches!(self.cause, Cause::Errno(Errno::ADDRINUSE, _))
    }

    /// Returns whether this kernel lacks support: a module or a protocol family is missing.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.cause, Cause::Errno(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT, _))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        match &self.cause {
            Cause::Errno(errno, None) => write!(f, ": {errno}"),
            Cause::Errno(errno, Some(text)) => write!(f, ": {errno}: {text}"),
            Cause::Ipset(number, text) => write!(f, ": {text} (ipset error {number})"),
            Cause::Program(text) | Cause::Rival(text) | Cause::File(text) => write!(f, ": {text}"),
            Cause::Malformed(text) => write!(f, ": unexpected answer: {text}"),
            Cause::Timeout => f.write_str(": no answer"),
        }
    }
}

impl std::error::Error for Error {}
