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
//! walking all connections before it, so it is read in portions ([`ClientConnections::look`]) with pauses between them, and no further than needed.
//!
//! The place is a number of connections: where some before it end, others behind it move up and would be passed over. But the order of those that stand stays
//! (by hash, new ones first), so each portion begins a little before the end of the one before, and goes on only where it meets a connection that is known
//! from there; else it goes further back, in the end to the beginning of the file. Within a portion pages are microseconds apart, in which few connections end. So
//! the file is read twice before the answer is that there is nobody, the second time with pages that end elsewhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr};

/// Of the network namespace of the calling thread.
const FILE: &str = "/proc/thread-self/net/ip_vs_conn";

/// Bytes of the first portion, some 800 connections of IPv4, and of the largest one.
const PORTION: usize = 1 << 16;
const LARGEST: usize = 1 << 22;

/// Bytes at the end of a portion that the next one begins with: some 100 connections.
const OVERLAP: usize = 1 << 13;

/// Bytes that are read at once in the first reading and in the second: a page of the kernel, and less.
const PAGES: [usize; 2] = [4096, 2800];

/// A search through the file, which may be in progress. Each begins anew.
#[derive(Default, Debug)]
pub struct ClientConnections {
    file: Option<File>,
    /// Number of whole readings that have found nobody.
    readings: usize,
    /// Bytes of the file that have been read.
    place: usize,
    /// Bytes before that place at which the next portion begins.
    back: usize,
    /// The last connections before that place, none where it is the beginning.
    known: BTreeSet<String>,
}

/// Part of the file.
struct Portion {
    text: Vec<u8>,
    /// The file ends with it.
    is_last: bool,
}

impl ClientConnections {
    /// Reads the next portion, the first one where none has been read. Returns whether there is a connection with such a client; `None` where
    /// none was found and the search goes on. An answer ends the search.
    ///
    /// # Errors
    /// The file is there and cannot be read. Without IPVS there is none, and no connection.
    pub fn look(&mut self, is_meant: impl Fn(IpAddr) -> bool) -> io::Result<Option<bool>> {
        let Some(page) = PAGES.get(self.readings) else { return Ok(Some(false)) };
        let mut file = match self.file.take().map_or_else(|| File::open(FILE), Ok) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(false)),
            Err(error) => return Err(error),
        };
        let from = self.place.saturating_sub(self.back);
        file.seek(SeekFrom::Start(from as u64))?;
        let Portion { text, is_last } = portion(&mut file, self.size() + (self.place - from), *page)?;
        self.file = Some(file);
        let lines = whole_lines(&text, from > 0);
        if clients(lines).any(is_meant) {
            return Ok(Some(true));
        }
        if from > 0 && !connections(lines).any(|connection| self.known.contains(&connection)) {
            // Too many have ended, or begun, meanwhile.
            (self.place, self.back) = (from, 2 * self.back);
        } else if is_last {
            let readings = self.readings + 1;
            *self = ClientConnections { file: self.file.take(), readings, ..ClientConnections::default() };
        } else {
            let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            (self.place, self.back) = (from + end, OVERLAP);
            let last = lines.get(lines.len().saturating_sub(OVERLAP)..).unwrap_or_default();
            self.known = connections(last).collect();
        }
        Ok(if self.readings == PAGES.len() { Some(false) } else { None })
    }
}

impl ClientConnections {
    /// Returns the size of the next portion. To begin at a place the kernel writes all before it once more: portions that grow with that place cost a few
    /// times what the whole file does.
    fn size(&self) -> usize {
        (self.place / 4).clamp(PORTION, LARGEST)
    }
}

/// Reads so many bytes, or a page more, or to the end of the file.
fn portion(file: &mut File, most: usize, page: usize) -> io::Result<Portion> {
    let (mut text, mut bytes) = (Vec::with_capacity(most + page), vec![0; page]);
    while text.len() < most {
        let read = file.read(&mut bytes)?;
        if read == 0 {
            return Ok(Portion { text, is_last: true });
        }
        text.extend(bytes.iter().take(read));
    }
    Ok(Portion { text, is_last: false })
}

/// Returns the whole lines of a text, without its first one where that may be the end of one.
fn whole_lines(text: &[u8], is_cut: bool) -> &[u8] {
    let line_end = |byte: &u8| *byte == b'\n';
    let begin = if is_cut { text.iter().position(line_end).map_or(text.len(), |first| first + 1) } else { 0 };
    let end = text.iter().rposition(line_end).map_or(0, |last| last + 1);
    text.get(begin..end).unwrap_or_default()
}

/// Returns the protocol, client and virtual service of the connections in lines of the file, by which they are known.
fn connections(lines: &[u8]) -> impl Iterator<Item = String> {
    let words = |line: &str| line.split_ascii_whitespace().take(5).collect::<Vec<_>>().join(" ");
    lines
        .split(|byte| *byte == b'\n')
        .filter_map(move |line| Some(words(str::from_utf8(line).ok()?)))
        .filter(|known| !known.is_empty())
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

    const OUTSIDE: &str = "198.51.100.7";

    fn line(client: &str, number: usize) -> String {
        format!("TCP {client} {number:04X} 0A600009 0050 0AF40206 1F90 ESTABLISHED     890\n")
    }

    /// Connections of a pod.
    fn inside(count: usize) -> Vec<String> {
        (0..count).map(|number| line("0AF40105", 1000 + number)).collect()
    }

    fn outside() -> String {
        line("C6336407", 40000)
    }

    /// Looks through a file that becomes another one after so many looks; returns the answer and the number of looks.
    fn search(before: &[String], looks_before: usize, after: &[String]) -> (bool, usize) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ip_vs_conn");
        std::fs::write(&path, before.concat()).expect("it is written");
        let file = Some(File::open(&path).expect("it is there"));
        let mut connections = ClientConnections { file, ..ClientConnections::default() };
        for looks in 1..100 {
            let is_outside = |client: IpAddr| client.to_string() == OUTSIDE;
            if let Some(found) = connections.look(is_outside).expect("it is read") {
                return (found, looks);
            }
            if looks == looks_before {
                std::fs::write(&path, after.concat()).expect("it is written");
            }
        }
        panic!("it comes to no end");
    }

    #[test]
    fn a_line_that_is_cut_off_between_two_portions_is_read_whole() {
        let all = inside(5000);
        let (found, looks) = search(&all, 100, &[]);
        assert!(!found && (10..16).contains(&looks), "{looks}");
        for place in [0, 1, 900, 1000, 1015, 2500, 4999, 5000] {
            let mut lines = all.clone();
            lines.insert(place, outside());
            assert!(search(&lines, 100, &[]).0, "{place}");
        }
        assert!(!search(&[], 100, &[]).0);
        assert!(search(&[outside()], 100, &[]).0);
    }

    #[test]
    fn a_connection_that_stands_is_found_although_others_before_it_end() {
        for (looks, place) in [(1, 1200), (2, 2100), (3, 4999)] {
            for ended in [10, 100, 300, 600, 900] {
                let mut before = inside(5000);
                before.insert(place, outside());
                assert!(search(&before, looks, &before[ended..]).0, "{ended} of those before {place} end");
            }
            let before = inside(5000);
            assert!(search(&before, looks, &[outside()]).0, "it is the only one that is left");
            let (found, looks) = search(&before, looks, &before[4000..]);
            assert!(!found && looks < 30, "{looks}");
        }
    }

    #[test]
    fn a_connection_that_came_behind_the_reader_is_found_by_the_second_reading() {
        let before = inside(5000);
        let mut after = before.clone();
        after.insert(0, outside());
        let (found, looks) = search(&before, 3, &after);
        assert!(found && looks > 5, "{looks}");
    }
}
