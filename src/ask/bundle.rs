//! `sluice bundle`: one archive with what a report of a problem needs.
//!
//! The running program is asked on its socket, part by part, and this host is looked at; nothing is changed. A part that cannot be had is named in
//! the archive, on the terminal and by the exit code, and keeps no other from being there: also an agent that is stuck, or away, leaves a bundle.
//!
//! What goes in is named here, in `bundle` and in `k8s::render`, one by one. No Secret is read by anybody, environment variables are those of
//! [`host`], and of annotations only those are written that decide. The cluster is written as manifests, which `sluice --manifests BUNDLE` reads
//! (`k8s::manifests::bundle`). It comes last, because it is the largest part by far: where the output is a slow pipe, or breaks off, the others are there.
//!
//! One part is in memory at a time, and a page of the cluster.

pub mod archive;
mod host;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;

use self::archive::Archive;
use super::audit::SUBSYSTEMS;
use super::{AGAIN, ANSWER, Answered, post_bounded, unreachable};
use crate::bundle::{CLUSTER, CONFIG, HOST, LOG, METRICS, PREFLIGHT, PageHead};
use crate::config::VERSION;
use crate::k8s::Kind;
use crate::k8s::manifests::bundle::{About, Complete, FORMAT, LARGEST_CLUSTER, names};
use crate::observe::local::{ASK_AGAIN, JSON};
use crate::observe::printable::printable;
use crate::status::Status;
use crate::status::serve::STATUS;

/// How long parts are asked for, and the cluster behind them once more, without the time that writing them takes; what is left then is named and not asked for.
const PATIENCE: Duration = Duration::from_secs(180);
/// Most bytes of one part.
const LARGEST: usize = 64 << 20;
/// How long refused packets are waited for: the program gives their log back where nobody asks for 5 s (`firewall::refused`), so nothing else is asked meanwhile.
const DROPS: Duration = Duration::from_secs(2);

/// A part of the bundle, as `parts.json` and the terminal name it.
#[derive(Clone, PartialEq, Serialize, Debug)]
struct Part {
    part: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "lowercase", tag = "state")]
enum Outcome {
    Written {
        bytes: usize,
    },
    /// Nobody there does what it is about.
    Absent {
        why: String,
    },
    Failed {
        why: String,
    },
}

/// A question whose answer is a part.
struct BundleQuestion {
    part: String,
    path: &'static str,
    about: &'static [(&'static str, &'static str)],
    accept: Option<&'static str>,
}

/// The questions for all parts beside refused packets and the cluster, in their order: those first that no report can do without.
fn questions() -> Vec<BundleQuestion> {
    const NOTHING: &[(&str, &str)] = &[];
    let of = |part: &str, path, about, accept| BundleQuestion { part: part.to_owned(), path, about, accept };
    let mut all = vec![
        of("config.txt", CONFIG, NOTHING, None),
        of("log.txt", LOG, NOTHING, None),
        of("host-of-agent.txt", HOST, NOTHING, None),
    ];
    for (name, path) in SUBSYSTEMS {
        let name = name.replace(' ', "-");
        all.push(of(&format!("audit/{name}.json"), path, NOTHING, Some(JSON)));
        all.push(of(&format!("kernel/{name}.txt"), path, &[("list", "true")], None));
    }
    all.extend([
        of("preflight.json", PREFLIGHT, NOTHING, None),
        of("services.txt", "/svc", &[("what", "")], None),
        of("bgp-peers.json", "/bgp/peers", NOTHING, Some(JSON)),
        of("bgp-routes.json", "/bgp/routes", &[("what", ""), ("why", "")], Some(JSON)),
        of("metrics.txt", METRICS, NOTHING, None),
    ]);
    all
}

/// Makes a bundle. `file`: its path, `-` for standard output; a name of this node and this moment where there is none.
///
/// # Errors
/// The archive cannot be written.
pub async fn make(file: Option<&Path>, socket: &Path) -> anyhow::Result<Answered> {
    let mut agent = Agent { socket, until: Instant::now() + PATIENCE, is_stuck: false };
    let status = agent.ask(STATUS, &[], Some(JSON)).await;
    let status =
        status.and_then(|text| Ok((Status::parse(&text).map_err(|_| failed("the answer makes no sense"))?, text)));
    let node = status.as_ref().map_or_else(|_| host::name(), |(status, _)| status.node.clone());
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let file = file.map_or_else(|| default_name(&node, now), Path::to_owned);
    let mut bundle = Bundle { archive: Archive::create(&file)?, parts: Vec::new(), agent };
    let about = About { format: FORMAT, version: VERSION.to_owned(), node, written: format!("{now:.0}") };
    bundle.put(names::ABOUT, Ok(serde_json::to_string_pretty(&about)?))?;
    match status {
        Ok((status, text)) => {
            bundle.put("status.json", Ok(text))?;
            bundle.put("status.txt", Ok(status.text()))?;
        }
        Err(outcome) => bundle.put("status.json", Err(outcome))?,
    }
    for (part, text) in host::parts() {
        bundle.put(&format!("host/{part}"), text.map_err(|why| Outcome::Failed { why }))?;
    }
    bundle.agent.until = Instant::now() + PATIENCE;
    // One reason is enough.
    match UnixStream::connect(socket).await {
        _ if bundle.agent.is_stuck => {
            bundle.put("agent", Err(failed("it does not answer, and was asked for nothing more")))?
        }
        Ok(_) => bundle.ask_for_all().await?,
        Err(error) => bundle.put("agent", Err(failed(&format!("{}: {error}", unreachable(socket)))))?,
    }
    bundle.end(&file)
}

/// The bundle so far, and whom it is asked of.
struct Bundle<'a> {
    archive: Archive,
    parts: Vec<Part>,
    agent: Agent<'a>,
}

/// The running program.
struct Agent<'a> {
    socket: &'a Path,
    /// When the last answer may come.
    until: Instant,
    /// It has left a question without an answer, and is asked for nothing more.
    is_stuck: bool,
}

impl Bundle<'_> {
    /// Writes a part, or notes why there is none.
    fn put(&mut self, part: &str, text: Result<String, Outcome>) -> anyhow::Result<()> {
        let outcome = match text {
            Ok(text) => {
                self.write(part, text.as_bytes())?;
                Outcome::Written { bytes: text.len() }
            }
            Err(outcome) => outcome,
        };
        self.parts.push(Part { part: part.to_owned(), outcome });
        Ok(())
    }

    /// Writes a file. How long an output takes, which may be a slow pipe, is not the program's fault.
    fn write(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let begun = Instant::now();
        let written = self.archive.put(name, content);
        self.agent.until += begun.elapsed();
        written
    }

    async fn ask_for_all(&mut self) -> anyhow::Result<()> {
        for BundleQuestion { part, path, about, accept } in questions() {
            let answer = self.agent.ask(path, about, accept).await;
            self.put(&part, answer)?;
        }
        let drops = self.agent.drops().await;
        self.put("policy-drops.json", drops)?;
        // Whoever has it answers when no subsystem does, and they may have used up the time.
        self.agent.until = Instant::now() + PATIENCE;
        self.put_cluster().await
    }

    /// Writes the manifests, and behind them that they are all.
    async fn put_cluster(&mut self) -> anyhow::Result<()> {
        let (mut bytes, mut last) = (0, None);
        for kind in Kind::ALL {
            let mut from = Some(0);
            while let Some(place) = from {
                let world = last.as_ref().map(|head: &PageHead| head.world.to_string());
                match self.agent.page(kind, place, world.as_deref()).await {
                    Ok((head, objects)) => {
                        if !objects.is_empty() {
                            self.write(&names::manifests(kind, place), objects.as_bytes())?;
                        }
                        bytes += objects.len();
                        from = head.next;
                        last = Some(head);
                    }
                    Err(outcome) => return self.put(names::CLUSTER, Err(outcome)),
                }
                if bytes > LARGEST_CLUSTER {
                    return self.put(names::CLUSTER, Err(failed("the cluster is too large for a bundle")));
                }
            }
        }
        let Some(PageHead { node, kinds, complete, .. }) = last else { return Ok(()) };
        let complete = Complete { node, kinds, complete };
        self.write(names::COMPLETE, serde_json::to_string_pretty(&complete)?.as_bytes())?;
        self.parts.push(Part { part: names::CLUSTER.to_owned(), outcome: Outcome::Written { bytes } });
        Ok(())
    }

    /// Writes which parts there are, ends the archive, and says the same.
    fn end(self, file: &Path) -> anyhow::Result<Answered> {
        let Bundle { mut archive, parts, .. } = self;
        let mut all = serde_json::to_string_pretty(&json!({ "parts": parts }))?;
        all.push('\n');
        archive.put(names::PARTS, all.as_bytes())?;
        let is_printed = archive.is_standard_output();
        let bytes = archive.finish()?;
        let failures = parts.iter().filter_map(|Part { part, outcome }| match outcome {
            Outcome::Failed { why } => Some(format!("{part}: {}\n", why.replace(['\r', '\n'], " "))),
            Outcome::Written { .. } | Outcome::Absent { .. } => None,
        });
        let failures: String = failures.collect();
        let exit_code = u8::from(!failures.is_empty());
        if is_printed {
            // Where nobody reads it, the exit code says it.
            let _ = write!(std::io::stderr(), "{}", printable(failures));
            return Ok(Answered { text: String::new(), exit_code });
        }
        let text = format!("{}: {} parts, {} KiB\n{failures}", file.display(), parts.len(), bytes.div_ceil(1024));
        Ok(Answered { text, exit_code })
    }
}

impl Agent<'_> {
    /// Asks for refused packets, and a moment later for those since then: they are read while somebody asks.
    async fn drops(&mut self) -> Result<String, Outcome> {
        let first = self.ask("/policy/drops", &[], Some(JSON)).await?;
        let next = |text: &str| serde_json::from_str::<Value>(text).ok()?.get("next")?.as_u64();
        let Some(number) = next(&first) else { return Ok(first) };
        tokio::time::sleep(DROPS).await;
        self.ask("/policy/drops", &[("since", &number.to_string())], Some(JSON)).await
    }

    /// Asks for a page of the cluster; returns its head and its objects.
    async fn page(&mut self, kind: Kind, from: usize, world: Option<&str>) -> Result<(PageHead, String), Outcome> {
        let from = from.to_string();
        let mut about = vec![("kind", kind.name()), ("from", from.as_str())];
        about.extend(world.map(|world| ("world", world)));
        let mut text = self.ask(CLUSTER, &about, None).await?;
        let end = text.find('\n').ok_or_else(|| failed("the answer makes no sense"))?;
        let objects = text.split_off(end + 1);
        let head = serde_json::from_str(&text).map_err(|_| failed("the answer makes no sense"))?;
        Ok((head, objects))
    }

    /// Asks, and once more where an answer is being made for somebody else.
    async fn ask(
        &mut self,
        path: &str,
        about: &[(&str, &str)],
        accept: Option<&'static str>,
    ) -> Result<String, Outcome> {
        match self.ask_once(path, about, accept).await {
            Err(Outcome::Failed { why }) if why.ends_with(ASK_AGAIN) => {
                tokio::time::sleep(AGAIN).await;
                self.ask_once(path, about, accept).await
            }
            answered => answered,
        }
    }

    async fn ask_once(
        &mut self,
        path: &str,
        about: &[(&str, &str)],
        accept: Option<&'static str>,
    ) -> Result<String, Outcome> {
        let left = self.until.saturating_duration_since(Instant::now());
        if self.is_stuck {
            return Err(failed("not asked for: an earlier question was not answered in time"));
        }
        if left.is_zero() {
            return Err(failed("the time for all parts was over before"));
        }
        let about: BTreeMap<&str, &str> = about.iter().copied().collect();
        let longest = left.min(ANSWER);
        // Who is stuck accepts nothing, and the kernel connects all the same.
        match timeout(longest, post_bounded(self.socket, path, &about, accept, LARGEST)).await {
            Ok(Ok((StatusCode::OK, text))) => Ok(text),
            Ok(Ok((StatusCode::NOT_FOUND, why))) => Err(Outcome::Absent { why: why.trim_end().to_owned() }),
            Ok(Ok((_, why))) => Err(failed(why.trim_end())),
            Ok(Err(error)) => Err(failed(&format!("{error:#}"))),
            Err(_) => {
                self.is_stuck = true;
                Err(failed(&format!("there was no answer within {} s", longest.as_secs())))
            }
        }
    }
}

fn failed(why: &str) -> Outcome {
    Outcome::Failed { why: why.to_owned() }
}

/// `sluice-bundle-node-1-20261120T050418Z.tar`, in the working directory.
fn default_name(node: &str, now: Timestamp) -> PathBuf {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let node: String = node.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let time: String = format!("{now:.0}").chars().filter(char::is_ascii_alphanumeric).collect();
    format!("sluice-bundle-{node}-{time}.tar").into()
}

#[cfg(test)]
mod tests;
