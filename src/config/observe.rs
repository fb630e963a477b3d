//! Configuration of health, metrics and the log.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flags::Flags;
use super::mistakes::Mistakes;

/// The listeners for health and metrics, and the form of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObserveConfig {
    /// `--health-addr` and `--health-port`; `None` for no listener. `[::]` means all addresses of both families.
    pub health: Option<SocketAddr>,
    /// `--metrics-addr`, `--metrics-port` and `--metrics-path`; `None` for no listener.
    pub metrics: Option<MetricsConfig>,
}

/// The metrics listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetricsConfig {
    /// As `ObserveConfig::health`.
    pub address: SocketAddr,
    /// The only path that answers; begins with `/`.
    pub path: String,
}

impl ObserveConfig {
    pub(super) fn from_flags(flags: &Flags, mistakes: &mut Mistakes) -> ObserveConfig {
        let health = listener("health-addr", &flags.health_addr, flags.health_port, mistakes);
        let metrics = listener("metrics-addr", &flags.metrics_addr, flags.metrics_port, mistakes);
        if let (Some(one), Some(other)) = (health, metrics)
            && one.port() == other.port()
            && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
        {
            let port = one.port();
            mistakes.add(format!(
                "--health-port and --metrics-port are both {port}: give them different ports, or different addresses."
            ));
        }
        let path = flags.metrics_path.as_str();
        if !path.starts_with('/') || path.contains(|c: char| !c.is_ascii_graphic() || c == '?' || c == '#') {
            mistakes.add(format!(
                "--metrics-path must be a path that begins with /, for example /metrics; it is {path:?}."
            ));
        }
        ObserveConfig { health, metrics: metrics.map(|address| MetricsConfig { address, path: path.to_owned() }) }
    }
}

/// The address to listen on; `None` for port 0. The address is checked in any case.
fn listener(flag: &str, typed: &str, port: u16, mistakes: &mut Mistakes) -> Option<SocketAddr> {
    let unbracketed = typed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(typed);
    let address = match unbracketed {
        "" => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => text.parse::<IpAddr>().ok(),
    };
    if address.is_none() {
        mistakes.add(format!("--{flag} must be an IP address, or empty for all addresses; it is {typed:?}."));
    }
    address.filter(|_| port != 0).map(|address| SocketAddr::new(address, port))
}
