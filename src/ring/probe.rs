//! What the kernel offers, asked by trying it, before anything is started.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, getrlimit};

/// Rings count about 165 KiB each against locked memory, and the thread for cold work its
/// buffers; below this a start may fail for an unprivileged user.
const MEMLOCK_MIN: u64 = 2 * 1024 * 1024;
/// Below this there is no room for the spare descriptors, log files and a few members.
const NOFILE_MIN: u64 = 256;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Kernel release, as `uname -r` says.
    pub release: String,
    /// NO_SQARRAY, Linux 6.6: submissions without an index array.
    pub no_sqarray: bool,
    /// NO_IOWAIT, Linux 6.15: an idle ring does not count as waiting for a disk.
    pub no_iowait: bool,
    /// Soft RLIMIT_NOFILE: bounds the connections of a shard.
    pub nofile: Option<u64>,
    /// Soft RLIMIT_MEMLOCK in bytes.
    pub memlock: Option<u64>,
}

/// Why the engine cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Switched off by sysctl.
    #[error(
        "io_uring is switched off: kernel.io_uring_disabled is {value}. \
         Allow it with `sysctl -w kernel.io_uring_disabled=0`"
    )]
    Disabled {
        /// The sysctl's value.
        value: String,
    },
    /// The system call is there but refused.
    #[error(
        "io_uring is refused ({source}) though the kernel {release} does not have it switched \
         off: a seccomp filter or another security policy forbids it. In a container, allow \
         io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Forbidden {
        /// Kernel release.
        release: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system call is not there.
    #[error(
        "this system has no io_uring (kernel {release}): Linux 6.1 or newer, built with \
         CONFIG_IO_URING, is needed. In a container a seccomp filter may hide it"
    )]
    Missing {
        /// Kernel release.
        release: String,
    },
    /// The kernel is too old.
    #[error(
        "kernel {release} has no {feature}, which came with Linux {since}; \
         Linux 6.1 or newer is needed"
    )]
    TooOld {
        /// Kernel release.
        release: String,
        /// What is missing.
        feature: &'static str,
        /// Where it came from.
        since: &'static str,
    },
    /// RLIMIT_NOFILE.
    #[error(
        "the limit of open files is {value}, at least {min} are needed, and one for each \
         connection of a shard; raise it with `ulimit -n 65536`"
    )]
    Nofile {
        /// The limit.
        value: u64,
        /// What is needed.
        min: u64,
    },
    /// RLIMIT_MEMLOCK.
    #[error(
        "the limit of locked memory is {value} bytes, at least {min} are needed; raise it with \
         `ulimit -l {}`", min / 1024
    )]
    Memlock {
        /// The limit.
        value: u64,
        /// What is needed.
        min: u64,
    },
    /// Something else.
    #[error("cannot find out what io_uring offers on kernel {release}: {source}")]
    Other {
        /// Kernel release.
        release: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Features that can be told apart by trying, oldest first. Multishot receive (6.0) has no
/// test of its own; DEFER_TASKRUN came after it.
type Check = (&'static str, &'static str, fn(&IoUring) -> bool);

const CHECKS: [Check; 3] = [
    ("waiting with a timeout (EXT_ARG)", "5.11", |r| r.params().is_feature_ext_arg()),
    ("messages between rings (MSG_RING)", "5.18", |r| {
        let mut probe = Probe::new();
        r.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::MsgRingData::CODE)
    }),
    ("direct descriptors by multishot accept and provided-buffer rings", "5.19", |r| {
        r.submitter().register_files_sparse(1).is_ok()
    }),
];

impl KernelFeatures {
    /// Tries what the ring of a shard needs, and the limits of this process.
    ///
    /// # Errors
    /// [`ProbeError`], each with what to do.
    pub fn probe() -> Result<Self, ProbeError> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let ring = match IoUring::builder().build(4) {
            Ok(ring) => ring,
            Err(e) => return Err(refused(e, release, &read_sysctl())),
        };
        for (feature, since, works) in CHECKS {
            if !works(&ring) {
                return Err(ProbeError::TooOld { release, feature, since });
            }
        }
        let no_iowait = ring.params().is_feature_no_iowait();
        drop(ring);
        if let Err(source) = IoUring::<io_uring::squeue::Entry, io_uring::cqueue::Entry>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(4)
        {
            if source.raw_os_error() == Some(libc::EINVAL) {
                let feature = "deferred task work (SINGLE_ISSUER, DEFER_TASKRUN)";
                return Err(ProbeError::TooOld { release, feature, since: "6.1" });
            }
            return Err(ProbeError::Other { release, source });
        }
        let no_sqarray = IoUring::<io_uring::squeue::Entry, io_uring::cqueue::Entry>::builder()
            .setup_no_sqarray()
            .build(4)
            .is_ok();
        let nofile = getrlimit(Resource::Nofile).current;
        let memlock = getrlimit(Resource::Memlock).current;
        check_limits(nofile, memlock)?;
        Ok(Self { release, no_sqarray, no_iowait, nofile, memlock })
    }
}

fn check_limits(nofile: Option<u64>, memlock: Option<u64>) -> Result<(), ProbeError> {
    match (nofile, memlock) {
        (Some(value), _) if value < NOFILE_MIN => {
            Err(ProbeError::Nofile { value, min: NOFILE_MIN })
        }
        (_, Some(value)) if value < MEMLOCK_MIN => {
            Err(ProbeError::Memlock { value, min: MEMLOCK_MIN })
        }
        _ => Ok(()),
    }
}

fn read_sysctl() -> String {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .map_or_else(|_| "0".into(), |value| value.trim().to_owned())
}

/// Why a plain ring could not be made.
fn refused(source: io::Error, release: String, disabled: &str) -> ProbeError {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => ProbeError::Missing { release },
        Some(libc::EPERM | libc::EACCES) if disabled != "0" => {
            ProbeError::Disabled { value: disabled.to_owned() }
        }
        Some(libc::EPERM | libc::EACCES) => ProbeError::Forbidden { release, source },
        _ => ProbeError::Other { release, source },
    }
}

impl fmt::Display for KernelFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}, defer_taskrun, msg_ring, direct descriptors", self.release)?;
        for (name, found) in [("no_sqarray", self.no_sqarray), ("no_iowait", self.no_iowait)] {
            write!(f, ", {}{name}", if found { "" } else { "without " })?;
        }
        for (name, limit) in [("nofile", self.nofile), ("memlock", self.memlock)] {
            match limit {
                Some(limit) => write!(f, ", {name} {limit}")?,
                None => write!(f, ", {name} unlimited")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn this_machine_has_what_is_needed() {
        let found = KernelFeatures::probe().unwrap();
        assert!(found.to_string().contains(&found.release));
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        let say = |errno, sysctl| refused(error(errno), "6.8".into(), sysctl).to_string();
        assert!(say(libc::EPERM, "2").contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(say(libc::EPERM, "0").contains("seccomp"));
        assert!(say(libc::ENOSYS, "0").contains("6.1"));
        let nofile = check_limits(Some(100), None).unwrap_err().to_string();
        assert!(nofile.contains("100") && nofile.contains("ulimit -n"));
        let memlock = check_limits(None, Some(65_536)).unwrap_err().to_string();
        assert!(memlock.contains("65536") && memlock.contains("ulimit -l 2048"));
        check_limits(None, None).unwrap();
    }
}
