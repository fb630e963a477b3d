//! The messages of a source.

use std::net::IpAddr;
use std::time::Instant;

use super::object::{Kind, Object};
use super::warning::Warning;

/// One message of a source.
#[derive(Debug)]
pub struct Message {
    /// Time at which the event behind this message was seen on the socket or in the directory.
    pub seen: Instant,
    pub event: Event,
}

/// The content of a source's message.
#[derive(Debug)]
pub enum Event {
    /// A full listing of a kind begins. What exists and is not named before the matching `Listed` is gone.
    Listing(Kind),
    /// An object is new, or has changed, or is gone.
    Object(Object, Vec<Warning>),
    /// The listing of a kind is over.
    Listed(Kind),
    /// A kind is there and may not be read. Nobody is to wait for it: what was known of it stays in force.
    Withheld(Kind),
    /// The source cannot be read at all; it goes on trying. Sent once for each outage.
    Unreachable,
    /// Whether the source holds something that it could not read and has no earlier version of, so that
    /// absence proves nothing.
    Unreadable(bool),
    /// All addresses at which the source is asked, so far as is known, sorted.
    AskedAt(Vec<IpAddr>),
    /// Whether the objects from here on belong together: all of them take effect at once, when that is over.
    Together(bool),
}
