//! Returns unused memory to the kernel: a supervisor is idle for months after a start, which needs
//! much more memory.

use std::{fs, io, ops::Range};

use nix::libc;

/// A thread with this much stack is more than glibc keeps of the stacks of ended threads: 40 MiB
/// (`glibc.pthread.stack_cache_size`). The stack is address space that is never touched.
#[cfg(target_env = "gnu")]
const BEYOND_STACK_CACHE: usize = 41 << 20;
/// What stays of the stack below the caller, in bytes: frames of the functions here.
const STACK_IN_USE: usize = 4 << 10;

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

/// Returns memory to the kernel that a start used: free pages of the heap (malloc_trim(3)), stacks
/// of ended threads, the stack of the calling thread below the caller, and the mapped pages of
/// machine code. What cannot be returned stays.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim is thread-safe and affects only free memory.
        unsafe { libc::malloc_trim(0) };
        drop_cached_stacks();
    }
    match fs::read_to_string("/proc/self/maps") {
        Ok(maps) => {
            drop_unused_stack(&maps);
            unmap_code(&maps);
        }
        Err(error) => tracing::debug!("cannot read /proc/self/maps: {error}"),
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
fn drop_unused_stack(maps: &str) {
    let here = 0_u8;
    let here = (&raw const here).addr();
    let found = mappings(maps).find(|mapping| mapping.range.contains(&here));
    if let Some(Mapping { range, name: "[stack]", .. }) = found {
        // SAFETY: the kernel grows this mapping down and merges it with no other; `here` is in the
        // frame of this function.
        unsafe { drop_stack(range.start, here) };
    }
}

/// Unmaps the pages of machine code, of which a start uses ten times as many as the months after it.
/// They stay in the page cache, and are mapped again where they are used.
fn unmap_code(maps: &str) {
    for mapping in mappings(maps) {
        // Not `r--p`: relocated data is read-only as well, and exists in memory alone.
        if mapping.permissions == "r-xp" && mapping.name.starts_with('/') {
            let range = mapping.range;
            // SAFETY: nothing writes to code, so each page has the bytes of its file. The kernel
            // reads a page again where this or another thread needs it.
            unsafe { drop_pages(range.start, range.end - range.start) };
        }
    }
}

/// Returns the pages of a stack from `start` to 4 KiB below `here`.
///
/// # Safety
/// The range is a part of this thread's stack, and `here` is in the frame of the caller.
unsafe fn drop_stack(start: usize, here: usize) {
    let page = rustix::param::page_size();
    let end = here.saturating_sub(STACK_IN_USE) / page * page;
    // SAFETY: stacks grow down: no frame, nor a red zone, is 4 KiB below that of the caller.
    unsafe { drop_pages(start, end.saturating_sub(start)) };
}

/// Returns pages to the kernel, which are zeros or the bytes of their file afterwards (madvise(2)).
///
/// # Safety
/// Nothing has references to the range, or needs its present content.
unsafe fn drop_pages(start: usize, length: usize) {
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: as the caller promises.
    if length > 0 && unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) } != 0 {
        tracing::debug!("cannot return memory: {}", io::Error::last_os_error());
    }
}

/// A mapping of this process (proc_pid_maps(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    range: Range<usize>,
    /// Such as `r-xp`.
    permissions: &'a str,
    /// The path of the file, `[stack]` or the like, or empty.
    name: &'a str,
}

/// Returns the mappings, without lines of another form.
fn mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let parsed = |number| usize::from_str_radix(number, 16).ok();
        let range = parsed(start)?..parsed(end)?;
        let permissions = fields.next()?;
        let name = fields.nth(3).unwrap_or_default().trim_start();
        Some(Mapping { range, permissions, name })
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
        let stack = mappings(&maps).find(|mapping| mapping.range.contains(&here)).unwrap();
        let start = stack.range.start;
        let before = resident(start);
        // SAFETY: the range is the stack of this thread, and `kept` is in this frame.
        unsafe { drop_stack(start, here) };
        assert!(resident(start) + 256 <= before, "{} of {before} KiB", resident(start));
        assert_eq!(deep(200), 512);
        assert!(kept.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn mappings_are_parsed() {
        let maps = "1000-2000 r-xp 00002000 fe:00 77          /usr/bin/my vm\n\
                    3000-4000 rw-p 00000000 00:00 0 \nx\n\
                    7f00-7fff rw-p 00000000 00:00 0                  [stack]\n";
        let expected = [
            Mapping { range: 0x1000..0x2000, permissions: "r-xp", name: "/usr/bin/my vm" },
            Mapping { range: 0x3000..0x4000, permissions: "rw-p", name: "" },
            Mapping { range: 0x7f00..0x7fff, permissions: "rw-p", name: "[stack]" },
        ];
        assert!(mappings(maps).eq(expected));
    }

    #[test]
    fn process_continues_after_trim() {
        let text = "x".repeat(100_000);
        for _ in 0..3 {
            trim();
            assert_eq!(deep(50), 512);
            assert_eq!(text.len(), text.chars().count());
        }
    }
}
