//! Hosts in network namespaces: on one link, or with a router between any two of them, which is the namespace of the test.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice::net::Family;

use crate::namespace::{in_new, own_run, run};

/// Network between the hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    Link,
    Router,
}

/// A host: its namespace and a directory of its own.
pub struct Host {
    namespace: File,
    number: u8,
    directory: tempfile::TempDir,
}

/// How often is looked whether something is as it should be, and the pause between. Time is not looked at, because a machine
/// that stands still for a while, as guests do, lets it pass and nothing happen.
const LOOKS: usize = 600;
const PAUSE: Duration = Duration::from_millis(50);

/// Runs a test with so many hosts.
pub fn with_hosts(count: u8, topology: Topology, test: impl FnOnce(&[Host]) + Send) {
    in_new(|| {
        own_run();
        let mut script = String::new();
        if topology == Topology::Link {
            script.push_str("link add br0 type bridge\nlink set br0 up\n");
        }
        for number in 1..=count {
            run(&format!("ip netns add host-{number}"));
            script.push_str(&format!("link add to-{number} type veth peer name eth0 netns host-{number}\n"));
            match topology {
                Topology::Link => script.push_str(&format!("link set to-{number} master br0 up\n")),
                Topology::Router => script.push_str(&format!(
                    "link set to-{number} up\naddr add 192.0.2.254/32 dev to-{number}\n\
                     addr add 2001:db8::ff/128 dev to-{number} nodad\n\
                     route add 192.0.2.{number}/32 dev to-{number}\nroute add 2001:db8::{number}/128 dev to-{number}\n"
                )),
            }
        }
        if topology == Topology::Router {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting of the namespace");
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("a setting of the namespace");
        }
        batch(&["-batch", "-"], &script);
        let hosts: Vec<Host> = (1..=count).map(|number| Host::new(number, topology)).collect();
        test(&hosts);
    });
}

impl Host {
    fn new(number: u8, topology: Topology) -> Host {
        let (four, six) = if topology == Topology::Link { (24, 64) } else { (32, 128) };
        let mut script = format!(
            "link set lo up\nlink set eth0 up\naddr add 192.0.2.{number}/{four} dev eth0\n\
             addr add 2001:db8::{number}/{six} dev eth0 nodad\n"
        );
        if topology == Topology::Router {
            script.push_str(
                "route add 192.0.2.254/32 dev eth0\nroute add default via 192.0.2.254\n\
                 route add 2001:db8::ff/128 dev eth0\nroute add default via 2001:db8::ff\n",
            );
        }
        batch(&["-n", &format!("host-{number}"), "-batch", "-"], &script);
        let namespace = File::open(format!("/run/netns/host-{number}")).expect("the new namespace");
        Host { namespace, number, directory: tempfile::tempdir().expect("a directory for a host") }
    }

    pub fn address(&self, family: Family) -> IpAddr {
        let text = match family {
            Family::V4 => format!("192.0.2.{}", self.number),
            Family::V6 => format!("2001:db8::{}", self.number),
        };
        text.parse().expect("an address")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Does something here.
    pub fn inside<R: Send>(&self, act: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may move");
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a program here; what it writes goes to a file of that name.
    pub fn start(&self, command: &[&str], log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.file(log)).expect("a file for a log");
        let both = [log.try_clone().expect("a descriptor"), log];
        self.inside(|| {
            let [out, err] = both;
            let mut started = Command::new(command[0]);
            started.args(&command[1..]).current_dir(self.directory()).stdin(Stdio::null()).stdout(out).stderr(err);
            started.spawn().unwrap_or_else(|error| panic!("start {}: {error}", command[0]))
        })
    }

    /// Runs a program here to its end; what it wrote, or nothing where it failed.
    pub fn ask(&self, command: &[&str]) -> Option<String> {
        let output = self.inside(|| {
            let mut asked = Command::new(command[0]);
            asked.args(&command[1..]).current_dir(self.directory()).stdin(Stdio::null()).output()
        });
        let output = output.unwrap_or_else(|error| panic!("start {}: {error}", command[0]));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A counter of the kernel here, by its name in `/proc/net/netstat`.
    pub fn counter(&self, name: &str) -> u64 {
        let text = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).expect("counters");
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.chunks(2).find_map(|pair| {
            let place = pair[0].split(' ').position(|word| word == name)?;
            pair[1].split(' ').nth(place)?.parse().ok()
        });
        found.unwrap_or_else(|| panic!("this kernel does not count {name}"))
    }
}

/// Waits until something is as it should be.
pub fn eventually<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, mut now: impl FnMut() -> T) {
    let mut last = None;
    let found = look(|| {
        let found = now();
        let right = found == *expected;
        last = Some(found);
        right.then_some(())
    });
    assert!(found.is_some(), "{what}:\n  expected {expected:#?}\n  found    {last:#?}");
}

/// Looks again and again, until there is something.
pub fn look<T>(mut now: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..LOOKS {
        if let Some(found) = now() {
            return Some(found);
        }
        std::thread::sleep(PAUSE);
    }
    None
}

fn batch(arguments: &[&str], script: &str) {
    let mut ip = Command::new("ip").args(arguments).stdin(Stdio::piped()).spawn().expect("start ip");
    ip.stdin.take().expect("it reads").write_all(script.as_bytes()).expect("it takes all");
    assert!(ip.wait().expect("it ends").success(), "ip refused:\n{script}");
}
