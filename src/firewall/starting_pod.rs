//! A pod that starts, as the container runtime announces it (`--netpol-cni`), and the channel on which it is told whether it may.

use std::net::IpAddr;

use tokio::sync::watch;

use crate::model::{ObjectName, PodUid};

/// A pod of this node that starts when its rules are in force.
#[derive(Debug)]
pub struct StartingPod {
    pub name: ObjectName,
    /// Which of the pods that have this name one after the other; `None` where the runtime does not tell.
    pub uid: Option<PodUid>,
    /// The addresses that it has got.
    pub addresses: Box<[IpAddr]>,
    /// It is asked about again (CHECK): nothing about it is new.
    pub runs: bool,
    /// Receives whether it may start: until then what is missing. Nobody waits any more where the receiver is gone.
    pub outcome: watch::Sender<Result<(), String>>,
}
