//! How a thread shares its core with others.

use std::io;

/// The shortest slice that Linux has.
const SLICE_NS: u64 = 100_000;

/// Gives the calling thread short time slices, so that whoever waits for its core, such as the
/// kernel's threads that finish a log write, waits for 0.1 ms and not for up to a tick (4 ms at
/// 250 Hz). Costs nothing as long as nobody waits. Kernels before 6.12 take it and do nothing.
///
/// # Errors
/// The kernel does not know the call.
pub fn take_short_slices() -> io::Result<()> {
    change(|attr| attr.sched_runtime = SLICE_NS)
}

/// Lets the calling thread, and those it starts from now on, run only while no other process
/// of its session wants the core.
///
/// # Errors
/// The kernel does not know the call.
pub fn run_when_idle() -> io::Result<()> {
    change(|attr| attr.sched_policy = libc::SCHED_IDLE as u32)
}

fn change(what: impl FnOnce(&mut libc::sched_attr)) -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is valid.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes to `attr`. 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    what(&mut attr);
    // SAFETY: the kernel reads the size from `attr` itself, and no more than that.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_thread_may_take_short_slices_and_run_when_idle() {
        // Not on the thread of the test: there is no way back for everyone.
        let thread = std::thread::spawn(|| {
            take_short_slices().unwrap();
            run_when_idle().unwrap();
            // SAFETY: it takes and returns numbers; 0 is the calling thread.
            assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_IDLE);
        });
        thread.join().unwrap();
    }
}
