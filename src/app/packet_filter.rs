//! Which packet filter the subsystems use on this host, decided once at the start by trying.

use tracing::{info, warn};

use crate::config::{Backend, Config, Netfilter, Variant};
use crate::kernel::ipset::Ipset;
use crate::kernel::iptables::{self, Flavour};
use crate::kernel::module;
use crate::kernel::nftables::{Missing, probe};

/// Decides which packet filter the subsystems use on this host.
///
/// # Errors
/// The host has none that a subsystem needs, or not the one that was asked for; a sentence for its administrator.
pub fn decided(config: Config) -> anyhow::Result<Config> {
    // Addresses for Services alone need none.
    if config.proxy.is_none() && config.firewall.is_none() && config.router.is_none() && !config.source_guard {
        return Ok(config.decided(Backend::Iptables));
    }
    // Sessions and routes need none either: what of the router does is trouble, and no end.
    let is_needed = config.proxy.is_some() || config.firewall.is_some();
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
    let backend = match config.netfilter.backend(nftables, variant, iptables) {
        Err(reason) if !is_needed && config.netfilter == Netfilter::Auto => {
            warn!(reason, "No packet filter can be used; the router goes on without one, and /readyz says so");
            Backend::Iptables
        }
        decided => decided.map_err(anyhow::Error::msg)?,
    };
    info!(?backend, "Packet filter chosen");
    Ok(config.decided(backend))
}

/// The lacking features as a sentence, and how this host gets the first of them.
fn refused(missing: &Missing) -> String {
    match missing.features.first().map(|feature| feature.module()).filter(|name| !module::is_present(name)) {
        Some(name) => format!("{missing}; {name}: {}", module::remedy(name)),
        None => missing.to_string(),
    }
}
