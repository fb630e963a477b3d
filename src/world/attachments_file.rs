//! The announced attachments of pods on disk, beside the sockets: what a restart must not lose until the cluster tells it.
//!
//! It is small: as many as there are pods on the node, and those of which the container runtime's DEL was lost (at most 4,096 together).

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::kernel::record_list::RecordList;
use crate::model::{Attachment, AttachmentId, ObjectName, PodUid};

/// The file.
#[derive(Clone, Debug)]
pub struct AttachmentsFile(RecordList);

/// One attachment.
#[derive(Serialize, Deserialize)]
struct Record {
    container: String,
    interface: String,
    // Files of earlier releases do not have these two.
    #[serde(default)]
    network: String,
    #[serde(default)]
    uid: u32,
    namespace: String,
    pod: String,
    addresses: Vec<IpAddr>,
}

const NAME: &str = "attachments.json";

impl AttachmentsFile {
    /// The file beside this socket.
    pub fn beside(socket: &Path) -> AttachmentsFile {
        AttachmentsFile(RecordList::beside(socket, NAME))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the attachments; none where there is no file.
    ///
    /// # Errors
    /// There is one, and it cannot be read or makes no sense.
    pub fn read(&self) -> io::Result<Vec<Attachment>> {
        let records: Vec<Record> = self.0.read()?;
        Ok(records.into_iter().map(Attachment::from).collect())
    }

    /// Replaces the attachments.
    ///
    /// # Errors
    /// The directory is missing or cannot be written to; the former file is still there then.
    pub fn write(&self, attachments: &[Attachment]) -> io::Result<()> {
        let records: Vec<Record> = attachments.iter().map(Record::from).collect();
        self.0.write(&records)
    }

    /// Removes the file; returns whether there was one.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self) -> io::Result<bool> {
        self.0.remove()
    }
}

impl From<&Attachment> for Record {
    fn from(attachment: &Attachment) -> Record {
        let Attachment { id, network, pod, uid, addresses } = attachment;
        Record {
            container: id.container.to_string(),
            interface: id.interface.to_string(),
            network: network.to_string(),
            uid: uid.map_or(0, PodUid::number),
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            addresses: addresses.to_vec(),
        }
    }
}

impl From<Record> for Attachment {
    fn from(record: Record) -> Attachment {
        let Record { container, interface, network, uid, namespace, pod, addresses } = record;
        Attachment {
            id: AttachmentId { container: container.into(), interface: interface.into() },
            network: network.into(),
            pod: ObjectName::new(&namespace, &pod),
            uid: PodUid::from_number(uid),
            addresses: addresses.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_file_that_makes_no_sense_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = AttachmentsFile::beside(&directory.path().join("cni.sock"));
        assert_eq!(file.read().expect("no file is no mistake"), []);
        let attachment = Attachment {
            id: AttachmentId { container: "a".into(), interface: "eth0".into() },
            network: "mynet".into(),
            pod: ObjectName::new("shop", "web"),
            uid: PodUid::of("1f0a3a52-55c4-4d3e-9b0a-0242ac120002"),
            addresses: ["10.244.1.7", "fd00::7"].iter().map(|text| text.parse().expect("an address")).collect(),
        };
        file.write(std::slice::from_ref(&attachment)).expect("writable");
        assert_eq!(file.read().expect("it is there"), std::slice::from_ref(&attachment));
        let of_earlier_release = r#"[{"container":"a","interface":"eth0","namespace":"shop","pod":"web","addresses":["10.244.1.7","fd00::7"]}]"#;
        fs::write(file.path(), of_earlier_release).expect("writable");
        assert_eq!(file.read().expect("it is there"), [Attachment { network: "".into(), uid: None, ..attachment }]);
        fs::write(file.path(), "[{").expect("writable");
        assert!(file.read().is_err());
        assert!(file.remove().expect("it is there") && !file.remove().expect("it is gone"));
        assert!(file.write(&[]).is_ok() && file.read().expect("it is there").is_empty());
    }
}
