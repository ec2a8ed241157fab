//! Giving back memory that is not used any more: glibc keeps what was freed for the next time, and a supervisor waits for months.

/// Gives the kernel back every page of the heap that nothing is in (malloc_trim(3)); nothing on another C library.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread, and touches only what is free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
