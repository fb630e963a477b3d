//! Processor time of the calling thread, and its rank among others.
//!
//! Kernel: the clock `CLOCK_THREAD_CPUTIME_ID` of clock_gettime(2); sched(7) on nice values, setpriority(2).

use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};
use rustix::time::{ClockId, clock_gettime};

/// Nice value of threads for which others wait by a clock: neighbours for what keeps a session, a kubelet for the answer to a probe, packets for the routes
/// that follow a lost neighbour. One of them gets nine shares of a busy processor where a thread of the usual value gets one.
pub const PROMPT: i32 = -10;
/// That of a thread that does little each time and loses sessions when it waits: before all others but the kernel's own.
pub const FIRST: i32 = -20;

/// Returns the time that the calling thread has spent on a processor, in system calls or outside. Time in which it slept or
/// waited for a processor does not count.
pub fn thread_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = Duration::from_secs(spent.tv_sec.try_into().unwrap_or_default());
    seconds + Duration::from_nanos(spent.tv_nsec.try_into().unwrap_or_default())
}

/// Returns the nice value of the calling thread; 0, which is what processes usually have, where the kernel does not tell.
pub fn nice() -> i32 {
    getpriority_process(None).unwrap_or_default()
}

/// Gives the calling thread this nice value, and so each thread and program that it starts from now on. It ranks the thread among those of its cgroup.
/// Without the right to do so (`CAP_SYS_NICE`) the thread keeps what it has.
pub fn set_nice(value: i32) {
    let _ = setpriority_process(None, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nice_value_is_of_the_calling_thread_alone() {
        let usual = nice();
        let lower = usual + 1; // which nobody needs a right for
        let inside = std::thread::spawn(move || {
            set_nice(lower);
            nice()
        });
        assert_eq!(inside.join().expect("it ends"), lower);
        assert_eq!(nice(), usual);
    }

    #[test]
    fn sleep_costs_no_processor_time_and_work_does() {
        let begun = thread_time();
        std::thread::sleep(Duration::from_millis(300));
        let slept = thread_time() - begun;
        assert!(slept < Duration::from_millis(150), "{slept:?}");
        while thread_time() - begun < Duration::from_millis(150) {
            std::hint::spin_loop();
        }
    }
}
