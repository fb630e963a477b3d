//! Which packet filter the subsystems use on this host, decided once at the start by trying.

use anyhow::Context;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{info, warn};

use crate::config::{Backend, Config, Netfilter, Variant};
use crate::kernel::ipset::Ipset;
use crate::kernel::iptables::{self, Flavour};
use crate::kernel::module;
use crate::kernel::nftables::{Missing, probe};

/// The decision, while it is made.
pub struct Deciding(Option<JoinHandle<anyhow::Result<Backend>>>);

impl Deciding {
    /// Begins to decide which packet filter the subsystems use on this host, in the network namespace of the calling thread. The kernel takes a while to make and
    /// remove what is tried (it waits for all processors), in which the cluster can be read.
    pub fn begin(config: &Config) -> Deciding {
        // Addresses for Services alone need none.
        let uses_one =
            config.proxy.is_some() || config.firewall.is_some() || config.router.is_some() || config.source_guard;
        // Sessions and routes need none either: what of the router does is trouble, and no end.
        let is_needed = config.proxy.is_some() || config.firewall.is_some();
        let netfilter = config.netfilter;
        let decide = move || if uses_one { decided(netfilter, is_needed) } else { Ok(Backend::Iptables) };
        Deciding(Some(spawn_blocking(decide)))
    }

    /// Waits for the decision. It is told once.
    ///
    /// # Errors
    /// The host has none that a subsystem needs, or not the one that was asked for; a sentence for its administrator.
    pub async fn decided(&mut self) -> anyhow::Result<Backend> {
        let deciding = self.0.take().context("the packet filter was decided before")?;
        deciding.await.context("the packet filter cannot be tried")?
    }

    /// The error to show for a start that failed: that there is no packet filter, where nobody has asked yet, because what comes of that says less.
    pub async fn first(mut self, error: anyhow::Error) -> anyhow::Error {
        if self.0.is_none() { error } else { self.decided().await.err().unwrap_or(error) }
    }
}

/// Decides which packet filter the subsystems use on this host.
///
/// # Errors
/// The host has none that a subsystem needs, or not the one that was asked for; a sentence for its administrator.
fn decided(netfilter: Netfilter, is_needed: bool) -> anyhow::Result<Backend> {
    let nftables = || probe().map_err(|missing| refused(&missing));
    let variant = || {
        iptables::used().map(|flavour| match flavour {
            Flavour::NfTables => Variant::NfTables,
            Flavour::Legacy => Variant::Legacy,
        })
    };
    let iptables = || {
        iptables::try_any()?;
        match Ipset::open().and_then(|mut sets| sets.names()) {
            Err(error) if error.is_unsupported() => Err(format!("ipset: {error}")),
            _ => Ok(()),
        }
    };
    let backend = match netfilter.backend(nftables, variant, iptables) {
        Err(reason) if !is_needed && netfilter == Netfilter::Auto => {
            warn!(reason, "No packet filter can be used; the router goes on without one, and /readyz says so");
            Backend::Iptables
        }
        decided => decided.map_err(anyhow::Error::msg)?,
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
