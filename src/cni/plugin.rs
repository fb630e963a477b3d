//! The plugin: one call of the container runtime, from its environment to its answer.
//!
//! The socket is away while the agent restarts, so an agent that cannot be reached is tried again until the time is over. DEL and GC try
//! for less long, because a pod has to go. What is lost so goes on where the pod's object is gone: its sandbox is taken for one that sends, until its address is used again, a collection (GC) does not name
//! it, the agent is started anew, or too many of them are there (`world::attachments`).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::call::{self, Call, Entry, Parameters};
use super::failure::{Code, Failure, failure};
use super::message::{Message, PATH};
use crate::ask::post;
use crate::model::CNI_VERSIONS;

/// The name under which the program is this plugin.
pub const NAME: &str = "sluice-cni";

/// Why ADD or CHECK has no good answer.
enum NoAnswer {
    /// Nobody answered in time.
    Unreachable(String),
    /// The agent said why not.
    Refused(String),
}

/// The pause between two tries to reach the agent.
const PAUSE: Duration = Duration::from_millis(25);
/// Time by which an answer may be late: the agent waits as long as the plugin and then says what is missing.
const GRACE: Duration = Duration::from_millis(250);
/// How long DEL and GC try.
const WITHDRAWING: Duration = Duration::from_millis(500);
/// The largest configuration, in bytes.
const MOST: u64 = 4 << 20;

/// Returns whether the words of a command line begin with this plugin's name.
pub fn is_named(words: &[OsString]) -> bool {
    words.first().is_some_and(|word| Path::new(word).file_name().is_some_and(|name| name == NAME))
}

/// Answers the call in the environment and on standard input.
pub fn run() -> ExitCode {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
    let parameters = Parameters {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        interface: variable("CNI_IFNAME"),
        arguments: variable("CNI_ARGS"),
        namespace: variable("CNI_NETNS"),
    };
    let mut input = Vec::new();
    let read = io::stdin().take(MOST).read_to_end(&mut input);
    let newest = CNI_VERSIONS.last().copied().unwrap_or_default();
    let outcome = match read {
        Ok(_) => call::read(&parameters, &input),
        Err(error) => Err((failure(Code::NotDecodable, error.to_string()), newest.to_owned())),
    };
    let (answer, code) = match outcome.and_then(|(call, entry)| {
        let version = entry.version.clone();
        answered(call, &entry).map_err(|failure| (failure, version))
    }) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err((failure, version)) => (Some(failure.object(&version)), ExitCode::FAILURE),
    };
    if let Some(answer) = answer {
        // Who does not read the answer takes the call for failed.
        let _ = writeln!(io::stdout(), "{answer}");
    }
    code
}

fn answered(call: Call, entry: &Entry) -> Result<Option<Value>, Failure> {
    match call {
        Call::Version => Ok(Some(call::versions(&entry.version))),
        Call::Status => Ok(None),
        Call::Pass(result) => Ok(Some(call::result(result, &entry.version))),
        Call::Add { attachment, link, namespace, result } => {
            let message = |wait| Message::Add {
                attachment: attachment.clone(),
                link: link.clone(),
                namespace: namespace.clone(),
                wait,
            };
            may_start(asked(entry, entry.timeout, message), entry)?;
            Ok(Some(call::result(result, &entry.version)))
        }
        Call::Check(attachment) => {
            let message = |wait| Message::Check { attachment: attachment.clone(), wait };
            may_start(asked(entry, entry.timeout, message), entry)?;
            Ok(None)
        }
        Call::Delete(id) => {
            withdrawn(asked(entry, WITHDRAWING, |_| Message::Delete(id.clone())));
            Ok(None)
        }
        Call::Collect { network, ids } => {
            let message = |_| Message::Retain { network: network.clone(), ids: ids.clone() };
            withdrawn(asked(entry, WITHDRAWING, message));
            Ok(None)
        }
    }
}

fn may_start(outcome: Result<(), NoAnswer>, entry: &Entry) -> Result<(), Failure> {
    let text = match outcome {
        Ok(()) => return Ok(()),
        Err(NoAnswer::Unreachable(text)) if entry.opens_unreachable => {
            eprintln!("{NAME}: {text}; the pod starts without its network policies (whenUnreachable is allow)");
            return Ok(());
        }
        Err(NoAnswer::Unreachable(text) | NoAnswer::Refused(text)) => text,
    };
    Err(failure(Code::TryAgainLater, text))
}

/// A pod goes whether somebody hears of it or not.
fn withdrawn(outcome: Result<(), NoAnswer>) {
    if let Err(NoAnswer::Unreachable(text) | NoAnswer::Refused(text)) = outcome {
        eprintln!("{NAME}: {text}");
    }
}

/// Asks the agent until there is an answer or this time is over. The message is told how much of it is left.
fn asked(entry: &Entry, patience: Duration, message: impl Fn(Duration) -> Message) -> Result<(), NoAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| NoAnswer::Unreachable(error.to_string()))?;
    runtime.block_on(async {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let words = message(left).words();
            let why = match timeout(left + GRACE, post(&entry.socket, PATH, &words, None)).await {
                Ok(Ok((StatusCode::OK, _))) => return Ok(()),
                Ok(Ok((StatusCode::UNPROCESSABLE_ENTITY, text))) => {
                    return Err(NoAnswer::Refused(text.trim().to_owned()));
                }
                Ok(Ok((_, text))) => text.trim().to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the agent did not answer in time".to_owned(),
            };
            if Instant::now() + PAUSE >= until {
                return Err(NoAnswer::Unreachable(why));
            }
            sleep(PAUSE).await;
        }
    })
}
