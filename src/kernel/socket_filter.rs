//! Filters of what a socket receives, as classic BPF programs (socket(7), `SO_ATTACH_FILTER`).
//!
//! A program loads parts of a message as numbers in network byte order, and returns how much of it the socket receives: everything or nothing. It runs
//! before the message takes a place in the socket's queue. Jumps go forward, over so many instructions; a load beyond the message's end drops it.
//!
//! Limits of the kernel: 4096 instructions, and `net.core.optmem_max` bytes for a socket (20 KiB before Linux 6.8, 128 KiB since), of which a program takes
//! 8 for each instruction that the kernel makes of these (`bpf_convert_filter`): one of most, two of an end and of a comparison with 2^31 or more, up to eight of a load.
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

/// `BPF_LD | BPF_ABS` with `BPF_B`, `BPF_H` and `BPF_W`: loads 1, 2 or 4 bytes.
const LOAD_1: u16 = 0x30;
const LOAD_2: u16 = 0x28;
const LOAD_4: u16 = 0x20;
/// `BPF_LDX | BPF_IMM`, `BPF_MISC | BPF_TAX`: sets the other number, to a value or to the one that is loaded.
const SET_OTHER: u16 = 0x01;
const KEEP: u16 = 0x07;
/// `BPF_ALU | BPF_MUL | BPF_K`, `BPF_ALU | BPF_ADD | BPF_K`, `BPF_ALU | BPF_ADD | BPF_X`.
const MULTIPLY: u16 = 0x24;
const ADD: u16 = 0x04;
const ADD_OTHER: u16 = 0x0c;
/// `BPF_JMP` with `BPF_JEQ | BPF_K`, `BPF_JGE | BPF_K` and `BPF_JA`.
const IS: u16 = 0x15;
const IS_AT_LEAST: u16 = 0x35;
const SKIP: u16 = 0x05;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Numbers in one [`among`] at most: a jump of a comparison goes no further.
pub const MOST: usize = u8::MAX as usize;

const fn step(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

/// Loads the byte at this offset.
pub const fn load_1(offset: u32) -> Instruction {
    step(LOAD_1, offset)
}

/// Loads the 2 bytes at this offset.
pub const fn load_2(offset: u32) -> Instruction {
    step(LOAD_2, offset)
}

/// Loads the 4 bytes at this offset.
pub const fn load_4(offset: u32) -> Instruction {
    step(LOAD_4, offset)
}

/// Sets the number that is kept.
pub const fn keep_value(value: u32) -> Instruction {
    step(SET_OTHER, value)
}

/// Keeps the loaded number.
pub const fn keep() -> Instruction {
    step(KEEP, 0)
}

/// Multiplies the loaded number, modulo 2^32.
pub const fn multiply(by: u32) -> Instruction {
    step(MULTIPLY, by)
}

/// Adds to the loaded number, modulo 2^32.
pub const fn add(value: u32) -> Instruction {
    step(ADD, value)
}

/// Adds the number that is kept to the loaded one, modulo 2^32.
pub const fn add_kept() -> Instruction {
    step(ADD_OTHER, 0)
}

/// Skips the next instruction where the loaded number is less.
pub const fn unless_less(than: u32) -> Instruction {
    Instruction { code: IS_AT_LEAST, if_true: 0, if_false: 1, value: than }
}

/// Skips so many instructions.
pub const fn skip(count: u32) -> Instruction {
    step(SKIP, count)
}

/// Ends the program: the socket receives the message.
pub const RECEIVE: Instruction = step(RETURN, u32::MAX);
/// Ends the program: the message is dropped.
pub const DROP: Instruction = step(RETURN, 0);

/// Goes on behind these instructions if the loaded number is among these, and else ends as `otherwise` says. Of the numbers [`MOST`] count.
pub fn among(numbers: &[u32], otherwise: Instruction) -> impl Iterator<Item = Instruction> {
    let count = numbers.len().min(MOST);
    let is = move |(place, value): (usize, &u32)| {
        let if_true = u8::try_from(count - place).unwrap_or(u8::MAX);
        Instruction { code: IS, if_true, if_false: 0, value: *value }
    };
    numbers.iter().take(count).enumerate().map(is).chain([otherwise])
}

/// Has a socket receive what a program lets through, in place of an earlier one. Where there is no space for both at once it receives everything for a moment.
///
/// # Errors
/// The kernel refuses the program.
pub fn attach(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let all = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    match set(socket, libc::SO_ATTACH_FILTER, &all) {
        Err(Errno::NOMEM) => {
            let nothing = libc::sock_fprog { len: 0, filter: std::ptr::null_mut() };
            // Where there is none to detach there is no more space either.
            let _ = set(socket, libc::SO_DETACH_FILTER, &nothing);
            set(socket, libc::SO_ATTACH_FILTER, &all)
        }
        attached => attached,
    }
}

/// Sets an option of a socket. What `value` points to lives as long as the call.
fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: &libc::sock_fprog) -> Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is open for the call's duration (it is borrowed). The pointer and the size describe one live `sock_fprog`, which points to
    // as many instructions as it says (the callers above hold them), laid out as `struct sock_filter` is. The kernel only reads them.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// Number of bytes that a program takes of those that a socket may have, at most.
#[cfg(test)]
pub fn weight(program: &[Instruction]) -> usize {
    let count = |one: &Instruction| match one.code {
        LOAD_1 | LOAD_2 | LOAD_4 => 8,
        IS | IS_AT_LEAST if one.value > i32::MAX as u32 => 2,
        RETURN => 2,
        _ => 1,
    };
    // Beside what is about the program as a whole.
    200 + 8 * program.iter().map(count).sum::<usize>()
}

/// Runs a program as the kernel does; returns whether it lets the message through. `load`: the number of so many bytes at an offset, `None` beyond the end.
#[cfg(test)]
pub fn passes(program: &[Instruction], load: impl Fn(u32, usize) -> Option<u32>) -> bool {
    let (mut at, mut loaded, mut kept) = (0, 0_u32, 0);
    loop {
        let Instruction { code, if_true, if_false, value } = program[at];
        at += 1;
        let size = match code {
            LOAD_1 => 1,
            LOAD_2 => 2,
            LOAD_4 => 4,
            _ => 0,
        };
        match code {
            LOAD_1 | LOAD_2 | LOAD_4 => match load(value, size) {
                Some(number) => loaded = number,
                None => return false,
            },
            SET_OTHER => kept = value,
            KEEP => kept = loaded,
            MULTIPLY => loaded = loaded.wrapping_mul(value),
            ADD => loaded = loaded.wrapping_add(value),
            ADD_OTHER => loaded = loaded.wrapping_add(kept),
            IS => at += usize::from(if loaded == value { if_true } else { if_false }),
            IS_AT_LEAST => at += usize::from(if loaded >= value { if_true } else { if_false }),
            SKIP => at += value as usize,
            RETURN => return value != 0,
            other => panic!("{other}"),
        }
    }
}
