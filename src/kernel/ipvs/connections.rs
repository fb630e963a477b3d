//! Connections that IPVS knows, by their clients: `/proc/net/ip_vs_conn`.
//!
//! ```text
//! Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
//! TCP C6336407 9C40 0A600009 0050 0AF40105 1F90 ESTABLISHED     890
//! UDP 2001:0db8:0000:0000:0000:0000:0000:0007 9C40 fd00:… 0035 fd00:… 0035 UDP             290
//! ```
//!
//! Netlink counts connections by destination alone, with those of pods. Only this file tells clients. A persistence template stands there too, with the
//! client's port 0; it is no connection.
//!
//! Kernel: `ip_vs_conn_seq_show` (net/netfilter/ipvs/ip_vs_conn.c). As in the file of virtual services it writes a page at a time and finds the place to go on by
//! walking all connections before it, so it is read in portions ([`ClientConnections::look`]) with pauses between them, and no further than needed. What comes and
//! goes meanwhile may be passed over.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};

/// Of the network namespace of the calling thread.
const FILE: &str = "/proc/thread-self/net/ip_vs_conn";

/// Bytes of a portion: some 800 connections of IPv4.
const PORTION: usize = 1 << 16;

/// A reading of the file, which may be in progress.
#[derive(Default, Debug)]
pub struct ClientConnections {
    file: Option<File>,
    /// The beginning of a line that the next portion goes on with.
    rest: Vec<u8>,
}

impl ClientConnections {
    /// Reads the next portion, the first one where none has been read. Returns whether there is a connection with such a client; `None` where
    /// none was found and the file goes on. An answer ends the reading.
    ///
    /// # Errors
    /// The file is there and cannot be read. Without IPVS there is none, and no connection.
    pub fn look(&mut self, is_meant: impl Fn(IpAddr) -> bool) -> io::Result<Option<bool>> {
        let mut file = match self.file.take().map_or_else(|| File::open(FILE), Ok) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(false)),
            Err(error) => return Err(error),
        };
        let mut portion = std::mem::take(&mut self.rest);
        let begun = portion.len();
        let read = (&mut file).take(PORTION as u64).read_to_end(&mut portion)?;
        let whole = portion.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let (lines, rest) = portion.split_at(whole);
        if clients(lines).any(is_meant) {
            return Ok(Some(true));
        }
        // No line is as long as a portion.
        if read == 0 || rest.len() >= begun + PORTION {
            return Ok(Some(false));
        }
        self.rest = rest.to_vec();
        self.file = Some(file);
        Ok(None)
    }
}

/// Returns the clients of the connections in lines of the file.
fn clients(lines: &[u8]) -> impl Iterator<Item = IpAddr> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| client(str::from_utf8(line).ok()?))
}

fn client(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (address, port) = (words.next()?, words.next()?);
    let is_template = u16::from_str_radix(port, 16).ok()? == 0;
    let v4 = || Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?)));
    let address = if address.contains(':') { address.parse().ok() } else { v4() };
    address.filter(|_| !is_template)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0AF40105 9C40 0A600009 0050 0AF40206 1F90 ESTABLISHED     890
TCP C6336407 9C41 0A600009 0050 0AF40206 1F90 TIME_WAIT        12
UDP 2001:0db8:0000:0000:0000:0000:0000:0007 9C40 fd00:0096:0000:0000:0000:0000:0000:0009 0035 fd00:0244:0000:0000:0000:0000:0000:0005 0035 UDP             290
IP  C6336408 0000 0A600009 0000 0AF40206 0000 NONE          10700
TCP C6336409 0000 0A600009 0050 0AF40206 1F90 NONE          10700
odd line
";

    #[test]
    fn clients_of_both_families_are_read_and_templates_are_no_connections() {
        let read: Vec<String> = clients(TEXT.as_bytes()).map(|client| client.to_string()).collect();
        assert_eq!(read, ["10.244.1.5", "198.51.100.7", "2001:db8::7"]);
    }

    #[test]
    fn a_line_that_is_cut_off_between_two_portions_is_read_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ip_vs_conn");
        let inside = "TCP 0AF40105 9C40 0A600009 0050 0AF40206 1F90 ESTABLISHED     890\n";
        let outside = "TCP C6336407 9C40 0A600009 0050 0AF40206 1F90 ESTABLISHED     890\n";
        for (last, expected) in [(inside, false), (outside, true)] {
            std::fs::write(&path, inside.repeat(5000) + last).expect("it is written");
            let mut connections =
                ClientConnections { file: Some(File::open(&path).expect("it is there")), rest: Vec::new() };
            let mut looks = 0;
            let found = loop {
                looks += 1;
                let is_outside = |client: IpAddr| client.to_string() == "198.51.100.7";
                if let Some(found) = connections.look(is_outside).expect("it is read") {
                    break found;
                }
                assert!(connections.rest.len() < 100, "no more is kept than a line");
            };
            assert_eq!(found, expected);
            assert!((5..9).contains(&looks), "{looks}");
        }
    }
}
