//! Directories that take the place of older ones: of the two, at least one is whole on the disk at any time.
//!
//! No portable call swaps two directories, so there is a moment in which neither has the name. [`recover`] ends a swap
//! that was interrupted there.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use diptych_tensor::files::{partial_path, write_directory};

use super::{FINAL, PARTIAL, entries, file_name, step_of};
use crate::{Error, Result};

/// Ends the hidden name of a directory that is whole and about to take the place of an older one.
const NEXT: &str = ".next";
/// Ends the hidden name of the older one, until the newer has its name.
const PREVIOUS: &str = ".previous";

/// Fills a directory aside and gives it the name `path`; an older one of that name goes only when the new one is whole.
pub(crate) fn replace_directory(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if !path.exists() {
        return write_directory(path, fill);
    }
    let next = aside(path, NEXT);
    remove_directory(&next)?;
    write_directory(&next, fill)?;
    finish(path)
}

/// Removes a directory so that it is never seen half removed.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let partial = partial_path(path);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))?;
    }
    rename(path, &partial)?;
    fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))
}

/// Ends what an interrupted process left in `parent`: newer directories take the place of older ones, and what was not
/// yet or no longer whole is removed. Nobody else may be writing there.
pub(crate) fn recover(parent: &Path) -> Result<()> {
    for path in entries(parent)? {
        let name = file_name(&path);
        let Some(hidden) = name.strip_prefix('.').filter(|_| path.is_dir()) else {
            continue;
        };
        if hidden.ends_with(PARTIAL) {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        } else if let Some(name) = hidden.strip_suffix(NEXT).or(hidden.strip_suffix(PREVIOUS))
            && is_replaced(name)
        {
            finish(&parent.join(name))?;
        }
    }
    Ok(())
}

/// Whether directories of this name are written by [`replace_directory`], and not by the user.
fn is_replaced(name: &str) -> bool {
    name == FINAL || step_of(Path::new(name)).is_some()
}

/// Brings the newest whole directory of this name to its place, wherever a replacement is.
fn finish(path: &Path) -> Result<()> {
    let (next, previous) = (aside(path, NEXT), aside(path, PREVIOUS));
    if next.exists() {
        if path.exists() {
            remove_directory(&previous)?;
            rename(path, &previous)?;
        }
        if let Err(error) = rename(&next, path) {
            // The older one is better than none; if it cannot come back either, the next start ends the swap.
            let _ = fs::rename(&previous, path);
            return Err(error);
        }
    } else if previous.exists() && !path.exists() {
        rename(&previous, path)?;
    }
    remove_directory(&previous)
}

/// `.final.next` beside `final`.
fn aside(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!(".{}{suffix}", file_name(path)))
}

/// Renames within a directory, so that the new name survives a power cut.
fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename", from))?;
    to.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    // Nothing but a Unix opens a directory as a file.
    if cfg!(not(unix)) {
        return Ok(());
    }
    match fs::File::open(path) {
        Ok(directory) => directory.sync_all().map_err(Error::io("sync", path)),
        // Who may write into a directory need not be allowed to read it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Error::io("sync", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path, content: &str) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("weights"), content).unwrap();
    }

    fn content(path: &Path) -> String {
        fs::read_to_string(path.join("weights")).unwrap()
    }

    fn fill(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |partial| {
            let path = partial.join("weights");
            fs::write(&path, content).map_err(Error::io("write", path))
        }
    }

    /// The older directory was removed before the newer one was written and renamed.
    #[test]
    fn the_older_directory_stays_until_the_newer_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("final");
        replace_directory(&path, fill("old")).unwrap();
        assert_eq!(content(&path), "old");
        let failed = replace_directory(&path, |partial| {
            fill("half")(partial)?;
            assert_eq!(content(&path), "old");
            Err(Error::NoRecords)
        });
        assert!(failed.is_err());
        assert_eq!(content(&path), "old");
        assert_eq!(entries(dir.path()).unwrap(), [path.as_path()]);
        replace_directory(&path, fill("new")).unwrap();
        assert_eq!(content(&path), "new");
        assert_eq!(entries(dir.path()).unwrap(), [path.as_path()]);
    }

    /// Each state that a kill can leave, as the directories there are and the content that must survive.
    #[test]
    fn an_interrupted_replacement_is_ended() {
        let states: [(&[(&str, &str)], &str); 7] = [
            (&[("final", "old"), ("..final.next.partial", "half")], "old"),
            (&[("final", "old"), (".final.next", "new")], "new"),
            (&[(".final.previous", "old"), (".final.next", "new")], "new"),
            (&[(".final.previous", "old"), ("final", "new")], "new"),
            (&[("..final.previous.partial", "half"), ("final", "new")], "new"),
            (&[(".final.previous", "old")], "old"),
            (
                &[(".final.previous", "older"), ("final", "old"), (".final.next", "new")],
                "new",
            ),
        ];
        for (state, expected) in states {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in state {
                make(&dir.path().join(name), content);
            }
            recover(dir.path()).unwrap();
            let path = dir.path().join("final");
            assert_eq!(content(&path), expected, "{state:?}");
            assert_eq!(entries(dir.path()).unwrap(), [path], "{state:?}");
        }
    }

    #[test]
    fn other_hidden_directories_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".git", "notes.next", ".notes.previous", "final"] {
            make(&dir.path().join(name), name);
        }
        fs::write(dir.path().join(".notes.partial"), "a file").unwrap();
        recover(dir.path()).unwrap();
        assert_eq!(entries(dir.path()).unwrap().len(), 5);
    }
}
