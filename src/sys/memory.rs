//! Giving back memory that is not used any more: glibc keeps what was freed for the next time, and a supervisor waits for months.

/// Has all threads allocate from one heap: glibc would give each one of its own, and each keeps what was freed in it (mallopt(3),
/// M_ARENA_MAX). To be called before the first thread is started.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, while no other thread is there.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel back every page of the heap that nothing is in (malloc_trim(3)); nothing on another C library.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread, and touches only what is free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
