//! Files as start-up and cold work see them: names and bytes in a page cache, which are on disk
//! only after a sync. Two implementers: the real file system, and a simulated one
//! ([`crate::sim`]) that loses, tears and reorders what was not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};

const PIECE: usize = 1024 * 1024;

/// Access to a file system; clones see the same files. Errors are those of the system calls.
#[allow(clippy::missing_errors_doc, reason = "each can fail as its system call can")]
pub trait Files: Clone {
    /// Names in a directory, in any order.
    fn list(&mut self, dir: &Path) -> io::Result<Vec<String>>;

    /// Bytes of a file.
    fn len(&mut self, path: &Path) -> io::Result<u64>;

    /// Fills as much of `buf` as the file has from `offset` on and returns how much; less than
    /// `buf` only at the end of the file.
    fn read(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes a file that holds `head`, then zeros up to `bytes`; one that is there is emptied
    /// first. Not on disk before [`Files::sync`].
    fn create(&mut self, path: &Path, head: &[u8], bytes: u64) -> io::Result<()>;

    /// Adds to the end of a file. Not on disk before [`Files::sync`].
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file off. Not on disk before [`Files::sync`].
    fn truncate(&mut self, path: &Path, len: u64) -> io::Result<()>;

    /// Returns when bytes and length of a file are on disk.
    fn sync(&mut self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, which takes the place of a file that has it. Not on disk
    /// before [`Files::sync_dir`].
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// As [`Files::rename`], but an existing file is never replaced.
    fn rename_new(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a name away. Not on disk before [`Files::sync_dir`].
    fn remove(&mut self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name. Not on disk before [`Files::sync_dir`].
    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Whether both names are of one file.
    fn same(&mut self, a: &Path, b: &Path) -> io::Result<bool>;

    /// Makes a directory and those above it that are not there.
    fn create_dir(&mut self, dir: &Path) -> io::Result<()>;

    /// Whether there is a directory of this name.
    fn is_dir(&mut self, dir: &Path) -> bool;

    /// Returns when the names in a directory are on disk.
    fn sync_dir(&mut self, dir: &Path) -> io::Result<()>;

    /// The whole of a file of at most `max` bytes; what is longer is cut off.
    fn read_all(&mut self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let len = self.len(path)?.min(max);
        let mut bytes = vec![0; len as usize];
        let filled = self.read(path, 0, &mut bytes)?;
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// The real file system, through the page cache.
#[derive(Debug, Default)]
pub struct RealFiles {
    /// What was read last: recovery reads one file in many pieces.
    open: Option<(PathBuf, File)>,
}

impl Clone for RealFiles {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl RealFiles {
    fn open(&mut self, path: &Path) -> io::Result<&File> {
        let file = match self.open.take() {
            Some((open, file)) if open == path => file,
            _ => File::open(path)?,
        };
        Ok(&self.open.insert((path.to_owned(), file)).1)
    }
}

impl Files for RealFiles {
    fn list(&mut self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // The server gives no names that are not text.
            names.extend(entry?.file_name().to_str().map(str::to_owned));
        }
        Ok(names)
    }

    fn len(&mut self, path: &Path) -> io::Result<u64> {
        Ok(self.open(path)?.metadata()?.len())
    }

    fn read(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.open(path)?;
        let mut filled = 0;
        while filled < buf.len() {
            match file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn create(&mut self, path: &Path, head: &[u8], bytes: u64) -> io::Result<()> {
        self.open = None;
        let mut file = File::create(path)?;
        file.write_all(head)?;
        let mut left = bytes.saturating_sub(head.len() as u64);
        let zeros = vec![0; left.min(PIECE as u64) as usize];
        while left > 0 {
            let piece = left.min(PIECE as u64);
            file.write_all(&zeros[..piece as usize])?;
            left -= piece;
        }
        Ok(())
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(bytes)
    }

    fn truncate(&mut self, path: &Path, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.set_len(len)
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.open = None;
        fs::rename(from, to)
    }

    fn rename_new(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.open = None;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems know no such flag; only one process writes here.
            Err(rustix::io::Errno::INVAL) if !to.try_exists()? => fs::rename(from, to),
            other => Ok(other?),
        }
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.open = None;
        fs::remove_file(path)
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn same(&mut self, a: &Path, b: &Path) -> io::Result<bool> {
        Ok(fs::metadata(a)?.ino() == fs::metadata(b)?.ino())
    }

    fn create_dir(&mut self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn is_dir(&mut self, dir: &Path) -> bool {
        dir.is_dir()
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// One step of cold work. A job is a list of them, carried out one by one up to the first that
/// fails; power may go between any two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Files::create`].
    Create {
        /// The file.
        path: PathBuf,
        /// How it begins.
        head: Vec<u8>,
        /// Its size; zeros fill it up.
        bytes: u64,
    },
    /// [`Files::append`] to a file of `at` bytes.
    Append {
        /// The file.
        path: PathBuf,
        /// Its size so far.
        at: u64,
        /// What is added.
        bytes: Bytes,
    },
    /// [`Files::sync`].
    Sync {
        /// The file.
        path: PathBuf,
    },
    /// [`Files::rename`].
    Rename {
        /// Its name so far.
        from: PathBuf,
        /// Its name from now on.
        to: PathBuf,
    },
    /// [`Files::remove`]; a file that is gone is no error.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// [`Files::sync_dir`].
    SyncDir {
        /// The directory.
        dir: PathBuf,
    },
}

impl Step {
    /// Carries the step out.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn run(&self, files: &mut impl Files) -> io::Result<()> {
        match self {
            Self::Create { path, head, bytes } => files.create(path, head, *bytes),
            Self::Append { path, at: _, bytes } => files.append(path, bytes),
            Self::Sync { path } => files.sync(path),
            Self::Rename { from, to } => files.rename(from, to),
            Self::Remove { path } => match files.remove(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
            Self::SyncDir { dir } => files.sync_dir(dir),
        }
    }
}

/// The steps that put a file under its name only when it is complete and on disk.
#[must_use]
pub fn steps_to_replace(path: &Path, head: Vec<u8>, bytes: u64) -> Vec<Step> {
    let temporary = temporary_of(path);
    let mut steps = vec![
        Step::Create { path: temporary.clone(), head, bytes },
        Step::Sync { path: temporary.clone() },
        Step::Rename { from: temporary, to: path.to_owned() },
    ];
    steps.extend(path.parent().map(|dir| Step::SyncDir { dir: dir.to_owned() }));
    steps
}

/// Where a file is put together before it gets its name.
#[must_use]
pub fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// What the name of a file that is not complete ends with.
pub const TEMPORARY: &str = ".tmp";
