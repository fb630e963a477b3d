//! `--manifests BUNDLE`: the cluster as a node knew it, from an archive that `sluice bundle` made there.
//!
//! A tar archive with everything in the directory `sluice-bundle`. The first file says that it is one, and of which form; `cluster/` has the manifests, some
//! megabytes of one kind in each file, and behind them stands what they are. It is read once, file by file. An archive that breaks off, or
//! whose node did not know everything, is known in part: what is in it is put in place, and nothing shrinks for what is not.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::document::Format;
use super::{Closed, IDLE, Source};
use crate::k8s::outage::Cause;
use crate::k8s::{Event, Kind, Wanted};

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

/// Most bytes of one file that is read.
const LARGEST: u64 = 256 << 20;

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
        return Err(format!("is a bundle of sluice {}, in a form that this one does not know", about.version));
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
        let mut complete = None;
        let read = self.read_files(&mut complete)?;
        let path = self.path.display().to_string();
        if let Err(error) = &read {
            error!(path, %error, "Reading the bundle failed; what was read of it is put in place");
            let text = error.to_string();
            kinds.iter().for_each(|kind| {
                self.outages.fails(*kind, Cause::Directory, &text);
            });
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
        let node = complete.map(|of| of.node).unwrap_or_default();
        info!(path, node, complete = !unknown, files = self.catalog.files().count(), "Bundle read");
        while !self.out.is_closed() {
            std::thread::sleep(IDLE);
        }
        Ok(())
    }

    /// Reads all manifests; the inner result is why that broke off.
    fn read_files(&mut self, complete: &mut Option<Complete>) -> Result<io::Result<()>, Closed> {
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
                let name = name_of(&entry).filter(|name| name.starts_with(names::CLUSTER));
                name.map(|name| Ok((content(&mut entry)?, name))).transpose()
            });
            match read {
                Err(error) => return Ok(Err(error)),
                Ok(None) => {}
                Ok(Some((bytes, name))) if name == names::COMPLETE => *complete = serde_json::from_slice(&bytes).ok(),
                Ok(Some((bytes, name))) => {
                    let changed = self.catalog.put(&name, Format::Json, &bytes);
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
        let expected = "is a bundle of sluice 9.0.0, in a form that this one does not know";
        assert_eq!(refused(&entry("sluice-bundle/about.json", later)), expected);
        let text = later.replace("\"format\":2", "\"format\":1");
        let sound = entry("sluice-bundle/about.json", &text);
        // Behind a header of 512 bytes comes the text.
        for length in 0..512 + text.len() {
            assert!(!refused(&sound[..length]).is_empty(), "cut off at {length}");
        }
    }
}
