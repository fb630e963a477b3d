//! Calls of kernel functions are counted, on a kernel with `ip_vs` and kprobes, by BPF programs and by events for each processor.
//!
//! These tests run alone: nobody else calls the functions meanwhile.

use std::ffi::CStr;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_getaffinity, sched_setaffinity, set_capabilities};
use sluice::kernel::call_counter::{CallCounter, Way};

use crate::ipvs::MODULE;
use crate::ipvs_commands::{TICK, at_counters, refused};
use crate::namespace::{self, attempt};

/// The first is what the commands of these tests reach.
const FUNCTIONS: [&CStr; 2] = [c"do_ip_vs_set_ctl", c"ip_vs_genl_set_cmd"];
const PROBES: &str = "/sys/kernel/debug/kprobes/list";

/// Runs a test with a socket for commands.
fn with_socket(test: impl FnOnce(&UdpSocket) + Send) {
    let _alone = MODULE.write().unwrap_or_else(PoisonError::into_inner);
    namespace::in_new(|| {
        assert!(attempt("modprobe ip_vs").0, "this kernel has no module ip_vs; run this test in the guest of the lab");
        attempt("mount -t debugfs none /sys/kernel/debug");
        test(&UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    });
}

/// The processors on which this thread may run.
fn processors() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("a set of processors");
    (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}

fn move_to(processors: &[usize]) {
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    sched_setaffinity(None, &set).expect("the processors are online");
}

/// The kprobes of these functions that the kernel has.
fn probes() -> usize {
    let list = std::fs::read_to_string(PROBES).expect("debugfs lists kprobes");
    list.lines().filter(|line| FUNCTIONS.iter().any(|name| line.contains(name.to_str().expect("a name")))).count()
}

/// The calls of each function so far.
fn calls(counter: &mut CallCounter) -> [u64; 2] {
    counter.read().expect("a reading").try_into().expect("a number for each function")
}

/// Waits until counters that were given up are closed.
fn wait_for_closing() -> Duration {
    let begun = Instant::now();
    // Until the thread has its name.
    thread::sleep(Duration::from_millis(20));
    while at_counters() > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

/// Opens, counts on every processor, and closes; says how long that takes.
fn count_on_all(way: Way, socket: &UdpSocket) -> Result<(), String> {
    const CALLS: u64 = 100;
    let (all, descriptors_before) = (processors(), descriptors());
    let begun = Instant::now();
    let mut counter = CallCounter::open_by(way, &FUNCTIONS).map_err(|error| error.to_string())?;
    let opened = begun.elapsed();
    assert!(counter.fallback().is_none());
    let probes_open = probes();
    for processor in &all {
        thread::sleep(TICK);
        let before = calls(&mut counter);
        move_to(&[*processor]);
        (0..CALLS).for_each(|_| refused(socket));
        move_to(&all);
        thread::sleep(TICK);
        let after = calls(&mut counter);
        assert_eq!((after[0] - before[0], after[1] - before[1]), (CALLS, 0), "{way:?}, processor {processor}");
    }
    thread::sleep(TICK);
    let begun = sluice::kernel::processor::thread_time();
    counter.read().expect("a reading");
    let read = sluice::kernel::processor::thread_time() - begun;
    drop(counter);
    let closed = wait_for_closing();
    println!(
        "{way:?}, {} processors: opened in {opened:?}, read in {read:?}, closed in {closed:?}, {probes_open} probes",
        all.len()
    );
    assert_eq!((probes(), descriptors()), (0, descriptors_before), "{way:?}");
    Ok(())
}

#[test]
fn calls_on_every_processor_are_counted_and_nothing_stays_behind() {
    with_socket(|socket| {
        count_on_all(Way::Program, socket).expect("this kernel takes the programs");
        match (count_on_all(Way::EventsPerProcessor, socket), processors().len()) {
            (Ok(()), 1..=16) => {}
            (Err(reason), 17..) => println!("{reason}"),
            (other, processors) => panic!("{other:?} with {processors} processors"),
        }
    });
}

#[test]
fn both_ways_count_the_same_calls_at_the_same_time() {
    with_socket(|socket| {
        if processors().len() > 16 {
            println!("there are too many processors for events for each");
            return;
        }
        let open = |way| CallCounter::open_by(way, &FUNCTIONS).expect("this kernel counts in this way");
        let (mut program, mut events) = (open(Way::Program), open(Way::EventsPerProcessor));
        for number in [1, 10, 1000] {
            thread::sleep(TICK);
            let before = (calls(&mut program), calls(&mut events));
            (0..number).for_each(|_| refused(socket));
            thread::sleep(TICK);
            let after = (calls(&mut program), calls(&mut events));
            assert_eq!((after.0[0] - before.0[0], after.1[0] - before.1[0]), (number, number));
        }
        drop((program, events));
        wait_for_closing();
    });
}

/// Without `CAP_BPF` and `CAP_SYS_ADMIN`, which a program needs, and with `CAP_PERFMON`, which an event needs.
#[test]
fn where_the_kernel_refuses_programs_each_processor_has_events_of_its_own() {
    // Debian's kernels refuse events to all but `CAP_SYS_ADMIN` with 3, which is their default.
    const PARANOIA: &str = "/proc/sys/kernel/perf_event_paranoid";
    with_socket(|socket| {
        std::fs::write(PARANOIA, "2").expect("root may change settings");
        // Of this thread alone.
        let mut sets = capabilities(None).expect("capabilities");
        sets.effective.remove(CapabilitySet::SYS_ADMIN | CapabilitySet::BPF);
        set_capabilities(None, sets).expect("anybody may give up capabilities");
        match (CallCounter::open(&FUNCTIONS), processors().len()) {
            (Ok(mut counter), 1..=16) => {
                let reason = counter.fallback().expect("programs need more capabilities").to_owned();
                println!("{reason}");
                assert!(reason.contains("BPF"), "{reason}");
                thread::sleep(TICK);
                let before = calls(&mut counter);
                refused(socket);
                thread::sleep(TICK);
                assert_eq!(calls(&mut counter)[0] - before[0], 1);
                drop(counter);
                wait_for_closing();
            }
            (Err(error), 17..) => {
                let error = error.to_string();
                println!("{error}");
                assert!(error.contains("BPF") && error.contains("processors"), "{error}");
            }
            (other, processors) => panic!("{other:?} with {processors} processors"),
        }
    });
}

const HOLD: &str = "HOLD_COUNTERS";

#[test]
fn nothing_is_left_of_a_process_that_is_killed() {
    const NAME: &str = "call_counter::nothing_is_left_of_a_process_that_is_killed";
    if std::env::var_os(HOLD).is_some() {
        let _counter = CallCounter::open_by(Way::Program, &FUNCTIONS).expect("this kernel takes the programs");
        thread::sleep(Duration::from_secs(600));
        return;
    }
    let wait_for = |number: usize| {
        let until = Instant::now() + Duration::from_secs(60);
        while probes() != number {
            assert!(Instant::now() < until, "{} probes, not {number}", probes());
            thread::sleep(Duration::from_millis(20));
        }
    };
    with_socket(|_| {
        wait_for(0);
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program).args(["--exact", NAME]).env(HOLD, "1").spawn().expect("it starts");
        wait_for(FUNCTIONS.len());
        process.kill().expect("it runs");
        process.wait().expect("it ends");
        wait_for(0);
    });
}

/// The event of a program names one processor, and the probe is there without it.
#[test]
#[ignore = "wants several processors, at which the lab's emulator fails where kprobes come and go"]
fn a_program_counts_on_when_the_processor_of_its_event_goes_and_comes() {
    with_socket(|socket| {
        let all = processors();
        let [first, .., last] = all[..] else { panic!("several processors") };
        let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
        // The event is opened on the processor of the thread.
        move_to(&[last]);
        let mut counter = CallCounter::open_by(Way::Program, &FUNCTIONS).expect("this kernel takes the programs");
        move_to(&all);
        let mut counts = |processor: usize| {
            move_to(&[processor]);
            let before = calls(&mut counter)[0];
            refused(socket);
            calls(&mut counter)[0] - before
        };
        assert_eq!((counts(first), counts(last)), (1, 1));
        move_to(&[first]);
        std::fs::write(&switch, "0").expect("it goes offline");
        assert_eq!(counts(first), 1, "without the event's processor");
        std::fs::write(&switch, "1").expect("it comes back");
        assert_eq!((counts(first), counts(last)), (1, 1), "and with it again");
        drop(counter);
        wait_for_closing();
    });
}
