//! Files and directories that appear whole or not at all: written aside, synced, renamed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;

use crate::{Error, Result};

/// Writes a file so that readers, and the next start after a crash, see either the old content or the new.
///
/// # Errors
/// [`Error::Io`] naming the file; the old content, if there was one, is then untouched.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let io = |source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let mut file = AtomicWriteFile::open(path).map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.commit().map_err(io)
}

/// Fills a directory beside its final place, syncs it and renames it: `path` appears complete or not at all.
///
/// `fill` gets the directory to write into. What an interrupted call leaves is a hidden sibling named by
/// [`partial_path`], which the next call for the same `path` removes.
///
/// # Errors
/// Those of `fill`, converted errors of the file system ([`Error::Io`]), and [`Error::Io`] when `path` exists already.
pub fn write_directory<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let partial = partial_path(path);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(|source| Error::Io {
            action: "remove",
            path: partial.clone(),
            source,
        })?;
    }
    fs::create_dir_all(&partial).map_err(|source| Error::Io {
        action: "create",
        path: partial.clone(),
        source,
    })?;
    let filled = fill(&partial).and_then(|()| Ok(publish(&partial, path)?));
    if filled.is_err() {
        // The first error is the one to report; a leftover is removed by the next call.
        let _ = fs::remove_dir_all(&partial);
    }
    filled
}

/// Where [`write_directory`] collects the content of `path` before it is complete.
pub fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

fn publish(partial: &Path, path: &Path) -> Result<()> {
    sync_tree(partial)?;
    if path.exists() {
        let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(Error::Io {
            action: "create",
            path: path.to_owned(),
            source,
        });
    }
    fs::rename(partial, path).map_err(|source| Error::Io {
        action: "create",
        path: path.to_owned(),
        source,
    })?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => Ok(()),
    }
}

fn sync_tree(directory: &Path) -> Result<()> {
    let io = |source| Error::Io {
        action: "read",
        path: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(directory)
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::Io {
            action: "sync",
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_nothing_and_a_leftover_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        let failed = write_directory::<Error>(&path, |partial| {
            write_file(&partial.join("a"), b"half")?;
            Err(Error::DuplicateParameter { name: "x".into() })
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        fs::create_dir(partial_path(&path)).unwrap();
        fs::write(partial_path(&path).join("old"), b"killed").unwrap();
        write_directory::<Error>(&path, |partial| write_file(&partial.join("a"), b"whole")).unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"whole");
        assert!(!path.join("old").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(
            write_directory::<Error>(&path, |_| Ok(())).is_err(),
            "an existing directory was overwritten"
        );
    }

    #[test]
    fn an_unwritable_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let message = write_file(&dir.path().join("file/inside"), b"x")
            .unwrap_err()
            .to_string();
        assert!(message.contains("file/inside"), "{message}");
    }
}
