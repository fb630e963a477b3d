//! Starting one of the few programs that are ever started: `iptables-save` and `iptables-restore` of either flavour, `iptables --version`,
//! `modprobe`.
//!
//! Input and output of a program are files in memory, not pipes: nobody has to feed and empty them while
//! it runs, so one thread can start it and wait for it, however much it writes. The wait has an end: a program
//! that is not done by then is killed. The program gets the network namespace of the calling thread.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Cause, Error, own};

/// A program and its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub program: &'a str,
    pub arguments: &'a [&'a str],
    pub input: &'a [u8],
    /// Time limit.
    pub limit: Duration,
}

/// Why a program failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// It is not on this machine.
    Missing,
    /// It was killed because it did not come to an end.
    Timeout,
    /// It reported failure: its stderr, or its exit status where it wrote nothing.
    Failed(String),
    /// It could not be started or waited for.
    System(Errno),
}

/// Bytes of a failed program's stderr that an error repeats at most.
const MOST_SAID: usize = 2000;

/// A program that was started and not waited for yet.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    said: File,
    complained: File,
    deadline: Instant,
}

/// Returns whether a program is where programs are looked for.
pub fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Runs a program to its end and returns what it wrote to stdout. Characters that are not UTF-8 are replaced.
pub(super) fn run(call: Call<'_>) -> Result<String, Fault> {
    start(call)?.finish()
}

/// Starts a program, so that several can run at the same time.
pub(super) fn start(call: Call<'_>) -> Result<Running, Fault> {
    let input = memory_file(call.input)?;
    let (said, complained) = (memory_file(&[])?, memory_file(&[])?);
    let mut command = Command::new(call.program);
    command.args(call.arguments).env("LC_ALL", "C").stdin(Stdio::from(input));
    command.stdout(Stdio::from(said.try_clone()?)).stderr(Stdio::from(complained.try_clone()?));
    let child = match own::start_program(|| command.spawn()) {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Fault::Missing),
        Err(error) => return Err(error.into()),
    };
    Ok(Running { child, said, complained, deadline: Instant::now() + call.limit })
}

impl Running {
    /// Waits for the program's end; as [`run`].
    ///
    /// # Errors
    /// As for [`run`].
    pub fn finish(mut self) -> Result<String, Fault> {
        let Some(status) = wait(&mut self.child, self.deadline)? else { return Err(Fault::Timeout) };
        if status.success() {
            return Ok(contents(&mut self.said)?);
        }
        let words = contents(&mut self.complained)?;
        let words = words.trim();
        Err(Fault::Failed(if words.is_empty() { status.to_string() } else { shortened(words).to_owned() }))
    }
}

impl Fault {
    /// The error of an operation that needed the program.
    pub(super) fn of(self, operation: &'static str, object: &str, program: &str) -> Error {
        let cause = match self {
            Fault::Missing => Cause::Program(format!("the program {program} is not installed")),
            Fault::Timeout => Cause::Timeout,
            Fault::Failed(words) => Cause::Program(words),
            Fault::System(errno) => Cause::Errno(errno, Some(format!("while running {program}"))),
        };
        Error::new(operation, object, cause)
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::System(errno)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::System(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Waits for the child's end; on timeout kills it and returns `None`.
fn wait(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>, Fault> {
    match ends_before(child, deadline) {
        Ok(true) => Ok(Some(child.wait()?)),
        Ok(false) => {
            child.kill()?;
            child.wait()?;
            Ok(None)
        }
        Err(fault) => {
            // Nobody would ever wait for it again.
            child.kill()?;
            child.wait()?;
            Err(fault)
        }
    }
}

fn ends_before(child: &Child, deadline: Instant) -> Result<bool, Fault> {
    let handle: OwnedFd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Fault::System(Errno::INVAL))?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn memory_file(content: &[u8]) -> Result<File, Fault> {
    let mut file = File::from(memfd_create("program", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

fn contents(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn shortened(words: &str) -> &str {
    words.get(..words.floor_char_boundary(MOST_SAID)).unwrap_or(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8], limit: Duration) -> Result<String, Fault> {
        run(Call { program: "sh", arguments: &["-c", script], input, limit })
    }

    #[test]
    fn more_than_a_pipe_holds_goes_in_and_out() {
        let input = "x".repeat(1_000_000);
        assert_eq!(shell("cat", input.as_bytes(), Duration::from_secs(60)), Ok(input));
    }

    #[test]
    fn a_failure_tells_what_the_program_wrote_or_how_it_ended() {
        let limit = Duration::from_secs(60);
        assert_eq!(shell("echo said; echo why >&2; exit 3", b"", limit), Err(Fault::Failed("why".into())));
        assert_eq!(shell("exit 3", b"", limit), Err(Fault::Failed("exit status: 3".into())));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let result = shell("exec sleep 1000", b"", Duration::from_millis(50));
        assert_eq!(result, Err(Fault::Timeout));
    }

    #[test]
    fn a_missing_program_is_told_apart_from_a_failing_one() {
        let call = Call { program: "there-is-no-such-program", arguments: &[], input: b"", limit: Duration::ZERO };
        let fault = run(call).expect_err("it cannot run");
        assert_eq!(fault, Fault::Missing);
        let error = fault.of("list rules", "IPv4", "there-is-no-such-program");
        assert_eq!(error.to_string(), "list rules IPv4: the program there-is-no-such-program is not installed");
    }
}
