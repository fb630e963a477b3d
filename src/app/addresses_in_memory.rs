//! Starts the allocator of addresses in memory between a directory of manifests and the World (`--manifests` with `--run-loadbalancer`).

use std::path::Path;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{DEADLINE, MESSAGES};
use crate::config::Config;
use crate::k8s::Message;
use crate::k8s::manifests::balanced;
use crate::load_balancer::in_memory::driver::Driver;
use crate::load_balancer::metrics::Metrics;
use crate::observe::health::Health;
use crate::observe::metrics::Registry;

/// Returns where the source is to send its messages: where addresses are given, by way of who gives them.
///
/// # Errors
/// A metric cannot be registered, or there is no thread for it.
pub fn on_the_way(
    config: &Config,
    directory: &Path,
    registry: &Registry,
    health: &Health,
    out: mpsc::Sender<Message>,
) -> anyhow::Result<mpsc::Sender<Message>> {
    let Some(config) = config.load_balancer.clone() else { return Ok(out) };
    if directory.is_file() {
        warn!(
            "--run-loadbalancer gives no addresses to Services of a bundle; they have those that they had in their cluster"
        );
        return Ok(out);
    }
    let (read_out, read) = watch::channel(None);
    balanced::follow(directory.to_owned(), config.namespace.clone(), read_out)?;
    let (from_source, messages) = mpsc::channel(MESSAGES);
    let name = "address allocator";
    let metrics = Metrics::register(registry)?;
    let (pulse, note) = (health.register(name, DEADLINE, Instant::now()), health.note(name));
    let driver = Driver { config, read, messages, out, pulse, note, metrics };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("load-balancer".to_owned()).spawn(move || runtime.block_on(driver.run()))?;
    Ok(from_source)
}
