//! Questions to a running program, as typed: `sluice policy explain --from … --to …`, `sluice policy diff -f …`,
//! `sluice policy drops`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};

use super::flags::DEFAULT_SOCKET;
use super::refusal::Refusal;

/// Question to the program that runs on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Why packets of one party reach another, or do not. The words are those of the user.
    PolicyExplain { from: String, to: String, output: Output, socket: PathBuf },
    /// The changes that the policies of a file would bring about. `delete`: those of their deletion.
    PolicyDiff { file: PathBuf, delete: bool, output: Output, socket: PathBuf },
    /// Which packets are refused, for a moment or, with `follow`, on and on.
    PolicyDrops { follow: bool, output: Output, socket: PathBuf },
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

/// The words that a question takes.
pub(super) const USAGE: &str = "\
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

/// Whether a command line is a question.
pub(super) fn is_ask(words: &[OsString]) -> bool {
    words.get(1).is_some_and(|word| word == "policy")
}

/// Reads a question; `None` where the user wants to know what can be asked ([`USAGE`]). `words` begins with the name of the program.
pub(super) fn ask(words: &[OsString]) -> Result<Option<Ask>, Refusal> {
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return Ok(None);
    }
    match Words::try_parse_from(words) {
        Ok(Words { about: About::Policy(Policy::Explain { from, to, output, socket }) }) => {
            Ok(Some(Ask::PolicyExplain { from, to, output, socket }))
        }
        Ok(Words { about: About::Policy(Policy::Diff { file, delete, output, socket }) }) => {
            Ok(Some(Ask::PolicyDiff { file, delete, output, socket }))
        }
        Ok(Words { about: About::Policy(Policy::Drops { follow, output, socket }) }) => {
            Ok(Some(Ask::PolicyDrops { follow, output, socket }))
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Refusal { text: USAGE.to_owned(), exit_code: 2 })
        }
        Err(error) => Err(Refusal { text: format!("{}\n{USAGE}", error.to_string().trim_end()), exit_code: 2 }),
    }
}
