//! Returns unused memory to the kernel: a supervisor is idle for months after a start, which needs
//! much more memory.

use std::{fs, io};

use nix::libc;

/// A thread with this much stack is more than glibc keeps of the stacks of ended threads: 40 MiB
/// (`glibc.pthread.stack_cache_size`). The stack is address space that is never touched.
#[cfg(target_env = "gnu")]
const BEYOND_STACK_CACHE: usize = 41 << 20;
/// What stays of the stack below the caller, in bytes: frames of the functions here.
const STACK_IN_USE: usize = 16 << 10;

/// Makes all threads allocate from one heap: by default, glibc creates a heap for each thread and
/// keeps freed memory in each (mallopt(3), M_ARENA_MAX). Call this before the first thread is
/// started.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number while no other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns unused memory to the kernel: free pages of the heap (malloc_trim(3)), stacks of ended
/// threads, and the stack of the calling thread below the caller. What cannot be returned stays.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim is thread-safe and affects only free memory.
        unsafe { libc::malloc_trim(0) };
        drop_cached_stacks();
    }
    if let Err(error) = drop_unused_stack() {
        tracing::debug!("cannot return unused stack to the kernel: {error}");
    }
}

/// glibc keeps stacks of ended threads for the next thread, with 16 KiB and more of each in memory.
/// The end of a thread whose stack does not fit has glibc unmap all of them, oldest first.
#[cfg(target_env = "gnu")]
fn drop_cached_stacks() {
    let thread = std::thread::Builder::new().name("trim".into()).stack_size(BEYOND_STACK_CACHE);
    if let Ok(thread) = thread.spawn(|| ()) {
        let _ = thread.join();
    }
}

/// Returns the pages of the main thread's stack below the caller's frame. The next deeper call finds
/// them as zeros. Does nothing on other threads.
fn drop_unused_stack() -> io::Result<()> {
    let here = 0_u8;
    let here = (&raw const here).addr();
    match mapping(&fs::read_to_string("/proc/self/maps")?, here) {
        // SAFETY: the kernel grows this mapping down and merges it with no other; `here` is in the
        // frame of this function.
        Some((start, "[stack]")) => unsafe { drop_stack(start, here) },
        _ => Ok(()),
    }
}

/// Returns the pages of a stack from `start` to 16 KiB below `here`.
///
/// # Safety
/// The range is a part of this thread's stack, and `here` is in the frame of the caller.
unsafe fn drop_stack(start: usize, here: usize) -> io::Result<()> {
    let page = rustix::param::page_size();
    let end = here.saturating_sub(STACK_IN_USE) / page * page;
    let length = end.saturating_sub(start);
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: stacks grow down: no frame, nor a red zone, is 16 KiB below that of the caller.
    if length > 0 && unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns the first address and the name of the mapping that contains `address`
/// (proc_pid_maps(5)).
fn mapping(maps: &str, address: usize) -> Option<(usize, &str)> {
    maps.lines().find_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let parsed = |number| usize::from_str_radix(number, 16).ok();
        let (start, end) = (parsed(start)?, parsed(end)?);
        let name = line.rsplit(' ').next().unwrap_or_default();
        (start..end).contains(&address).then_some((start, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deep(depth: usize) -> usize {
        let frame = std::hint::black_box([depth; 512]);
        if depth == 0 { frame.len() } else { deep(depth - 1) + frame[0] - depth }
    }

    fn resident(start: usize) -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let own = smaps.split_once(&format!("{start:x}-")).unwrap().1;
        let line = own.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn unused_stack_is_returned_and_usable() {
        let kept = std::hint::black_box([7_u8; 4096]);
        let here = (&raw const kept).addr();
        assert_eq!(deep(200), 512);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        // The stack of a test's thread, which a guard page separates from other mappings.
        let (start, _) = mapping(&maps, here).unwrap();
        let before = resident(start);
        // SAFETY: the range is the stack of this thread, and `kept` is in this frame.
        unsafe { drop_stack(start, here) }.unwrap();
        assert!(resident(start) + 256 <= before, "{} of {before} KiB", resident(start));
        assert_eq!(deep(200), 512);
        assert!(kept.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn mapping_is_found_by_address() {
        let maps = "1000-2000 r--p 0 0:0 0 a\n7f00-7fff rw-p 0 0:0 0    [stack]\n";
        assert_eq!(mapping(maps, 0x7f10), Some((0x7f00, "[stack]")));
        assert_eq!(mapping(maps, 0x2000), None);
        trim();
    }
}
