//! Looks for changes by others of kernel objects without notifications: virtual services, set elements.
//!
//! Several courses of looks go on side by side: first a glance at everything, which sees most changes at little cost; behind it
//! courses that see every change, portion by portion. Each begins anew every [`PERIOD`] where it can. Where there is much
//! to look at they come more rarely, so that all of them together cost no more than one part in [`PART`] of a core: of the
//! time that a thread spent on looking, not of that for which it waited. The course that has had the least goes first, so
//! one with little to do never waits for one with much. A look that found something may have taken long for reading
//! that; the first of a pass delays none. Whatever is left to find is found by the audit.
//!
//! A course rests while the kernel counts the commands of others to its objects (`command_looks`).

use std::time::{Duration, Instant};

/// Time between the beginnings of two passes of one course.
const PERIOD: Duration = Duration::from_secs(10);
/// Least time without looks, as a multiple of the time a look took.
pub(super) const PART: u32 = 1000;
/// Longest time without looks, however long one took.
const LONGEST: Duration = Duration::from_secs(60);

/// Times of the next looks.
#[derive(Debug)]
pub struct Patrol {
    courses: Vec<Course>,
    /// End of the pause after the last look.
    free_at: Instant,
    /// The time that the course of the last look had been given before it.
    given: Duration,
}

/// One course of looks.
#[derive(Clone, Debug)]
struct Course {
    due_at: Instant,
    pass_began: Instant,
    /// It is in the middle of a pass, or at its beginning and due.
    is_under_way: bool,
    /// The pass has found drift before.
    found_drift: bool,
    /// Processor time that it has been given, beside the others.
    given: Duration,
    rests: bool,
}

/// One look: a glance, or a portion of another course.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Processor time spent.
    pub took: Duration,
    pub found_drift: bool,
    /// It was the last of a pass.
    pub finished: bool,
}

impl Patrol {
    /// So many courses. The first looks come after a period: what is known has just been read.
    pub fn new(now: Instant, courses: usize) -> Patrol {
        let first = now + PERIOD;
        let (is_under_way, found_drift, given, rests) = (false, false, Duration::ZERO, false);
        let course = Course { due_at: first, pass_began: first, is_under_way, found_drift, given, rests };
        Patrol { courses: vec![course; courses], free_at: now, given: Duration::ZERO }
    }

    /// Returns when the next look is due.
    pub fn deadline(&self) -> Instant {
        let due = self.courses.iter().filter(|course| !course.rests).map(|course| course.due_at).min();
        due.map_or(self.free_at + LONGEST, |due| due.max(self.free_at))
    }

    /// Returns the course of the next look, if one is due.
    pub fn next(&mut self, now: Instant) -> Option<usize> {
        if now < self.free_at {
            return None;
        }
        let begins = |course: &&mut Course| course.is_due(now) && !course.is_under_way;
        for course in self.courses.iter_mut().filter(begins) {
            course.is_under_way = true;
            // Time without anything to do is not saved up.
            course.given = course.given.max(self.given);
        }
        let due = self.courses.iter().enumerate().filter(|(_, course)| course.is_due(now));
        let (index, course) = due.min_by_key(|(_, course)| course.given)?;
        self.given = course.given;
        Some(index)
    }

    /// Lets a course rest, or go on with a new pass.
    pub fn rest(&mut self, course: usize, rests: bool) {
        let Some(course) = self.courses.get_mut(course) else { return };
        if std::mem::replace(&mut course.rests, rests) && !rests {
            course.is_under_way = false;
        }
    }

    /// Records a look of this course.
    pub fn looked(&mut self, course: usize, now: Instant, look: Look) {
        let Some(course) = self.courses.get_mut(course) else { return };
        let is_first_drift = look.found_drift && !std::mem::replace(&mut course.found_drift, look.found_drift);
        let pause = if is_first_drift { Duration::ZERO } else { look.took.saturating_mul(PART).min(LONGEST) };
        self.free_at = now + pause;
        course.given += look.took;
        course.due_at = now;
        if look.finished {
            course.due_at = now.max(course.pass_began + PERIOD);
            course.pass_began = course.due_at;
            (course.is_under_way, course.found_drift) = (false, false);
        }
    }
}

impl Course {
    fn is_due(&self, now: Instant) -> bool {
        !self.rests && self.due_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(took: Duration, finished: bool) -> Look {
        Look { took, found_drift: false, finished }
    }

    /// Runs courses with so many portions of so many microseconds each for a time; returns how many passes each made.
    fn passes<const N: usize>(courses: [(u32, u64); N], lasts: Duration) -> [u32; N] {
        let begun = Instant::now();
        let mut patrol = Patrol::new(begun, N);
        let (mut portions, mut at, mut spent) = ([0_u32; N], begun, Duration::ZERO);
        while at < begun + lasts {
            if let Some(course) = patrol.next(at) {
                let (count, took) = courses[course];
                portions[course] += 1;
                spent += Duration::from_micros(took);
                patrol.looked(course, at, look(Duration::from_micros(took), portions[course] % count == 0));
            }
            assert!(patrol.next(at).is_none() || patrol.deadline() <= at, "what is due has its time");
            at = patrol.deadline().max(at);
        }
        assert!(spent <= lasts / PART + Duration::from_millis(20), "{spent:?} of {lasts:?}");
        std::array::from_fn(|course| portions[course] / courses[course].0)
    }

    #[test]
    fn few_services_are_looked_at_once_in_a_period() {
        assert_eq!(passes([(1, 100), (3, 100)], 10 * PERIOD), [9, 9]);
    }

    #[test]
    fn many_services_are_looked_at_as_often_as_their_price_allows() {
        let [glances, passes] = passes([(1, 3000), (10, 1500)], Duration::from_secs(600));
        assert!(glances >= 58, "{glances}: every 10 s");
        assert!((26..=29).contains(&passes), "{passes}: with the rest of the time, every 21 s");
    }

    #[test]
    fn a_course_with_little_to_do_does_not_wait_for_one_with_much() {
        let [glances, few, many] = passes([(1, 1000), (10, 200), (150, 1000)], Duration::from_secs(3600));
        assert!(glances > 340 && few > 340, "{glances}, {few}: every 10 s");
        assert!((14..=18).contains(&many), "{many}: with the rest of the time, every 215 s");
    }

    #[test]
    fn a_course_that_had_nothing_to_do_for_long_takes_nothing_from_the_others() {
        let begun = Instant::now();
        let mut patrol = Patrol::new(begun, 2);
        for _ in 0..1000 {
            let at = patrol.deadline();
            let course = patrol.next(at).expect("it is due");
            // The first has an endless pass, the second finishes at once.
            patrol.looked(course, at, look(Duration::from_millis(if course == 0 { 5 } else { 0 }), course == 1));
        }
        let mut turns = [0_u32; 2];
        for _ in 0..100 {
            let at = patrol.deadline();
            let course = patrol.next(at).expect("it is due");
            turns[course] += 1;
            patrol.looked(course, at, look(Duration::from_millis(5), false));
        }
        assert!(turns[0].abs_diff(turns[1]) <= 4, "{turns:?}");
    }

    #[test]
    fn a_long_look_is_not_the_last_for_long() {
        let now = Instant::now() + PERIOD;
        let mut patrol = Patrol::new(now - PERIOD, 1);
        assert_eq!(patrol.next(now), Some(0));
        patrol.looked(0, now, look(Duration::from_secs(10), false));
        assert_eq!(patrol.next(now + LONGEST - PERIOD), None);
        assert_eq!(patrol.next(now + LONGEST), Some(0));
    }

    #[test]
    fn what_was_found_delays_no_look() {
        let now = Instant::now() + PERIOD;
        let mut patrol = Patrol::new(now - PERIOD, 2);
        let found = |finished| Look { took: Duration::from_secs(10), found_drift: true, finished };
        assert_eq!(patrol.next(now), Some(0));
        patrol.looked(0, now, found(true));
        assert_eq!(patrol.next(now), Some(1));
        patrol.looked(1, now, found(false));
        assert_eq!(patrol.next(now), Some(1), "the pass goes on");
        patrol.looked(1, now, look(Duration::ZERO, true));
        assert_eq!(patrol.next(now + PERIOD), Some(0));
    }

    #[test]
    fn somebody_who_changes_something_all_the_time_cannot_make_looks_cost_more() {
        let now = Instant::now() + PERIOD;
        let mut patrol = Patrol::new(now - PERIOD, 1);
        let found = Look { took: Duration::from_millis(10), found_drift: true, finished: false };
        assert_eq!(patrol.next(now), Some(0));
        patrol.looked(0, now, found);
        assert_eq!(patrol.next(now), Some(0), "the first drift of a pass delays nothing");
        patrol.looked(0, now, found);
        assert_eq!(patrol.next(now), None);
        assert_eq!(patrol.next(now + PERIOD), Some(0));
    }

    #[test]
    fn a_course_that_rests_leaves_its_time_to_the_others_and_goes_on_at_once_afterwards() {
        let now = Instant::now() + PERIOD;
        let mut patrol = Patrol::new(now - PERIOD, 2);
        patrol.rest(0, true);
        assert_eq!(patrol.next(now), Some(1));
        patrol.looked(1, now, look(Duration::from_millis(5), true));
        assert_eq!(patrol.next(now + PERIOD / 2), None);
        assert!(patrol.deadline() >= now + PERIOD, "nothing wakes for it");
        patrol.rest(0, false);
        assert_eq!(patrol.next(now + PERIOD / 2), Some(0));
    }
}
