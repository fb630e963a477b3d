//! Sockets of other network namespaces.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

/// Runs `open` in the network namespace that the file stands for (`/run/netns/NAME`, `/proc/PID/ns/net`).
/// Sockets opened there stay there. On a thread of its own, because the namespace belongs to the thread.
///
/// # Errors
/// The file cannot be opened or is no network namespace, or the thread may not enter it.
pub fn in_namespace<T: Send>(path: &Path, open: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = std::fs::File::open(path)?;
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
            Ok(open())
        });
        inside.join().expect("what is run in a namespace does not panic")
    })
}
