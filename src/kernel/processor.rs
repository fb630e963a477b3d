//! Processor time of the calling thread.
//!
//! Kernel: the clock `CLOCK_THREAD_CPUTIME_ID` of clock_gettime(2).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Returns the time that the calling thread has spent on a processor, in system calls or outside. Time in which it slept or
/// waited for a processor does not count.
pub fn thread_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = Duration::from_secs(spent.tv_sec.try_into().unwrap_or_default());
    seconds + Duration::from_nanos(spent.tv_nsec.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

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
