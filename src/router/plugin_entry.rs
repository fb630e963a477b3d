//! The entry of our plugin (`--netpol-cni`) in CNI files: taken out where nobody answers it, because no pod starts then.
//!
//! An agent that runs the firewall without `--netpol-cni` decides that nobody does. One without the firewall may stand beside another agent
//! of the node that has it, and takes out nothing: that one may only be starting. It notes what nobody answers. A file that cannot be read is a note: it belongs to others, and rarely
//! has the entry. An entry that was read and cannot be taken out is trouble.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::kernel::file_system::is_of_container;
use crate::observe::health::{Health, Pulse};
use crate::observe::local_socket::is_listened_on;

use super::cni::{PLUGIN, is_conf, plugin_sockets, without_plugin};
use super::host_files::{followed, remove_unfinished, replace};

/// The CNI files of one directory, whoever wrote them.
#[derive(Debug)]
pub struct CniFiles {
    directory: PathBuf,
    /// Those that were read and have no such entry.
    clean: BTreeMap<PathBuf, Stamp>,
    /// The entry is another agent's, and stays.
    spares_others: bool,
    /// Whether a folder is of the container in which this process runs, which sees of the host what is mounted.
    is_of_container: fn(&Path) -> bool,
}

/// Why files may still have the entry, a sentence each.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Left {
    /// Of files that cannot be read.
    pub unread: Vec<String>,
    /// Of files with the entry, which cannot be changed.
    pub named: Vec<String>,
    /// Of files with the entry, which is another agent's and that nobody answers now.
    pub unanswered: Vec<String>,
}

/// Reason for which a file still has the entry.
enum Obstacle {
    Unread(io::Error),
    Named(io::Error),
    /// It is another agent's entry, which nobody answers.
    Unanswered,
}

/// State of a file by which a change of its text is noticed.
#[derive(PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Time of the last change (`st_ctim`), in seconds and nanoseconds.
    changed: (i64, i64),
}

/// Interval at which files are looked at, as long as all is well: another program may write an entry again.
const INTERVAL: Duration = Duration::from_secs(30);
/// The same, where some could not be read or changed.
const RETRY: Duration = Duration::from_secs(5);

impl CniFiles {
    pub fn new(directory: PathBuf) -> CniFiles {
        CniFiles { directory, clean: BTreeMap::new(), spares_others: false, is_of_container }
    }

    /// The same where another agent of the node may answer the entry: it stays.
    pub fn sparing_others(self) -> CniFiles {
        CniFiles { spares_others: true, ..self }
    }

    /// Takes the entry out of every list. Nothing else of a file changes. Files that did not change since they were found without
    /// it are not read again. Returns why some may still have it.
    pub fn remove_plugin(&mut self) -> Left {
        let mut left = Left::default();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return left,
            Err(error) => {
                left.unread.push(format!("{}: {error}", self.directory.display()));
                return left;
            }
        };
        let mut clean = BTreeMap::new();
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    left.unread.push(format!("{}: {error}", self.directory.display()));
                    continue;
                }
            };
            if !is_conf(&path) {
                continue;
            }
            match self.clean_one(&path) {
                Ok(stamp) => clean.extend(stamp.map(|stamp| (path, stamp))),
                Err(Obstacle::Unanswered) => left.unanswered.push(format!(
                    "{}: it names {PLUGIN}, which nobody answers as far as this agent sees: start the one with the firewall and --netpol-cni, \
                     or take the entry out, or no pod starts",
                    path.display()
                )),
                Err(Obstacle::Unread(error)) => left.unread.extend(self.unread(&path, error)),
                Err(Obstacle::Named(error)) => {
                    left.named.push(format!("{}: {error}; no pod starts while it names {PLUGIN}", path.display()));
                }
            }
        }
        self.clean = clean;
        remove_unfinished(&self.directory);
        left
    }

    /// Says why a file may have the entry that could not be read. `None`: it went meanwhile, or is a link to nothing on the host either.
    fn unread(&self, path: &Path, mut error: io::Error) -> Option<String> {
        if error.kind() == ErrorKind::NotFound {
            error = match followed(path) {
                Ok(links) => links.filter(|links| self.is_elsewhere(&links.end))?.unseen(&error),
                Err(error) => error,
            };
        }
        Some(format!("{}: {error}; no pod starts if it names {PLUGIN}", path.display()))
    }

    /// Returns whether a place, at which this process sees no file, may have one on the host: its folder is not mounted here. The image may
    /// have a folder of the same name.
    fn is_elsewhere(&self, place: &Path) -> bool {
        let is_own = self.is_of_container;
        let is_unseen = |folder: &Path| !folder.is_dir() || is_own(folder) && !is_own(&self.directory);
        is_own(Path::new("/")) && place.parent().is_some_and(is_unseen)
    }

    /// Takes the entry out of one file. Returns its state if it was found without one; `None` if it is to be read again.
    fn clean_one(&self, path: &Path) -> Result<Option<Stamp>, Obstacle> {
        let found = fs::metadata(path).map_err(Obstacle::Unread)?;
        if !found.is_file() {
            return Ok(None);
        }
        let stamp = Stamp::of(&found);
        if self.clean.get(path) == Some(&stamp) {
            return Ok(Some(stamp));
        }
        let present = fs::read(path).map_err(Obstacle::Unread)?;
        // Container runtimes read bytes that are not UTF-8 as this character, too.
        let with = String::from_utf8_lossy(&present);
        let Some(text) = without_plugin(&with) else { return Ok(Some(stamp)) };
        if self.spares_others {
            let is_answered = plugin_sockets(&with).iter().all(|socket| is_listened_on(socket));
            return if is_answered { Ok(None) } else { Err(Obstacle::Unanswered) };
        }
        replace(path, Some(&present), &text).map_err(Obstacle::Named)?;
        info!(path = %path.display(), plugin = PLUGIN, "Entry of the CNI plugin removed from the CNI configuration");
        Ok(None)
    }
}

impl Stamp {
    fn of(file: &Metadata) -> Stamp {
        Stamp { inode: file.ino(), size: file.size(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// Keeps the files of this directory without the plugin, which nobody answers in this run: an earlier run, a user or the installer of
/// another plugin wrote the entry, or writes it again. Runs for ever.
pub async fn keep_without_plugin(mut files: CniFiles, health: Health) {
    let note = health.note("CNI files");
    let mut trouble: Option<Pulse> = None;
    let mut has_failed = false;
    loop {
        // Writing a file waits for the disk.
        let looked = spawn_blocking(move || {
            let left = files.remove_plugin();
            (files, left)
        });
        let Ok((back, Left { mut unread, named, unanswered })) = looked.await else { return };
        files = back;
        let first = named.first().or(unread.first());
        let was_failing = std::mem::replace(&mut has_failed, first.is_some());
        if let Some(first) = first.filter(|_| !was_failing) {
            warn!(error = first, "Removing the CNI plugin from the CNI configuration failed; retrying");
        }
        if !named.is_empty() {
            let pulse = trouble.get_or_insert_with(|| health.register("CNI files", Duration::MAX, Instant::now()));
            pulse.ready(true);
            pulse.trouble(Some(named.join("; ")));
        } else if let Some(pulse) = &trouble {
            pulse.trouble(None);
        }
        unread.extend(unanswered);
        note.set(unread);
        tokio::time::sleep(if has_failed { RETRY } else { INTERVAL }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    const WITH: &str = r#"{"plugins":[{"type":"ptp"},{"type":"sluice-cni"}]}"#;
    const WITHOUT: &str = r#"{"plugins":[{"type":"ptp"}]}"#;

    /// Removes the entry from the files of a directory; returns those that cannot be read.
    fn removed(directory: &Path) -> Vec<String> {
        let Left { unread, named, unanswered } = CniFiles::new(directory.to_owned()).remove_plugin();
        assert_eq!((named, unanswered), (Vec::new(), Vec::new()));
        unread
    }

    /// A container in which the folder of temporary files is the host's, and nothing else.
    fn is_not_temporary(folder: &Path) -> bool {
        !folder.starts_with(std::env::temp_dir())
    }

    #[test]
    fn the_entry_of_our_plugin_leaves_every_list_of_the_directory_and_nothing_else_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let list = |more: &str| {
            format!("{{\n  \"plugins\": [\n    {{\"type\": \"bridge\", \"bridge\": \"cni0\"}}{more}\n  ]\n}}\n")
        };
        let (with, without) = (list(",\n    {\"type\": \"sluice-cni\"}"), list(""));
        fs::create_dir(path("linked")).expect("writable");
        for (name, text) in [
            ("05-own.conflist", with.as_str()),
            ("10-plain.conflist", without.as_str()),
            ("20-single.conf", "{\"type\":\"sluice-cni\"}"),
            ("30-broken.conflist", "{\"plugins\": [{\"type\": \"sluice-cni\"}"),
            ("notes.txt", with.as_str()),
            ("linked/other", with.as_str()),
        ] {
            fs::write(path(name), text).expect("writable");
        }
        fs::set_permissions(path("05-own.conflist"), fs::Permissions::from_mode(0o600)).expect("writable");
        symlink("linked/other", path("40-linked.conflist")).expect("writable");
        let texts = || {
            let names = ["10-plain.conflist", "20-single.conf", "30-broken.conflist", "notes.txt"];
            names.map(|name| fs::read_to_string(path(name)).expect("it is there"))
        };
        let before = texts();
        assert_eq!(removed(directory.path()), Vec::<String>::new());
        for name in ["05-own.conflist", "linked/other"] {
            assert_eq!(fs::read_to_string(path(name)).expect("it is there"), without, "{name}");
        }
        let mode = fs::metadata(path("05-own.conflist")).expect("it is there").permissions().mode();
        assert_eq!((mode & 0o777, path("40-linked.conflist").is_symlink()), (0o600, true));
        assert_eq!(texts(), before);
        assert_eq!(removed(&path("missing")), Vec::<String>::new());
        assert_eq!(removed(&path("notes.txt")).len(), 1, "it cannot be looked at");
    }

    #[test]
    fn a_file_that_cannot_be_read_does_not_count_as_one_without_the_entry() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("10-directory.conf")).expect("writable");
        symlink("nowhere", path("20-to-nothing.conflist")).expect("writable");
        fs::write(path("30-bytes.conf"), b"\xff\xfe").expect("writable");
        assert_eq!(removed(directory.path()), Vec::<String>::new(), "container runtimes read none of these");
        symlink("40-endless.conflist", path("40-endless.conflist")).expect("writable");
        let failed = removed(directory.path());
        assert!(failed.len() == 1 && failed[0].contains("40-endless.conflist"), "{failed:?}");
        fs::remove_file(path("40-endless.conflist")).expect("it is there");
        symlink("/srv/nowhere", path("50-elsewhere.conflist")).expect("writable");
        let unread = |is_of_container: fn(&Path) -> bool| {
            let files = CniFiles::new(directory.path().to_owned());
            CniFiles { is_of_container, ..files }.remove_plugin().unread
        };
        assert_eq!(unread(|_| false), Vec::<String>::new());
        assert_eq!(unread(is_not_temporary).len(), 1, "what runtimes of the host find there is not mounted");
    }

    #[test]
    fn a_link_may_have_the_entry_where_the_last_of_its_chain_leads_to_a_folder_that_is_not_mounted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let unread = || {
            let files = CniFiles::new(directory.path().to_owned());
            CniFiles { is_of_container: is_not_temporary, ..files }.remove_plugin().unread
        };
        symlink("./gone.conflist", path("20-beside.conflist")).expect("writable");
        symlink(path("gone.conflist"), path("30-by-its-whole-path.conflist")).expect("writable");
        assert_eq!(unread(), Vec::<String>::new(), "the host has no such file either");
        symlink("current", path("10-x.conflist")).expect("writable");
        symlink("/srv/cni/x.conflist", path("current")).expect("writable");
        let left = unread();
        let told = "10-x.conflist: it is a link to current, and that to /srv/cni/x.conflist, which is not there, or not mounted here";
        assert!(left.len() == 1 && left[0].contains(told), "{left:?}");
    }

    /// The installer of another plugin writes its file at each start, and a file may be met half-written.
    #[tokio::test(start_paused = true)]
    async fn an_entry_that_another_program_writes_again_is_taken_out_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("10-flannel.conflist");
        let text = || fs::read_to_string(&file).expect("it is there");
        fs::write(&file, WITH).expect("writable");
        let health = Health::default();
        let keeping = tokio::spawn(keep_without_plugin(CniFiles::new(directory.path().to_owned()), health.clone()));
        tokio::time::sleep(INTERVAL / 2).await;
        assert_eq!(text(), WITHOUT);
        for half in ["", &WITH[..20]] {
            fs::write(&file, half).expect("writable");
            tokio::time::sleep(INTERVAL * 2).await;
            fs::write(&file, WITH).expect("writable");
            tokio::time::sleep(INTERVAL * 2).await;
            assert_eq!(text(), WITHOUT);
        }
        keeping.abort();
    }

    #[test]
    fn a_file_that_did_not_change_is_read_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("10-flannel.conflist");
        fs::write(&file, WITHOUT).expect("writable");
        let mut files = CniFiles::new(directory.path().to_owned());
        assert_eq!(files.remove_plugin(), Left::default());
        let read = files.clean.get(&file).map(|stamp| stamp.inode);
        assert_eq!(read, fs::metadata(&file).ok().map(|found| found.ino()));
        fs::remove_file(&file).expect("it is there");
        assert_eq!(files.remove_plugin(), Left::default());
        assert!(files.clean.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_cannot_be_taken_out_is_trouble_until_it_is_and_a_file_that_cannot_be_read_is_a_note() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let endless = path("40-endless.conflist");
        symlink("40-endless.conflist", &endless).expect("writable");
        let health = Health::default();
        let keeping = tokio::spawn(keep_without_plugin(CniFiles::new(directory.path().to_owned()), health.clone()));
        tokio::time::sleep(RETRY / 2).await;
        assert_eq!((health.unready(Instant::now()), health.notes().len()), (Vec::new(), 1));
        // The name of the file beside it, which takes its place, would be too long.
        let file = path(&format!("{}.conflist", "n".repeat(240)));
        fs::write(&file, WITH).expect("writable");
        tokio::time::sleep(RETRY * 2).await;
        assert_eq!((health.unready(Instant::now()).len(), health.notes().len()), (1, 1));
        fs::remove_file(&endless).expect("it is there");
        fs::rename(&file, path("05-other.conflist")).expect("it is there");
        tokio::time::sleep(RETRY * 2).await;
        assert_eq!((health.unready(Instant::now()), health.notes()), (Vec::new(), Vec::new()));
        assert_eq!(fs::read_to_string(path("05-other.conflist")).expect("it is there"), WITHOUT);
        keeping.abort();
    }

    #[test]
    fn an_agent_that_may_not_be_alone_leaves_the_entry_and_notes_where_nobody_answers_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, socket) = (directory.path().join("10-flannel.conflist"), directory.path().join("cni.sock"));
        let entry = format!(r#"{{"type":"sluice-cni","socket":{:?}}}"#, socket.display().to_string());
        let with = format!(r#"{{"plugins":[{{"type":"ptp"}},{entry}]}}"#);
        fs::write(&file, &with).expect("writable");
        let text = || fs::read_to_string(&file).expect("it is there");
        let mut files = CniFiles::new(directory.path().to_owned()).sparing_others();
        let answered = UnixListener::bind(&socket).expect("a socket");
        assert_eq!((files.remove_plugin(), text()), (Left::default(), with.clone()));
        // The other agent is being restarted.
        drop(answered);
        let Left { unread, named, unanswered } = files.remove_plugin();
        assert_eq!((unread, named, text()), (Vec::new(), Vec::new(), with));
        assert!(unanswered.len() == 1 && unanswered[0].contains("10-flannel.conflist"), "{unanswered:?}");
    }
}
