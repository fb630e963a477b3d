//! Requests of the agent to the kernel on the way of a change: nothing is listed, whatever the table holds, and no netlink socket is closed, for which
//! the kernel would wait until no processor reads what goes with it: 12 to 38 ms for one of netfilter.
//!
//! `strace` shows the requests of the program itself. A listing has the flags `NLM_F_DUMP`, for whatever kind of objects.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sluice::net::{Family, Protocol};

use super::agent::{Node, with_agent};
use crate::namespace::run;

/// The requests of a running process, by `strace`.
struct Requests {
    tracer: Child,
    path: PathBuf,
}

impl Requests {
    /// Those from now on.
    fn of(node: &Node) -> Requests {
        let path = node.path("requests");
        let tracer = strace(&path).args(["-p", &node.pid().to_string()]).stdin(Stdio::null()).spawn().unwrap();
        let tasks = format!("/proc/{}/task", node.pid());
        node.until("its threads are traced", |_| {
            let traced = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0")
            };
            fs::read_dir(&tasks).unwrap().flatten().all(traced)
        });
        Requests { tracer, path }
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.path).unwrap().lines().map(str::to_owned).collect()
    }

    /// Those that list something.
    fn listings(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.contains("NLM_F_DUMP")).collect()
    }

    /// Those that close a netlink socket.
    fn closed_sockets(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| closes_netlink(line)).collect()
    }

    /// How many change something in nf_tables.
    fn transactions(&self) -> usize {
        self.lines().iter().filter(|line| line.contains("NFNL_MSG_BATCH_BEGIN")).count()
    }
}

/// Writes requests there, with what each file descriptor is.
fn strace(path: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-yy", "-e", "trace=sendto,sendmsg,close", "-e", "signal=none", "-s", "64", "-o"])
        .arg(path);
    strace
}

fn closes_netlink(line: &str) -> bool {
    line.contains("close(") && line.contains("<NETLINK:")
}

impl Drop for Requests {
    fn drop(&mut self) {
        // It lets the process go on, which SIGKILL would not always do.
        run(&format!("kill -INT {}", self.tracer.id()));
        self.tracer.wait().unwrap();
    }
}

/// Does something, and waits until this path is open, or closed, in both families.
fn makes(node: &Node, path: (&str, &str), open: bool, change: impl FnOnce()) {
    let reaches = |family| node.places.reaches(family, path, Protocol::Tcp, 80);
    assert!(Family::BOTH.into_iter().all(|family| reaches(family) != open), "{path:?} before the change");
    change();
    node.until(&format!("{path:?} changes"), |_| Family::BOTH.into_iter().all(|family| reaches(family) == open));
}

#[test]
fn nothing_is_listed_and_no_netlink_socket_is_closed_on_the_way_of_a_change() {
    with_agent(|node| {
        if !node.is_owned() {
            return println!("this kernel knows no owners that leave their tables behind");
        }
        let node = &*node;
        let requests = Requests::of(node);
        let mut transactions = 0;
        for _ in 0..3 {
            // A peer comes and goes, a pod here comes under a policy and leaves it, a pod here becomes a peer.
            makes(node, ("far", "web"), true, || node.put_pod("far", "db"));
            makes(node, ("far", "web"), false, || node.put_pod("far", "far"));
            makes(node, ("db", "plain"), false, || node.put_policy("plain", "plain", &["web"]));
            makes(node, ("db", "plain"), true, || node.put_policy("plain", "plain", &["web", "db"]));
            makes(node, ("far", "plain"), true, || node.delete_policy("plain"));
            makes(node, ("plain", "web"), true, || node.put_pod("plain", "db"));
            makes(node, ("plain", "web"), false, || node.put_pod("plain", "plain"));
            let so_far = requests.transactions();
            assert!(so_far >= transactions + 7, "seven changes are {} transactions", so_far - transactions);
            transactions = so_far;
        }
        assert_eq!(requests.listings(), Vec::<String>::new());
        assert_eq!(requests.closed_sockets(), Vec::<String>::new());
        // An audit does list: it would have been seen.
        let audit = format!("{} audit --socket={}", env!("CARGO_BIN_EXE_sluice"), node.path("sluice.sock").display());
        run(&audit);
        assert!(!requests.listings().is_empty(), "the audit lists nothing: {:?}", requests.lines());
        // `nft` closes the socket that it has opened: that would have been seen too.
        let of_nft = node.path("requests-of-nft");
        assert!(strace(&of_nft).args(["nft", "list", "tables"]).stdout(Stdio::null()).status().unwrap().success());
        let of_nft = fs::read_to_string(of_nft).unwrap();
        assert!(of_nft.lines().any(closes_netlink), "{of_nft}");
    });
}
