//! Names of schedulers, as the kernel has them.

use std::fmt;
use std::ops::Deref;

/// Bytes of the longest name: `IP_VS_SCHEDNAME_MAXLEN` (include/uapi/linux/ip_vs.h) without the zero behind it.
const MOST: usize = 15;

/// A scheduler's name. It stands in each virtual service, in several maps, and is copied with them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SchedulerName([u8; MOST]);

impl From<&str> for SchedulerName {
    /// A name without what is beyond the longest that the kernel may have.
    fn from(name: &str) -> SchedulerName {
        let name = name.get(..name.floor_char_boundary(MOST)).unwrap_or_default();
        let mut bytes = [0; MOST];
        bytes.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        SchedulerName(bytes)
    }
}

impl Deref for SchedulerName {
    type Target = str;

    fn deref(&self) -> &str {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }
}

impl PartialEq<str> for SchedulerName {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for SchedulerName {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl fmt::Display for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_was_put_in_as_far_as_the_kernel_may_have_it() {
        for (given, kept) in [
            ("", ""),
            ("rr", "rr"),
            ("fifteen-letters", "fifteen-letters"),
            ("sixteen-letters-", "sixteen-letters"),
            ("fifteen-letterä", "fifteen-letter"),
        ] {
            let name = SchedulerName::from(given);
            assert_eq!((&*name, name.to_string()), (kept, kept.to_owned()));
            assert_eq!((name, name == *kept), (SchedulerName::from(kept), true));
        }
        assert_ne!(SchedulerName::from("rr"), SchedulerName::from("wrr"));
    }
}
