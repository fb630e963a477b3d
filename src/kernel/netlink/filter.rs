//! Filters of what a netlink socket receives, as classic BPF programs.
//!
//! A program sees a message from its header on (`struct nlmsghdr`), whose numbers are native; it loads them in network byte order.

pub use crate::kernel::socket_filter::attach;
use crate::kernel::socket_filter::{DROP, Instruction, RECEIVE, among, load_2, load_4};

/// Offsets of `nlmsg_type` and `nlmsg_pid`.
const TYPE: u32 = 4;
const PORT: u32 = 12;
/// Ports in one program at most.
const MOST: usize = 200;

/// Returns a program that drops messages of these types that belong to these ports; ports that do not fit are heard.
pub fn ignoring(types: &[u16], ports: &[u32]) -> Vec<Instruction> {
    let ports = ports.get(..MOST).unwrap_or(ports);
    let in_network_order = |number: u16| u32::from(u16::from_be_bytes(number.to_ne_bytes()));
    let types: Vec<u32> = types.iter().copied().map(in_network_order).collect();
    let ports: Vec<u32> = ports.iter().map(|port| u32::from_be_bytes(port.to_ne_bytes())).collect();
    let mut program = vec![load_2(TYPE)];
    program.extend(among(&types, RECEIVE));
    program.push(load_4(PORT));
    program.extend(among(&ports, RECEIVE));
    program.push(DROP);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::socket_filter;

    fn passes(program: &[Instruction], kind: u16, port: u32) -> bool {
        let mut header = [0; 16];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[12..].copy_from_slice(&port.to_ne_bytes());
        let number = |offset: u32, size: usize| {
            let bytes = header.get(offset as usize..)?.get(..size)?;
            Some(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
        };
        socket_filter::passes(program, number)
    }

    #[test]
    fn messages_of_the_types_and_ports_are_dropped_and_all_others_received() {
        for ports in [vec![], vec![7], vec![7, 0xffff_eff0, 1234]] {
            let program = ignoring(&[24, 25], &ports);
            for (kind, port) in [(24, 7), (25, 7), (24, 0xffff_eff0), (24, 0), (16, 7), (25, 8), (0x1800, 7)] {
                let is_dropped = matches!(kind, 24 | 25) && ports.contains(&port);
                assert_eq!(passes(&program, kind, port), !is_dropped, "{kind} {port} {ports:?}");
            }
        }
    }

    #[test]
    fn ports_that_do_not_fit_are_heard() {
        let ports: Vec<u32> = (0..300).collect();
        let program = ignoring(&[24], &ports);
        let heard = ports.iter().filter(|port| passes(&program, 24, **port)).count();
        assert_eq!(heard, ports.len() - MOST);
    }
}
