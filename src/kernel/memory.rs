//! Memory of this process that the allocator has freed and not given back.
//!
//! malloc_trim(3) and mallopt(3) of glibc; other C libraries give back by themselves, or have no such calls.
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

/// Returns whole free pages to the kernel, wherever in the heap they are. Takes milliseconds for a hundred MiB.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
