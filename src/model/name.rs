//! The name of a namespaced object.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use compact_str::CompactString;

/// The name of one object. Clones share the text, and an object's name stands in many places: in the World, in the catalog of
/// manifests and in the subsystems' plans.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ObjectName(Arc<Words>);

/// Namespace and name, as two words: joining them with a character that both may contain makes
/// different objects equal, so nothing here ever does.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Words {
    pub namespace: CompactString,
    pub name: CompactString,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> ObjectName {
        ObjectName::of(namespace.into(), name.into())
    }

    /// The name of these words.
    pub fn of(namespace: CompactString, name: CompactString) -> ObjectName {
        ObjectName(Arc::new(Words { namespace, name }))
    }
}

impl Deref for ObjectName {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.0
    }
}

impl Ord for ObjectName {
    /// By namespace, then by name.
    fn cmp(&self, other: &ObjectName) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &ObjectName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
