//! Making the kernel equal to the desired state, whatever it was before.
//!
//! Three small things carry every subsystem, with [`Audits`] that look through several kinds by turns and an
//! [`Account`] of their state:
//! - a [`Target`] is one kind of kernel objects: it reads what is ours and performs steps;
//! - a [`Mirror`] is a target and its last seen state: it compares (pure) and requests the steps;
//! - [`Backoff`] decides when a failed step is tried again.
//!
//! The rules, which hold for every kind:
//! - *Adopt and compare, never flush.* Objects that exist and are desired stay untouched.
//! - *Grow forward, shrink backward.* A subsystem orders its targets so that each needs only those before
//!   it, grows them in that order and shrinks them in the reverse, so nothing ever names what is not there.
//! - *Nothing shrinks before the inputs are complete.* The caller simply does not call `shrink` until then.
//! - *A failure forgets.* What failed is read back from the kernel before it is compared again, because a
//!   failed call may have done its work. It is retried with a growing delay and is visible in health.
//! - *Foreign objects are neither returned nor touched.*
//! - *Cleanup is reconciling to nothing.* There is no second code path.

mod account;
mod audits;
mod backoff;
mod mirror;
mod moment;
mod optional;
mod sorted;
mod target;

pub use account::Account;
pub use audits::{Audits, Found, audit, compare_after_notice, glance, scan};
pub use backoff::Backoff;
pub use mirror::{
    Audited, Course, DESCRIBED, Difference, DifferenceState, Differing, Drift, Growth, Inspected, Kept, MayGrow,
    Mirror, Reflection, Room, Trouble,
};
pub use moment::{Moment, Moments};
pub use optional::Optional;
pub use sorted::Sorted;
pub use target::{Failure, Glance, Phase, Step, Target};
