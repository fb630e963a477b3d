//! What all files together say, and what a change of one file changes.
//!
//! Pure: text goes in, changes of objects come out. The work follows the change: a document whose text is
//! the same as before is not parsed again, and only objects of the changed file are compared.
//!
//! An object that stands in two places counts once: the place that comes first counts, by the name of the
//! file and then by the position in it. So the answer never depends on what was read when.
//!
//! While a document of a file does not parse, nothing that the file said before is taken back: which of its
//! objects the broken document stands for cannot be known.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use super::document::{Content, Document, Format, Reader, Remark, documents, newlines};
use crate::k8s::parse::Warning;
use crate::k8s::{Kind, Object, ObjectId};

/// The files and the objects in them.
#[derive(Default)]
pub struct Catalog {
    files: BTreeMap<Arc<str>, File>,
    /// The file that counts for each object.
    owners: HashMap<ObjectId, Arc<str>>,
    /// Files that name an object which another file before them names too.
    rivals: BTreeMap<ObjectId, BTreeSet<Arc<str>>>,
    reader: Reader,
}

/// What a change of one file did.
#[derive(Default, Debug)]
pub struct Changed {
    pub objects: Vec<Found>,
    pub remarks: Vec<Said>,
}

/// Something that a person should hear, about one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// A document does not parse; what the file said before stays.
    Broken { line: usize, text: String },
    /// Everything in the file can be read again.
    Mended,
    /// A document was left aside.
    Skipped { line: usize, text: String },
    /// The object stands elsewhere as well, and only `counts` counts.
    Twice { object: ObjectId, counts: Arc<str> },
}

/// An object as it stands in a file, and what is odd about it.
type Found = (Object, Vec<Warning>);
type Objects = BTreeMap<ObjectId, Found>;

/// One file.
#[derive(Default)]
struct File {
    documents: HashMap<u64, Content>,
    objects: Objects,
    broken: Vec<(usize, String)>,
    /// Objects of which only the first counts.
    twice: BTreeSet<ObjectId>,
    /// Something is broken, and was already when the file was first seen.
    unknown: bool,
}

impl Catalog {
    /// A catalog that reads only these kinds.
    pub fn of(kinds: impl IntoIterator<Item = Kind>) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.reader.kinds = kinds.into_iter().collect();
        catalog
    }

    /// Takes in the present text of a file.
    pub fn put(&mut self, name: &str, format: Format, bytes: &[u8]) -> Changed {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.put_text(name, &documents(format, text)),
            Err(error) => {
                let sound = bytes.get(..error.valid_up_to()).map(String::from_utf8_lossy).unwrap_or_default();
                self.put_unreadable(name, newlines(&sound) + 1, "not UTF-8")
            }
        }
    }

    /// Notes that a file cannot be read.
    pub fn put_unreadable(&mut self, name: &str, line: usize, why: &str) -> Changed {
        let mut changed = Changed::default();
        let old = self.files.remove(name);
        let unknown = old.as_ref().is_none_or(|old| old.unknown);
        let mut file = old.unwrap_or_default();
        let broken = vec![(line, why.to_owned())];
        changed.note_broken(&file.broken, &broken);
        (file.broken, file.unknown) = (broken, unknown);
        self.files.insert(name.into(), file);
        changed
    }

    /// Takes a file out.
    pub fn remove(&mut self, name: &str) -> Changed {
        let mut changed = Changed::default();
        if let Some((name, old)) = self.files.remove_entry(name) {
            self.settle(&name, &old.objects, &mut changed);
        }
        changed
    }

    /// The names of all files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// Whether something is broken of which no earlier version is known.
    pub fn is_partly_unknown(&self) -> bool {
        self.files.values().any(|file| file.unknown)
    }

    fn put_text(&mut self, name: &str, documents: &[Document<'_>]) -> Changed {
        let mut changed = Changed::default();
        let (name, mut old) = match self.files.remove_entry(name) {
            Some((name, old)) => (name, Some(old)),
            None => (Arc::from(name), None),
        };
        let mut file = File::default();
        for document in documents {
            let hash = hash(document.text);
            let known = old.as_mut().and_then(|old| old.documents.remove(&hash));
            let content = known.unwrap_or_else(|| {
                let content = document.content(&mut self.reader);
                changed.remarks.extend(
                    content
                        .skipped
                        .iter()
                        .map(|remark| Said::Skipped { line: document.line + remark.line, text: remark.text.clone() }),
                );
                content
            });
            file.add(document, content, hash);
        }
        let old = old.unwrap_or_else(|| File { unknown: true, ..File::default() });
        changed.note_broken(&old.broken, &file.broken);
        let twice = file.twice.difference(&old.twice).cloned();
        changed.remarks.extend(twice.map(|object| Said::Twice { object, counts: name.clone() }));
        file.unknown = old.unknown && !file.broken.is_empty();
        if !file.broken.is_empty() {
            for (id, kept) in &old.objects {
                file.objects.entry(id.clone()).or_insert_with(|| kept.clone());
            }
        }
        self.files.insert(name.clone(), file);
        self.settle(&name, &old.objects, &mut changed);
        changed
    }

    /// Works out what the objects of one file, before and now, mean for the whole.
    fn settle(&mut self, name: &Arc<str>, before: &Objects, changed: &mut Changed) {
        let nothing = Objects::new();
        let now = self.files.get(name).map_or(&nothing, |file| &file.objects);
        let new_or_different = now.iter().filter(|(id, found)| before.get(*id) != Some(*found)).map(|(id, _)| id);
        let gone = before.keys().filter(|id| !now.contains_key(*id));
        let touched: Vec<ObjectId> = new_or_different.chain(gone).cloned().collect();
        for id in touched {
            let was = before.get(&id);
            self.settle_object(name, id, was, changed);
        }
    }

    fn settle_object(&mut self, name: &Arc<str>, id: ObjectId, was: Option<&Found>, changed: &mut Changed) {
        let is_here = self.files.get(name).is_some_and(|file| file.objects.contains_key(&id));
        let owner = self.owners.get(&id).cloned();
        let mut claims = self.rivals.remove(&id).unwrap_or_default();
        claims.extend(owner.clone());
        let knew = claims.contains(name);
        if is_here {
            claims.insert(name.clone());
        } else {
            claims.remove(name);
        }
        let Some(winner) = claims.pop_first() else {
            self.owners.remove(&id);
            changed.objects.push((Object::gone(id), Vec::new()));
            return;
        };
        if is_here && !knew && !claims.is_empty() {
            changed.remarks.push(Said::Twice { object: id.clone(), counts: winner.clone() });
        }
        if !claims.is_empty() {
            self.rivals.insert(id.clone(), claims);
        }
        let now = self.files.get(&winner).and_then(|file| file.objects.get(&id));
        let same = owner.as_ref() == Some(&winner) && (winner != *name || was == now);
        if let (false, Some(now)) = (same, now) {
            changed.objects.push(now.clone());
        }
        self.owners.insert(id, winner);
    }
}

impl File {
    fn add(&mut self, document: &Document<'_>, content: Content, hash: u64) {
        for found in &content.objects {
            match self.objects.entry(found.0.id()) {
                Entry::Vacant(place) => {
                    place.insert(found.clone());
                }
                Entry::Occupied(place) => {
                    self.twice.insert(place.key().clone());
                }
            }
        }
        self.broken.extend(content.broken.iter().map(|Remark { line, text }| (document.line + line, text.clone())));
        self.documents.insert(hash, content);
    }
}

impl Changed {
    fn note_broken(&mut self, before: &[(usize, String)], now: &[(usize, String)]) {
        if now.is_empty() && !before.is_empty() {
            self.remarks.push(Said::Mended);
        }
        let news = now.iter().filter(|entry| !before.contains(entry));
        self.remarks.extend(news.map(|(line, text)| Said::Broken { line: *line, text: text.clone() }));
    }
}

fn hash(text: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(text)
}

#[cfg(test)]
#[path = "catalog/tests.rs"]
mod tests;
