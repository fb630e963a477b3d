//! The chained CNI plugin `sluice-cni`: a pod starts when its policies are in force (`--netpol-cni`).
//!
//! CNI specification 1.1. The plugin is this program under another name, and the last of the list in the CNI file (`router::cni`
//! writes the entry). On ADD it tells the agent on this host which addresses the pod got from the plugins before it (`prevResult`), waits
//! until the kernel judges the pod's packets as policies say, and passes the result on unchanged. No process of the pod runs before.
//!
//! ```text
//! container runtime → sluice-cni → /run/sluice/cni.sock → serve → world: the pod has these addresses (`world::attachments`)
//!                                                           └───→ firewall: tell me when it may start (`firewall::starting`)
//! ```
//!
//! - Without an answer in time ADD fails with code 11, "try again later", and the kubelet does so by itself. Letting the pod pass would
//!   be to open, at the very moment at which nobody watches, what policies close; whoever wants that says so in the entry
//!   (`"whenUnreachable": "allow"`), and even then what the agent refuses is refused.
//! - DEL and GC withdraw what ADD announced. They never fail for want of an agent: a pod must be able to go.
//! - STATUS succeeds also without an agent: a failure would make the node `NotReady`, and take its running pods out of Services, for each
//!   restart of the agent.
//! - Pods of the host's network are not attached by CNI and never come here.
//!
//! [`call`] reads a call, [`failure`] is an error in the specification's form, [`message`] is what the two say to each other, [`plugin`] is the one side, [`serve`] the other.

pub mod call;
pub mod failure;
pub mod message;
pub mod metrics;
pub mod plugin;
pub mod serve;
