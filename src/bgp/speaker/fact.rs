//! Facts about neighbours.

use super::super::message::Remark;
use super::super::session::{Agreement, Cause};
use super::Liveness;
use crate::bfd;
use crate::net::{Family, PerFamily};

/// Fact about a neighbour that deserves a line in the log.
#[derive(Clone, PartialEq, Debug)]
pub enum Fact {
    Up(Box<Agreement>),
    Down {
        kept: PerFamily<bool>,
        cause: Cause,
    },
    /// A connection ended before it was established.
    Failed(Cause),
    /// It has not come back within its restart time: its routes of these address families are kept as the last resort (RFC 9494).
    LongLived(PerFamily<bool>),
    /// Errors in an UPDATE that did not reset the session. The same error of one neighbour is reported once a minute.
    Remarks(Vec<Remark>),
    /// The prefix limit is exceeded.
    TooMany {
        family: Family,
        most: u32,
    },
    /// The long attributes of its routes, or the attributes of all routes together, exceed this size in bytes.
    TooLong {
        most: usize,
    },
    /// End-of-RIB received.
    Complete(Family),
    /// Number of routes not advertised to it, because their attributes do not fit into a message (RFC 8654 6).
    Unfit(u32),
    /// BFD has come up, or has found that the path has failed.
    PathUp,
    PathFailed(bfd::Status),
    /// BFD has gone down with what it was with: a process of the neighbour that is gone, whose successor has the session.
    PathOutlived(bfd::Status),
    /// The neighbour has shut BFD down, which is no failure.
    PathShut,
    /// BFD has not come up for a minute, although it is wanted.
    PathMissing(Liveness),
}
