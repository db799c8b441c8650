//! One process at a time trains into a run directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Hidden, and there only while a process trains, or where one was killed.
const NAME: &str = ".lock";

/// Held as long as it lives. The operating system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    /// None where the file system has no locks.
    held: Option<(File, PathBuf)>,
}

impl RunLock {
    /// Takes the lock of a run directory that exists.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it.
    pub(crate) fn acquire(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked {
                        path: directory.to_path_buf(),
                        pid: process_in(&mut file),
                    });
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    tracing::warn!(
                        "{}: this file system has no locks: that no other process trains here is not checked",
                        directory.display()
                    );
                    return Ok(Self { held: None });
                }
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
            }
            // Between opening and locking, the process before may have removed the file: then others would lock a new one.
            if is_at(&file, &path) {
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| write!(file, "{}", std::process::id()));
                written.map_err(Error::io("write", &path))?;
                return Ok(Self {
                    held: Some((file, path)),
                });
            }
        }
    }

    /// Refuses a directory that another process trains into, and leaves it as it is.
    ///
    /// # Errors
    /// As [`RunLock::acquire`].
    pub(crate) fn check(directory: &Path) -> Result<()> {
        if directory.join(NAME).exists() {
            Self::acquire(directory)?;
        }
        Ok(())
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.held
            && cfg!(unix)
        {
            // Before the lock is let go. A file that stays is no obstacle: it is the lock that counts.
            let _ = fs::remove_file(path);
        }
    }
}

/// What the process that holds the lock wrote.
fn process_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether the path still leads to this file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Ok((own, found)) = file.metadata().and_then(|own| Ok((own, fs::metadata(path)?))) else {
        return false;
    };
    (own.dev(), own.ino()) == (found.dev(), found.ino())
}

/// Where the file is never removed it is the same one.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_one_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(dir.path()).unwrap();
        for refused in [RunLock::acquire(dir.path()).map(drop), RunLock::check(dir.path())] {
            let Err(Error::Locked { path, pid }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((path, pid), (dir.path().to_path_buf(), Some(std::process::id())));
        }
        drop(lock);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        RunLock::check(dir.path()).unwrap();
        // As a process that was killed leaves it.
        fs::write(dir.path().join(NAME), "12345").unwrap();
        RunLock::check(dir.path()).unwrap();
        drop(RunLock::acquire(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
