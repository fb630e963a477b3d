//! Which packet filter the subsystems use on this host, decided at the start by trying.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Backend, Config, Netfilter, Variant};
use crate::kernel::ipset::Ipset;
use crate::kernel::iptables::{self, Flavour};
use crate::kernel::module;
use crate::kernel::nftables::{Missing, probe};
use crate::observe::health::{Health, Pulse};

/// Time between two trials on a host without a packet filter, whose administrator may load a module or install a program at any moment.
const PAUSE: Duration = Duration::from_secs(30);
/// How often the same reason is told to the log.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
const UNTRIED: &str = "the packet filter cannot be tried";

/// Set in the environment of a process that was started anew because the host had no packet filter.
const REFUSED: &str = "SLUICE_PACKET_FILTER_REFUSED";

/// The decision, while it is made.
pub struct Deciding {
    asked: Asked,
    trial: Option<JoinHandle<Result<Backend, String>>>,
    /// The process before has been refused one.
    was_refused: bool,
    known: Option<Backend>,
}

/// The questions that the flags decide.
#[derive(Clone, Copy)]
struct Asked {
    netfilter: Netfilter,
    /// Whether any subsystem uses one.
    uses_one: bool,
    /// Whether one cannot do without.
    is_needed: bool,
}

impl Deciding {
    /// Begins to decide which packet filter the subsystems use on this host, in the network namespace of the calling thread. The kernel takes a while to make and
    /// remove what is tried (it waits for all processors), in which the cluster can be read.
    pub fn begin(config: &Config) -> Deciding {
        // Addresses for Services alone need none. Sessions and routes need none either: what of the router does is trouble.
        let is_needed = config.proxy.is_some() || config.firewall.is_some();
        let uses_one = is_needed || config.router.is_some() || config.source_guard;
        let asked = Asked { netfilter: config.netfilter, uses_one, is_needed };
        Deciding { asked, trial: Some(asked.trial()), was_refused: env::var_os(REFUSED).is_some(), known: None }
    }

    /// Waits until the host has a packet filter that the subsystems can use, in a process that was started anew because it had none; returns at once in any other.
    /// While there is none no subsystem runs: routes would lead packets of all nodes to pods for which no policy is in force. Health is not ready then and
    /// names the reason, and the host is tried again.
    ///
    /// # Errors
    /// The host cannot be tried.
    pub async fn awaited(&mut self, health: &Health) -> anyhow::Result<()> {
        if !self.was_refused {
            return Ok(());
        }
        let mut refusals: Option<Refusals> = None;
        loop {
            let trial = self.trial.take().unwrap_or_else(|| self.asked.trial());
            match trial.await.context(UNTRIED)? {
                Ok(backend) => {
                    refusals.inspect(Refusals::over);
                    self.known = Some(backend);
                    return Ok(());
                }
                Err(reason) => refusals.get_or_insert_with(|| Refusals::register(health)).tell(reason, Instant::now()),
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits for the decision. Where the host has no packet filter the program starts anew to wait for one, and does not return: what it has begun to read of the
    /// cluster would be old by then, with nobody to take it in.
    ///
    /// # Errors
    /// The host cannot be tried, or has none and the program cannot be started anew; a sentence for its administrator.
    pub async fn decided(self) -> anyhow::Result<Backend> {
        if let Some(backend) = self.known {
            return Ok(backend);
        }
        let trial = self.trial.context("the packet filter was tried before")?;
        trial.await.context(UNTRIED)?.map_err(start_anew)
    }
}

/// Replaces this process by one that waits for a packet filter. Returns the error of one that cannot be.
fn start_anew(reason: String) -> anyhow::Error {
    info!("No packet filter can be used; starting anew to wait for one");
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "sluice".into());
    // The link leads to this program also where its file was replaced meanwhile.
    let error = Command::new("/proc/self/exe").arg0(name).args(arguments).env(REFUSED, "true").exec();
    anyhow!("{reason} Starting anew to wait for one failed: {error}.")
}

impl Asked {
    /// Tries, beside the calling task, what decides.
    fn trial(self) -> JoinHandle<Result<Backend, String>> {
        let Asked { netfilter, uses_one, is_needed } = self;
        spawn_blocking(move || if uses_one { decided(netfilter, is_needed) } else { Ok(Backend::Iptables) })
    }
}

/// Where it is told that there is no packet filter.
struct Refusals {
    pulse: Pulse,
    /// The reason that the log has, and when it was told.
    told: Option<(String, Instant)>,
}

impl Refusals {
    fn register(health: &Health) -> Refusals {
        Refusals { pulse: health.register("packet filter", Duration::MAX, Instant::now()), told: None }
    }

    fn tell(&mut self, reason: String, now: Instant) {
        self.pulse.trouble(Some(reason.clone()));
        let is_told = |(text, at): &(String, Instant)| *text == reason && now.duration_since(*at) < TOLD_EVERY;
        if !self.told.as_ref().is_some_and(is_told) {
            error!(
                reason,
                "No packet filter can be used; nothing starts until there is one, which is tried every 30 s"
            );
            self.told = Some((reason, now));
        }
    }

    /// Tells that the host has one since.
    fn over(&self) {
        self.pulse.trouble(None);
        self.pulse.ready(true);
    }
}

/// Decides which packet filter the subsystems use on this host.
///
/// # Errors
/// The host has none that a subsystem needs, or not the one that was asked for; a sentence for its administrator.
fn decided(netfilter: Netfilter, is_needed: bool) -> Result<Backend, String> {
    let nftables = || probe().map_err(|missing| refused(&missing));
    let variant = || {
        iptables::used().map(|flavour| match flavour {
            Flavour::NfTables => Variant::NfTables,
            Flavour::Legacy => Variant::Legacy,
        })
    };
    let iptables = |variant| {
        // The trial of the programs may leave a table of legacy iptables: the next one would take the host for one that has such rules.
        match Ipset::open().and_then(|mut sets| sets.names()) {
            Err(error) if error.is_unsupported() => Err(format!("ipset: {error}")),
            // Rules that are there already have shown that their programs work.
            _ if variant == Variant::Legacy => Ok(()),
            _ => iptables::try_any(),
        }
    };
    let backend = match netfilter.backend(nftables, variant, iptables) {
        Err(reason) if !is_needed && netfilter == Netfilter::Auto => {
            warn!(reason, "No packet filter can be used; the router goes on without one, and /readyz says so");
            Backend::Iptables
        }
        decided => decided?,
    };
    info!(?backend, "Packet filter chosen");
    Ok(backend)
}

/// The lacking features as a sentence, and how this host gets the first of them.
fn refused(missing: &Missing) -> String {
    match missing.features.first().map(|feature| feature.module()).filter(|name| !module::is_present(name)) {
        Some(name) => format!("{missing}; {name}: {}", module::remedy(name)),
        None => missing.to_string(),
    }
}
