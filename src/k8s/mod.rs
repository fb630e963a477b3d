//! The sources of the cluster: the Kubernetes API (`watch`) or a directory of manifests (`manifests`).
//!
//! Both sources send the same: a bounded stream of [`Message`]s, in which every object is already a
//! value of `model` and the foreign form is gone. The reader of the stream (`world`) cannot tell the two
//! apart. `parse` is the boundary: an invalid field becomes a warning there, never an error further in.

pub mod access;
pub mod agents;
pub mod allocation;
pub mod annotations;
pub mod answer;
pub mod client;
pub mod events;
pub mod kubectl;
pub mod manifests;
pub mod outage;
pub mod own_annotations;
pub mod parse;
pub mod render;
pub mod report;
pub mod service_events;
pub mod watch;

mod asked_at;
mod message;
mod object;
mod own_node;
pub mod proxy_environment;
mod request;
mod warning;

pub use message::{Event, Message};
pub use object::{Kind, Object, ObjectId, SliceOf, Wanted};
pub use warning::{LAST_GOOD_STAYS, Warning, Warnings};
