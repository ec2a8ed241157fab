//! Returns unused memory to the kernel: glibc keeps freed memory, and a supervisor is idle for
//! months.

/// Makes all threads allocate from one heap: by default, glibc creates a heap for each thread and
/// keeps freed memory in each (mallopt(3), M_ARENA_MAX). Call this before the first thread is
/// started.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number while no other thread exists.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns all unused pages of the heap to the kernel (malloc_trim(3)); no effect with other C
/// libraries.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is thread-safe and affects only free memory.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
