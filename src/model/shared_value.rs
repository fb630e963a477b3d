//! A text or a list that many objects have in common, behind one pointer.
//!
//! `Arc<str>` and `Arc<[T]>` take two words each, and a cluster may have hundreds of thousands of pods and endpoints.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use super::interner::Counted;

/// A shared text or list. Equality, order and hash are those of its content.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shared<T: ?Sized>(Arc<Box<T>>);

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> Borrow<T> for Shared<T> {
    fn borrow(&self) -> &T {
        self
    }
}

impl<T: ?Sized + Eq + std::hash::Hash> Counted for Shared<T> {
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl<'a, T: ?Sized> From<&'a T> for Shared<T>
where
    Box<T>: From<&'a T>,
{
    fn from(content: &'a T) -> Self {
        Shared(Arc::new(content.into()))
    }
}

impl<T, const N: usize> From<[T; N]> for Shared<[T]> {
    fn from(content: [T; N]) -> Self {
        content.into_iter().collect()
    }
}

impl<T> From<Vec<T>> for Shared<[T]> {
    fn from(content: Vec<T>) -> Self {
        Shared(Arc::new(content.into()))
    }
}

impl<T> FromIterator<T> for Shared<[T]> {
    fn from_iter<I: IntoIterator<Item = T>>(content: I) -> Self {
        Shared(Arc::new(content.into_iter().collect()))
    }
}

impl<'a, T> IntoIterator for &'a Shared<[T]> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.iter()
    }
}

impl<T> Default for Shared<[T]> {
    fn default() -> Self {
        Shared::from([])
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
