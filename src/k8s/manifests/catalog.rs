//! The content of all files together, and the effect of a change of one file.
//!
//! Pure: text goes in, changes of objects come out. The work follows the change: a document whose text is
//! the same as before is not parsed again, and only objects of the changed file are compared.
//!
//! An object that stands in two places counts once: the place that comes first counts, by the name of the
//! file and then by the position in it. So the answer never depends on what was read when.
//!
//! While a document of a file does not parse, none of the file's former objects is removed: which of its
//! objects the broken document stands for cannot be known.

mod kept;
mod places;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::num::NonZeroU64;
use std::sync::Arc;

use foldhash::quality::FixedState;

use self::kept::Kept;
use self::places::Places;
use super::document::{Content, Document, Format, MOST_REMARKS, Reader, Remark, documents, newlines};
use crate::k8s::{Kind, Object, ObjectId, Warning};

/// The files and the objects in them.
#[derive(Default)]
pub struct Catalog {
    files: BTreeMap<Arc<str>, File>,
    /// Number of files in which something is broken of which no earlier version is known.
    unknown: usize,
    /// The files that name each object.
    places: Places,
    reader: Reader,
}

/// The effect of a change of one file.
#[derive(Default, Debug)]
pub struct FileChanges {
    pub objects: Vec<Found>,
    /// The first ones.
    pub remarks: Vec<ManifestRemark>,
    /// Number of all others.
    pub untold: usize,
}

/// A message for a person about one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManifestRemark {
    /// A document does not parse; the file's former objects stay.
    Broken { line: usize, text: String },
    /// Everything in the file can be read again.
    Mended,
    /// A document was left aside.
    Skipped { line: usize, text: String },
    /// The object stands elsewhere as well, and only `counts` counts.
    Twice { object: ObjectId, counts: Arc<str> },
}

/// An object as it stands in a file, and its warnings.
type Found = (Object, Vec<Warning>);

/// Most documents of a file with faults whose content is kept, so that they need not be parsed again.
const MOST_FAULTY: usize = 1000;

/// One file. There may be as many of them as objects, and most have no faults.
#[derive(Default)]
struct File {
    /// As [`Places`] knows it.
    number: u32,
    /// Sorted by what identifies the object.
    objects: Box<[Kept]>,
    /// Documents without content: of kinds that nobody needs. Sorted.
    silent: Box<[NonZeroU64]>,
    faults: Option<Box<Faults>>,
}

/// State of an object before its file changed.
struct Before<'a> {
    /// The file's number.
    number: u32,
    object: Option<&'a Kept>,
}

/// Exceptional state of a file.
#[derive(Clone, PartialEq, Default)]
struct Faults {
    /// Documents with content other than objects, as far as there are not too many.
    others: BTreeMap<NonZeroU64, Content>,
    /// The first places, and the number of others.
    broken: Vec<(usize, String)>,
    more_broken: usize,
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

    /// Replaces the text of a file.
    pub fn put(&mut self, name: &str, format: Format, bytes: &[u8]) -> FileChanges {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.put_text(name, &documents(format, text)),
            Err(error) => {
                let sound = bytes.get(..error.valid_up_to()).map(String::from_utf8_lossy).unwrap_or_default();
                self.put_unreadable(name, newlines(&sound) + 1, "not UTF-8")
            }
        }
    }

    /// Records that a file cannot be read.
    pub fn put_unreadable(&mut self, name: &str, line: usize, why: &str) -> FileChanges {
        let mut changed = FileChanges::default();
        let (name, mut file) = self.take(name);
        let mut faults = file.faults.take().map(|faults| *faults).unwrap_or_default();
        let broken = vec![(line, why.to_owned())];
        changed.note_broken(&faults.broken, &broken);
        (faults.broken, faults.more_broken) = (broken, 0);
        file.faults = Some(Box::new(faults));
        self.keep(name, file);
        changed
    }

    /// Removes a file.
    pub fn remove(&mut self, name: &str) -> FileChanges {
        let mut changed = FileChanges::default();
        if let Some((name, old)) = self.remove_file(name) {
            self.settle(&name, &old, &mut changed);
            self.places.remove_file(old.number);
        }
        changed
    }

    /// A file as it was, or as one that was never read.
    fn take(&mut self, name: &str) -> (Arc<str>, File) {
        self.remove_file(name).unwrap_or_else(|| {
            let name = Arc::from(name);
            let number = self.places.add_file(&name);
            (name, File::never_read(number))
        })
    }

    fn keep(&mut self, name: Arc<str>, file: File) {
        self.unknown += usize::from(file.faults().unknown);
        self.files.insert(name, file);
    }

    fn remove_file(&mut self, name: &str) -> Option<(Arc<str>, File)> {
        let removed = self.files.remove_entry(name)?;
        self.unknown -= usize::from(removed.1.faults().unknown);
        Some(removed)
    }

    /// The names of all files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// Returns whether something is broken of which no earlier version is known.
    pub fn is_partly_unknown(&self) -> bool {
        self.unknown > 0
    }

    fn put_text(&mut self, name: &str, documents: &[Document<'_>]) -> FileChanges {
        let mut changed = FileChanges::default();
        let (name, old) = self.take(name);
        let known = old.documents();
        let mut reading = Reading::default();
        for document in documents {
            let hash = hash(document);
            let content = old.content(&known, hash).unwrap_or_else(|| {
                let content = document.content(&mut self.reader);
                for Remark { line, text } in &content.skipped {
                    changed.note(|| ManifestRemark::Skipped { line: document.line + line, text: text.clone() });
                }
                changed.untold += content.untold;
                content
            });
            reading.add(document, content, hash);
        }
        let file = reading.file(&old);
        changed.note_broken(&old.faults().broken, &file.faults().broken);
        changed.untold += file.faults().more_broken.saturating_sub(old.faults().more_broken);
        for object in file.faults().twice.difference(&old.faults().twice) {
            changed.note(|| ManifestRemark::Twice { object: object.clone(), counts: name.clone() });
        }
        self.keep(name.clone(), file);
        self.settle(&name, &old, &mut changed);
        changed
    }

    /// Determines the effect on the whole of a file's objects, before and now.
    fn settle(&mut self, name: &Arc<str>, before: &File, changed: &mut FileChanges) {
        let now = self.files.get(name).map_or(&[][..], |file| &file.objects);
        for (id, was) in differing(&before.objects, now) {
            self.settle_object(name, id, Before { number: before.number, object: was }, changed);
        }
    }

    fn settle_object(&mut self, name: &Arc<str>, id: ObjectId, before: Before<'_>, changed: &mut FileChanges) {
        let Before { number, object: was } = before;
        let now = self.files.get(name).and_then(|file| file.kept(&id));
        match (was.is_some(), now.is_some()) {
            (false, true) => self.places.add(&id, number),
            (true, false) => self.places.remove(&id, number),
            _ => {}
        }
        let has = |file: &&Arc<str>| self.files.get(*file).is_some_and(|file| file.kept(&id).is_some());
        let rival = self.places.of(&id).filter(|file| *file != name).filter(has).min();
        // Of several files the first by name counts.
        let counted = |kept: Option<&Kept>| kept.map(|_| name).into_iter().chain(rival).min();
        let Some(winner) = counted(now) else {
            changed.objects.push((Object::gone(id), Vec::new()));
            return;
        };
        if now.is_some() && was.is_none() && rival.is_some() {
            changed.note(|| ManifestRemark::Twice { object: id.clone(), counts: winner.clone() });
        }
        let same = counted(was) == Some(winner) && (winner != name || says_the_same(was, now));
        let kept = self.files.get(winner).and_then(|file| file.kept(&id));
        changed.objects.extend(kept.filter(|_| !same).map(Kept::found));
    }
}

impl File {
    /// State of a file before it was read: nothing, so whatever is broken in it has no earlier version.
    fn never_read(number: u32) -> File {
        File { number, faults: Some(Box::new(Faults { unknown: true, ..Faults::default() })), ..File::default() }
    }

    fn faults(&self) -> &Faults {
        static NOTHING: Faults = Faults {
            others: BTreeMap::new(),
            broken: Vec::new(),
            more_broken: 0,
            twice: BTreeSet::new(),
            unknown: false,
        };
        self.faults.as_deref().unwrap_or(&NOTHING)
    }

    fn kept(&self, id: &ObjectId) -> Option<&Kept> {
        let wanted = (id.kind, id.name.namespace.as_str(), id.name.name.as_str());
        let place = self.objects.binary_search_by(|kept| kept.key().cmp(&wanted)).ok()?;
        self.objects.get(place)
    }

    /// Returns the documents that consist entirely of kept objects, with those objects; sorted.
    fn documents(&self) -> Vec<(NonZeroU64, &Kept)> {
        let mut documents: Vec<_> = self.objects.iter().filter_map(|kept| Some((kept.document?, kept))).collect();
        documents.sort_unstable_by_key(|(hash, _)| *hash);
        documents
    }

    /// Returns the content of a document that the file held already.
    fn content(&self, documents: &[(NonZeroU64, &Kept)], hash: NonZeroU64) -> Option<Content> {
        if self.silent.binary_search(&hash).is_ok() {
            return Some(Content::default());
        }
        let first = documents.partition_point(|(its, _)| *its < hash);
        let same = documents.iter().skip(first).take_while(|(its, _)| *its == hash);
        let objects: Vec<Found> = same.map(|(_, kept)| kept.found()).collect();
        match objects.is_empty() {
            true => self.faults().others.get(&hash).cloned(),
            false => Some(Content { objects, ..Content::default() }),
        }
    }
}

/// A file that is being read, in the order of its documents.
#[derive(Default)]
struct Reading {
    objects: Vec<Kept>,
    silent: Vec<NonZeroU64>,
    faults: Faults,
}

impl Reading {
    fn add(&mut self, document: &Document<'_>, content: Content, hash: NonZeroU64) {
        if content == Content::default() {
            self.silent.push(hash);
            return;
        }
        let is_plain = content.broken.is_empty() && content.skipped.is_empty() && !content.objects.is_empty();
        let kept = |found: &Found| Kept::of(found.clone(), is_plain.then_some(hash));
        self.objects.extend(content.objects.iter().map(kept));
        let broken = content.broken.iter().map(|Remark { line, text }| (document.line + line, text.clone()));
        let left = MOST_REMARKS.saturating_sub(self.faults.broken.len());
        self.faults.more_broken += content.broken.len().saturating_sub(left);
        self.faults.broken.extend(broken.take(left));
        if !is_plain && self.faults.others.len() < MOST_FAULTY {
            self.faults.others.insert(hash, content);
        }
    }

    /// Returns the present state of the file, with its former content where something is broken.
    fn file(self, old: &File) -> File {
        let Reading { mut objects, mut silent, mut faults } = self;
        silent.sort_unstable();
        faults.unknown = old.faults().unknown && !faults.broken.is_empty();
        let losers = keep_the_first(&mut objects);
        let spoiled: BTreeSet<NonZeroU64> = losers.iter().filter_map(|kept| kept.document).collect();
        for kept in &mut objects {
            kept.document = kept.document.filter(|hash| !spoiled.contains(hash));
        }
        faults.twice = losers.iter().map(|kept| kept.id()).collect();
        if !faults.broken.is_empty() {
            objects.extend(old.objects.iter().map(Kept::without_document));
            keep_the_first(&mut objects);
        }
        let faults = (faults != Faults::default()).then(|| Box::new(faults));
        File { number: old.number, objects: objects.into(), silent: silent.into(), faults }
    }
}

/// Sorts objects and takes out all but the first of equal name; those that were taken out.
fn keep_the_first(objects: &mut Vec<Kept>) -> Vec<Kept> {
    let mut losers = Vec::new();
    // Stable, so those of equal name stay in the order of the file.
    objects.sort_by(|one, other| one.key().cmp(&other.key()));
    objects.dedup_by(|later, first| {
        let same = later.key() == first.key();
        if same {
            losers.push(later.clone());
        }
        same
    });
    losers
}

/// The objects that are not the same in both, sorted, with what they were before.
fn differing<'a>(before: &'a [Kept], now: &[Kept]) -> Vec<(ObjectId, Option<&'a Kept>)> {
    let mut differing = Vec::new();
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return differing,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(was), Some(is)) => was.key().cmp(&is.key()),
        };
        let was = before.next_if(|_| order.is_le());
        let is = now.next_if(|_| order.is_ge());
        if let Some(kept) = was.or(is).filter(|_| !says_the_same(was, is)) {
            differing.push((kept.id(), was));
        }
    }
}

fn says_the_same(one: Option<&Kept>, other: Option<&Kept>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.says_the_same(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl FileChanges {
    /// Adds a remark, or counts it where there are many.
    fn note(&mut self, remark: impl FnOnce() -> ManifestRemark) {
        if self.remarks.len() < MOST_REMARKS {
            self.remarks.push(remark());
        } else {
            self.untold += 1;
        }
    }

    /// Adds what is broken, and that nothing is any more, however many other remarks there are.
    fn note_broken(&mut self, before: &[(usize, String)], now: &[(usize, String)]) {
        if now.is_empty() && !before.is_empty() {
            self.remarks.push(ManifestRemark::Mended);
        }
        let news = now.iter().filter(|entry| !before.contains(entry));
        self.remarks.extend(news.map(|(line, text)| ManifestRemark::Broken { line: *line, text: text.clone() }));
    }
}

/// The hash by which a document is known again. Who writes manifests rules the node anyway, so nobody has to be kept from making two of equal hash, and a
/// whole text is hashed in a fifth of the instructions that the library's usual hash takes.
fn hash(document: &Document<'_>) -> NonZeroU64 {
    let of_text = FixedState::default().hash_one(document.text);
    // A text that is too much for its file is a document like others where others have gone.
    NonZeroU64::new(of_text ^ u64::from(document.is_rest)).unwrap_or(NonZeroU64::MIN)
}

#[cfg(test)]
mod tests;
