//! The name of a namespaced object.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use compact_str::CompactString;

use super::interner::Counted;

/// The name of one object. Clones share the text, and an object's name stands in many places: in the World, in the catalog of
/// manifests and in the subsystems' plans.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ObjectName(Arc<Words>);

/// Namespace and name, as two words: joining them with a character that both may contain makes
/// different objects equal, so nothing here ever does.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Words {
    pub namespace: NamespaceName,
    pub name: OwnName,
}

/// The name of a namespace, as it stands in the names of all objects of it: clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName(Arc<CompactString>);

/// Name of an object within its namespace.
///
/// With its neighbour it fills what the allocator gives out for a [`Words`] anyway, so that nearly every name, also that of a
/// pod of a Deployment with a long one, takes no memory of its own.
#[derive(Clone)]
pub struct OwnName(Text);

#[derive(Clone)]
enum Text {
    /// So many bytes of these, which are UTF-8.
    Short(u8, [u8; SHORT]),
    Long(Box<str>),
}

/// Bytes of the longest name without memory of its own.
const SHORT: usize = 46;

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> ObjectName {
        ObjectName::of(NamespaceName::from(namespace), name)
    }

    /// The name of an object of this namespace, which shares the namespace's text.
    pub fn of(namespace: NamespaceName, name: &str) -> ObjectName {
        ObjectName(Arc::new(Words { namespace, name: OwnName::from(name) }))
    }

    /// Returns whether it is that of a pod that is gone while its sandbox is there (`world::attachments`): no object can have a name with a tilde.
    pub fn is_of_gone_pod(&self) -> bool {
        self.name.contains('~')
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

impl From<&str> for NamespaceName {
    fn from(name: &str) -> NamespaceName {
        NamespaceName(Arc::new(name.into()))
    }
}

impl Deref for NamespaceName {
    type Target = CompactString;

    fn deref(&self) -> &CompactString {
        &self.0
    }
}

impl Borrow<str> for NamespaceName {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq<str> for NamespaceName {
    fn eq(&self, other: &str) -> bool {
        **self.0 == *other
    }
}

impl PartialEq<&str> for NamespaceName {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl Counted for NamespaceName {
    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl OwnName {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("a name is made of text")
    }

    pub fn to_compact(&self) -> CompactString {
        self.as_str().into()
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Short(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Text::Long(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for OwnName {
    fn from(name: &str) -> OwnName {
        let mut bytes = [0; SHORT];
        OwnName(match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(name.as_bytes());
                Text::Short(len, bytes)
            }
            _ => Text::Long(name.into()),
        })
    }
}

impl Deref for OwnName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for OwnName {
    fn eq(&self, other: &OwnName) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for OwnName {}

impl PartialEq<str> for OwnName {
    fn eq(&self, other: &str) -> bool {
        self.bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for OwnName {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl PartialOrd for OwnName {
    fn partial_cmp(&self, other: &OwnName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OwnName {
    /// As text: its order is that of its bytes.
    fn cmp(&self, other: &OwnName) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl Hash for OwnName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Debug for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_it_was_made_of_however_long() {
        for len in [0, 1, SHORT - 1, SHORT, SHORT + 1, 253, 300] {
            let text = "é".repeat(len / 2) + &"x".repeat(len % 2);
            let name = ObjectName::new("shop", &text);
            assert_eq!((name.name.as_str(), name.to_string()), (&*text, format!("shop/{text}")));
            assert_eq!(matches!(name.name.0, Text::Short(..)), len <= SHORT);
            assert_eq!(name, ObjectName::new("shop", &text));
        }
    }

    #[test]
    fn names_are_ordered_and_shown_as_their_texts_are() {
        let name = ObjectName::new("shop", "web");
        assert_eq!(format!("{:?} {:?}", name.namespace, name.name), "\"shop\" \"web\"");
        let long = "web-".repeat(20);
        let mut texts = ["", "a", "a-", "b", "web-", &long, "é"].map(str::to_owned).to_vec();
        texts.sort();
        let names: Vec<OwnName> = texts.iter().map(|text| OwnName::from(text.as_str())).collect();
        assert!(names.is_sorted());
        let by_namespace =
            [("a", "z"), ("a-", "a"), ("b", "a")].map(|(namespace, name)| ObjectName::new(namespace, name));
        assert!(by_namespace.is_sorted());
    }

    #[test]
    fn the_name_of_an_object_takes_what_the_allocator_gives_out_in_steps_of_sixteen_bytes() {
        // With two counters in front and the allocator's own word: 80.
        assert_eq!(size_of::<Words>(), 80 - 8 - 16);
    }
}
