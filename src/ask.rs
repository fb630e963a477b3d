//! The other side of the local socket: a user on this host asks the running program.
//!
//! `sluice policy explain`, `diff` and `drops`, `sluice svc`, `sluice bgp peers` and `routes`, `sluice route`, `sluice audit`, `sluice status`, `sluice bundle`: the question goes to the program's socket (`observe::local`), and what it answers is printed.
//! It needs no API server and reads no cluster: the program answers from what it has put into the kernel. `sluice status --all` alone asks the API server, and by it all agents (`k8s::agents`).

mod all;
mod audit;
pub mod bundle;
mod route;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use http::header::ACCEPT;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use self::audit::{Audited, Subsystem};
use crate::config::{Ask, Output};
use crate::k8s::agents;
use crate::k8s::client::{self, Access};
use crate::k8s::kubectl::kubeconfig_of_user;
use crate::observe::local::{JSON, MOST};
use crate::observe::printable::printable;
use crate::status::Status;
use crate::status::serve::STATUS;

/// Asks, and returns the answer's text, as it can be sent to a terminal.
///
/// # Errors
/// Where nobody listens, or there is no answer; a sentence for the user.
pub fn run(ask: &Ask) -> anyhow::Result<Answered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = run_on(&runtime, ask);
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    // Of the words in an answer many are those of others.
    let Answered { text, exit_code } = answered.map_err(|error| anyhow!("{}", printable(format!("{error:#}"))))?;
    Ok(Answered { text: printable(text), exit_code })
}

fn run_on(runtime: &Runtime, ask: &Ask) -> anyhow::Result<Answered> {
    let text = match ask {
        Ask::PolicyExplain { from, to, output, socket } => {
            let about = BTreeMap::from([("from", from.as_str()), ("to", to.as_str())]);
            runtime.block_on(answer(socket, "/policy/explain", &about, *output))
        }
        Ask::PolicyDiff { file, delete, output, socket } => {
            let text = text_of(file)?;
            let about = BTreeMap::from([("file", text.as_str()), ("delete", if *delete { "true" } else { "" })]);
            runtime.block_on(answer(socket, "/policy/diff", &about, *output))
        }
        Ask::PolicyDrops { follow, output, socket } => {
            let until = (!follow).then(|| Instant::now() + LISTENED);
            runtime.block_on(drops(socket, *output, until, &mut std::io::stdout().lock())).map(|()| String::new())
        }
        Ask::Services { what, output, socket } => {
            runtime.block_on(answer(socket, "/svc", &BTreeMap::from([("what", what.as_str())]), *output))
        }
        Ask::BgpPeers { output, socket } => runtime.block_on(answer(socket, "/bgp/peers", &BTreeMap::new(), *output)),
        Ask::BgpRoutes { what, why, output, socket } => {
            let about = BTreeMap::from([("what", what.as_str()), ("why", if *why { "true" } else { "" })]);
            runtime.block_on(answer(socket, "/bgp/routes", &about, *output))
        }
        Ask::Route { what, output, socket } => runtime.block_on(way(socket, what, *output)),
        Ask::Audit { repair, output, socket } => {
            let audited = runtime.block_on(audited(socket, *repair))?;
            let (text, exit_code) = (audit::printed(&audited, *output), audited.exit_code());
            return Ok(Answered { text, exit_code });
        }
        Ask::Status { wait, output, socket } => return runtime.block_on(status(socket, *wait, *output)),
        Ask::Bundle { file, socket } => return runtime.block_on(bundle::make(file.as_deref(), socket)),
        Ask::StatusOfAll { kubeconfig, master, selector, output } => {
            // Who names a server needs no file.
            let kubeconfig = match kubeconfig {
                None if master.is_none() => kubeconfig_of_user().map_err(anyhow::Error::msg)?,
                named => named.clone(),
            };
            let access = Access { kubeconfig, master: master.clone() };
            return runtime.block_on(status_of_all(&access, selector, *output));
        }
    };
    text.map(|text| Answered { text, exit_code: 0 })
}

/// Text to print, and how the program ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    pub text: String,
    pub exit_code: u8,
}

/// Asks how the node stands, until it is ready or the time is over. A program that starts does not answer at once.
async fn status(socket: &Path, wait: Option<Duration>, output: Output) -> anyhow::Result<Answered> {
    let until = Instant::now() + wait.unwrap_or_default();
    loop {
        let longest = match wait {
            Some(_) => until.saturating_duration_since(Instant::now()).clamp(LEAST, ANSWER),
            None => ANSWER,
        };
        let nothing = BTreeMap::new();
        let asked = timeout(longest, answer(socket, STATUS, &nothing, Output::Json)).await;
        let asked = asked.unwrap_or_else(|_| Err(anyhow!("{}", silent(socket, longest))));
        let status = asked.and_then(|text| Ok((Status::parse(&text).context("the answer makes no sense")?, text)));
        let is_ready = status.as_ref().is_ok_and(|(status, _)| status.ready);
        if is_ready || Instant::now() >= until {
            let (status, json) = status?;
            let text = if output == Output::Json { json } else { status.text() };
            return Ok(Answered { text, exit_code: u8::from(!is_ready) });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Asks the agents of all nodes how they stand.
async fn status_of_all(access: &Access, selector: &str, output: Output) -> anyhow::Result<Answered> {
    let client = client::client(access).await?;
    let nodes = agents::ask(&client, selector).await.map_err(anyhow::Error::msg)?;
    Ok(all::answered(&nodes, output))
}

/// Asks which way a packet takes: who serves at the address, who routes, and who judges.
async fn way(socket: &Path, what: &str, output: Output) -> anyhow::Result<String> {
    // Where nobody listens, none of them answers.
    drop(UnixStream::connect(socket).await.with_context(|| unreachable(socket))?);
    // All who answer read the same word.
    let (what, is_address) = place(what);
    let what = what.as_str();
    let about = BTreeMap::from([("what", what)]);
    let service = if is_address { part(socket, route::SERVICE, &about).await? } else { Ok(None) };
    let served = if route::is_served(&service) { "true" } else { "" };
    let way = part(socket, route::WAY, &BTreeMap::from([("what", what), ("served", served)])).await?;
    let isolation = part(socket, route::ISOLATION, &about).await?;
    // What none of them understands, or knows, is no answer.
    let parts = [&way, &isolation, &service];
    if !parts.iter().any(|part| matches!(part, Ok(Some(_)))) {
        let why = parts.iter().find_map(|part| part.as_ref().err());
        let nobody = "the sluice on this host runs nothing that knows of ways or policies";
        return Err(anyhow!("{}", why.map_or(nobody, String::as_str)));
    }
    let all = route::backends(&service);
    let mut backends = Vec::new();
    for backend in all.iter().take(route::MOST_BACKENDS).filter(|_| matches!(way, Ok(Some(_)))) {
        backends.extend(part(socket, route::WAY, &BTreeMap::from([("what", backend.as_str())])).await?.ok().flatten());
    }
    let backends_left_off = if backends.is_empty() { 0 } else { all.len() - backends.len() };
    let parts = route::Parts { what: what.to_owned(), service, way, backends, backends_left_off, isolation };
    Ok(route::printed(&parts, output))
}

/// Returns a word of the user as its only form, and whether it is an address: without blanks and brackets, and no IPv4 address as one of IPv6.
fn place(word: &str) -> (String, bool) {
    let word = word.trim();
    let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
    match bare.parse::<IpAddr>() {
        Ok(address) => (address.to_canonical().to_string(), true),
        Err(_) => (word.to_owned(), false),
    }
}

/// Asks one of those who answer together.
async fn part(socket: &Path, path: &str, about: &BTreeMap<&str, &str>) -> anyhow::Result<route::Part> {
    Ok(match post(socket, path, about, Some(JSON)).await? {
        (StatusCode::OK, text) => Ok(Some(serde_json::from_str(&text).context("the answer makes no sense")?)),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (_, sentence) => Err(sentence.trim_end().to_owned()),
    })
}

/// Asks every subsystem what differs, and has them repair it where that is wanted.
async fn audited(socket: &Path, repair: bool) -> anyhow::Result<Audited> {
    let before = differing(socket).await?;
    if !repair {
        return Ok(Audited { before, after: None });
    }
    ask_all(socket, &BTreeMap::from([("repair", "true")])).await?;
    Ok(Audited { before, after: Some(differing(socket).await?) })
}

async fn differing(socket: &Path) -> anyhow::Result<Vec<Subsystem>> {
    let answers = ask_all(socket, &BTreeMap::new()).await?;
    let parsed = answers.into_iter().map(|(name, answer)| match answer {
        Ok(text) => Subsystem::parse(name, &text),
        Err(sentence) => Ok(Subsystem::unanswered(name, sentence)),
    });
    parsed.collect::<Result<_, _>>().context("the answer makes no sense")
}

/// The name of a subsystem and its answer, or the sentence why it has none.
type AnswerOf = (&'static str, Result<String, String>);

/// Asks every subsystem that runs, one after the other.
async fn ask_all(socket: &Path, about: &BTreeMap<&str, &str>) -> anyhow::Result<Vec<AnswerOf>> {
    // Where nobody listens, none of them answers.
    drop(UnixStream::connect(socket).await.with_context(|| unreachable(socket))?);
    let mut answers = Vec::new();
    for (name, path) in audit::SUBSYSTEMS {
        match post(socket, path, about, Some(JSON)).await {
            Ok((StatusCode::OK, text)) => answers.push((name, Ok(text))),
            Ok((StatusCode::NOT_FOUND, _)) => {}
            Ok((_, sentence)) => answers.push((name, Err(sentence.trim_end().to_owned()))),
            // It is too slow, and the connection ended; others are asked all the same.
            Err(error) => answers.push((name, Err(format!("{error:#}")))),
        }
    }
    if answers.is_empty() {
        return Err(anyhow!("the sluice on this host runs nothing that could be audited"));
    }
    Ok(answers)
}

/// Prints refused packets as they come, for as long as somebody reads them.
async fn drops(socket: &Path, output: Output, until: Option<Instant>, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut since, mut lost, mut doubt) = (None, 0, None);
    loop {
        let number = since.map(|number: u64| number.to_string());
        let about: BTreeMap<&str, &str> = number.iter().map(|number| ("since", number.as_str())).collect();
        let text = answer(socket, "/policy/drops", &about, Output::Json).await?;
        let drops: Drops = serde_json::from_str(&text).context("the answer makes no sense")?;
        // What was lost before the first question is nothing that was asked for.
        let missed = drops.missed + if since.is_some() { drops.lost.saturating_sub(lost) } else { 0 };
        (since, lost) = (Some(drops.next), drops.lost);
        let mut lines = Vec::new();
        if doubt != drops.doubt {
            lines.extend(drops.doubt.as_ref().map(|doubt| match output {
                Output::Json => serde_json::json!({ "cluster": drops.cluster, "doubt": doubt }).to_string(),
                Output::Text => format!("cluster: {doubt}"),
            }));
            doubt = drops.doubt;
        }
        let packets = drops.packets.iter().map(|packet| match output {
            Output::Json => packet.to_string(),
            Output::Text => packet.get("text").and_then(Value::as_str).unwrap_or_default().to_owned(),
        });
        lines.extend(packets);
        if missed > 0 {
            lines.push(match output {
                Output::Json => format!("{{\"missed\":{missed}}}"),
                Output::Text => format!("{missed} refused packets came too fast and are not shown"),
            });
        }
        let printed = lines.into_iter().map(printable).try_for_each(|line| writeln!(out, "{line}"));
        match printed.and_then(|()| out.flush()) {
            Ok(()) => {}
            // Nobody reads any more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("standard output cannot be written"),
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// An answer about refused packets.
#[derive(Deserialize)]
struct Drops {
    next: u64,
    missed: u64,
    /// Since the program began to read them.
    lost: u64,
    /// How far the cluster is known, and why reasons may be out of date, as a sentence without its end; not there in answers of earlier versions.
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    doubt: Option<String>,
    packets: Vec<Value>,
}

/// How long refused packets are printed, and how often they are asked for.
const LISTENED: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);
/// Time limit for an answer. The program ends a connection after 30 s, so one that is silent for longer is stuck or stopped.
const ANSWER: Duration = Duration::from_secs(35);
/// Time for an answer where whoever asks gives less, or none is left.
const LEAST: Duration = Duration::from_secs(1);

/// Reads a file, or standard input where its name is `-`.
fn text_of(file: &Path) -> anyhow::Result<String> {
    let bytes = match file.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .take(LONGEST as u64 + 1)
                .read_to_end(&mut bytes)
                .context("standard input cannot be read")?;
            bytes
        }
        _ => std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?,
    };
    if bytes.len() > LONGEST {
        return Err(anyhow!(
            "{} is longer than {} MiB, which is too long for a question",
            file.display(),
            LONGEST >> 20
        ));
    }
    String::from_utf8(bytes).map_err(|_| anyhow!("{} is not UTF-8", file.display()))
}

/// The longest file, in bytes. As JSON it may be nearly twice as long.
const LONGEST: usize = MOST / 2;

async fn answer(socket: &Path, path: &str, about: &BTreeMap<&str, &str>, output: Output) -> anyhow::Result<String> {
    let accept = (output == Output::Json).then_some(JSON);
    let (status, text) = post(socket, path, about, accept).await?;
    if status == StatusCode::OK { Ok(text) } else { Err(anyhow!("{}", text.trim_end())) }
}

/// Puts a question to the program that listens on this socket. Returns its answer, whatever the status.
///
/// # Errors
/// Where nobody listens, the answer breaks off, or there is none in time: the kernel connects to a program that is stuck, too.
pub async fn post(
    socket: &Path,
    path: &str,
    about: &impl Serialize,
    accept: Option<&'static str>,
) -> anyhow::Result<(StatusCode, String)> {
    let posted = timeout(ANSWER, post_bounded(socket, path, about, accept, usize::MAX)).await;
    posted.unwrap_or_else(|_| Err(anyhow!("{}", silent(socket, ANSWER))))
}

/// Like [`post`], for an answer of so many bytes at most.
async fn post_bounded(
    socket: &Path,
    path: &str,
    about: &impl Serialize,
    accept: Option<&'static str>,
    most: usize,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = UnixStream::connect(socket).await.with_context(|| unreachable(socket))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.with_context(|| unreachable(socket))?;
    let driven = tokio::spawn(connection);
    let mut request = Request::post(path).header("host", "localhost");
    if let Some(accept) = accept {
        request = request.header(ACCEPT, accept);
    }
    let request = request.body(Full::new(Bytes::from(serde_json::to_vec(about)?)))?;
    let response = sender.send_request(request).await.context("the question was not answered")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), most).collect().await.map_err(anyhow::Error::from_boxed);
    let body = body.context("the answer broke off, or is too long")?.to_bytes();
    driven.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn silent(socket: &Path, longest: Duration) -> String {
    format!(
        "the sluice that listens on {} has not answered within {} s: it is stuck, stopped, or about to end",
        socket.display(),
        longest.as_secs()
    )
}

fn unreachable(socket: &Path) -> String {
    format!("nobody answers on {}: is sluice running on this host, with the same --socket?", socket.display())
}

#[cfg(test)]
mod tests;
