//! Where the cluster comes from: the Kubernetes API (`watch`) or a directory of manifests (`manifests`).
//!
//! Both sources speak the same words: a bounded stream of [`Message`]s, in which every object is already a
//! value of `model` and the foreign form is gone. Whoever reads the stream (`world`) cannot tell the two
//! apart. `parse` is the door: odd input becomes a warning there, never an error further in.

pub mod annotations;
pub mod client;
pub mod manifests;
pub mod parse;
pub mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use compact_str::CompactString;

use crate::model::{EndpointSlice, Node, ObjectName, Service};

pub use parse::Warning;

/// The kinds of objects that this program reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    Service,
    EndpointSlice,
    /// The service proxy watches only the Node of its own host.
    Node,
}

/// One message of a source.
#[derive(Debug)]
pub struct Message {
    /// When the event behind this message was seen on the socket or in the directory.
    pub seen: Instant,
    pub event: Event,
}

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// A full listing of a kind begins. What exists and is not named before the matching `Listed` is gone.
    Listing(Kind),
    /// An object is new, or has changed, or is gone.
    Object(Object, Vec<Warning>),
    /// The listing of a kind is over.
    Listed(Kind),
    /// The source cannot be read at all; it goes on trying. Said once for each outage.
    Unreachable,
    /// Whether the source holds something that it could not read and has no earlier version of, so that
    /// absence proves nothing.
    Unreadable(bool),
}

/// One object as the model knows it. Without a value the object is gone, or is of no concern to a node
/// agent (a headless Service, say).
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    Service(ObjectName, Option<Arc<Service>>),
    EndpointSlice(ObjectName, Option<SliceOf>),
    Node(CompactString, Option<Arc<Node>>),
}

/// A slice and the name of the Service it belongs to, which is in the slice's own namespace.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceOf {
    pub service: CompactString,
    pub slice: Arc<EndpointSlice>,
}

/// What identifies an object among all that are read. Cluster-wide objects have an empty namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    pub kind: Kind,
    pub name: ObjectName,
}

/// What of the cluster is needed; nothing else is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    Services,
    EndpointSlices,
    /// The one Node of this name.
    Node(CompactString),
}

impl Wanted {
    pub fn kind(&self) -> Kind {
        match self {
            Wanted::Services => Kind::Service,
            Wanted::EndpointSlices => Kind::EndpointSlice,
            Wanted::Node(_) => Kind::Node,
        }
    }

    /// Whether this object is among what is wanted.
    pub fn includes(&self, object: &Object) -> bool {
        match (self, object) {
            (Wanted::Services, Object::Service(..)) | (Wanted::EndpointSlices, Object::EndpointSlice(..)) => true,
            (Wanted::Node(wanted), Object::Node(name, _)) => wanted == name,
            _ => false,
        }
    }
}

impl Kind {
    /// The API's name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
        }
    }

    /// `apiVersion` of the one version of this kind that is read.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// The kind with this API name; `None` for a kind that is not read.
    pub fn from_name(name: &str) -> Option<Kind> {
        [Kind::Service, Kind::EndpointSlice, Kind::Node].into_iter().find(|kind| kind.name() == name)
    }
}

impl Object {
    pub fn id(&self) -> ObjectId {
        match self {
            Object::Service(name, _) => ObjectId { kind: Kind::Service, name: name.clone() },
            Object::EndpointSlice(name, _) => ObjectId { kind: Kind::EndpointSlice, name: name.clone() },
            Object::Node(name, _) => ObjectId { kind: Kind::Node, name: ObjectName::new("", name) },
        }
    }

    /// The word that this object is gone.
    pub fn gone(id: ObjectId) -> Object {
        match id.kind {
            Kind::Service => Object::Service(id.name, None),
            Kind::EndpointSlice => Object::EndpointSlice(id.name, None),
            Kind::Node => Object::Node(id.name.name, None),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "{} {}", self.kind, self.name.name),
            _ => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
