//! The process itself, and files: directories that have to be writable, CNI files, sockets.

use super::addresses::node;
use crate::config::Config;
use crate::kernel::file_system::Passing;
use crate::preflight::facts::{Directory, Facts, Passwords, Purpose};
use crate::preflight::{Finding, Level};
use crate::router::cni::{self, CniFileForm, Conf};

/// Judges what the process may do.
pub fn process(facts: &Facts) -> Vec<Finding> {
    let subject = "process";
    if !facts.process.is_root {
        let why = "the agent ends at its start, and much of this host cannot be read".to_owned();
        return vec![Finding::bad(
            Level::Fatal,
            subject,
            ["it is not root".to_owned(), why, "run it as root".to_owned()],
        )];
    }
    if !facts.process.may_change_network {
        let what = "it lacks the capability CAP_NET_ADMIN".to_owned();
        let why = "the kernel refuses each change of rules, routes and devices".to_owned();
        let todo = "let the container be privileged, or add NET_ADMIN to its capabilities".to_owned();
        return vec![Finding::bad(Level::Fatal, subject, [what, why, todo])];
    }
    vec![Finding::ok(subject, "it is root and may change the network")]
}

/// Judges files and directories.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.files.directories.iter().map(|one| directory(one, config)).collect();
    findings.extend(cni_file(facts, config));
    if let (Some(path), true) = (&facts.files.preferred_cni_file, facts.files.is_older_form) {
        let subject = format!("CNI file {}", path.display());
        findings
            .push(Finding::ok(subject, "it is the agent's, in its other form, and goes when the agent writes its own"));
    } else if let Some(path) = &facts.files.preferred_cni_file {
        let what = format!("{} sorts before the agent's, so that container runtimes use that one", path.display());
        let why = "new pods get their network from another program".to_owned();
        findings.push(Finding::bad(Level::Degraded, "CNI file", [what, why, "remove it, or rename it".to_owned()]));
    }
    findings.extend(direct_server_return(facts, config));
    findings.extend(facts.files.unread_passwords.iter().map(|(which, reason)| passwords(*which, reason)));
    findings
}

fn passwords(which: Passwords, reason: &str) -> Finding {
    let (flag, subject, sessions, what) = match which {
        Passwords::Peers => ("--peer-router-passwords-file", "passwords of peers", "the external peers", "file"),
        Passwords::PeersInDirectory => {
            ("--peer-router-passwords-dir", "passwords of peers", "peers with passwordfile", "directory")
        }
        Passwords::Nodes => ("--bgp-mesh-password-file", "password of nodes", "other nodes", "file"),
    };
    let why = format!("sessions with {sessions} do not come up");
    let todo = format!("mount the {what}, readable for root");
    Finding::bad(Level::Degraded, subject, [format!("{flag} cannot be read: {reason}"), why, todo])
}

/// Judges what tunnels in pods need of the host.
fn direct_server_return(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !config.serves_through_tunnels() {
        return findings;
    }
    // With the CNI plugin pods are found without a runtime.
    if !facts.files.has_runtime_socket && config.cni_socket.is_none() {
        let (what, todo) = match &config.runtime_endpoint {
            Some(path) => (
                format!("there is no socket at {} (--runtime-endpoint)", path.display()),
                "mount the container runtime's socket there".to_owned(),
            ),
            None => (
                "there is no socket of a container runtime in its usual places".to_owned(),
                "mount the folder of its socket, or name the socket: --runtime-endpoint=unix:///PATH".to_owned(),
            ),
        };
        let why = "Services with kube-router.io/service.dsr are served with NAT until there is one".to_owned();
        findings.push(Finding::bad(Level::Degraded, "container runtime", [what, why, todo]));
    }
    if !facts.process.may_enter_namespaces {
        let what = "it lacks the capability CAP_SYS_ADMIN".to_owned();
        let why = "it cannot enter the network of any pod, so that none answers for a Service with kube-router.io/service.dsr \
                   (PodTunnelMissing)";
        let todo = "let the container be privileged, or add SYS_ADMIN to its capabilities".to_owned();
        findings.push(Finding::bad(Level::Degraded, "direct server return", [what, why.to_owned(), todo]));
    }
    if let Some(other) = drops_invalid(facts) {
        let what = format!("{other} drops what conntrack calls invalid (ct state invalid)");
        let why = "to the node of a pod the answers of direct server return are that, where the client came to another node: all of TCP at \
                   such an address is lost";
        let todo = "accept packets from pods with these addresses as source ahead of that rule, or take kube-router.io/service.dsr off";
        findings.push(Finding::bad(Level::Degraded, "direct server return", [what, why.to_owned(), todo.to_owned()]));
    }
    findings
}

/// Returns the program of which it is known that it drops packets of no connection on their way through.
fn drops_invalid(facts: &Facts) -> Option<&'static str> {
    let has_table =
        |name: &str| facts.packet_filter.tables.iter().any(|table| table.split(' ').next_back() == Some(name));
    match () {
        () if has_table("firewalld") => Some("firewalld"),
        () if facts.packet_filter.chains.contains("KUBE-FORWARD") => {
            Some("kube-proxy, or what it left (chain KUBE-FORWARD),")
        }
        () => None,
    }
}

fn directory(directory: &Directory, config: &Config) -> Finding {
    let Directory { purpose, path, obstacle, passing } = directory;
    let path = path.display();
    let subject = format!("directory {path}");
    // An image may bring these folders, and then they can be written although the host never sees what is in them.
    let for_host = *purpose == Purpose::Cni || *purpose == Purpose::Sockets && config.cni_socket.is_some();
    let unseen = for_host && *passing == Some(Passing::WithContainer);
    let what = obstacle.as_ref().map(|obstacle| format!("it cannot be written: {obstacle}"));
    let what = what.or_else(|| unseen.then(|| "it is the container's own, and not the host's".to_owned()));
    let Some(what) = what else {
        let keeps_key = *purpose == Purpose::State && config.router.as_ref().is_some_and(|own| own.key_file.is_some());
        let Some(passing) = passing.filter(|_| keeps_key) else {
            return Finding::ok(
                subject,
                match passing.filter(|_| *purpose == Purpose::State) {
                    None => "it can be written".to_owned(),
                    Some(passing) => format!(
                        "it can be written, and does not last ({passing}): what is known of the cluster has to come from the API server \
                     then; a directory of the host there would keep it"
                    ),
                },
            );
        };
        let why = "this node makes another private key for WireGuard each time that it is gone, as with an upgrade of the agent, and packets from and to \
                   this node are lost until all nodes know it"
            .to_owned();
        let (what, todo) = (format!("it does not last: {passing}"), format!("mount a directory of the host at {path}"));
        return Finding::bad(Level::Degraded, subject, [what, why, todo]);
    };
    let (level, why, todo) = match purpose {
        Purpose::State => (
            Level::Degraded,
            "the last known state of the cluster is lost: a start during an outage of the API server knows nothing"
                .to_owned(),
            format!("mount a directory of the host at {path}, or turn it off: --state-dir="),
        ),
        Purpose::Sockets if config.cni_socket.is_some() => (
            Level::Fatal,
            "the CNI plugin cannot announce pods there, and no pod starts (--netpol-cni)".to_owned(),
            format!("mount a directory of the host at {path}"),
        ),
        Purpose::Sockets => (
            Level::Degraded,
            "nobody can ask the agent: sluice status, svc, policy and audit".to_owned(),
            format!("mount a directory at {path}, or turn it off: --socket="),
        ),
        Purpose::Cni => (
            Level::Fatal,
            "the CNI file cannot be written, so that the node stays NotReady and no pod gets a network".to_owned(),
            format!("mount the host's {path} for writing, or leave the file to somebody else: --enable-cni=false"),
        ),
    };
    Finding::bad(level, subject, [what, why, todo])
}

fn cni_file(facts: &Facts, config: &Config) -> Option<Finding> {
    let router = config.router.as_ref()?;
    let path = router.cni_file.as_ref()?;
    let subject = format!("CNI file {}", path.display());
    match facts.files.cni_text.as_ref()? {
        Err(reason) => {
            let what = format!("it cannot be read: {reason}");
            let why = "the agent cannot write the ranges of this node's pods into it".to_owned();
            let todo = "let root read it (where it is a link, mount the folder of its target), or remove it: the agent writes one";
            Some(Finding::bad(Level::Degraded, subject, [what, why, todo.to_owned()]))
        }
        Ok(text) => {
            let ranges = node(facts).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
            let wanted = Conf::new(ranges, None, router);
            let form = CniFileForm::of(path);
            if text.trim().is_empty() {
                return Some(Finding::ok(subject, "it is empty, and the agent writes it anew"));
            }
            if let (_, Some(unusable)) = cni::text(Some(text), form, &wanted) {
                let why = "pods may lack addresses of this node's ranges, or start before their policies".to_owned();
                let todo = "correct the file, or remove it: the agent writes one".to_owned();
                return Some(Finding::bad(Level::Degraded, subject, [unusable.to_string(), why, todo]));
            }
            if !cni::is_ours(text, form) {
                return Some(Finding::ok(
                    subject,
                    "it uses another bridge than kube-bridge, whose ranges the agent keeps",
                ));
            }
            Some(Finding::ok(subject, "it attaches pods to kube-bridge"))
        }
    }
}
