//! `--manifests DIR`: the cluster as a directory of files.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file directly in the directory is read; a file may hold several
//! documents and `List`s. Only kinds that a running subsystem needs are read, others are ignored. The directory
//! is watched (inotify): writing a file, renaming one into place and the swap of links that a ConfigMap
//! mount makes are all seen within milliseconds, and cost what changed. What one file changes takes effect at once.
//!
//! Warnings name the file and the line. A document that does not parse leaves its
//! last good version in force. If there is none, because the program has just started, nothing in the kernel
//! shrinks until it is mended (`model::Authority::Partial`).
//!
//! A file that is written in place is read when its writer closes it. One that is found otherwise (the
//! directory is read as a whole at the start and after a swap of links) is read only once it has been left
//! alone for a moment, so that a half-written file does not look like a deletion. Nor is a file gone before
//! it has been missing for a moment.
//!
//! A file in place of the directory is a bundle ([`bundle`]).
//!
//! The source is one thread of its own: reading ten thousand documents must not hold up the rest. It ends
//! when the receiver of its messages is gone.

pub mod balanced;
pub mod bundle;
pub mod catalog;
pub mod document;

mod directory;
mod policies;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracing::{error, info, trace, warn};

use self::catalog::{Catalog, FileChanges, ManifestRemark};
use self::directory::{Directory, Look, Seen};
use super::outage::{Cause, Outages};
use super::{Event, Kind, Message, Wanted};

pub use policies::policies;

/// Reads and watches a directory, or reads a bundle, and sends the wanted objects, until the receiver is gone.
///
/// # Errors
/// Only where the thread cannot be started. A directory that goes away is waited for, and reported.
pub fn spawn(path: PathBuf, wanted: Vec<Wanted>, outages: Outages, out: Sender<Message>) -> std::io::Result<()> {
    let catalog = Catalog::of(wanted.iter().map(Wanted::kind));
    let source = Source { path, wanted, outages, out, catalog, told_unknown: None, untold: Vec::new() };
    let is_bundle = source.path.is_file();
    let run = move || if is_bundle { source.run_bundle() } else { source.run() };
    std::thread::Builder::new().name("manifests".to_owned()).spawn(run).map(drop)
}

/// The longest burst of events before it is worked on, and the pause that ends it.
const BURST: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(2);

/// Interval at which a directory that cannot be read is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the thread sleeps where no file changes: whether anybody still listens is all that it looks for then.
const IDLE: Duration = Duration::from_secs(4);

/// Interval at which the whole directory is looked through although nothing was reported: links into other
/// directories change without an event.
const LOOK_THROUGH: Duration = Duration::from_secs(60);

/// Number of messages handed over together: waking the receiver costs more than processing a message.
const AT_ONCE: usize = 512;

struct Source {
    path: PathBuf,
    wanted: Vec<Wanted>,
    outages: Outages,
    out: Sender<Message>,
    catalog: Catalog,
    told_unknown: Option<bool>,
    /// Messages not handed over yet.
    untold: Vec<Message>,
}

/// The receiver is gone: there is nobody to work for.
struct Closed;

impl Source {
    fn run(mut self) {
        let mut listed = false;
        loop {
            let directory = match self.opened() {
                Ok(directory) => directory,
                Err(Closed) => return,
            };
            if let Err(Closed) = self.watch(directory, &mut listed) {
                return;
            }
        }
    }

    /// Waits until the directory can be watched.
    fn opened(&mut self) -> Result<Directory, Closed> {
        let mut outage = false;
        loop {
            match Directory::open(&self.path) {
                Ok(directory) => {
                    if outage {
                        self.wanted.iter().for_each(|wanted| self.outages.works(wanted.kind()));
                        info!(path = %self.path.display(), "Manifests directory present again");
                    }
                    return Ok(directory);
                }
                Err(error) if !outage => {
                    outage = true;
                    let text = error.to_string();
                    self.wanted.iter().for_each(|wanted| {
                        self.outages.fails(wanted.kind(), Cause::Directory, &text);
                    });
                    error!(path = %self.path.display(), %error, "Reading the manifests directory failed; waiting for it");
                    self.tell(Instant::now(), Event::Unreachable)?;
                    self.hand_over()?;
                }
                Err(_) if self.out.is_closed() => return Err(Closed),
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Follows the directory until it is gone.
    fn watch(&mut self, mut directory: Directory, listed: &mut bool) -> Result<(), Closed> {
        if !*listed {
            let patience_ends = Instant::now() + RETRY;
            while directory.is_being_written() && Instant::now() < patience_ends {
                std::thread::sleep(BURST);
            }
            for kind in self.kinds() {
                self.tell(Instant::now(), Event::Listing(kind))?;
            }
        }
        self.look_through(&mut directory, Instant::now(), if *listed { Look::WhenStill } else { Look::Now })?;
        self.tell_unknown()?;
        if !std::mem::replace(listed, true) {
            for kind in self.kinds() {
                self.tell(Instant::now(), Event::Listed(kind))?;
            }
            self.hand_over()?;
            info!(path = %self.path.display(), files = self.catalog.files().count(), "Manifests read");
        }
        let mut looked_through = Instant::now();
        loop {
            if self.out.is_closed() {
                return Err(Closed);
            }
            match directory.wait(IDLE, PAUSE, BURST) {
                Seen::Nothing => {}
                Seen::Files(at, names) => self.look_at(&mut directory, at, names)?,
                Seen::Everything(at) => self.look_through(&mut directory, at, Look::WhenStill)?,
                Seen::Gone => {
                    warn!(path = %self.path.display(), "Manifests directory removed; last known objects stay in force");
                    return Ok(());
                }
            }
            if looked_through.elapsed() > LOOK_THROUGH {
                looked_through = Instant::now();
                self.look_through(&mut directory, looked_through, Look::WhenStill)?;
            }
            self.tell_unknown()?;
        }
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        self.wanted.iter().map(Wanted::kind).collect()
    }

    fn look_through(&mut self, directory: &mut Directory, at: Instant, look: Look) -> Result<(), Closed> {
        let names = match directory.names() {
            Ok(names) => names,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "Listing the manifests directory failed");
                return Ok(());
            }
        };
        let gone: Vec<String> =
            self.catalog.files().filter(|name| !names.contains(&***name)).map(|name| name.to_string()).collect();
        for name in gone {
            self.look_at_file(directory, at, &name, look)?;
        }
        for name in names {
            self.look_at_file(directory, at, &name, look)?;
        }
        Ok(())
    }

    fn look_at(&mut self, directory: &mut Directory, at: Instant, names: Vec<(String, Look)>) -> Result<(), Closed> {
        for (name, look) in names {
            self.look_at_file(directory, at, &name, look)?;
        }
        Ok(())
    }

    fn look_at_file(&mut self, directory: &mut Directory, at: Instant, name: &str, look: Look) -> Result<(), Closed> {
        let Some(format) = document::Format::of_file(name) else { return Ok(()) };
        let changed = match directory.read(name, look) {
            Ok(directory::Reading::Same) => return Ok(()),
            Ok(directory::Reading::Text(bytes)) => self.catalog.put(name, format, &bytes),
            Ok(directory::Reading::Absent) => self.catalog.remove(name),
            Err(error) => self.catalog.put_unreadable(name, 1, &error.to_string()),
        };
        self.tell_changed(at, name, changed)
    }

    fn tell_changed(&mut self, at: Instant, file: &str, changed: FileChanges) -> Result<(), Closed> {
        let objects = changed.objects.len();
        for remark in changed.remarks {
            let path = self.path.join(file);
            let file = path.display();
            match remark {
                ManifestRemark::Broken { line, text } => {
                    warn!(%file, line, error = %text, "Reading a manifest failed; its last good version stays in force");
                }
                ManifestRemark::Mended => info!(%file, "Reading a manifest recovered"),
                ManifestRemark::Skipped { line, text } => {
                    warn!(%file, line, reason = %text, "Document in a manifest ignored")
                }
                ManifestRemark::Twice { object, counts } => {
                    warn!(%object, %file, %counts, "Object defined twice; the first definition is used");
                }
            }
        }
        if changed.untold > 0 {
            let (file, more) = (self.path.join(file), changed.untold);
            warn!(file = %file.display(), more, "Further documents of the file cannot be read, are ignored or stand twice");
        }
        // A Service and its endpoints, both changed, would not fit each other in between.
        let belong_together = objects > 1;
        if belong_together {
            self.tell(at, Event::Together(true))?;
        }
        for (object, warnings) in changed.objects {
            if self.wanted.iter().any(|wanted| wanted.includes(&object)) {
                self.tell(at, Event::Object(object, warnings))?;
            }
        }
        if belong_together {
            self.tell(at, Event::Together(false))?;
        }
        if objects > 0 {
            trace!(file, objects, "Manifest read");
        }
        Ok(())
    }

    /// Reports when something becomes, or is no longer, unreadable without an earlier version.
    fn tell_unknown(&mut self) -> Result<(), Closed> {
        let unknown = self.catalog.is_partly_unknown();
        if self.told_unknown != Some(unknown) {
            self.told_unknown = Some(unknown);
            self.tell(Instant::now(), Event::Unreadable(unknown))?;
        }
        self.hand_over()
    }

    fn tell(&mut self, seen: Instant, event: Event) -> Result<(), Closed> {
        self.untold.push(Message { seen, event });
        if self.untold.len() < AT_ONCE { Ok(()) } else { self.hand_over() }
    }

    fn hand_over(&mut self) -> Result<(), Closed> {
        let told = |message| self.out.blocking_send(message).map_err(|_| Closed);
        self.untold.drain(..).try_for_each(told)
    }
}

#[cfg(test)]
mod tests;
