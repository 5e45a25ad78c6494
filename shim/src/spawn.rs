//! Children that are born somewhere else than their parent is.

use std::io;
use std::thread;

use tokio::process::{Child, Command};

/// Spawns the command from a thread that `prepare` has moved: a child is born in the namespaces of
/// its parent thread and has its `no_new_privs`, and the thread ends at once.
///
/// # Errors
/// What `prepare` returns, or what `failed` makes of the kernel's refusal to spawn.
pub fn spawn_from_thread<E: Send>(
    command: &mut Command,
    prepare: impl FnOnce() -> Result<(), E> + Send,
    failed: impl FnOnce(io::Error) -> E + Send,
) -> Result<Child, E> {
    let runtime = tokio::runtime::Handle::current();
    thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            prepare()?;
            let _runtime = runtime.enter();
            command.spawn().map_err(failed)
        });
        spawned.join().expect("the thread does not panic")
    })
}
