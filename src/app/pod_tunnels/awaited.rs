//! The socket of the container runtime, which may come later than the agent starts: until then nothing is served through tunnels, and nobody is looked for. It is
//! that of `--runtime-endpoint`, or else any in a usual place. Where the CNI plugin tells of pods (`--netpol-cni`) nobody waits: a host may have no such socket at all.
//!
//! Without it a node could send to the pods of others and set up none of its own; a socket that was forgotten in all containers of a cluster would leave every Service with the annotation without
//! pods. So the facts of the host say that it is awaited ([`Host::runtime_awaited`]), and service proxy and firewall follow these. Once the socket was there, direct server return stays on: a runtime that starts
//! again takes its socket away for a moment, and what is set up serves without it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use crate::config::Config;
use crate::container_runtime;
use crate::model::Host;
use crate::observe::health::{Health, Note};

/// The component of the note.
const NAME: &str = "container runtime";
/// Interval at which it is looked for the socket.
const LOOK: Duration = Duration::from_secs(1);

/// Returns the facts of the host as service proxy and firewall are to know them: where direct server return is asked for and there is no socket yet, they say so until there is one.
pub fn with_awaited(
    config: &Config,
    mut host: watch::Receiver<Arc<Host>>,
    health: &Health,
) -> watch::Receiver<Arc<Host>> {
    let uses_tunnels = config.proxy.as_ref().is_some_and(|proxy| proxy.tunnel_mode);
    if !uses_tunnels || config.cni_socket.is_some() {
        return host;
    }
    let paths = container_runtime::sockets(config.runtime_endpoint.as_ref());
    let Err(why) = look_at_all(&paths) else { return host };
    let place = place(config);
    error!(
        place, error = %why,
        "No socket of a container runtime yet; Services with kube-router.io/service.dsr are served with NAT until there is one"
    );
    let note = health.note(NAME);
    note.set(vec![format!(
        "direct server return waits for a socket of the container runtime {place}: {why}; Services with kube-router.io/service.dsr are served with NAT on this node, and until then \
         tunnels that an earlier run made in pods stay as they are, also in pods that policies close to tunnels since"
    )]);
    let newest = host.borrow_and_update().clone();
    let (out, awaited) = watch::channel(Arc::new(Host { runtime_awaited: true, ..(*newest).clone() }));
    tokio::spawn(follow(paths, note, host, out));
    awaited
}

/// Follows the facts of the host, and looks for the socket until it is there.
async fn follow(paths: Vec<PathBuf>, note: Note, mut host: watch::Receiver<Arc<Host>>, out: watch::Sender<Arc<Host>>) {
    let mut runtime_awaited = true;
    loop {
        if runtime_awaited && let Ok(path) = look_at_all(&paths) {
            runtime_awaited = false;
            info!(socket = %path.display(), "Socket of the container runtime found; direct server return goes on");
            note.set(Vec::new());
        }
        let told = Arc::new(Host { runtime_awaited, ..(**host.borrow_and_update()).clone() });
        out.send_if_modified(|known| {
            let differs = **known != *told;
            *known = told;
            differs
        });
        tokio::select! {
            changed = host.changed() => if changed.is_err() { return },
            () = sleep(LOOK), if runtime_awaited => {}
        }
    }
}

/// Where the socket is to be, behind what it is of.
fn place(config: &Config) -> String {
    match &config.runtime_endpoint {
        Some(path) => format!("at {} (--runtime-endpoint)", path.display()),
        None => "in a usual place (--runtime-endpoint names another)".to_owned(),
    }
}

/// Returns the first of these that is a socket.
///
/// # Errors
/// Why none is, as a sentence without its end.
fn look_at_all(paths: &[PathBuf]) -> Result<&PathBuf, String> {
    let mut why = Vec::new();
    for path in paths {
        match look_at(path) {
            Ok(()) => return Ok(path),
            Err(reason) => why.push((path, reason)),
        }
    }
    match why.as_slice() {
        [(_, reason)] => Err(reason.clone()),
        all => {
            Err(all.iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect::<Vec<_>>().join("; "))
        }
    }
}

/// Looks whether there is a socket.
///
/// # Errors
/// Why not, as a sentence without its end.
fn look_at(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => Err("it is no socket".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
