//! Which packet filter the subsystems use on this host, decided once at the start by trying.

use tracing::{info, warn};

use crate::config::{Backend, Config, Variant};
use crate::kernel::ipset::Ipset;
use crate::kernel::iptables::{self, Flavour};
use crate::kernel::nftables::probe;

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
    let nftables = || probe().map_err(|missing| missing.to_string());
    let variant = || {
        iptables::used().map(|flavour| match flavour {
            Flavour::NfTables => Variant::NfTables,
            Flavour::Legacy => Variant::Legacy,
        })
    };
    let iptables = || {
        let sets = || match Ipset::open().and_then(|mut sets| sets.names()) {
            Err(error) if error.is_unsupported() => Err(format!("ipset: {error}")),
            _ => Ok(()),
        };
        match iptables::try_any().and_then(|()| sets()) {
            Err(reason) if !is_needed => {
                warn!(reason, "The kernel refuses iptables");
                Ok(())
            }
            tried => tried,
        }
    };
    let backend = config.netfilter.backend(nftables, variant, iptables).map_err(anyhow::Error::msg)?;
    info!(?backend, "Packet filter chosen");
    Ok(config.decided(backend))
}
