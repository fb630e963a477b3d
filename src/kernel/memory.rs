//! Memory of this process that it does not use: what the allocator has freed and not given back, and the rest of huge pages.
//!
//! malloc_trim(3) and mallopt(3) of glibc; other C libraries give back by themselves, or have no such calls. Linux:
//! `admin-guide/mm/transhuge`, and `PR_SET_THP_DISABLE` of prctl(2).
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "the allocator's own calls have no safe wrapper"))]

/// Heaps of all threads together.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Size from which memory is the kernel's again as soon as it is freed.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Free memory at the end of a heap that stays: without it, what is asked for and freed in turn would be the kernel's each time.
#[cfg(target_env = "gnu")]
const SPARE: libc::c_int = 1 << 20;

/// Lets the allocator keep less of what is freed. To be called before there is a second thread.
///
/// Each thread has a heap of its own otherwise, and what one thread frees no other can use. And what was freed once, however large
/// (up to 32 MiB), is from a heap the next time, where small things that stay settle in the hole.
pub fn keep_little() {
    // SAFETY: they change numbers of the allocator, under its own lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE);
    }
}

/// Has the kernel put no huge pages in the place of small ones, for this process and the programs that it starts. A kernel that refuses that goes on as it was.
///
/// Where they are on for everybody, as with Debian and RHEL, a thread of the kernel fills each stretch of 2 MiB in which a process
/// has a single page, within seconds, and with it what [`give_back`] has just given back: 2 to 4 MiB of the service proxy with 10,000 Services.
pub fn use_small_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Returns whole free pages to the kernel, wherever in the heap they are. Takes milliseconds for a hundred MiB.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
