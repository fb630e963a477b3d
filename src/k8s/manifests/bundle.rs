//! `--manifests BUNDLE`: the cluster as a node knew it, from an archive that `sluice bundle` made there.
//!
//! A tar archive with everything in the directory `sluice-bundle`. The first file says that it is one, and of which form; `cluster/` has the manifests, some
//! megabytes of one kind in each file, and behind them stands what they are. It is read once, file by file. An archive that breaks off before that, or
//! whose node did not know everything, is known in part: what is in it is put in place, and nothing shrinks for what is not. One that breaks off behind it has all
//! of the cluster.
//!
//! It may come from anybody, so what it can take has bounds: bytes, files, documents of a file (`document`), lines of the log.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::catalog::FileChanges;
use super::document::{Format, LONGEST_NAME};
use super::{Closed, IDLE, Source};
use crate::k8s::outage::Cause;
use crate::k8s::{Event, Kind, Wanted};
use crate::observe::printable::shortened;

/// The form that is written. One with a higher number is not read.
pub const FORMAT: u32 = 1;

/// Names of files of a bundle.
pub mod names {
    use crate::k8s::Kind;

    /// The directory of all others.
    pub const DIRECTORY: &str = "sluice-bundle";
    /// The first file: [`About`](super::About).
    pub const ABOUT: &str = "about.json";
    /// The last file: what there is, and why something is not.
    pub const PARTS: &str = "parts.json";
    /// The directory of manifests.
    pub const CLUSTER: &str = "cluster";
    /// The file behind all manifests: [`Complete`](super::Complete).
    pub const COMPLETE: &str = "cluster/complete.json";

    /// The file of the manifests of a kind from a place on.
    pub fn manifests(kind: Kind, place: usize) -> String {
        format!("{CLUSTER}/{}-{place:08}.json", kind.name().to_ascii_lowercase())
    }
}

/// A bundle, in short.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct About {
    pub format: u32,
    /// Of the program that wrote it.
    pub version: String,
    /// The name of the Node.
    pub node: String,
    /// In UTC (RFC 3339).
    pub written: String,
}

/// The extent of the manifests of a bundle.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Complete {
    /// The name of the Node.
    pub node: String,
    /// The kinds of objects that the node read.
    pub kinds: Vec<String>,
    /// The node knew everything of these kinds.
    pub complete: bool,
}

/// Most bytes of all manifests.
pub const LARGEST_CLUSTER: usize = 1 << 30;
/// Most bytes of one file that is read.
const LARGEST: u64 = 256 << 20;
/// Most files with manifests that are read: with so many bytes in all, one that `sluice bundle` wrote has a tenth of them.
const MOST_FILES: usize = 10_000;
/// Most remarks about all files.
const MOST_REMARKS: usize = 200;
/// Most characters of a version.
const LONGEST_VERSION: usize = 40;

/// Reads what a file says about itself.
///
/// # Errors
/// It is no bundle that can be read; continues the sentence behind the name of the file.
pub fn about(path: &Path) -> Result<About, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let mut start = [0; 2];
    let count = File::open(path).and_then(|mut file| file.read(&mut start)).map_err(cannot)?;
    if start.get(..count) == Some(&[0x1f, 0x8b]) {
        return Err("is compressed: unpack it with gunzip".to_owned());
    }
    let none = || "is neither a directory nor a bundle of `sluice bundle`".to_owned();
    let mut archive = opened(path).map_err(cannot)?;
    // Raw: what stands before an entry about its name is not read, however long it says to be.
    let mut entries = archive.entries().map_err(|_| none())?.raw(true);
    let first = entries.find(|entry| !entry.as_ref().is_ok_and(is_about_next));
    let mut first = first.and_then(Result::ok).ok_or_else(none)?;
    if name_of(&first).as_deref() != Some(names::ABOUT) {
        return Err(none());
    }
    let about: About = serde_json::from_slice(&content(&mut first).map_err(cannot)?).map_err(|_| none())?;
    if about.format > FORMAT {
        let version = shortened(&about.version, LONGEST_VERSION);
        return Err(format!("is a bundle of sluice {version:?}, in a form that this one does not know"));
    }
    Ok(about)
}

fn opened(path: &Path) -> io::Result<tar::Archive<BufReader<File>>> {
    Ok(tar::Archive::new(BufReader::with_capacity(256 << 10, File::open(path)?)))
}

/// Returns whether an entry is about the next one, or all that follow. Names of files of a bundle need none.
fn is_about_next<R: Read>(entry: &tar::Entry<'_, R>) -> bool {
    let kind = entry.header().entry_type();
    kind.is_pax_local_extensions() || kind.is_pax_global_extensions() || kind.is_gnu_longname()
}

/// The name of a file below the directory of a bundle; `None` for whatever else there is.
fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> Option<String> {
    let path = entry.path().ok()?;
    let below = path.strip_prefix(".").unwrap_or(&path).strip_prefix(names::DIRECTORY).ok()?;
    let is_file = entry.header().entry_type().is_file();
    below.to_str().filter(|_| is_file).map(str::to_owned)
}

fn content<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    let size = entry.size();
    if size > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("a file of more than {LARGEST} bytes")));
    }
    let mut bytes = Vec::new();
    entry.take(LARGEST).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// The part of a bundle that has been read.
#[derive(Default)]
struct Progress {
    complete: Option<Complete>,
    files: usize,
    bytes: u64,
    /// Number of remarks about it that are told, and of those that are not.
    told: usize,
    untold: usize,
}

impl Progress {
    /// Counts a file of so many bytes.
    ///
    /// # Errors
    /// There are more than anybody's cluster has.
    fn admits(&mut self, bytes: u64) -> io::Result<()> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let why = if self.files > MOST_FILES {
            format!("more than {MOST_FILES} files of manifests")
        } else if self.bytes > LARGEST_CLUSTER as u64 {
            format!("more than {LARGEST_CLUSTER} bytes of manifests")
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
    }

    /// Takes off remarks that are too many for all files together.
    fn cut(&mut self, mut changed: FileChanges) -> FileChanges {
        let before = changed.remarks.len();
        changed.remarks.truncate(MOST_REMARKS.saturating_sub(self.told));
        self.told += changed.remarks.len();
        self.untold += before - changed.remarks.len() + std::mem::take(&mut changed.untold);
        changed
    }
}

impl Source {
    /// Reads a bundle, and waits until nobody listens any more.
    pub(super) fn run_bundle(mut self) {
        let Err(Closed) = self.read_bundle() else { return };
    }

    fn read_bundle(&mut self) -> Result<(), Closed> {
        let kinds: Vec<Kind> = self.kinds().into_iter().collect();
        for kind in &kinds {
            self.tell(Instant::now(), Event::Listing(*kind))?;
        }
        let mut progress = Progress::default();
        let read = self.read_files(&mut progress)?;
        let path = self.path.display().to_string();
        let Progress { complete, untold, .. } = progress;
        if untold > 0 {
            warn!(path, more = untold, "Further documents of the bundle cannot be read, are ignored or stand twice");
        }
        match (&read, &complete) {
            (Ok(()), _) => {}
            (Err(error), Some(_)) => {
                warn!(path, %error, "The bundle breaks off behind its manifests; all of them have been read");
            }
            (Err(error), None) => {
                error!(path, %error, "Reading the bundle failed; what was read of it is put in place");
                let text = error.to_string();
                kinds.iter().for_each(|kind| {
                    self.outages.fails(*kind, Cause::Directory, &text);
                });
            }
        }
        // A node that reads no other Nodes does not name the kind, and has its own.
        let is_own_node = |of: &Complete, wanted: &Wanted| matches!(wanted, Wanted::Node(name) if *name == of.node);
        let lacking = |of: &Complete| -> Vec<&str> {
            let needed = self.wanted.iter().filter(|wanted| !is_own_node(of, wanted));
            let needed = needed.map(|wanted| wanted.kind().name());
            needed.filter(|kind| !of.kinds.iter().any(|known| known == kind)).collect()
        };
        let is_whole = match &complete {
            None => false,
            Some(of) if !lacking(of).is_empty() => {
                let kinds = lacking(of).join(" ");
                warn!(
                    path,
                    kinds, "The node of the bundle did not read these kinds of objects; nothing is known of them"
                );
                false
            }
            Some(of) => of.complete,
        };
        let unknown = !is_whole || self.catalog.is_partly_unknown();
        self.tell(Instant::now(), Event::Unreadable(unknown))?;
        for kind in kinds {
            self.tell(Instant::now(), Event::Listed(kind))?;
        }
        self.hand_over()?;
        let node = complete.map(|of| shortened(&of.node, LONGEST_NAME)).unwrap_or_default();
        info!(path, node, complete = !unknown, files = self.catalog.files().count(), "Bundle read");
        while !self.out.is_closed() {
            std::thread::sleep(IDLE);
        }
        Ok(())
    }

    /// Reads all manifests; the inner result is why that broke off.
    fn read_files(&mut self, progress: &mut Progress) -> Result<io::Result<()>, Closed> {
        let mut archive = match opened(&self.path) {
            Ok(archive) => archive,
            Err(error) => return Ok(Err(error)),
        };
        let entries = match archive.entries() {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        for entry in entries.raw(true) {
            let read = entry.and_then(|mut entry| {
                let Some(name) = name_of(&entry).filter(|name| name.starts_with(names::CLUSTER)) else {
                    return Ok(None);
                };
                // Behind it nothing of the cluster may come: what does, or cannot be read, is not in what was said to be all.
                progress.complete = None;
                progress.admits(entry.size())?;
                Ok(Some((content(&mut entry)?, name)))
            });
            match read {
                Err(error) => return Ok(Err(error)),
                Ok(None) => {}
                Ok(Some((bytes, name))) if name == names::COMPLETE => {
                    progress.complete = serde_json::from_slice(&bytes).ok();
                }
                Ok(Some((bytes, name))) => {
                    let changed = progress.cut(self.catalog.put(&name, Format::Json, &bytes));
                    self.tell_changed(Instant::now(), &name, changed)?;
                }
            }
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::manifests::catalog::Catalog;
    use crate::k8s::outage::Outages;
    use crate::observe::health::Health;
    use crate::observe::metrics::Registry;

    fn entry(name: &str, text: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).expect("a vector takes it");
        tar.into_inner().expect("a vector takes it")
    }

    fn refused(bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writable");
        about(file.path()).expect_err("it is no bundle")
    }

    #[test]
    fn a_file_that_is_no_bundle_is_refused_with_what_it_is() {
        let neither = "is neither a directory nor a bundle of `sluice bundle`";
        for bytes in [&b""[..], b"kind: Service\n", &[0; 1024], &entry("other/about.json", "{}"), &[0xff; 2048]] {
            assert_eq!(refused(bytes), neither);
        }
        assert_eq!(refused(&entry("sluice-bundle/about.json", "{}")), neither);
        // A name that stands in an entry of its own is not read: it may be of any length.
        let mut named = entry("sluice-bundle/about.json", r#"{"format":1,"version":"1","node":"n","written":""}"#);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(24);
        header.set_cksum();
        let mut long = [header.as_bytes().as_slice(), b"sluice-bundle/about.json", &[0; 512 - 24]].concat();
        long.extend(entry("short", r#"{"format":1,"version":"1","node":"n","written":""}"#));
        assert_eq!(refused(&long), neither);
        // One that nobody needs stands in no way.
        named.splice(0..0, long.get(..1024).expect("the entry of a name").iter().copied());
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &named).expect("writable");
        assert_eq!(about(file.path()).map(|about| about.node), Ok("n".to_owned()));
        assert_eq!(refused(&[0x1f, 0x8b, 8, 0]), "is compressed: unpack it with gunzip");
        let later = r#"{"format":2,"version":"9.0.0","node":"n","written":""}"#;
        let expected = "is a bundle of sluice \"9.0.0\", in a form that this one does not know";
        assert_eq!(refused(&entry("sluice-bundle/about.json", later)), expected);
        // Whatever stands there, and however much.
        let evil = later.replace("9.0.0", &format!("9\\u001b[2J{}", "x".repeat(1 << 20)));
        let said = refused(&entry("sluice-bundle/about.json", &evil));
        assert!(said.starts_with("is a bundle of sluice \"9\\u{1b}[2Jxx") && said.len() < 200, "{said}");
        let text = later.replace("\"format\":2", "\"format\":1");
        let sound = entry("sluice-bundle/about.json", &text);
        // Behind a header of 512 bytes comes the text.
        for length in 0..512 + text.len() {
            assert!(!refused(&sound[..length]).is_empty(), "cut off at {length}");
        }
    }

    const ABOUT: (&str, &str) = (names::ABOUT, r#"{"format":1,"version":"1","node":"node-1","written":""}"#);
    const COMPLETE: (&str, &str) = (names::COMPLETE, r#"{"node":"node-1","kinds":["Service"],"complete":true}"#);

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            let name = format!("{}/{name}", names::DIRECTORY);
            tar.append_data(&mut header, name, text.as_bytes()).expect("a vector takes it");
        }
        tar.into_inner().expect("a vector takes it")
    }

    /// Reads a bundle. Returns whether it is known in part, the Services in it, and the notes about it.
    fn read(bytes: &[u8]) -> (Option<bool>, usize, Vec<String>) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writable");
        let (health, registry) = (Health::default(), Registry::new("1", "x"));
        let outages = Outages::register("manifests", [Kind::Service], &registry, &health).expect("the names are free");
        let (out, mut messages) = tokio::sync::mpsc::channel(64);
        let path = file.path().to_owned();
        crate::k8s::manifests::spawn(path, vec![Wanted::Services], outages, out).expect("a thread can be started");
        let (mut is_partial, mut services) = (None, 0);
        loop {
            match messages.blocking_recv().expect("the thread goes on while somebody listens").event {
                Event::Unreadable(unreadable) => is_partial = Some(unreadable),
                Event::Object(..) => services += 1,
                Event::Listed(_) => break,
                _ => {}
            }
        }
        (is_partial, services, health.notes().iter().map(ToString::to_string).collect())
    }

    fn service(name: &str) -> String {
        let metadata = format!("{{\"name\":\"{name}\",\"namespace\":\"shop\"}}");
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{metadata},\"spec\":{{\"clusterIP\":\"10.96.0.9\"}}}}\n"
        )
    }

    #[test]
    fn a_bundle_that_breaks_off_behind_its_cluster_has_all_of_it_and_one_that_breaks_off_before_is_known_in_part() {
        let (one, long) = (service("web"), " ".repeat(2000));
        let whole = archive(&[ABOUT, ("cluster/service-00000000.json", &one), COMPLETE, ("parts.json", &long)]);
        assert_eq!(read(&whole), (Some(false), 1, Vec::new()));
        // In the last file: behind it are two empty blocks.
        assert_eq!(read(&whole[..whole.len() - 2 * 512 - 1000]), (Some(false), 1, Vec::new()));
        let (is_partial, services, notes) = read(&whole[..5 * 512]);
        assert_eq!((is_partial, services, notes.len()), (Some(true), 1, 1), "{notes:?}");
        let (early, two) = (archive(&[ABOUT, COMPLETE, ("cluster/service-00000000.json", &one)]), service("db"));
        assert_eq!(read(&early), (Some(true), 1, Vec::new()), "its word was said before the end");
        let broken = archive(&[ABOUT, COMPLETE, ("cluster/service-00000000.json", &two.repeat(20))]);
        let (is_partial, _, notes) = read(&broken[..6 * 512]);
        assert_eq!((is_partial, notes.len()), (Some(true), 1), "{notes:?}");
        let without = archive(&[ABOUT, ("cluster/service-00000000.json", &one)]);
        assert_eq!(read(&without), (Some(true), 1, Vec::new()), "it ends where a file does");
    }

    #[test]
    fn what_a_bundle_can_take_has_bounds() {
        let mut progress = Progress::default();
        assert!((0..MOST_FILES).all(|_| progress.admits(1).is_ok()));
        assert!(progress.admits(1).is_err(), "one file more");
        let mut progress = Progress::default();
        assert!(progress.admits(LARGEST_CLUSTER as u64).is_ok() && progress.admits(1).is_err(), "one byte more");
        let odd: Vec<String> = (0..30).map(|number| "{}\n".repeat(50) + &service(&format!("s{number}"))).collect();
        let mut catalog = Catalog::default();
        let mut progress = Progress::default();
        let told = odd.iter().enumerate().map(|(number, text)| {
            let changed = catalog.put(&format!("cluster/{number}.json"), Format::Json, text.as_bytes());
            progress.cut(changed).remarks.len()
        });
        assert_eq!(told.sum::<usize>(), MOST_REMARKS);
        assert_eq!(progress.untold + progress.told, 30 * 50);
    }
}
