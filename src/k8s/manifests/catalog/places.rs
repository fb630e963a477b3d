//! Index of the files that name an object, by a hash of the object's identity.
//!
//! The identity of an object stands in its file already. Kept here once more it would weigh as much as the objects
//! themselves, so there are only two numbers for each place. Different objects may have the same hash: the caller
//! looks into the file.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crate::k8s::ObjectId;

/// Index of the places of objects. An object has one place in each file that names it.
#[derive(Default)]
pub struct Places {
    /// The number of the file, by the hash of the object.
    first: HashMap<u32, u32>,
    /// The other files, where several places have the same hash. A file stands here once for each object.
    others: BTreeMap<u32, Vec<u32>>,
    /// The names of the files that have a number.
    files: BTreeMap<u32, Arc<str>>,
}

impl Places {
    /// Gives a file a number of its own.
    pub fn add_file(&mut self, name: &Arc<str>) -> u32 {
        let number = self.files.last_key_value().map_or(0, |(last, _)| last + 1);
        self.files.insert(number, name.clone());
        number
    }

    /// Takes back the number of a file that names no objects any more.
    pub fn remove_file(&mut self, number: u32) {
        self.files.remove(&number);
    }

    pub fn add(&mut self, object: &ObjectId, file: u32) {
        let hash = short_hash(object);
        if let Some(first) = self.first.insert(hash, file) {
            self.others.entry(hash).or_default().push(first);
        }
    }

    pub fn remove(&mut self, object: &ObjectId, file: u32) {
        let hash = short_hash(object);
        let Some(others) = self.others.get_mut(&hash) else {
            self.first.remove(&hash);
            return;
        };
        match others.iter().position(|other| *other == file) {
            Some(place) => drop(others.swap_remove(place)),
            None => drop(others.pop().and_then(|other| self.first.insert(hash, other))),
        }
        if others.is_empty() {
            self.others.remove(&hash);
        }
    }

    /// The files that may name this object.
    pub fn of(&self, object: &ObjectId) -> impl Iterator<Item = &Arc<str>> {
        let hash = short_hash(object);
        let numbers = self.first.get(&hash).into_iter().chain(self.others.get(&hash).into_iter().flatten());
        numbers.filter_map(|number| self.files.get(number))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.others.is_empty() && self.files.is_empty()
    }
}

fn short_hash(object: &ObjectId) -> u32 {
    (BuildHasherDefault::<DefaultHasher>::default().hash_one(object) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::Kind;
    use crate::model::ObjectName;

    fn pod(number: usize) -> ObjectId {
        ObjectId { kind: Kind::Pod, name: ObjectName::new("shop", &format!("pod-{number}")) }
    }

    /// Two objects with the same hash, of which there are some among so many.
    fn alike() -> [ObjectId; 2] {
        let mut known: HashMap<u32, usize> = HashMap::new();
        for number in 0..1_000_000 {
            if let Some(other) = known.insert(short_hash(&pod(number)), number) {
                return [pod(other), pod(number)];
            }
        }
        panic!("no hash came twice")
    }

    #[test]
    fn objects_with_the_same_hash_do_not_lose_each_others_files() {
        let mut places = Places::default();
        let [one, other]: [u32; 2] = ["a.yaml", "b.yaml"].map(|name| places.add_file(&name.into()));
        let [first, second] = alike();
        places.add(&first, one);
        places.add(&second, one);
        places.add(&second, other);
        let files = |places: &Places, object| places.of(object).map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(files(&places, &second).len(), 3);
        places.remove(&second, one);
        let mut left = files(&places, &first);
        left.sort();
        assert_eq!(left, ["a.yaml", "b.yaml"]);
        places.remove(&first, one);
        assert_eq!(files(&places, &second), ["b.yaml"]);
        places.remove(&second, other);
        [one, other].into_iter().for_each(|file| places.remove_file(file));
        assert!(places.is_empty());
    }
}
