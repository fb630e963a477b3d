//! The service proxy.

pub mod apply;
pub mod desired;
pub mod drain;
pub mod endpoints;
pub mod external_ip;
pub mod guard;
pub mod local_node;
pub mod masquerade;
pub mod names;
pub mod node_port;
pub mod part;
pub mod plan;
pub mod scheduler;
pub mod session_affinity;
pub mod traffic_policy;
pub mod settings;
pub mod driver;
pub mod metrics;
