//! `--cleanup-config`: every subsystem reconciled to nothing; `--cleanup-nftables`: our tables of nf_tables alone; `--cleanup-kube-proxy`: what kube-proxy left (`kube_proxy`).
//!
//! The same mirrors, the same order, the same rule of what is ours; only nothing is wanted. What belongs to
//! others stays. Kernel settings stay too: what they were before is nobody's knowledge. All subsystems are cleaned up,
//! whichever of them the flags switch on, in both families. Where an agent answers nothing goes: it would put back some of it, and miss its key, its sockets and the entry of its plugin. Virtual services that a kube-proxy in its mode ipvs has as well stay, for it would miss them until its next sync. Tunnels for direct server return go from the pods of this host that the
//! container runtime tells of or that have their network namespaces in `/run/netns`; a host without a runtime has no others.
//!
//! Of files go the last known state (`--state-dir`), the sockets (`--socket`, `gobgp.sock`, `cni.sock`), the announced pods, the guarded ports and the CNI file where it is about our
//! bridge; a directory goes where nothing is left in it. CNI files of others lose the entry of our plugin, which nobody answers any more, and then the
//! plugin goes that `install-cni` has copied to the host.

mod kube_proxy;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use tracing::{info, warn};

use crate::app::GOBGP_SOCKET;
use crate::cni::plugin;
use crate::config::{CNI_SOCKET, Config, KEY_FILE};
use crate::container_runtime::sockets;
use crate::firewall;
use crate::kernel::file_system::is_of_container;
use crate::kernel::{Error, iptables};
use crate::model::Authority;
use crate::observe::local_socket::{Listener, Unknown, listener_at, remove_left_asides};
use crate::pod_tunnels;
use crate::proxy;
use crate::reconcile::{Mirror, Moment, Reflection, Target};
use crate::router;
use crate::router::host_files::remove_cni;
use crate::router::plugin_entry::{CniFiles, Left};
use crate::source_guard;
use crate::source_guard::ports_file::PortsFile;
use crate::subsystem::Kinds;
use crate::world::{AttachmentsFile, LastKnown};

/// How often what fails at first is tried again at once: another program may hold a lock for a moment.
const TRIES: usize = 3;

/// Steps of the cleanup of mirrors: of a subsystem's, or of one alone.
trait Removable {
    /// One round in which nothing is wanted; how many objects went.
    fn remove(&mut self, at: Moment) -> u64;
    fn remove_abandoned(&mut self) -> Vec<String>;
    fn kinds(&self) -> Vec<&dyn Reflection>;
}

/// Takes everything of ours out of the kernel, and removes our files. What fails keeps nothing else from going.
///
/// # Errors
/// An agent runs here, which would put some of it back and miss the rest: nothing goes then. Failures to remove, a line for each kind of kernel objects, subsystem and file.
pub fn run(config: &Config) -> anyhow::Result<()> {
    if let Some(sentence) = in_use("--cleanup-config", config.socket.as_deref()) {
        bail!(sentence);
    }
    // All are opened before anything goes: the rules that are there tell which programs keep them.
    let firewall = firewall::iptables::linux::open_for_cleanup()
        .map(|(targets, _)| without_ipset(targets))
        .map(firewall::iptables::apply::Mirrors::new);
    let proxy = proxy::linux::open_for_cleanup().and_then(|targets| {
        Ok(proxy::apply::Mirrors::new(targets, Vec::new()).sparing(kube_proxy::served_by_both(config)?))
    });
    let router = router::linux::open_for_cleanup(config.router.as_ref()).map(router::apply::Mirrors::new);
    // What the programs that are there do not reach, before the sets that it names.
    let mut left: Vec<String> =
        [firewall::iptables::linux::ownership(), proxy::linux::ownership(), router::linux::ownership()]
            .iter()
            .flat_map(iptables::abandoned::remove_without_programs)
            .collect();
    if iptables::has_unreadable_tables() {
        warn!(
            "The kernel has tables of legacy iptables and no program that reads them is installed; rules of ours in them stay: run --cleanup-config with an image that has iptables-legacy-restore and ip6tables-legacy-restore"
        );
    }
    let outcomes = [remove("firewall", firewall), remove("service proxy", proxy), remove("router", router)];
    let removed: u64 = outcomes.iter().map(|(count, _)| count).sum();
    left.extend(outcomes.into_iter().flat_map(|(_, left)| left));
    left.extend(source_guard::linux::remove().map(|why| format!("source guard: {why}")));
    let (from_pods, errors) = pod_tunnels::driver::remove_all(sockets(config.runtime_endpoint.as_ref()));
    left.extend(errors.into_iter().map(|why| format!("tunnels in pods: {why}")));
    info!(removed, from_pods, "Kernel state removed");
    // Taking kernel state away takes a while, and whoever starts agents may start one meanwhile: its files would be missed.
    match in_use("--cleanup-config", config.socket.as_deref()) {
        Some(sentence) => left.push(format!("files: {sentence}")),
        None => {
            let (removed, errors) = remove_files(config);
            info!(?removed, "Files of ours were removed");
            left.extend(errors);
        }
    }
    if !left.is_empty() {
        bail!("not everything could be removed:\n{}", left.join("\n"));
    }
    Ok(())
}

/// Removes our tables of nf_tables, of which kube-router knows nothing, so that what it has put in force beside them stands alone. Chains, sets, virtual services, routes and files stay:
/// kube-router has them under the same names, or takes them over.
///
/// # Errors
/// An agent runs beside it, which would put them back or, where the kernel knows no owners of tables, go on without them. Failures to remove, a line for each subsystem.
pub fn remove_tables(config: &Config) -> anyhow::Result<()> {
    if let Some(sentence) = in_use("--cleanup-nftables", config.socket.as_deref()) {
        bail!(sentence);
    }
    let all = [
        ("firewall", firewall::nftables::linux::remove()),
        ("firewall", firewall::frames::linux::remove()),
        ("service proxy", proxy::linux::remove_table()),
        ("router", router::linux::remove_table()),
        ("source guard", source_guard::linux::remove()),
    ];
    let left: Vec<String> = all.into_iter().filter_map(|(name, why)| Some(format!("{name}: {}", why?))).collect();
    if !left.is_empty() {
        bail!("not every table could be removed:\n{}", left.join("\n"));
    }
    info!("Tables of nf_tables removed");
    Ok(())
}

/// Removes what kube-proxy left in the kernel, and nothing of ours: a service proxy beside it goes on.
///
/// # Errors
/// kube-proxy still runs, or no service proxy of ours has taken over. Failures to remove, a line for each.
pub fn remove_kube_proxy(config: &Config) -> anyhow::Result<()> {
    let left = kube_proxy::remove(config);
    if !left.is_empty() {
        bail!("not everything of kube-proxy could be removed:\n{}", left.join("\n"));
    }
    info!("Nothing of kube-proxy is left");
    Ok(())
}

/// Returns why what this flag removes cannot go now, as a sentence: an agent answers on its socket, or waits for pods on the one beside it, whether or not this process has that folder mounted;
/// or whether one does is not known.
fn in_use(flag: &str, socket: Option<&Path>) -> Option<String> {
    let mut sockets = socket.into_iter().flat_map(|socket| [socket.to_owned(), socket.with_file_name(CNI_SOCKET)]);
    sockets.find_map(|socket| refusal(flag, &socket, listener_at(&socket)))
}

/// The sentence about one socket, by what is known of it, with a way on for whoever reads it.
fn refusal(flag: &str, socket: &Path, found: Result<Option<Listener>, Unknown>) -> Option<String> {
    let socket = socket.display();
    let why = match found {
        Ok(None) => return None,
        Ok(Some(Listener::Answers)) => format!("one answers on {socket} (--socket): end that agent first."),
        // It need not be an agent: any process of the network namespace can have such a name in mounts of its own.
        Ok(Some(Listener::Listed(inode))) => format!(
            "one seems to listen on {socket} (--socket): from here it cannot be asked, but /proc/net/unix of this network namespace \
             lists a socket of that name, with inode {inode}; `ss -xlp` on the host names its process: end that first."
        ),
        Err(Unknown::Forbidden(error)) => format!(
            "whether one answers on {socket} (--socket) cannot be asked ({error}): \
             allow this program to connect to it, or remove it if no agent runs."
        ),
        Err(Unknown::Unlisted(error)) => format!(
            "whether one listens on {socket} (--socket) in other mounts is not known, because /proc/thread-self/net/unix cannot be read ({error}): \
             run this program where /proc is mounted and can be read."
        ),
    };
    Some(format!("{flag} is for a host on which no agent runs, and {why}"))
}

/// The firewall's kinds, on a host that may have no ipset.
fn without_ipset(
    mut targets: firewall::iptables::apply::Targets<firewall::iptables::linux::Linux>,
) -> firewall::iptables::apply::Targets<firewall::iptables::linux::Linux> {
    targets.sets.accept_missing_ipset();
    targets.elements.accept_missing_ipset();
    targets
}

/// Removes our files. Returns which there were, and why others could not be removed.
fn remove_files(config: &Config) -> (Vec<PathBuf>, Vec<String>) {
    // Before the socket goes that answers the plugin.
    let Left { unread, named, .. } = CniFiles::new(config.cni_directory.clone()).remove_plugin();
    let (mut removed, mut left) = (Vec::new(), [unread, named].concat());
    // While a CNI file names it, or may, a runtime that does not find it would say less than it does.
    let is_hosts = config.cni_directory.is_dir() && !is_of_container(&config.cni_directory);
    let may_be_named = !left.is_empty() || !is_hosts;
    if !is_hosts {
        let reason = if config.cni_directory.is_dir() {
            "it is part of the root file system (overlayfs), as what is not mounted in a container is"
        } else {
            "it is not there"
        };
        warn!(directory = %config.cni_directory.display(), reason, "Whether CNI files name sluice-cni is not known, and the plugin stays; if this is a container and the host has that folder, mount it and run --cleanup-config again: no pod starts while one does");
    }
    let mut note = |path: &Path, outcome: io::Result<Vec<PathBuf>>| match outcome {
        Ok(paths) => removed.extend(paths),
        Err(error) => left.push(format!("{}: {error}", path.display())),
    };
    if let Some(directory) = &config.state_dir {
        note(directory, router::linux::remove_key(&directory.join(KEY_FILE)));
        let outcome = LastKnown::new(directory).remove();
        note(directory, outcome.map(|was_there| was_there.then(|| directory.clone()).into_iter().collect()));
    }
    if let Some(path) = config.router.as_ref().and_then(|router| router.cni_file.as_ref()) {
        note(path, remove_cni(path));
    }
    if let Some(socket) = &config.socket {
        for path in [socket.clone(), socket.with_file_name(GOBGP_SOCKET), socket.with_file_name(CNI_SOCKET)] {
            note(&path, remove_socket(&path));
            remove_left_asides(&path);
        }
        let guarded = PortsFile::beside(socket);
        let outcome = guarded.remove();
        note(
            guarded.path(),
            outcome.map(|was_there| was_there.then(|| guarded.path().to_owned()).into_iter().collect()),
        );
        let announced = AttachmentsFile::beside(socket);
        let outcome = announced.remove();
        note(
            announced.path(),
            outcome.map(|was_there| was_there.then(|| announced.path().to_owned()).into_iter().collect()),
        );
        let _ = socket.parent().map(fs::remove_dir);
    }
    if !may_be_named {
        note(&config.plugin_directory, remove_plugin(&config.plugin_directory));
    }
    (removed, left)
}

/// Removes the CNI plugin, and what a copy of it that was ended has left. A link is somebody's own.
fn remove_plugin(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name == plugin::NAME || name.to_string_lossy().starts_with(&format!(".{}.", plugin::NAME));
        if is_ours && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

fn remove_socket(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(Vec::new());
    }
    fs::remove_file(path)?;
    Ok(vec![path.to_owned()])
}

/// Removes everything of one subsystem. Returns how many objects went, and why others could not.
fn remove(name: &str, opened: Result<impl Removable, Error>) -> (u64, Vec<String>) {
    let mut subsystem = match opened {
        Ok(subsystem) => subsystem,
        Err(error) => return (0, vec![format!("{name}: {error}")]),
    };
    let mut removed = 0;
    for _ in 0..TRIES {
        removed += subsystem.remove(Moment { now: Instant::now(), jitter: 0 });
        let kinds = subsystem.kinds();
        if kinds.iter().all(|kind| kind.is_settled()) {
            break;
        }
        if let Some(at) = kinds.iter().filter_map(|kind| kind.retry_at()).min() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
    }
    let mut left = subsystem.remove_abandoned();
    let kinds = subsystem.kinds();
    let failing = kinds.iter().filter_map(|kind| Some((kind.name(), kind.trouble()?)));
    left.extend(failing.map(|(kind, trouble)| format!("{kind}: {}", trouble.error)));
    (removed, left.into_iter().map(|why| format!("{name}: {why}")).collect())
}

impl<K: proxy::apply::Kernel> Removable for proxy::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        self.round(&proxy::desired::Desired::default(), Authority::Complete, at).steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        proxy::apply::Mirrors::remove_abandoned(self).unwrap_or_default()
    }

    fn kinds(&self) -> Vec<&dyn Reflection> {
        self.reflections()
    }
}

impl<K: firewall::iptables::apply::Kernel> Removable for firewall::iptables::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        self.round(&firewall::iptables::desired::Desired::default(), Authority::Complete, at).steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        firewall::iptables::apply::Mirrors::remove_abandoned(self)
    }

    fn kinds(&self) -> Vec<&dyn Reflection> {
        self.reflections()
    }
}

impl<K: router::apply::Kernel> Removable for router::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        let leave = router::apply::Leave { authority: Authority::Complete, routes_are_complete: true };
        let nothing = (router::desired::Desired::default(), router::routes::Routes::default());
        let steps = self.round(&nothing.0, &nothing.1, leave, at).steps;
        self.remove_bridge(at);
        steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        router::apply::Mirrors::remove_abandoned(self).unwrap_or_default()
    }

    fn kinds(&self) -> Vec<&dyn Reflection> {
        // A bridge that pods are on stays, and that is no failure.
        self.reflections().into_iter().filter(|kind| kind.name() != "bridges").collect()
    }
}

/// One kind of objects alone, which its target recognises.
impl<T: Target<Error = Error>> Removable for Mirror<T> {
    fn remove(&mut self, at: Moment) -> u64 {
        let before = self.steps_done();
        self.mark_all();
        self.shrink(&BTreeMap::new(), at);
        self.steps_done() - before
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn kinds(&self) -> Vec<&dyn Reflection> {
        vec![self]
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    use rustix::io::Errno;

    use super::*;
    use crate::config::{Environment, Request, request};

    /// The configuration by these flags of a cleanup on a host that has its folders in this directory, and the agent's socket under this name.
    fn config(directory: &Path, socket: &str, flags: &[&str]) -> Config {
        let socket = format!("--socket={}", directory.join(socket).display());
        let words = ["sluice", "--cleanup-config", &socket].into_iter().chain(flags.iter().copied());
        let words: Vec<OsString> = words.map(OsString::from).collect();
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let environment = Environment {
            host_name: "node-1".to_owned(),
            cni_file: Some(directory.join("net.d/10-kuberouter.conflist")),
            host_bin_path: Some(directory.join("bin")),
            ..Environment::default()
        };
        Config::from_flags(&flags, verbosity, &environment).expect("the flags are sound")
    }

    #[test]
    fn nothing_goes_while_an_agent_answers() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("sluice.sock");
        let why = || in_use("--cleanup-config", Some(&socket));
        assert_eq!(why(), None);
        for name in ["sluice.sock", "cni.sock"] {
            let listener = UnixListener::bind(directory.path().join(name)).expect("writable");
            let sentence = why().expect("somebody listens");
            assert!(sentence.starts_with("--cleanup-config is for a host on which no agent runs"), "{sentence}");
            assert!(sentence.contains(&format!("{name} (--socket): end that agent first.")), "{sentence}");
            drop(listener);
            assert_eq!(why(), None, "an earlier run left it");
        }
        assert_eq!(in_use("--cleanup-config", None), None, "an agent without a socket answers nobody");
    }

    #[test]
    fn of_an_agent_that_is_listed_and_cannot_be_asked_the_refusal_says_so_and_how_its_process_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = directory.path().join("run");
        fs::create_dir(&run).expect("writable");
        let listener = UnixListener::bind(run.join("sluice.sock")).expect("writable");
        fs::rename(&run, directory.path().join("elsewhere")).expect("writable");
        let inode = format!("with inode {};", rustix::fs::fstat(&listener).expect("it is open").st_ino);
        let sentence = in_use("--cleanup-nftables", Some(&run.join("sluice.sock"))).expect("it is listed");
        assert!(sentence.starts_with("--cleanup-nftables is for a host on which no agent runs"), "{sentence}");
        for words in ["from here it cannot be asked", inode.as_str(), "`ss -xlp` on the host names its process"] {
            assert!(sentence.contains(words), "{words}: {sentence}");
        }
    }

    #[test]
    fn nothing_goes_while_whether_an_agent_runs_is_not_known() {
        let of = |why| refusal("--cleanup-config", Path::new("/run/sluice.sock"), Err(why)).expect("an agent may run");
        let sentence = of(Unknown::Forbidden(Errno::ACCESS));
        assert!(sentence.contains("allow this program to connect to it"), "{sentence}");
        let sentence = of(Unknown::Unlisted(Errno::NOENT));
        assert!(sentence.contains("run this program where /proc is mounted"), "{sentence}");
    }

    #[test]
    fn our_files_go_and_those_of_others_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        ["state", "run", "net.d", "bin"].iter().for_each(|name| fs::create_dir(path(name)).expect("writable"));
        fs::write(LastKnown::new(&path("state")).path(), "what was known").expect("writable");
        fs::write(path("state/notes"), "of somebody else").expect("writable");
        fs::write(path("net.d/10-kuberouter.conflist"), r#"{"plugins":[{"type":"bridge","bridge":"kube-bridge"}]}"#)
            .expect("writable");
        let other = |more: &str| format!(r#"{{"plugins": [{{"type":"bridge","bridge":"cni0"}}{more}]}}"#);
        fs::write(path("net.d/05-other.conflist"), other(r#",{"type":"sluice-cni"}"#)).expect("writable");
        let listen = |name: &str| UnixListener::bind(path(name)).expect("a socket");
        drop([listen("run/sluice.sock"), listen("run/gobgp.sock"), listen("run/cni.sock")]);
        fs::write(path("run/attachments.json"), "[]").expect("writable");
        ["bridge", "sluice-cni", ".sluice-cni.q3Rt5z", "sluice-cni.old"]
            .iter()
            .for_each(|name| fs::write(path("bin").join(name), "a program").expect("writable"));
        fs::write(path("run/guarded-ports.json"), "[]").expect("writable");
        let config = config(
            directory.path(),
            "run/sluice.sock",
            &[&format!("--state-dir={}", path("state").display()), "--run-router=false"],
        );
        let (removed, left) = remove_files(&config);
        assert_eq!((removed.len(), left), (9, Vec::<String>::new()));
        assert!(!path("run").exists(), "nothing is left in it");
        for (name, stays) in [
            ("state/notes", true),
            ("net.d/05-other.conflist", true),
            ("net.d/10-kuberouter.conflist", false),
            ("bin/bridge", true),
            ("bin/sluice-cni.old", true),
            ("bin/sluice-cni", false),
            ("bin/.sluice-cni.q3Rt5z", false),
        ] {
            assert_eq!(path(name).exists(), stays, "{name}");
        }
        let left = fs::read_to_string(path("net.d/05-other.conflist")).expect("it is there");
        assert_eq!(left, other(""), "no pod starts where nobody answers the plugin");
        assert!(!LastKnown::new(&path("state")).path().exists());
        assert_eq!(remove_files(&config), (Vec::new(), Vec::new()), "again there is nothing to do");
    }

    #[test]
    fn what_agents_that_were_killed_have_left_goes_and_the_cni_file_also_where_the_flags_write_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        ["run", "net.d"].iter().for_each(|name| fs::create_dir(path(name)).expect("writable"));
        let bridge = r#"{"plugins":[{"type":"bridge","bridge":"kube-bridge"}]}"#;
        fs::write(path("net.d/10-kuberouter.conflist"), bridge).expect("writable");
        for name in ["run/attachments.new", "run/guarded-ports.new"] {
            fs::write(path(name), "[").expect("writable");
        }
        for name in ["run/sluice.1a2b", "run/cni.00ff", "run/gobgp.0a0a"] {
            drop(UnixListener::bind(path(name)).expect("writable"));
            let long_ago = Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = Timestamps { last_access: long_ago, last_modification: long_ago };
            utimensat(CWD, path(name), &times, AtFlags::empty()).expect("it is ours");
        }
        let config = config(directory.path(), "run/sluice.sock", &["--state-dir=", "--enable-cni=false"]);
        let (_, left) = remove_files(&config);
        assert_eq!(left, Vec::<String>::new());
        assert!(!path("run").exists() && !path("net.d/10-kuberouter.conflist").exists());
    }

    #[test]
    fn the_plugin_stays_while_a_file_may_name_it_and_a_link_always() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        ["net.d", "bin"].iter().for_each(|name| fs::create_dir(path(name)).expect("writable"));
        fs::write(path("bin/sluice-cni"), "a program").expect("writable");
        let config = config(directory.path(), "sluice.sock", &["--state-dir=", "--run-router=false"]);
        fs::rename(path("net.d"), path("elsewhere")).expect("writable");
        remove_files(&config);
        assert!(path("bin/sluice-cni").exists(), "nobody could look into the CNI files");
        fs::rename(path("elsewhere"), path("net.d")).expect("writable");
        assert_eq!(remove_files(&config), (vec![path("bin/sluice-cni")], Vec::new()));
        std::os::unix::fs::symlink("/usr/local/bin/sluice", path("bin/sluice-cni")).expect("writable");
        assert_eq!(remove_files(&config), (Vec::new(), Vec::new()), "somebody made this link");
    }
}
