//! The simulated file system of the node: names and bytes in a page cache over a disk. What
//! was synced stays; what was not may be lost, torn or reordered when the power goes. Log
//! writes go around the cache: one that completed is on disk.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::rng::Rng;
use super::trace::Fault;
use crate::limits::LOG_BLOCK;
use crate::ring::LogBuf;
use crate::wal::Files;

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;
pub(super) const ENOENT: i32 = 2;

/// Chances of trouble at each call, in millionths; nothing fails while all are 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileTrouble {
    pub read_ppm: u32,
    pub write_ppm: u32,
    pub sync_ppm: u32,
    pub full_ppm: u32,
}

/// A file. `data` may be shorter than `len`; zeros follow.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub data: Vec<u8>,
    pub len: u64,
    /// What is on disk for certain, if that is not the same.
    pub base: Option<(Vec<u8>, u64)>,
    /// A sync failed: the cache forgot that it is dirty, so later ones say yes and do nothing.
    pub forgotten: bool,
}

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Dir,
    File(u64),
}

/// A change of names that no sync has made durable.
#[derive(Debug)]
pub(super) enum NameChange {
    Add(PathBuf, Entry),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Entry),
}

/// A log write that has not completed.
#[derive(Debug)]
pub(super) struct LogWrite {
    pub path: PathBuf,
    pub offset: u64,
    pub buf: LogBuf,
}

/// The state behind all handles.
#[derive(Debug)]
pub(super) struct Inner {
    pub inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    pub names: BTreeMap<PathBuf, Entry>,
    pub durable: BTreeMap<PathBuf, Entry>,
    pub pending: Vec<NameChange>,
    pub writing: BTreeMap<usize, LogWrite>,
    pub trouble: FileTrouble,
    pub rng: Rng,
    /// Calls until the power goes.
    power_left: Option<u64>,
    /// The power went; nothing works until the next start.
    pub dead: bool,
    /// What happened since the world asked.
    pub happened: Vec<Fault>,
}

/// A handle; clones see the same files.
#[derive(Clone, Debug)]
pub(super) struct SimFiles(Rc<RefCell<Inner>>);

impl SimFiles {
    pub fn new(rng: Rng) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Entry::Dir)]);
        Self(Rc::new(RefCell::new(Inner {
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: root.clone(),
            durable: root,
            pending: Vec::new(),
            writing: BTreeMap::new(),
            trouble: FileTrouble::default(),
            rng,
            power_left: None,
            dead: false,
            happened: Vec::new(),
        })))
    }

    pub fn inner(&self) -> Ref<'_, Inner> {
        self.0.borrow()
    }

    pub fn inner_mut(&self) -> RefMut<'_, Inner> {
        self.0.borrow_mut()
    }

    /// The power goes after this many calls.
    pub fn cut_power_in(&self, calls: Option<u64>) {
        self.inner_mut().power_left = calls;
    }

    pub fn is_dead(&self) -> bool {
        self.inner().dead
    }
}

impl Inner {
    /// Every call passes here: the power may be gone, or go now, and the disk may fail.
    fn call(&mut self, ppm: u32, fault: Fault, errno: i32) -> io::Result<()> {
        if let Some(left) = &mut self.power_left {
            if *left == 0 {
                self.dead = true;
            }
            *left = left.saturating_sub(1);
        }
        if self.dead {
            return Err(io::Error::other("the power is gone"));
        }
        if ppm > 0 && self.rng.chance(ppm) {
            self.happened.push(fault);
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    pub fn id(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(id)) => Ok(*id),
            _ => Err(io::Error::from_raw_os_error(ENOENT)),
        }
    }

    pub fn file(&self, path: &Path) -> io::Result<&Inode> {
        let id = self.id(path)?;
        self.inodes.get(&id).ok_or_else(|| io::Error::from_raw_os_error(ENOENT))
    }

    pub fn file_mut(&mut self, path: &Path) -> io::Result<&mut Inode> {
        let id = self.id(path)?;
        self.inodes.get_mut(&id).ok_or_else(|| io::Error::from_raw_os_error(ENOENT))
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        self.names.insert(path.to_owned(), entry);
        self.pending.push(NameChange::Add(path.to_owned(), entry));
    }

    /// Drops files that no name leads to, now or after a crash.
    fn collect(&mut self) {
        let mut used = BTreeSet::new();
        let changes = self.pending.iter().filter_map(|change| match change {
            NameChange::Add(_, entry) | NameChange::Rename(_, _, entry) => Some(entry),
            NameChange::Remove(_) => None,
        });
        for entry in self.names.values().chain(self.durable.values()).chain(changes) {
            if let Entry::File(id) = entry {
                used.insert(*id);
            }
        }
        self.inodes.retain(|id, _| used.contains(id));
    }

    /// What a file holds from `offset` on.
    pub fn copy(inode: &Inode, offset: u64, out: &mut [u8]) -> usize {
        let count = out.len().min(inode.len.saturating_sub(offset) as usize);
        let from = (offset as usize).min(inode.data.len());
        let there = (inode.data.len() - from).min(count);
        out[..there].copy_from_slice(&inode.data[from..from + there]);
        out[there..count].fill(0);
        count
    }
}

impl Inode {
    /// From now on the cache holds what the disk does not.
    fn make_dirty(&mut self) {
        if self.base.is_none() {
            self.base = Some((self.data.clone(), self.len));
        }
    }

    /// Bytes that are on disk at once.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let place = |data: &mut Vec<u8>| {
            let end = offset as usize + bytes.len();
            if data.len() < end {
                data.resize(end.next_multiple_of(LOG_BLOCK), 0);
            }
            data[offset as usize..end].copy_from_slice(bytes);
        };
        place(&mut self.data);
        if let Some((base, len)) = &mut self.base {
            place(base);
            *len = (*len).max(offset + bytes.len() as u64);
        }
    }
}

impl Files for SimFiles {
    fn list(&mut self, dir: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.read_ppm;
        inner.call(ppm, Fault::ReadError, EIO)?;
        if inner.names.get(dir) != Some(&Entry::Dir) {
            return Err(io::Error::from_raw_os_error(ENOENT));
        }
        let inside =
            inner.names.range(dir.to_owned()..).take_while(|(path, _)| path.starts_with(dir));
        let names = inside.filter(|(path, _)| path.parent() == Some(dir));
        Ok(names.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn len(&mut self, path: &Path) -> io::Result<u64> {
        let mut inner = self.inner_mut();
        inner.call(0, Fault::ReadError, EIO)?;
        Ok(inner.file(path)?.len)
    }

    fn read(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.read_ppm;
        inner.call(ppm, Fault::ReadError, EIO)?;
        Ok(Inner::copy(inner.file(path)?, offset, buf))
    }

    fn create(&mut self, path: &Path, head: &[u8], bytes: u64) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let full = inner.trouble.full_ppm;
        let result = inner.call(full, Fault::DiskFull, ENOSPC);
        if inner.dead {
            return result;
        }
        let id = inner.id(path).unwrap_or_else(|_| {
            inner.next_inode += 1;
            let id = inner.next_inode;
            inner.inodes.insert(id, Inode::default());
            inner.add(path, Entry::File(id));
            id
        });
        if let Some(inode) = inner.inodes.get_mut(&id) {
            inode.make_dirty();
            inode.forgotten = false;
            inode.data = head.to_vec();
            inode.len = bytes.max(head.len() as u64);
        }
        // A full disk is found out when the file is there and a part of it is written.
        result?;
        let ppm = inner.trouble.write_ppm;
        inner.call(ppm, Fault::WriteError, EIO)
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let (full, ppm) = (inner.trouble.full_ppm, inner.trouble.write_ppm);
        inner.call(full, Fault::DiskFull, ENOSPC)?;
        inner.call(ppm, Fault::WriteError, EIO)?;
        let inode = inner.file_mut(path)?;
        inode.make_dirty();
        inode.data.resize(inode.len as usize, 0);
        inode.data.extend_from_slice(bytes);
        inode.len = inode.data.len() as u64;
        Ok(())
    }

    fn truncate(&mut self, path: &Path, len: u64) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.write_ppm;
        inner.call(ppm, Fault::WriteError, EIO)?;
        let inode = inner.file_mut(path)?;
        inode.make_dirty();
        inode.data.truncate(len as usize);
        inode.len = len;
        Ok(())
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.sync_ppm;
        let result = inner.call(ppm, Fault::SyncError, EIO);
        if inner.dead {
            return result;
        }
        let inode = inner.file_mut(path)?;
        if result.is_err() {
            inode.forgotten = inode.base.is_some();
        } else if !inode.forgotten {
            inode.base = None;
        }
        result
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.write_ppm;
        inner.call(ppm, Fault::WriteError, EIO)?;
        let Some(entry) = inner.names.remove(from) else {
            return Err(io::Error::from_raw_os_error(ENOENT));
        };
        inner.names.insert(to.to_owned(), entry);
        inner.pending.push(NameChange::Rename(from.to_owned(), to.to_owned(), entry));
        inner.collect();
        Ok(())
    }

    fn rename_new(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if self.inner().names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.write_ppm;
        inner.call(ppm, Fault::WriteError, EIO)?;
        inner.id(path)?;
        inner.names.remove(path);
        inner.pending.push(NameChange::Remove(path.to_owned()));
        inner.collect();
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        inner.call(0, Fault::WriteError, EIO)?;
        let id = inner.id(from)?;
        if inner.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.add(to, Entry::File(id));
        Ok(())
    }

    fn same(&mut self, a: &Path, b: &Path) -> io::Result<bool> {
        let inner = self.inner();
        Ok(inner.id(a)? == inner.id(b)?)
    }

    fn create_dir(&mut self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        inner.call(0, Fault::WriteError, EIO)?;
        let mut missing: Vec<_> =
            dir.ancestors().take_while(|dir| !inner.names.contains_key(*dir)).collect();
        while let Some(dir) = missing.pop() {
            inner.add(dir, Entry::Dir);
        }
        Ok(())
    }

    fn is_dir(&mut self, dir: &Path) -> bool {
        self.inner().names.get(dir) == Some(&Entry::Dir)
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner_mut();
        let ppm = inner.trouble.sync_ppm;
        inner.call(ppm, Fault::SyncError, EIO)?;
        let pending = std::mem::take(&mut inner.pending);
        for change in pending {
            if change.dir() == Some(dir) {
                change.apply(&mut inner.durable);
            } else {
                inner.pending.push(change);
            }
        }
        inner.collect();
        Ok(())
    }
}

impl NameChange {
    /// The directory that has to be synced for it.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    /// The names that it is about.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let (one, other) = match self {
            Self::Add(path, _) | Self::Remove(path) => (path, None),
            Self::Rename(from, to, _) => (from, Some(to)),
        };
        std::iter::once(one).chain(other).map(PathBuf::as_path)
    }

    pub fn apply(self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Add(path, entry) => drop(names.insert(path, entry)),
            Self::Remove(path) => drop(names.remove(&path)),
            Self::Rename(from, to, entry) => {
                names.remove(&from);
                names.insert(to, entry);
            }
        }
    }
}
