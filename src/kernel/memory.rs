//! Memory of this process that the allocator has freed and not given back.
//!
//! malloc_trim(3) of glibc; other C libraries give back by themselves, or have no such call.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "the allocator's own calls have no safe wrapper"))]

/// Returns whole free pages to the kernel, wherever in the heap they are. Takes milliseconds for a hundred MiB.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
