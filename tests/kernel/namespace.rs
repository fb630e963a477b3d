//! Network namespaces that live as long as one test.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix, because some of its flags are")]

use std::path::PathBuf;
use std::process::Command;

use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};

/// Runs the test in a new network namespace, on a thread that dies with it. Programs started by the test
/// run in the namespace too.
pub fn in_new(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: CLONE_NEWNET concerns the calling thread alone and no descriptor.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a new network namespace needs root");
            run("ip link set lo up");
            test();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Gives the calling thread, inside [`in_new`], a `/run` of its own: the lock of the legacy iptables lies there.
pub fn own_run() {
    // SAFETY: CLONE_NEWNS concerns the calling thread alone and no descriptor.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a new mount namespace needs root");
    run("mount --make-rprivate /");
    run("mount -t tmpfs run /run");
}

/// The file that stands for the namespace of the calling thread.
pub fn path() -> PathBuf {
    PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid().as_raw_nonzero()))
}

/// Runs a program with its arguments, separated by spaces; returns its stdout, and panics where it fails.
pub fn run(command: &str) -> String {
    let (ok, out, err) = attempt(command);
    assert!(ok, "`{command}` failed: {err}");
    out
}

/// Like [`run`], for a shell, which may be told more than words.
pub fn shell(script: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(script).output().expect("start sh");
    assert!(output.status.success(), "`{script}` failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Like [`run`], and answers whether it succeeded, with stdout and stderr.
pub fn attempt(command: &str) -> (bool, String, String) {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program to run");
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("start {program}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}
