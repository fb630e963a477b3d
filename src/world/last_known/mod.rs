//! The last known state of the cluster, in a file of `--state-dir`.
//!
//! It is for one case: the program starts while the cluster cannot be reached. What is in the file is then
//! put in place where the kernel holds nothing of ours, as after a boot; nothing that exists is changed or removed
//! on its word (`model::Authority::Remembered`).
//!
//! The file is written seldom, all at once or not at all (a new file takes the old one's name), and only for
//! its owner to read. A file that is damaged or foreign is reported and ignored; one that an earlier or a later program wrote is read.

mod record;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

pub use record::Unusable;

use crate::k8s::{Kind, Wanted};
use crate::kernel::file_system::is_on_layers;
use crate::model::Cluster;

/// The known state, and the kinds that it holds in full. Other kinds were not needed, so their absence means nothing.
#[derive(Clone, Default, Debug)]
pub struct Known {
    pub cluster: Cluster,
    pub kinds: Vec<Kind>,
    /// The nodes are all that there were, and not only our own.
    pub all_nodes: bool,
}

/// The file.
#[derive(Clone, Debug)]
pub struct LastKnown {
    directory: PathBuf,
}

/// Keeps the file up to date in the background.
pub struct Keeper {
    file: LastKnown,
    kinds: Vec<Kind>,
    all_nodes: bool,
    schedule: Schedule,
    writing: Option<JoinHandle<io::Result<Written>>>,
    fails: bool,
    /// Whether it was looked at where the file lies.
    is_place_known: bool,
}

/// Times at which the file is written.
#[derive(Default, Debug)]
struct Schedule {
    first_unsaved: Option<Instant>,
    last_written: Option<Instant>,
    /// The size of the file then, in bytes.
    size: u64,
}

/// Outcome of writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// The file was written; its size in bytes.
    Anew(u64),
    /// The file held it already.
    Same,
}

/// Why the last known state cannot be used although there is a file.
#[derive(thiserror::Error, Debug)]
pub enum Forgotten {
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    #[error("{0}")]
    Unusable(#[from] Unusable),
}

const NAME: &str = "last-known";
const NEW_NAME: &str = "last-known.new";

/// Ten thousand Services with ten endpoints each take some two megabytes, fifty thousand pods about as much.
const MAX_BYTES: u64 = 128 << 20;

/// Longest time that a change stays unwritten, so that a burst of them is written once.
const SETTLE: Duration = Duration::from_secs(30);

/// Least time between two writes, however many changes there are.
const APART: Duration = Duration::from_secs(300);

/// Most bytes written in a second, on average. Somewhere in a large cluster something always changes, and
/// every node writes all of it.
const BYTES_PER_SECOND: u64 = 10_000;

impl LastKnown {
    pub fn new(directory: &Path) -> LastKnown {
        LastKnown { directory: directory.to_owned() }
    }

    /// The file's path.
    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Returns the last known state; `None` where nothing was ever written.
    ///
    /// # Errors
    /// There is a file, and it cannot be used.
    pub fn read(&self) -> Result<Option<Known>, Forgotten> {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(record::decode(&bytes)?))
    }

    /// Returns when the file was last written, which may be long after all of it was known first; `None` without a file.
    pub fn written_at(&self) -> Option<SystemTime> {
        fs::metadata(self.path()).and_then(|metadata| metadata.modified()).ok()
    }

    /// Removes the file, and the directory where nothing else is in it; returns whether there was anything.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove(&self) -> io::Result<bool> {
        let mut removed = false;
        for name in [NAME, NEW_NAME] {
            match fs::remove_file(self.directory.join(name)) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // It is somebody else's too where anything is left in it, or where it is a mount.
        let _ = fs::remove_dir(&self.directory);
        Ok(removed)
    }

    /// Writes the known state, unless the file holds it already.
    ///
    /// # Errors
    /// The directory cannot be made or written to; the former file is still there then.
    pub fn write(&self, known: &Known) -> io::Result<Written> {
        let bytes = record::encode(known);
        let mut header = Vec::new();
        if let Ok(file) = File::open(self.path()) {
            file.take(record::HEADER as u64).read_to_end(&mut header)?;
        }
        if bytes.starts_with(&header) && header.len() == record::HEADER {
            return Ok(Written::Same);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let new = self.directory.join(NEW_NAME);
        // A file left behind by an earlier try may have other permissions.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.directory)?.sync_all()?;
        Ok(Written::Anew(bytes.len() as u64))
    }
}

impl Keeper {
    /// `wanted`: the parts that are known in full whenever a change is recorded.
    pub fn new(file: LastKnown, wanted: &[Wanted]) -> Keeper {
        let (kinds, all_nodes) = (wanted.iter().map(Wanted::kind).collect(), wanted.contains(&Wanted::Nodes));
        Keeper {
            file,
            kinds,
            all_nodes,
            schedule: Schedule::default(),
            writing: None,
            fails: false,
            is_place_known: false,
        }
    }

    pub fn file(&self) -> &LastKnown {
        &self.file
    }

    /// Records that the known state has changed. It may be called only when all is known in full.
    pub fn changed(&mut self) {
        self.schedule.changed(Instant::now());
    }

    /// Waits until the file is due and begins to write it, or until it is written. May be cancelled at any
    /// time and called again.
    pub async fn next(&mut self, cluster: impl FnOnce() -> Cluster) {
        if self.writing.is_some() {
            self.written().await;
            return;
        }
        match self.schedule.due() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
        self.begin(cluster());
    }

    /// Writes what is not written yet.
    pub async fn finish(&mut self, cluster: &Cluster) {
        self.written().await;
        if self.schedule.due().is_some() {
            self.begin(cluster.clone());
            self.written().await;
        }
    }

    fn begin(&mut self, cluster: Cluster) {
        self.schedule.written(Instant::now());
        let file = self.file.clone();
        let known = Known { cluster, kinds: self.kinds.clone(), all_nodes: self.all_nodes };
        self.writing = Some(spawn_blocking(move || file.write(&known)));
    }

    async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let result = writing.await.map_err(io::Error::other).flatten();
        self.writing = None;
        let path = self.file.path();
        let path = path.display();
        match result {
            Ok(written) => {
                if let Written::Anew(bytes) = written {
                    debug!(%path, bytes, "Last known state written");
                    self.schedule.size = bytes;
                }
                if std::mem::replace(&mut self.fails, false) {
                    info!(%path, "Writing the last known state recovered");
                }
                // Manifests for kube-router mount nothing there.
                if !std::mem::replace(&mut self.is_place_known, true) && is_on_layers(&self.file.directory) {
                    warn!(%path, "The last known state lies in the container's own file system and is gone with it, so that a new pod can do nothing while the API server is away: mount a directory of the host there (--state-dir)");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    warn!(%path, %error, "Writing the last known state failed; a restart during an API outage would use an older one");
                }
                self.schedule.changed(Instant::now());
            }
        }
    }
}

impl Schedule {
    /// Records that the known state differs from the file.
    fn changed(&mut self, now: Instant) {
        self.first_unsaved.get_or_insert(now);
    }

    /// Records that writing has begun.
    fn written(&mut self, now: Instant) {
        (self.first_unsaved, self.last_written) = (None, Some(now));
    }

    /// Returns when the file has to be written; `None` while it holds the known state.
    fn due(&self) -> Option<Instant> {
        let settled = self.first_unsaved? + SETTLE;
        let apart = APART.max(Duration::from_secs(self.size / BYTES_PER_SECOND));
        Some(self.last_written.map_or(settled, |last| settled.max(last + apart)))
    }
}

#[cfg(test)]
mod tests;
