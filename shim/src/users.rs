//! A user of its own for each sandbox: what its VMM runs as, so that no sandbox's process can signal,
//! trace or use up what belongs to another's.
//!
//! The sandbox's folder says which one it is, in the file `user`, and gives it back by going away:
//! there is nothing else to keep in step, and nothing to repair after a crash. All folders are looked
//! at under a lock, so two sandboxes that start at once do not choose the same.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::{collections::HashSet, ops::Range};

use rustix::fs::{FlockOperation, flock};

use crate::state_dir::StateDir;

/// Why a sandbox has no user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The folders of the sandboxes.
    #[error("choose a user for the sandbox: {}", path.display())]
    State {
        /// Which file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// All are in use.
    #[error("all {} users from {} on are other sandboxes'; raise \"jail.uids\"", .0.len(), .0.start)]
    None(Range<u32>),
}

/// Chooses one of `users` that no sandbox below `root` has, and notes it in the sandbox's folder.
///
/// # Errors
/// When there is none left, or a folder cannot be read or written.
pub fn claim(root: &Path, sandbox: &StateDir, users: &Range<u32>) -> Result<u32, UserError> {
    let error = |path: &Path, source| UserError::State {
        path: path.to_owned(),
        source,
    };
    let lock = File::open(root).map_err(|e| error(root, e))?;
    // Held until `lock` is closed, at the end of this function.
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| error(root, e.into()))?;
    let taken = taken(root).map_err(|e| error(root, e))?;
    let uid = free(users, &taken, start(sandbox.path())).ok_or(UserError::None(users.clone()))?;
    let note = note(sandbox.path());
    fs::write(&note, format!("{uid}\n")).map_err(|e| error(&note, e))?;
    Ok(uid)
}

/// The user that the sandbox has, once it has one.
#[must_use]
pub fn of(sandbox: &StateDir) -> Option<u32> {
    let noted = fs::read_to_string(note(sandbox.path())).ok()?;
    noted.trim().parse().ok()
}

fn note(sandbox: &Path) -> PathBuf {
    sandbox.join("user")
}

/// The users that sandboxes have.
fn taken(root: &Path) -> io::Result<HashSet<u32>> {
    let mut taken = HashSet::new();
    for namespace in folders(root)? {
        // One that has just gone away had its last sandbox removed.
        for sandbox in folders(&namespace).unwrap_or_default() {
            let user = fs::read_to_string(note(&sandbox)).unwrap_or_default();
            taken.extend(user.trim().parse::<u32>());
        }
    }
    Ok(taken)
}

fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(fs::read_dir(path)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect())
}

/// Where to begin to look: somewhere else for each sandbox, so that a user is seldom used again soon.
fn start(sandbox: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    sandbox.hash(&mut hasher);
    hasher.finish()
}

fn free(users: &Range<u32>, taken: &HashSet<u32>, start: u64) -> Option<u32> {
    let count = u64::from(users.end.checked_sub(users.start)?);
    (0..count)
        .filter_map(|step| u32::try_from((start % count + step) % count).ok())
        .map(|offset| users.start + offset)
        .find(|uid| !taken.contains(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(root: &Path, id: &str) -> StateDir {
        let sandbox = StateDir::at(root, "default", id).unwrap();
        sandbox.create().unwrap();
        sandbox
    }

    #[test]
    fn sandboxes_that_start_at_once_have_different_users() {
        let root = tempfile::tempdir().unwrap();
        let sandboxes: Vec<_> = (0..24)
            .map(|id| sandbox(root.path(), &id.to_string()))
            .collect();
        let claimed = std::thread::scope(|scope| {
            let claim = |sandbox| claim(root.path(), sandbox, &(100..124)).unwrap();
            let threads: Vec<_> = sandboxes
                .iter()
                .map(|sandbox| scope.spawn(move || claim(sandbox)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<HashSet<_>>()
        });
        assert_eq!(claimed, (100..124).collect());
    }

    #[test]
    fn a_user_is_free_again_when_its_sandbox_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (sandbox(root.path(), "one"), sandbox(root.path(), "two"));
        assert_eq!(of(&one), None);
        assert_eq!(claim(root.path(), &one, &(7..8)).unwrap(), 7);
        assert_eq!(of(&one), Some(7));
        let none = claim(root.path(), &two, &(7..8)).unwrap_err();
        assert!(none.to_string().contains("jail.uids"), "{none}");
        one.remove().unwrap();
        assert_eq!(claim(root.path(), &two, &(7..8)).unwrap(), 7);
    }

    #[test]
    fn the_search_begins_anywhere_and_ends_where_it_began() {
        let taken = HashSet::from([11, 12]);
        assert_eq!(free(&(10..13), &taken, 1), Some(10));
        assert_eq!(free(&(10..13), &taken, u64::MAX), Some(10));
        assert_eq!(free(&(11..13), &taken, 0), None);
        assert_eq!(free(&(11..11), &taken, 0), None);
    }
}
