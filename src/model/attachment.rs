//! The attachment of a pod to its network, as the CNI plugins of this host made it: known before the pod's status tells it.
//!
//! CNI specification 1.1, section 2: an attachment is one container's, by one interface. `CNI_CONTAINERID`, `CNI_IFNAME`,
//! `CNI_ARGS` (`K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`), `prevResult.ips[]`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;

use super::name::ObjectName;
use super::pod::PodUid;
use crate::net::LinkAddress;

/// The versions of the CNI specification that the plugin speaks, the newest last: since the first of them plugins of a list are
/// given the result of those before them.
pub const CNI_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The socket that the plugin asks where its entry in the CNI file names none.
pub const DEFAULT_CNI_SOCKET: &str = "/run/sluice/cni.sock";

/// Identity of an attachment. The container is the pod's sandbox: a pod that gets another one has another attachment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AttachmentId {
    pub container: CompactString,
    pub interface: CompactString,
}

/// An attachment of a pod of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    pub id: AttachmentId,
    /// The name of the CNI network; empty where that is not known.
    pub network: CompactString,
    pub pod: ObjectName,
    /// `K8S_POD_UID`: which of the pods that have this name one after the other.
    pub uid: Option<PodUid>,
    /// The addresses that the pod got, of either family.
    pub addresses: Box<[IpAddr]>,
}

/// The link of an attachment, so far as the CNI plugins of this host told it (`prevResult.interfaces[]`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodLink {
    /// The names of links on this host that were made or used for it, those of bridges included. Not empty.
    pub of_host: Box<[CompactString]>,
    /// The address of the pod's own end.
    pub address: LinkAddress,
}

/// A call of the container runtime, so far as it changes attachments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachmentChange {
    /// ADD. It takes the place of an attachment that the pod had by this interface in an earlier sandbox.
    Add(Attachment),
    /// DEL.
    Delete(AttachmentId),
    /// GC: all that exist of a network. What others of the host have is not concerned; an empty name means all networks.
    Retain { network: CompactString, ids: BTreeSet<AttachmentId> },
}
