//! Questions to a running program, as typed: `sluice policy explain --from … --to …`, `sluice policy diff -f …`,
//! `sluice policy drops`, `sluice svc …`, `sluice bgp peers`, `sluice bgp routes …`, `sluice route …`, `sluice audit`, `sluice status`, `sluice bundle`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser, Subcommand, ValueEnum};
use http::Uri;

use super::flags::DEFAULT_SOCKET;
use super::refusal::Refusal;
use crate::net::server_url;

/// Question to the program that runs on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Why packets of one party reach another, or do not. The words are those of the user.
    PolicyExplain { from: String, to: String, output: Output, socket: PathBuf },
    /// The changes that the policies of a file would bring about. `delete`: those of their deletion.
    PolicyDiff { file: PathBuf, delete: bool, output: Output, socket: PathBuf },
    /// Which packets are refused, for a moment or, with `follow`, on and on.
    PolicyDrops { follow: bool, output: Output, socket: PathBuf },
    /// Desired and actual state of Services. `what`: the user's word; all of them if it is empty.
    Services { what: String, output: Output, socket: PathBuf },
    /// The BGP neighbours, and how their sessions stand.
    BgpPeers { output: Output, socket: PathBuf },
    /// The routes that BGP knows. `what`: a prefix or an address; all of them if it is empty. `why`: with all reasons.
    BgpRoutes { what: String, why: bool, output: Output, socket: PathBuf },
    /// The way of a packet from this node. `what`: the user's word for a pod or an address.
    Route { what: String, output: Output, socket: PathBuf },
    /// Differences between the kernel and the desired state. `repair`: repairs them first.
    Audit { repair: bool, output: Output, socket: PathBuf },
    /// How the node stands. `wait`: until it is ready, for so long at most.
    Status { wait: Option<Duration>, output: Output, socket: PathBuf },
    /// One archive with what a report of a problem needs. `file`: its path, `-` for standard output; a name of its own where there is none.
    Bundle { file: Option<PathBuf>, socket: PathBuf },
    /// How all nodes stand, by the API server. `master`: its URL, which may lack the scheme; `selector`: labels of the agents' pods.
    StatusOfAll { kubeconfig: Option<PathBuf>, master: Option<Uri>, selector: String, output: Output },
}

impl Ask {
    /// The exit code where no answer is had: for who asks what differs or how a node stands, and for a bundle that lacks something, 1 is an answer.
    pub fn unanswered(&self) -> u8 {
        if matches!(self, Ask::Audit { .. } | Ask::Status { .. } | Ask::StatusOfAll { .. } | Ask::Bundle { .. }) {
            2
        } else {
            1
        }
    }
}

/// How the answer is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// Ask the sluice that runs on this host
#[derive(Parser)]
#[command(name = "sluice", disable_help_subcommand = true)]
struct Words {
    #[command(subcommand)]
    about: About,
}

#[derive(Subcommand)]
enum About {
    /// Network policies
    #[command(subcommand)]
    Policy(Policy),
    /// Say what Services want, what the kernel has of it, and why each endpoint is in or out
    Svc {
        /// NAMESPACE/NAME, an address, or ADDRESS:PORT; none for a table of all Services
        what: Option<String>,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Say which way a packet takes from this node, and why: Service, policy, route, tunnel, MTU, address
    Route {
        /// NAMESPACE/POD, or an address
        what: String,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// BGP of this node
    #[command(subcommand)]
    Bgp(Bgp),
    /// Say how this node stands, or all nodes do
    Status {
        /// Ask the agents of all nodes, by the API server
        #[arg(long, conflicts_with_all = ["wait", "socket"])]
        all: bool,
        /// With --all: the kubeconfig file; without it that of kubectl, or the service account of the pod
        #[arg(long, requires = "all")]
        kubeconfig: Option<PathBuf>,
        /// With --all: URL of the API server, http://127.0.0.1:8001 for kubectl proxy
        #[arg(long, requires = "all", value_name = "URL")]
        master: Option<String>,
        /// With --all: labels of the agents' pods
        #[arg(long, requires = "all", value_name = "LABELS", default_value = "k8s-app=kube-router")]
        selector: String,
        /// Wait until it is ready, for so many seconds at most
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
        wait: Option<u32>,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Write one archive with what a report of a problem needs, without secrets
    Bundle {
        /// The archive; - is standard output. Without it a file of this node and moment in the working directory
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Say what differs between the kernel and what is to be in place
    Audit {
        /// Put it back
        #[arg(long)]
        repair: bool,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
}

#[derive(Subcommand)]
enum Bgp {
    /// Say with whom BGP speaks, how many routes go each way, and why a session is not established
    Peers {
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Say which routes there are, which of them is used and why, and to whom it is announced
    Routes {
        /// A prefix, with those inside of it, or an address, with the prefixes around it; none for all
        what: Option<String>,
        /// With the reasons, which a prefix or an address always has
        #[arg(long)]
        why: bool,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
}

#[derive(Subcommand)]
enum Policy {
    /// Say whether packets pass, and which policy and rule decides
    Explain {
        /// NAMESPACE/POD or an address
        #[arg(long)]
        from: String,
        /// NAMESPACE/POD:PORT[/PROTOCOL] or ADDRESS:PORT[/PROTOCOL]; the protocol is tcp, udp or sctp
        #[arg(long)]
        to: String,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Say what the NetworkPolicies and ClusterNetworkPolicies of a file would change
    Diff {
        /// A manifest file; - is standard input
        #[arg(short, long)]
        file: PathBuf,
        /// Say what deleting them would change
        #[arg(long)]
        delete: bool,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Print refused packets with the names of pods and policies
    Drops {
        /// Go on until interrupted, not for ten seconds
        #[arg(short, long)]
        follow: bool,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The --socket of the running program
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
}

/// The words that questions about policies take.
const POLICY_USAGE: &str = "\
Usage: sluice policy explain --from WHO --to WHERE [-o text|json] [--socket PATH]
       sluice policy diff -f FILE [--delete] [-o text|json] [--socket PATH]
       sluice policy drops [-f] [-o text|json] [--socket PATH]
explain says whether packets pass, and which policy and rule decides; diff what the policies of a file (NetworkPolicy,
ClusterNetworkPolicy) would change for the pods of this node; drops which packets are refused, as they come, for ten
seconds. The sluice that runs on this host is asked, and nothing is changed.
      --from     NAMESPACE/POD or an address
      --to       NAMESPACE/POD:PORT[/PROTOCOL] or ADDRESS:PORT[/PROTOCOL]; the protocol is tcp, udp or sctp;
                 the address may be that of a Service
  -f, --file     A manifest file; - is standard input
      --delete   Say what deleting the policies would change
  -f, --follow   Go on until interrupted
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that questions about Services take.
const SERVICES_USAGE: &str = "\
Usage: sluice svc [NAMESPACE/NAME | ADDRESS[:PORT]] [-o text|json] [--socket PATH]
Says what a Service wants, what the kernel has of it, and why each endpoint is in or out, with connections and rates; without a
word a table of all Services. The sluice that runs on this host is asked, and nothing is changed.
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that questions about BGP take.
const BGP_USAGE: &str = "\
Usage: sluice bgp peers [-o text|json] [--socket PATH]
       sluice bgp routes [PREFIX | ADDRESS] [--why] [-o text|json] [--socket PATH]
peers says with whom BGP speaks, since when, how many routes are received, accepted and announced, where each neighbour comes from, and why a
session is not established; routes says which routes there are and from whom. With --why, a PREFIX (and those inside of it) or an ADDRESS (and
the prefixes around it), each with its reasons: which line of which policy refused it, at which step of the decision it lost, whether the
kernel has it, and to whom it is announced. The sluice that runs on this host is asked, and nothing is changed.
      --why      With all reasons
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that questions for the way of a packet take.
const ROUTE_USAGE: &str = "\
Usage: sluice route NAMESPACE/POD | ADDRESS [-o text|json] [--socket PATH]
Says which way a packet takes from this node: whether a Service is at the address, and the way to each of its endpoints; whose the address is;
which route leads there, from whom it is, and whether the kernel has it, or why there is none; through which tunnel; what size fits; which source
address it has, and whether packets of pods are masqueraded; whether policies isolate the pod. Beside it the way that the kernel gives to such a
packet now, and in what that differs. The sluice that runs on this host is asked, and nothing is changed. Exit status: 0 there is an answer,
whatever it says; 1 there is none.
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that questions for what differs take.
const AUDIT_USAGE: &str = "\
Usage: sluice audit [--repair] [-o text|json] [--socket PATH]
Says what differs between the kernel and what the sluice on this host has put there, or what the kernel refuses: of the service proxy,
the firewall, the router and the source guard, each kind of kernel objects. Prints nothing where nothing differs. Exit status: 0 nothing
differs (with --repair: any more), 1 something differs, 2 it could not be found out. Without --repair nothing is changed.
      --repair   Have it put back by an audit now, and say what came of it
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that questions for the status take.
const STATUS_USAGE: &str = "\
Usage: sluice status [--wait[=SECONDS]] [-o text|json] [--socket PATH]
       sluice status --all [--kubeconfig PATH] [--master URL] [--selector LABELS] [-o text|json]
Says how this node stands: whether it is ready, and if not, why; what each subsystem keeps in the kernel; BGP sessions, learned routes
and pod ranges without one; from where and how far the cluster is known; and notes. Exit status: 0 ready, 1 not ready, 2 it could not be
found out. Nothing is changed. With --all it says of every node whether its agent is ready, and if not, why: the API server asks the agents' health ports, on any
machine and for whoever may list Pods and Nodes and get pods/proxy. Exit status: 0 all nodes are ready.
      --wait     Wait until it is ready, for so many seconds at most (default 60)
      --all      Ask the agents of all nodes, by the API server
      --kubeconfig  With --all: the kubeconfig file (default that of kubectl, or the service account of the pod)
      --master   With --all: URL of the API server; http://127.0.0.1:8001 for kubectl proxy, where the kubeconfig gets its credentials by a program
      --selector  With --all: labels of the agents' pods (default k8s-app=kube-router)
  -o, --output   text or json (default text)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// The words that a bundle takes.
const BUNDLE_USAGE: &str = "\
Usage: sluice bundle [-f FILE] [--socket PATH]
Writes one tar archive with what a report of a problem needs: version, flags as they are meant, status, the last lines of the log, metrics, what
sluice svc, bgp, audit and preflight say, what of the kernel the program keeps, facts of this host, and the cluster as this node knows it, as manifests that
sluice --manifests=FILE reads. Passwords, tokens, Secrets and kubeconfigs are not in it; names, addresses and labels are. The sluice that runs on this host is asked, and
nothing is changed. Exit status: 0 everything is in it, 1 a part is not (the archive and the output say which), 2 there is no archive.
  -f, --file     The archive, which only its owner may read; - is standard output (default sluice-bundle-NODE-TIME.tar)
      --socket   The --socket of the running program (default /run/sluice/sluice.sock)";

/// Returns the commands that ask a running agent, each with its meaning.
pub(super) fn commands() -> Vec<(String, String)> {
    let meaning = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let words = Words::command();
    let of = |command: &Command| match command.has_subcommands() {
        false => vec![(command.get_name().to_owned(), meaning(command))],
        true => {
            let inner = command.get_subcommands();
            inner.map(|inner| (format!("{} {}", command.get_name(), inner.get_name()), meaning(inner))).collect()
        }
    };
    words.get_subcommands().flat_map(of).collect()
}

/// Returns the commands that ask a running agent, each with the words that it takes.
pub(super) fn described() -> impl Iterator<Item = (Command, Option<&'static str>)> {
    let all: Vec<Command> = Words::command().get_subcommands().cloned().collect();
    all.into_iter().map(|command| {
        let usage = usage_of(command.get_name());
        (command, usage)
    })
}

/// Returns the words that the questions of a command line take; `None` where it is none.
pub(super) fn usage(words: &[OsString]) -> Option<&'static str> {
    usage_of(words.get(1)?.to_str()?)
}

fn usage_of(about: &str) -> Option<&'static str> {
    match about {
        "policy" => Some(POLICY_USAGE),
        "svc" => Some(SERVICES_USAGE),
        "bgp" => Some(BGP_USAGE),
        "route" => Some(ROUTE_USAGE),
        "audit" => Some(AUDIT_USAGE),
        "status" => Some(STATUS_USAGE),
        "bundle" => Some(BUNDLE_USAGE),
        _ => None,
    }
}

/// Reads a question; `None` where the user wants to know what can be asked (`usage`). `words` begins with the name of the program.
pub(super) fn ask(words: &[OsString], usage: &str) -> Result<Option<Ask>, Refusal> {
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return Ok(None);
    }
    let about = match Words::try_parse_from(words) {
        Ok(Words { about }) => about,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Err(Refusal { text: usage.to_owned(), exit_code: 2 });
        }
        Err(error) => {
            return Err(Refusal { text: format!("{}\n{usage}", error.to_string().trim_end()), exit_code: 2 });
        }
    };
    Ok(Some(match about {
        About::Policy(Policy::Explain { from, to, output, socket }) => Ask::PolicyExplain { from, to, output, socket },
        About::Policy(Policy::Diff { file, delete, output, socket }) => {
            Ask::PolicyDiff { file, delete, output, socket }
        }
        About::Policy(Policy::Drops { follow, output, socket }) => Ask::PolicyDrops { follow, output, socket },
        About::Svc { what, output, socket } => Ask::Services { what: what.unwrap_or_default(), output, socket },
        About::Bgp(Bgp::Peers { output, socket }) => Ask::BgpPeers { output, socket },
        About::Bgp(Bgp::Routes { what, why, output, socket }) => {
            Ask::BgpRoutes { what: what.unwrap_or_default(), why, output, socket }
        }
        About::Route { what, output, socket } => Ask::Route { what, output, socket },
        About::Audit { repair, output, socket } => Ask::Audit { repair, output, socket },
        About::Bundle { file, socket } => Ask::Bundle { file, socket },
        About::Status { all: true, kubeconfig, master, selector, output, .. } => {
            let master = master.as_deref().map(|typed| server(typed, usage)).transpose()?;
            Ask::StatusOfAll { kubeconfig, master, selector, output }
        }
        About::Status { wait, output, socket, .. } => {
            Ask::Status { wait: wait.map(|seconds| Duration::from_secs(seconds.into())), output, socket }
        }
    }))
}

/// The API server's URL. Where it has no scheme, the credentials decide which one it gets.
fn server(typed: &str, usage: &str) -> Result<Uri, Refusal> {
    server_url::typed(typed).map_err(|why| {
        let shown = server_url::shown(typed);
        let text = format!("--master must be a URL like http://127.0.0.1:8001; it is {shown:?}: {why}.\n{usage}");
        Refusal { text, exit_code: 2 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Result<Option<Ask>, Refusal> {
        let words: Vec<OsString> = ["sluice", "status"].iter().chain(words).map(OsString::from).collect();
        ask(&words, STATUS_USAGE)
    }

    #[test]
    fn the_server_of_all_nodes_may_lack_its_scheme_and_one_that_is_none_shows_no_credentials() {
        let server = |word: &str| match asked(&["--all", word]) {
            Ok(Some(Ask::StatusOfAll { master, .. })) => master.map(|url| url.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(server("--master=127.0.0.1:8001"), Some("127.0.0.1:8001".to_owned()));
        assert_eq!(server("--master=http://127.0.0.1:8001"), Some("http://127.0.0.1:8001/".to_owned()));
        for typed in ["ftp://wizard:hush@192.0.2.10", "https//wizard:hush@192.0.2.10", "http://wizard:hu sh@192.0.2.10"]
        {
            let refusal = asked(&["--all", &format!("--master={typed}")]).expect_err(typed);
            assert!(refusal.text.contains("it is \"192.0.2.10\": "), "{}", refusal.text);
            assert!(["wizard", "hush", "sh@"].iter().all(|word| !refusal.text.contains(word)), "{}", refusal.text);
            assert_eq!(refusal.exit_code, 2);
        }
    }
}
