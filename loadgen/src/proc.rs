//! CPU time and memory from /proc.

use std::fs;

/// A process that is watched.
#[derive(Clone, Copy)]
pub struct Watched {
    /// Its id.
    pub pid: u32,
}

/// CPU time and wake-ups of a process at one moment.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// CPU time of all threads.
    pub ns: u64,
    /// Time in which threads could run but another had the core.
    pub waiting_ns: u64,
    /// Voluntary context switches of all threads: how often any of them went to sleep.
    pub sleeps: u64,
}

/// Memory of a process at one moment.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// Resident memory.
    pub resident: u64,
    /// The part that is not backed by a file.
    pub anonymous: u64,
}

/// What the kernel holds for sockets, of all processes.
#[derive(Clone, Copy, Default)]
pub struct KernelMemory {
    /// Queued in TCP sockets.
    pub tcp: u64,
    /// Slab caches, where sockets themselves are.
    pub slab: u64,
}

impl Watched {
    /// CPU time so far.
    pub fn cpu(self) -> Option<Cpu> {
        let mut cpu = Cpu::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?.flatten() {
            let path = task.path();
            let (on_cpu, waiting) = schedstat(path.join("schedstat")).unwrap_or((0, 0));
            cpu.ns += on_cpu;
            cpu.waiting_ns += waiting;
            cpu.sleeps += field(path.join("status"), "voluntary_ctxt_switches:").unwrap_or(0);
        }
        Some(cpu)
    }

    /// Resident memory now, within some pages per core; cheap enough to be read all the time.
    pub fn resident(self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// Memory now, exact: the counters in `status` may lag behind by pages per core.
    pub fn memory(self) -> Option<Memory> {
        let rollup = format!("/proc/{}/smaps_rollup", self.pid);
        let status = format!("/proc/{}/status", self.pid);
        let resident = field(&rollup, "Rss:").or_else(|| field(&status, "VmRSS:"))?;
        let anonymous = field(&rollup, "Anonymous:").or_else(|| field(&status, "RssAnon:"))?;
        Some(Memory { resident: resident * 1024, anonymous: anonymous * 1024 })
    }
}

/// CPU time of a thread of this process.
pub fn thread_cpu(tid: i32) -> Cpu {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let (ns, waiting_ns) = schedstat(path).unwrap_or((0, 0));
    Cpu { ns, waiting_ns, sleeps: 0 }
}

/// What the kernel holds for sockets now.
pub fn kernel_memory() -> KernelMemory {
    let pages = fs::read_to_string("/proc/net/sockstat").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("TCP:"))?;
        line.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse::<u64>().ok()
    });
    KernelMemory {
        tcp: pages.unwrap_or(0) * rustix::param::page_size() as u64,
        slab: field("/proc/meminfo", "Slab:").unwrap_or(0) * 1024,
    }
}

fn schedstat(path: impl AsRef<std::path::Path>) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn field(path: impl AsRef<std::path::Path>, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let this = Watched { pid: std::process::id() };
        assert!(this.cpu().unwrap().ns > 0);
        assert!(this.memory().unwrap().resident > 100_000);
        assert!(kernel_memory().slab > 0);
    }
}
