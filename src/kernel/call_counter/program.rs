//! Counting calls by a BPF program at each function.
//!
//! Kernel: bpf(2). The program adds one to a number in a map of the type `array`; each function has its program and its number. A program that is
//! attached to one event of a kprobe (`PERF_EVENT_IOC_SET_BPF`) runs at every call, on whatever processor, because the probe runs it before it looks for the
//! events of its own processor (`kprobe_perf_func`, kernel/trace/trace_kprobe.c). So one event is enough. It is disabled, and the processor that
//! it names may go offline: the probe is there as long as the descriptor. The numbers are read from the map, which interrupts no processor.
//!
//! It needs Linux 5.2 (a program names the map's value itself, and needs no version of the kernel), `CAP_BPF` and `CAP_PERFMON` (before Linux 5.8
//! `CAP_SYS_ADMIN`); system call filters of containers that are not privileged refuse bpf(2). The programs call no function of the kernel, so no licence is asked of them.
//! Where others list programs and maps, these have the name `sluice_calls`.
//!
//! Limits and surprises:
//! - The kernel runs no program at a probe while another one, or a change of a map, is under way on the same processor, and a task in a change of a map may be preempted
//!   where the kernel is preemptible. It counts such misses since Linux 6.7; they are calls like others here. Before, such a call is lost.
//! - Before Linux 5.11 the map and the programs count as locked memory, for all of root's processes together. The limit is raised while they are
//!   created, where it stands in the way.
#![expect(unsafe_code, reason = "bpf has no safe wrapper")]

use std::ffi::{CStr, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::Error;
use super::event::{self, Event, last_errno};
use super::{COUNT, processors};

/// The programs of some functions, and the map in which they count.
#[derive(Debug)]
pub struct Programs {
    /// In the order of the functions. They are closed first.
    probes: Vec<Probe>,
    /// One value: a number for each function.
    map: OwnedFd,
}

#[derive(Debug)]
struct Probe {
    _event: OwnedFd,
    program: OwnedFd,
}

/// Commands of bpf(2).
mod command {
    use std::ffi::c_long;

    pub const MAP_CREATE: c_long = 0;
    pub const MAP_LOOKUP_ELEM: c_long = 1;
    pub const PROG_LOAD: c_long = 5;
    pub const OBJ_GET_INFO_BY_FD: c_long = 15;
}

/// `union bpf_attr` of `BPF_MAP_CREATE`, up to the name.
#[repr(C)]
#[derive(Default)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: Name,
}

/// `union bpf_attr` of `BPF_PROG_LOAD`, up to the name.
#[repr(C)]
struct NewProgram {
    kind: u32,
    instructions: u32,
    /// Their address.
    code: u64,
    /// The address of its name.
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: Name,
}

/// `union bpf_attr` of `BPF_MAP_LOOKUP_ELEM`.
#[repr(C)]
struct Lookup {
    map: u32,
    _padding: u32,
    /// Address of the key.
    key: u64,
    /// Address of the place for the value.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Question {
    descriptor: u32,
    length: u32,
    /// Address of the place for the answer.
    answer: u64,
}

/// `struct bpf_prog_info` up to `recursion_misses`, its last field here. Older kernels leave that 0.
type Information = [u64; 27];

type Name = [u8; 16];
/// `struct bpf_insn`
type Instruction = [u8; 8];

const NAME: Name = *b"sluice_calls\0\0\0\0";
const LICENSE: &CStr = c"Apache-2.0";
/// `BPF_MAP_TYPE_ARRAY`
const ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_KPROBE`
const KPROBE: u32 = 2;
/// `PERF_EVENT_IOC_SET_BPF`: `_IOW('$', 8, __u32)`
const SET_BPF: Opcode = opcode::write::<u32>(b'$', 8);
/// Size of a number in the map.
const NUMBER: usize = size_of::<u64>();

impl Programs {
    /// Opens counters of these functions: 0 and counting.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such function now, or no such PMU; `EACCES`, `EPERM` or `EINVAL` where it refuses.
    pub fn open(functions: &[&CStr]) -> Result<Programs, Error> {
        let (kind, processor) = (event::kind()?, processors::any());
        let map = with_memory(|| new_map(functions.len() * NUMBER))
            .map_err(|errno| Error::errno("create", "BPF map", errno))?;
        let probes = functions.iter().enumerate().map(|(number, function)| {
            let program = with_memory(|| new_program(&map, number * NUMBER))
                .map_err(|errno| Error::errno("load", "BPF program", errno))?;
            let event = Event { kind, function, processor, leader: None, is_disabled: true }.open()?;
            attach(&program, &event)
                .map_err(|errno| Error::errno("attach a BPF program to", function.to_string_lossy(), errno))?;
            Ok(Probe { _event: event, program })
        });
        Ok(Programs { probes: probes.collect::<Result<Vec<Probe>, Error>>()?, map })
    }

    /// Returns the number of calls of each function since the opening, on all processors together.
    pub fn read(&self) -> Result<Vec<u64>, Error> {
        let failed = |errno| Error::errno(COUNT, "", errno);
        let mut counts = value(&self.map, self.probes.len()).map_err(failed)?;
        for (count, probe) in counts.iter_mut().zip(&self.probes) {
            *count = count.wrapping_add(misses(&probe.program).map_err(failed)?);
        }
        Ok(counts)
    }
}

/// Returns instructions that add 1 to the number at this place of the map's value.
fn instructions(map: RawFd, place: usize) -> [Instruction; 6] {
    // `BPF_PSEUDO_MAP_VALUE`: the two halves of a number of 64 bits are a map's descriptor and a place in its value.
    const MAP_VALUE: u8 = 2;
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    [
        // r1 = address of the number
        instruction(0x18, 1, MAP_VALUE, map),
        instruction(0x00, 0, 0, place),
        // r2 = 1
        instruction(0xb7, 2, 0, 1),
        // *(u64 *)r1 += r2, atomically
        instruction(0xdb, 1, 2, 0),
        // r0 = 0: the kernel has nothing else to do at this probe
        instruction(0xb7, 0, 0, 0),
        // return r0
        instruction(0x95, 0, 0, 0),
    ]
}

/// Encodes an instruction, with the registers that it changes and reads.
fn instruction(operation: u8, to: u8, from: u8, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
    let [a, b, c, d] = immediate.to_ne_bytes();
    [operation, registers, 0, 0, a, b, c, d]
}

fn new_map(value_size: usize) -> Result<OwnedFd, Errno> {
    let value_size = u32::try_from(value_size).map_err(|_| Errno::TOOBIG)?;
    let mut map = NewMap { kind: ARRAY, key_size: 4, value_size, entries: 1, name: NAME, ..NewMap::default() };
    // SAFETY: these attributes have no addresses. A descriptor that the kernel returns is open and nobody else's.
    unsafe { owned(bpf(command::MAP_CREATE, &mut map)?) }
}

fn new_program(map: &OwnedFd, place: usize) -> Result<OwnedFd, Errno> {
    let code = instructions(map.as_raw_fd(), place);
    let mut program = NewProgram {
        kind: KPROBE,
        instructions: u32::try_from(code.len()).unwrap_or_default(),
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: NAME,
    };
    // SAFETY: the kernel reads so many instructions, and the licence, which ends with a zero; both outlive the call. A descriptor that it returns is
    // open and nobody else's.
    unsafe { owned(bpf(command::PROG_LOAD, &mut program)?) }
}

fn attach(program: &OwnedFd, event: &OwnedFd) -> Result<(), Errno> {
    let program = usize::try_from(program.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: the operation takes the number of a descriptor, and both descriptors are open.
    unsafe { ioctl(event, IntegerSetter::<SET_BPF>::new_usize(program)) }
}

/// Reads the numbers of the map's value.
fn value(map: &OwnedFd, numbers: usize) -> Result<Vec<u64>, Errno> {
    let (key, mut value) = (0_u32, vec![0_u64; numbers]);
    let mut lookup = Lookup {
        map: number(map),
        _padding: 0,
        key: &raw const key as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key of this size and writes a value of the map's size, which is that of so many numbers; both places outlive
    // the call.
    unsafe { bpf(command::MAP_LOOKUP_ELEM, &mut lookup)? };
    Ok(value)
}

/// Returns how many calls the kernel passed over, by its own count.
fn misses(program: &OwnedFd) -> Result<u64, Errno> {
    let mut information = Information::default();
    let length = u32::try_from(size_of::<Information>()).unwrap_or_default();
    let mut question = Question { descriptor: number(program), length, answer: information.as_mut_ptr() as u64 };
    // SAFETY: the kernel reads and writes no more than so many bytes, of a place that outlives the call. It reads zeros: addresses and lengths of further
    // places, which it then does not write to.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut question)? };
    let [.., misses] = information;
    Ok(misses)
}

fn number(descriptor: &OwnedFd) -> u32 {
    u32::try_from(descriptor.as_raw_fd()).expect("an open descriptor is no negative number")
}

/// Calls bpf(2).
///
/// # Safety
/// The attributes are of this command, and the addresses in them are of places that the kernel may use as the command says.
unsafe fn bpf<A>(command: c_long, attributes: &mut A) -> Result<c_long, Errno> {
    // SAFETY: the kernel reads the attributes, which are as long as is said, and may write to them; what their addresses are the caller knows.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// # Safety
/// The descriptor is open and nobody else's.
unsafe fn owned(descriptor: c_long) -> Result<OwnedFd, Errno> {
    let descriptor = RawFd::try_from(descriptor).map_err(|_| Errno::BADF)?;
    // SAFETY: the caller's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Creates something that may count as locked memory: where it is refused, once more without a limit.
fn with_memory<T>(create: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    let refused = match create() {
        Err(refused @ Errno::PERM) => refused,
        result => return result,
    };
    let before = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).map_err(|_| refused)?;
    let result = create();
    let _ = setrlimit(Resource::Memlock, before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attributes_are_as_long_as_the_kernel_expects() {
        assert_eq!(size_of::<NewMap>(), 44);
        assert_eq!(size_of::<NewProgram>(), 64);
        assert_eq!(size_of::<Lookup>(), 32);
        assert_eq!(size_of::<Question>(), 16);
        assert_eq!(size_of::<Information>(), 208 + 8, "with `recursion_misses` at 208");
    }

    /// Wherever the tests may create maps and load programs; the kernel has checked that it adds to nothing else, then.
    #[test]
    fn the_kernel_takes_the_programs_or_refuses_bpf_to_this_process() {
        let map = match new_map(2 * NUMBER) {
            Ok(map) => map,
            Err(errno) => {
                assert!([Errno::PERM, Errno::NOSYS].contains(&errno), "{errno}");
                return;
            }
        };
        assert_eq!(value(&map, 2), Ok(vec![0, 0]));
        for place in [0, NUMBER] {
            match new_program(&map, place) {
                Ok(program) => assert_eq!(misses(&program), Ok(0)),
                Err(errno) => assert!([Errno::PERM, Errno::ACCESS].contains(&errno), "{errno}"),
            }
        }
        let beyond = new_program(&map, 2 * NUMBER).expect_err("the value has two numbers");
        assert!([Errno::PERM, Errno::ACCESS, Errno::INVAL].contains(&beyond), "{beyond}");
    }
}
