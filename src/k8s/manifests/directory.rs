//! A watched directory: changed files, and their text.
//!
//! Kernel: inotify(7) on the directory itself. `IN_CLOSE_WRITE` ends a write in place, `IN_MOVED_TO` an
//! atomic replacement. A ConfigMap mount replaces the hidden link `..data`, through which all visible files
//! are links; an event about any name that is no manifest therefore has the whole directory looked through.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::document::Format;

/// A watched directory and the stamps of its files when they were read.
pub struct Directory {
    path: PathBuf,
    notify: OwnedFd,
    read: BTreeMap<String, Stamp>,
    /// Files to look at again, and when: still being written, or missing, when they were looked at.
    unsettled: BTreeMap<String, Instant>,
    /// Files that were found missing, and since when.
    missing: BTreeMap<String, Instant>,
}

/// Changes seen since the last call.
pub enum Seen {
    Nothing,
    /// These files, and when the first of them was reported.
    Files(Instant, Vec<(String, Look)>),
    /// A change that may concern any file.
    Everything(Instant),
    /// The directory itself is gone.
    Gone,
}

/// Condition for reading a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// At once: its writer is done with it, or there is nothing to compare it with yet.
    Now,
    /// Once nobody has written to it for a moment.
    WhenStill,
}

/// The outcome of reading a file.
pub enum Reading {
    /// Unchanged since it was last read, or not to be read yet.
    Same,
    Text(Vec<u8>),
    Absent,
}

/// Properties that tell one state of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Time that a file must have been left alone to count as written.
const STILL: Duration = Duration::from_millis(100);

/// Larger files are refused: nobody writes a quarter of a gigabyte of manifests into one file on purpose.
const MAX_BYTES: u64 = 256 << 20;

impl Directory {
    /// Begins to watch.
    ///
    /// # Errors
    /// The directory is not there, is not a directory, or may not be read.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let notify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&notify, path, events)?;
        fs::read_dir(path)?;
        Ok(Directory {
            path: path.to_owned(),
            notify,
            read: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            missing: BTreeMap::new(),
        })
    }

    /// The names of the manifests that are there now.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn names(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if Format::of_file(&name).is_some() {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Returns whether a file was written to a moment ago, so that more of it may be to come.
    pub fn is_being_written(&self) -> bool {
        let names = self.names().unwrap_or_default();
        names.iter().filter_map(|name| fs::metadata(self.path.join(name)).ok()).any(|metadata| !is_still(&metadata))
    }

    /// Returns the text of a file, unless it is the one read last.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&mut self, name: &str, look: Look) -> io::Result<Reading> {
        self.unsettled.remove(name);
        let path = self.path.join(name);
        // All files are looked at again and again while nothing changes, and opening one takes several times as long as asking for its properties.
        let known = self.read.get(name).filter(|_| look == Look::WhenStill);
        let is_as_read = |stamp: &Stamp| fs::metadata(&path).is_ok_and(|it| it.is_file() && Stamp::of(&it) == *stamp);
        if known.is_some_and(is_as_read) {
            self.missing.remove(name);
            return Ok(Reading::Same);
        }
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if absent(&error) => return Ok(self.absent(name)),
            Err(error) => return Err(error),
        };
        self.missing.remove(name);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Reading::Absent);
        }
        let stamp = Stamp::of(&metadata);
        // A stamp proves nothing about a file that was reported: two writes may share one tick of the clock.
        if look == Look::WhenStill && self.read.get(name) == Some(&stamp) {
            return Ok(Reading::Same);
        }
        if look == Look::WhenStill && !is_still(&metadata) {
            self.unsettled.insert(name.to_owned(), Instant::now() + STILL);
            return Ok(Reading::Same);
        }
        if metadata.len() > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_BYTES} bytes")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        Read::by_ref(&mut file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        self.read.insert(name.to_owned(), stamp);
        Ok(Reading::Text(bytes))
    }

    /// A file is gone when it has been missing for a moment: many an editor moves the old one away before
    /// it writes the new one, and that must not look like a deletion.
    fn absent(&mut self, name: &str) -> Reading {
        let now = Instant::now();
        let since = *self.missing.entry(name.to_owned()).or_insert(now);
        if now.duration_since(since) < STILL {
            self.unsettled.insert(name.to_owned(), since + STILL);
            return Reading::Same;
        }
        self.missing.remove(name);
        self.read.remove(name);
        Reading::Absent
    }

    /// Waits for something to happen, at most for `patience`; then until nothing more happens for `pause`,
    /// at most for `burst`.
    pub fn wait(&mut self, patience: Duration, pause: Duration, burst: Duration) -> Seen {
        let now = Instant::now();
        let due = self.unsettled.values().min().map_or(patience, |at| at.saturating_duration_since(now).min(patience));
        let mut batch = Batch::default();
        self.wait_once(due, &mut batch);
        let first = Instant::now();
        while !batch.is_empty() && first.elapsed() < burst && self.wait_once(pause, &mut batch) {}
        let due = self.unsettled.iter().filter(|(_, at)| **at <= first);
        due.for_each(|(name, _)| batch.add_file(name, Look::WhenStill));
        match batch {
            Batch { gone: true, .. } => Seen::Gone,
            Batch { everything: true, .. } => Seen::Everything(first),
            Batch { files, .. } if files.is_empty() => Seen::Nothing,
            Batch { files, .. } => Seen::Files(first, files.into_iter().collect()),
        }
    }

    /// Collects what is reported within a time; false when nothing is.
    fn wait_once(&self, patience: Duration, batch: &mut Batch) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.notify, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&timeout)), Ok(1..)) {
            return false;
        }
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.notify, &mut buffer);
        while let Ok(event) = reader.next() {
            batch.add(event.events(), event.file_name().and_then(|name| name.to_str().ok()));
        }
        true
    }
}

/// The events of one burst.
#[derive(Default)]
struct Batch {
    gone: bool,
    everything: bool,
    files: BTreeMap<String, Look>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        !self.gone && !self.everything && self.files.is_empty()
    }

    fn add_file(&mut self, name: &str, look: Look) {
        let known = self.files.entry(name.to_owned()).or_insert(look);
        if look == Look::Now {
            *known = Look::Now;
        }
    }

    fn add(&mut self, events: ReadFlags, name: Option<&str>) {
        if events.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
            self.gone = true;
        } else if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.everything = true;
        } else if let Some(name) = name.filter(|name| Format::of_file(name).is_some()) {
            // A file that was just created is empty; its text comes before `IN_CLOSE_WRITE`. A link or a
            // hard link comes with its text and without that event, so it is looked at when still.
            let look = if events.contains(ReadFlags::CREATE) { Look::WhenStill } else { Look::Now };
            self.add_file(name, look);
        } else if name.is_none_or(|name| name.starts_with("..")) {
            self.everything = true;
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A time of change in the future comes from a clock that was set back: nobody is writing now.
fn is_still(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().map(|at| SystemTime::now().duration_since(at));
    !matches!(age, Some(Ok(age)) if age < STILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_as_it_was_read_is_not_opened_again() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join("a.yaml"), "a: 1\n").expect("writable");
        let mut directory = Directory::open(folder.path()).expect("it is there");
        let opened = inotify::init(CreateFlags::NONBLOCK).expect("a descriptor");
        inotify::add_watch(&opened, folder.path(), WatchFlags::OPEN).expect("it can be watched");
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut was_opened = || inotify::Reader::new(&opened, &mut buffer).next().is_ok();
        let mut text = |look| match directory.read("a.yaml", look).expect("it can be read") {
            Reading::Text(bytes) => Some(bytes),
            Reading::Same => None,
            Reading::Absent => panic!("it is there"),
        };
        assert_eq!((text(Look::Now).as_deref(), was_opened()), (Some(&b"a: 1\n"[..]), true));
        assert_eq!((text(Look::WhenStill), was_opened()), (None, false));
        fs::write(folder.path().join("a.yaml"), "a: 12\n").expect("writable");
        assert!(was_opened(), "by the line above");
        std::thread::sleep(STILL + STILL);
        assert_eq!((text(Look::WhenStill).as_deref(), was_opened()), (Some(&b"a: 12\n"[..]), true));
    }
}
