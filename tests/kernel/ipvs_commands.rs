//! Commands to IPVS that others give are counted, on a kernel with `ip_vs` and kprobes.
//!
//! The kernel counts those of all network namespaces together, and other tests give commands meanwhile. So that nobody gave one is
//! tried several times, and each try takes milliseconds.
#![expect(unsafe_code, reason = "no safe interface gives commands by socket options of IPVS")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use sluice::kernel::ipvs::{Counted, Destination, Forwarding, Service, ServiceKey, Services, Virtual};
use sluice::net::Protocol;
use sluice::reconcile::{Phase, Step, Target};

use crate::ipvs::MODULE;
use crate::namespace::{self, attempt, run};

const SERVICES: [(&str, &str, &str); 2] = [
    ("10.96.0.1:80", "10.244.1.1:8080", "10.244.1.2:8080"),
    ("[fd00:10:96::1]:80", "[fd00:10:244::1]:8080", "[fd00:10:244::2]:8080"),
];

/// Where the clock of the guest's processor is not trusted, the time for which an event has counted may stand still for a tick: then two readings
/// in it look as if the processor had gone.
pub const TICK: Duration = Duration::from_millis(12);

/// Time for which others may give commands all the time.
const QUIET: Duration = Duration::from_secs(30);

fn in_new(test: impl FnOnce() + Send) {
    let _alone = MODULE.write().unwrap_or_else(PoisonError::into_inner);
    namespace::in_new(|| {
        assert!(attempt("modprobe ip_vs").0, "this kernel has no module ip_vs; run this test in the guest of the lab");
        test();
    });
}

/// Targets whose counters are open. What was done before the first answer is not counted.
fn counting() -> Services {
    let mut services = Services::open(Box::new(|_| true)).expect("sockets");
    assert_eq!(answered(&mut services, Instant::now()), Counted::Some, "whatever was done before");
    services
}

/// The answer once the counters are open, or cannot be.
fn answered(services: &mut Services, now: Instant) -> Counted {
    loop {
        match services.others_commands(now) {
            Counted::NotYet => thread::sleep(Duration::from_millis(5)),
            answer => return answer,
        }
    }
}

/// A command of another program that the kernel refuses, because it is too short to name a service.
pub fn refused(socket: &std::net::UdpSocket) {
    const DELETE_DESTINATION: libc::c_int = 64 + 1024 + 64 + 8;
    // SAFETY: the descriptor is open, and the kernel reads no more than the one byte.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, DELETE_DESTINATION, [0_u8].as_ptr().cast(), 1)
    };
    assert_eq!(result, -1, "it is too short");
}

/// Returns whether `act` is answered with `None` at least once within this time: other tests may give commands at the same time, and a processor
/// that they share may let seconds pass between two readings.
fn is_quiet(services: &mut Services, mut act: impl FnMut(&mut Services)) -> bool {
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        services.others_commands(Instant::now());
        act(services);
        thread::sleep(TICK);
        if services.others_commands(Instant::now()) == Counted::None {
            return true;
        }
    }
    false
}

/// Waits until others give no commands; then sees that this one is counted.
fn is_counted(services: &mut Services, command: impl FnOnce()) -> bool {
    assert!(is_quiet(services, |_| ()), "others give commands all the time");
    command();
    thread::sleep(TICK);
    services.others_commands(Instant::now()) == Counted::Some
}

fn service(key: &str, destinations: &[&str]) -> (ServiceKey, Virtual) {
    let address: std::net::SocketAddr = key.parse().expect("an address and a port");
    let destination = |text: &&str| Destination {
        address: text.parse().expect("an address and a port"),
        weight: 1,
        forwarding: Forwarding::Nat,
    };
    let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
    let key = ServiceKey::Address { address: address.ip(), protocol: Protocol::Tcp, port: address.port() };
    (key, Virtual { service, destinations: destinations.iter().map(destination).collect() })
}

#[test]
fn commands_of_others_are_counted_and_our_own_are_told_apart() {
    in_new(|| {
        let mut services = counting();
        for (at, one, other) in SERVICES {
            let (key, want) = service(at, &[one, other]);
            let (_, less) = service("10.96.0.9:80", &[one]);
            let written = is_quiet(&mut services, |services| {
                let mut step = |phase, have, want| {
                    let failed = services.apply(phase, &[Step { key: &key, have, want }]);
                    assert!(failed.is_empty(), "{failed:?}");
                };
                step(Phase::Grow, None, Some(&want));
                step(Phase::Shrink, Some(&want), Some(&less));
                step(Phase::Shrink, Some(&less), None);
            });
            assert!(written, "our own commands for {key} were taken for somebody's");
            let read = is_quiet(&mut services, |services| assert!(services.read().expect("a reading").is_empty()));
            assert!(read, "reading was taken for a change");
            for command in [
                format!("-A -t {at} -s rr"),
                format!("-a -t {at} -r {one} -m"),
                format!("-e -t {at} -r {one} -m -w 7"),
                "-C".to_owned(),
            ] {
                let counted = is_counted(&mut services, || drop(run(&format!("ipvsadm {command}"))));
                assert!(counted, "ipvsadm {command}");
            }
        }
    });
}

#[test]
fn commands_by_socket_options_are_counted() {
    in_new(|| {
        let mut services = counting();
        const FLUSH: libc::c_int = 64 + 1024 + 64 + 5;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let flush = || {
            // SAFETY: the descriptor is open, and the kernel reads no value for this option.
            let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, FLUSH, std::ptr::null(), 0) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        };
        assert!(is_counted(&mut services, flush));
    });
}

#[test]
fn a_reloaded_module_is_noticed_and_counted_again() {
    in_new(|| {
        let mut services = counting();
        // Namespaces of earlier tests, with their services, are taken down in the background.
        let unloaded = (0..300).any(|_| {
            thread::sleep(Duration::from_millis(100));
            attempt("modprobe -r xt_ipvs ip_vs_rr ip_vs_lc ip_vs_sh ip_vs_mh ip_vs_wrr ip_vs_wlc");
            attempt("modprobe -r ip_vs").0
        });
        assert!(unloaded, "ip_vs is unloaded within 30 s: {}", run("lsmod"));
        run("modprobe ip_vs");
        run("ipvsadm -A -t 10.96.0.1:80 -s rr");
        let now = Instant::now();
        let Counted::Not(reason) = services.others_commands(now) else { panic!("the probes are gone") };
        assert!(reason.contains("unloaded"), "{reason}");
        assert_eq!(answered(&mut services, now + Duration::from_secs(61)), Counted::Some, "opened again");
        assert!(is_counted(&mut services, || drop(run("ipvsadm -C"))));
    });
}

#[test]
fn probes_that_somebody_disarms_are_not_trusted_for_longer_than_a_minute() {
    const SWITCH: &str = "/sys/kernel/debug/kprobes/enabled";
    in_new(|| {
        attempt("mount -t debugfs none /sys/kernel/debug");
        let mut services = counting();
        std::fs::write(SWITCH, "0").expect("debugfs has the switch of kprobes");
        let answer = answered(&mut services, Instant::now() + Duration::from_secs(61));
        std::fs::write(SWITCH, "1").expect("debugfs has the switch of kprobes");
        assert!(matches!(answer, Counted::Not(_)), "{answer:?}");
    });
}

/// Threads of this process that open or close counters.
pub fn at_counters() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "kprobe").count()
}

/// Mean time of a command that the kernel refuses at once.
fn time_of_a_command(socket: &std::net::UdpSocket) -> Duration {
    const COMMANDS: u32 = 20_000;
    let begun = sluice::kernel::processor::thread_time();
    (0..COMMANDS).for_each(|_| refused(socket));
    (sluice::kernel::processor::thread_time() - begun) / COMMANDS
}

/// How long opening, reading and closing take, for which nobody waits; and what the probe costs each command, which is compared with one
/// that the kernel refuses at once.
#[test]
fn counting_is_cheap_and_neither_opening_nor_closing_holds_anybody_up() {
    const AT_ONCE: Duration = Duration::from_millis(50);
    in_new(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let uncounted = time_of_a_command(&socket);
        let begun = Instant::now();
        let mut services = Services::open(Box::new(|_| true)).expect("sockets");
        assert_eq!(services.others_commands(begun), Counted::NotYet);
        let asked = begun.elapsed();
        assert_eq!(answered(&mut services, begun), Counted::Some);
        let opened = begun.elapsed();
        let begun = sluice::kernel::processor::thread_time();
        for _ in 0..100 {
            thread::sleep(TICK);
            let answer = services.others_commands(Instant::now());
            assert!(matches!(answer, Counted::Some | Counted::None), "{answer:?}");
        }
        let read = (sluice::kernel::processor::thread_time() - begun) / 100;
        let counted = time_of_a_command(&socket);
        let begun = Instant::now();
        drop(services);
        let dropped = begun.elapsed();
        // Until the thread has its name.
        thread::sleep(Duration::from_millis(20));
        while at_counters() > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let closed = begun.elapsed();
        println!(
            "asked in {asked:?}, opened in {opened:?}, a reading takes {read:?}, dropped in {dropped:?}, closed in {closed:?}; \
             a refused command takes {uncounted:?}, {counted:?} counted"
        );
        assert!(opened < Duration::from_secs(5) && closed < Duration::from_secs(5) && read < Duration::from_millis(20));
        assert!(dropped < AT_ONCE, "{dropped:?}");
    });
}

#[test]
fn a_command_that_the_kernel_refuses_counts_like_any_other() {
    in_new(|| {
        let mut services = counting();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(is_counted(&mut services, || refused(&socket)));
    });
}
