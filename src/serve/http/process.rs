//! Figures of the process under the names that all exporters use, from /proc/self.

use rustix::param::{clock_ticks_per_second, page_size};

use super::text::{Kind, Page};

/// Adds what the system says; what it does not say is left out.
pub(super) fn write(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may hold spaces.
    let fields: Vec<u64> = stat.rsplit_once(") ").map_or_else(Vec::new, |(_, rest)| {
        rest.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect()
    });
    // Fields 14, 15, 20, 22, 23 and 24 of proc_pid_stat(5); the third comes first here.
    if let [
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        user,
        system,
        _,
        _,
        _,
        _,
        threads,
        _,
        started,
        vsize,
        rss,
        ..,
    ] = fields[..]
    {
        let ticks = clock_ticks_per_second() as f64;
        let name = "process_cpu_seconds_total";
        page.family(name, Kind::Counter, "Time of the process on a core, in seconds.");
        page.sample(name, &[], (user + system) as f64 / ticks);
        let name = "process_resident_memory_bytes";
        page.family(name, Kind::Gauge, "Resident memory in bytes.");
        page.sample(name, &[], rss * page_size() as u64);
        let name = "process_virtual_memory_bytes";
        page.family(name, Kind::Gauge, "Virtual memory in bytes.");
        page.sample(name, &[], vsize);
        let name = "process_threads";
        page.family(name, Kind::Gauge, "Threads of the process.");
        page.sample(name, &[], threads);
        if let Some(boot) = boot_time() {
            let name = "process_start_time_seconds";
            page.family(name, Kind::Gauge, "When the process started, in seconds since 1970.");
            page.sample(name, &[], boot as f64 + started as f64 / ticks);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let name = "process_open_fds";
        page.family(name, Kind::Gauge, "Open files; connections of members are not among them.");
        page.sample(name, &[], open.count());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        let name = "process_max_fds";
        page.family(name, Kind::Gauge, "Limit of open files.");
        page.sample(name, &[], limit);
    }
}

fn boot_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
