//! `--disable-source-dest-check`: switches off the check by which EC2 drops packets of pods.
//!
//! AWS: an instance may send only from its own addresses, and gets only packets to these, while its `SourceDestCheck` is on. Packets of pods
//! between nodes of one subnet have other addresses, unless they go through tunnels. Any instance may have the check switched off by
//! `ec2:ModifyInstanceAttribute`; here each does so for itself.
//!
//! It is done where the own Node's `spec.providerID` names an instance of EC2 (`aws:///ZONE/i-…`) and the flag is on, once for each start. Otherwise
//! nothing is asked of anybody. A failure is logged, is a note in health and an Event of the Node, and is tried again, later and later.
//!
//! - [`metadata`] are the questions to the instance metadata service (IMDSv2): which instance this is, where, and the role's credentials;
//! - [`sigv4`] signs a request, [`ec2`] is the one that is sent, and what its answers mean;
//! - [`task`] decides what to do when, without I/O; [`driver`] does it.
//!
//! Credentials are those of the instance's role alone. They are in memory for one attempt, and in no log.

pub mod driver;
pub mod ec2;
pub mod failure;
pub mod metadata;
pub mod sigv4;
pub mod task;
