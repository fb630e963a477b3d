//! One object of a file, in as little memory as the kinds of which a cluster has many can do with.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::Found;
use crate::k8s::{Kind, Object, ObjectId, SliceOf};
use crate::model::{ObjectName, Pod, Service};

/// An object that counts within its file.
#[derive(Clone)]
pub struct Kept {
    stored: Stored,
    /// The hash of the document that holds this object and others that are kept, and nothing else; `None` where that
    /// document is not in the file any more, or holds more.
    pub document: Option<NonZeroU64>,
}

/// An object and its warnings. What is equal is stored alike.
#[derive(Clone, PartialEq)]
enum Stored {
    Service(ObjectName, Option<Arc<Service>>),
    EndpointSlice(ObjectName, Option<Box<SliceOf>>),
    Pod(ObjectName, Option<Arc<Pod>>),
    /// Of the other kinds, or with warnings.
    Any(Box<Found>),
}

impl Kept {
    pub fn of(found: Found, document: Option<NonZeroU64>) -> Kept {
        let stored = match found {
            (Object::Service(name, value), warnings) if warnings.is_empty() => Stored::Service(name, value),
            (Object::EndpointSlice(name, value), warnings) if warnings.is_empty() => Stored::EndpointSlice(name, value),
            (Object::Pod(name, value), warnings) if warnings.is_empty() => Stored::Pod(name, value),
            any => Stored::Any(Box::new(any)),
        };
        Kept { stored, document }
    }

    /// Returns the object and its warnings.
    pub fn found(&self) -> Found {
        let object = match &self.stored {
            Stored::Service(name, value) => Object::Service(name.clone(), value.clone()),
            Stored::EndpointSlice(name, value) => Object::EndpointSlice(name.clone(), value.clone()),
            Stored::Pod(name, value) => Object::Pod(name.clone(), value.clone()),
            Stored::Any(found) => return (**found).clone(),
        };
        (object, Vec::new())
    }

    pub fn without_document(&self) -> Kept {
        Kept { document: None, ..self.clone() }
    }

    /// Returns the identity of the object, in the order of [`ObjectId`], without copying it.
    pub fn key(&self) -> (Kind, &str, &str) {
        let (kind, name) = match &self.stored {
            Stored::Service(name, _) => (Kind::Service, name),
            Stored::EndpointSlice(name, _) => (Kind::EndpointSlice, name),
            Stored::Pod(name, _) => (Kind::Pod, name),
            Stored::Any(found) => return found.0.key(),
        };
        (kind, &name.namespace, &name.name)
    }

    pub fn id(&self) -> ObjectId {
        self.found().0.id()
    }

    /// Returns whether object and warnings are equal, wherever they stand.
    pub fn says_the_same(&self, other: &Kept) -> bool {
        self.stored == other.stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::Warning;

    #[test]
    fn an_object_of_a_large_cluster_takes_four_words_and_keeps_its_warnings() {
        assert_eq!(size_of::<Kept>(), 32);
        let name = ObjectName::new("shop", "web");
        let warning = Warning { field: "spec".into(), text: "odd".to_owned() };
        let gone = [
            Object::Service(name.clone(), None),
            Object::EndpointSlice(name.clone(), None),
            Object::Pod(name.clone(), None),
            Object::Node("node1".into(), None),
        ];
        for object in gone {
            let (plain, warned) = ((object.clone(), Vec::new()), (object.clone(), vec![warning.clone()]));
            let (one, other) = (Kept::of(plain.clone(), None), Kept::of(warned.clone(), NonZeroU64::new(1)));
            assert_eq!((one.found(), other.found()), (plain, warned));
            assert!(one.says_the_same(&one.clone()) && !one.says_the_same(&other));
            assert!(one.key() == object.key() && other.key() == object.key() && one.id() == object.id());
        }
    }
}
