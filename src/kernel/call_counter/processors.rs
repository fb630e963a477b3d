//! Lists of processors, as the kernel tells them in sysfs.

use std::ffi::c_int;
use std::fs::File;
use std::io::Read;

use rustix::io::Errno;

use super::super::{Cause, Error};

/// The processors that are online.
pub const ONLINE: &str = "/sys/devices/system/cpu/online";
/// The processors that do nothing but what they are told, for different reasons: the kernel's scheduler and its tick stay away from them.
const APART: [&str; 2] = ["/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full"];

/// `SYSFS_MAGIC`
const SYSFS: rustix::fs::FsWord = 0x6265_6572;

/// Reads the lists of processors that are set apart. A kernel without such processors may lack the files.
pub fn apart() -> [String; 2] {
    APART.map(|path| read(path).unwrap_or_default())
}

/// Returns a processor that is online and not set apart; the one of this thread where possible, and where all others are set apart too.
pub fn any() -> c_int {
    let own = c_int::try_from(rustix::thread::sched_getcpu()).unwrap_or_default();
    let online = read(ONLINE).ok().and_then(|online| processors(&online)).unwrap_or_default();
    let apart: Vec<c_int> = apart().iter().filter_map(|list| processors(list)).flatten().collect();
    std::iter::once(own).chain(online).find(|processor| !apart.contains(processor)).unwrap_or(own)
}

/// Reads a file of the kernel's own. In some containers another file system stands over one of them, which tells of the container's processors
/// alone.
pub fn read(path: &'static str) -> Result<String, Error> {
    let failed =
        |error: std::io::Error| Error::errno("read", path, Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    let mut file = File::open(path).map_err(failed)?;
    if !is_of_sysfs(&file) {
        return Err(Error::new("read", path, Cause::Malformed("the file is not the kernel's own")));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn is_of_sysfs(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|told| told.f_type == SYSFS)
}

/// Reads a list of processors: `0-3,8,10-11`.
pub fn processors(list: &str) -> Option<Vec<c_int>> {
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        all.extend((first..=last).map(c_int::from));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read_as_the_kernel_writes_it() {
        assert_eq!(processors("0\n"), Some(vec![0]));
        assert_eq!(processors("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(processors(""), None);
        assert_eq!(processors("0-"), None);
        assert_eq!(processors("0-70000"), None);
    }

    #[test]
    fn a_file_that_stands_over_the_kernels_own_is_told_apart() {
        let file = |path: &str| File::open(path).expect("it is there");
        assert!(is_of_sysfs(&file(ONLINE)));
        assert!(!is_of_sysfs(&file("/proc/self/stat")));
        assert!(!is_of_sysfs(&file("/dev/null")));
    }

    #[test]
    fn any_processor_is_one_that_is_online() {
        let online = processors(&read(ONLINE).expect("sysfs is mounted")).expect("a list");
        assert!(online.contains(&any()));
    }
}
