//! The guarded ports on disk, beside the sockets: a restart must not open them.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ports::{GuardedPort, Ports};
use crate::kernel::record_list::RecordList;
use crate::model::{AttachmentId, LinkAddress};

/// The file.
#[derive(Clone, Debug)]
pub struct PortsFile(RecordList);

/// Contents of the file.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct Restored {
    pub ports: Vec<GuardedPort>,
    /// Records that were left out, with the reason: one sentence without its end for each.
    pub unreadable: Vec<String>,
}

/// One port.
#[derive(Serialize, Deserialize)]
struct Record {
    container: String,
    interface: String,
    network: String,
    link: String,
    link_address: String,
    addresses: Vec<IpAddr>,
}

const NAME: &str = "guarded-ports.json";

impl PortsFile {
    /// The file beside this socket.
    pub fn beside(socket: &Path) -> PortsFile {
        PortsFile(RecordList::beside(socket, NAME))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the ports; none where there is no file. A record that makes no sense hides no other one.
    ///
    /// # Errors
    /// There is one, and it cannot be read or is no list.
    pub fn read(&self) -> io::Result<Restored> {
        let records: Vec<serde_json::Value> = self.0.read()?;
        let mut restored = Restored::default();
        for (number, record) in records.into_iter().enumerate() {
            match port(record) {
                Ok(port) => restored.ports.push(port),
                Err(error) => restored.unreadable.push(format!("record {}: {error}", number + 1)),
            }
        }
        Ok(restored)
    }

    /// Replaces the ports.
    ///
    /// # Errors
    /// The directory is missing or cannot be written to; the former file is still there then.
    pub fn write(&self, ports: &Ports) -> io::Result<()> {
        let record = |port: &GuardedPort| Record {
            container: port.id.container.to_string(),
            interface: port.id.interface.to_string(),
            network: port.network.to_string(),
            link: port.link.to_string(),
            link_address: port.link_address.to_string(),
            addresses: port.addresses.to_vec(),
        };
        let records: Vec<Record> = ports.iter().map(record).collect();
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

fn port(record: serde_json::Value) -> io::Result<GuardedPort> {
    let Record { container, interface, network, link, link_address, addresses } = serde_json::from_value(record)?;
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("{link_address:?} is no link address"));
    Ok(GuardedPort {
        id: AttachmentId { container: container.into(), interface: interface.into() },
        network: network.into(),
        link: link.into(),
        link_address: LinkAddress::parse(&link_address).ok_or_else(odd)?,
        addresses: addresses.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_makes_no_sense_hides_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = PortsFile::beside(&directory.path().join("cni.sock"));
        assert_eq!(file.read().expect("no file is no mistake"), Restored::default());
        let port = GuardedPort {
            id: AttachmentId { container: "a".into(), interface: "eth0".into() },
            network: "mynet".into(),
            link: "veth1".into(),
            link_address: LinkAddress([2, 0, 0, 0, 1, 0xff]),
            addresses: ["10.244.1.7", "fd00::7"].iter().map(|text| text.parse().expect("an address")).collect(),
        };
        file.write(&Ports::restored(vec![port.clone()])).expect("writable");
        let whole = fs::read_to_string(file.path()).expect("it is there");
        assert_eq!(file.read().expect("it is there"), Restored { ports: vec![port.clone()], unreadable: Vec::new() });
        for odd in [
            r#"{"container":"a","interface":"e","network":"","link":"v","link_address":"x","addresses":[]}"#,
            r#"{"container":7}"#,
            "null",
        ] {
            fs::write(file.path(), whole.replacen('[', &format!("[{odd},"), 1)).expect("writable");
            let restored = file.read().expect("it is a list");
            assert_eq!((restored.ports, restored.unreadable.len()), (vec![port.clone()], 1), "{odd}");
        }
        fs::write(file.path(), "[{").expect("writable");
        assert!(file.read().is_err());
        assert!(file.remove().expect("it is there") && !file.remove().expect("it is gone"));
    }
}
