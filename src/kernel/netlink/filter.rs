//! Filters of what a netlink socket receives, as classic BPF programs (socket(7), `SO_ATTACH_FILTER`).
//!
//! A program sees a message from its header on (`struct nlmsghdr`), whose numbers are native; it loads them in network byte order. It returns how much of
//! the message the socket receives: everything or nothing.
#![expect(unsafe_code, reason = "rustix has no safe wrapper for SO_ATTACH_FILTER")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// An instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// `BPF_LD | BPF_H | BPF_ABS`: loads 2 bytes; `BPF_LD | BPF_W | BPF_ABS`: loads 4.
const LOAD_2: u16 = 0x28;
const LOAD_4: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`: compares, and jumps over so many instructions.
const IS: u16 = 0x15;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// Offsets of `nlmsg_type` and `nlmsg_pid`.
const TYPE: u32 = 4;
const PORT: u32 = 12;
/// Ports in one program at most: a jump goes no further.
const MOST: usize = 200;

/// Returns a program that drops messages of these types that belong to these ports; ports that do not fit are heard.
pub fn ignoring(types: &[u16], ports: &[u32]) -> Vec<Instruction> {
    let ports = ports.get(..MOST).unwrap_or(ports);
    let step = |code, value| Instruction { code, if_true: 0, if_false: 0, value };
    // From the last one of a row, the first one of what follows is as far away as the row is long.
    let row = |values: Vec<u32>, beyond: usize| {
        let count = values.len();
        let is = move |(place, value): (usize, u32)| {
            let if_true = u8::try_from(count - place - 1 + beyond).unwrap_or_default();
            Instruction { code: IS, if_true, if_false: 0, value }
        };
        values.into_iter().enumerate().map(is)
    };
    let in_network_order = |number: u16| u32::from(u16::from_be_bytes(number.to_ne_bytes()));
    let types: Vec<u32> = types.iter().copied().map(in_network_order).collect();
    let ports: Vec<u32> = ports.iter().map(|port| u32::from_be_bytes(port.to_ne_bytes())).collect();
    let mut program = vec![step(LOAD_2, TYPE)];
    program.extend(row(types, 1));
    program.push(step(RETURN, u32::MAX));
    program.push(step(LOAD_4, PORT));
    program.extend(row(ports, 1));
    program.push(step(RETURN, u32::MAX));
    program.push(step(RETURN, 0));
    program
}

/// Has a socket receive what a program lets through, in place of an earlier one.
///
/// # Errors
/// The kernel refuses the program.
pub fn attach(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let all = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is open for the call's duration (it is borrowed). The pointer and the size describe one live `sock_fprog`, which points to
    // `program`: as many instructions as it says, laid out as `struct sock_filter` is. The kernel only reads them.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const all).cast(), size)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does; returns whether it lets the message through.
    fn passes(program: &[Instruction], kind: u16, port: u32) -> bool {
        let mut header = [0; 16];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[12..].copy_from_slice(&port.to_ne_bytes());
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, if_true, if_false, value } = program[at];
            let offset = value as usize;
            at += 1;
            match code {
                LOAD_2 => loaded = u32::from(u16::from_be_bytes(*header[offset..].first_chunk().unwrap())),
                LOAD_4 => loaded = u32::from_be_bytes(*header[offset..].first_chunk().unwrap()),
                IS => at += usize::from(if loaded == value { if_true } else { if_false }),
                RETURN => return value != 0,
                other => panic!("{other}"),
            }
        }
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
