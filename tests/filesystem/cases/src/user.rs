//! Other users, within this process.

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::check::Outcome;

/// A user of no importance, its group, and a group that it may be in besides.
pub(crate) const USER: u32 = 1001;
pub(crate) const GROUP: u32 = 1001;
pub(crate) const EXTRA: u32 = 2000;

/// Runs `action` as USER with no group but GROUP and `extra`.
///
/// In a thread of its own: to the kernel credentials are a thread's.
pub(crate) fn as_user(extra: &[u32], action: impl FnOnce() -> Outcome + Send) -> Outcome {
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let groups: Vec<Gid> = extra.iter().map(|group| Gid::from_raw(*group)).collect();
            set_thread_groups(&groups)?;
            let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(GROUP));
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            action()
        });
        user.join().expect("a panic aborts")
    })
}
