//! All container runtimes of this host, as one that has the sandboxes of all of them.
//!
//! Where no `--runtime-endpoint` is given, the sockets in the usual places are tried. One that accepts need not be the kubelet's
//! runtime: Docker's own containerd has the first of them, and answers no question about sandboxes or has none. So each is asked; which of
//! them has a pod follows from the answers, and from the address in the namespace to which they lead.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Failure, Runtime};
use super::{Found, Sought};

/// For so long all sandboxes are looked at in one question.
pub(super) const QUESTION: Duration = Duration::from_secs(5);

/// The runtimes behind these sockets.
pub struct Runtimes {
    all: Vec<(PathBuf, Runtime)>,
}

impl Runtimes {
    pub fn new(sockets: Vec<PathBuf>) -> Runtimes {
        Runtimes { all: sockets.into_iter().map(|socket| (socket.clone(), Runtime::new(socket))).collect() }
    }

    /// Returns the sandboxes that are ready, of all runtimes that answer, in the order of the sockets.
    ///
    /// # Errors
    /// No runtime answers: each socket with the reason, as a sentence without its end.
    pub async fn sandboxes(&mut self, sought: &Sought) -> Result<Found, String> {
        let mut found = Found::default();
        let (mut answered, mut reasons) = (false, Vec::new());
        let mut asked = BTreeSet::new();
        for (socket, runtime) in &mut self.all {
            // Two paths of one socket: /var/run is a link to /run.
            if !asked.insert(std::fs::canonicalize(&socket).unwrap_or_else(|_| socket.clone())) {
                continue;
            }
            // One that is silent leaves the others their time.
            let until = Instant::now() + QUESTION;
            match runtime.sandboxes(sought, until).await {
                Ok(Found { sandboxes, lacking }) => {
                    answered = true;
                    found.sandboxes.extend(sandboxes);
                    reasons.extend(lacking.map(|lacking| (true, format!("{}: {lacking}", socket.display()))));
                }
                Err(failure) => {
                    let tells = !matches!(failure, Failure::Unreachable(_));
                    reasons.push((tells, format!("{}: {failure}", socket.display())));
                }
            }
        }
        // Beside one that answers, usual places without a runtime say nothing.
        reasons.retain(|(tells, _)| *tells || !answered);
        let reasons: Vec<String> = reasons.into_iter().map(|(_, reason)| reason).collect();
        if !answered {
            return Err(format!("no container runtime answers: {}", reasons.join("; ")));
        }
        found.lacking = (!reasons.is_empty()).then(|| reasons.join("; "));
        Ok(found)
    }

    /// Forgets the sandboxes with any of these addresses: they are asked for again.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.all.iter_mut().for_each(|(_, runtime)| runtime.forget(addresses));
    }
}

/// The file that stands for a socket, by its number and the time of its last change: a runtime that starts again makes another one.
pub type SocketFile = (u64, i64, i64);

/// Returns the file behind each of these sockets, where there is one.
pub fn socket_files(sockets: &[PathBuf]) -> Vec<Option<SocketFile>> {
    let file = |path: &PathBuf| std::fs::metadata(path).ok().map(|it| (it.ino(), it.ctime(), it.ctime_nsec()));
    sockets.iter().map(file).collect()
}
