//! How many files the shim may have open: as many as the host allows. Each connection that it relays takes two, and
//! the usual limit is for programs that use `select(2)`, which this one does not.
#![expect(unsafe_code, reason = "what a child does before it runs its program")]

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::process::Command;

/// What this process was given.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises this process's limit to the highest that it may have.
///
/// # Errors
/// What the kernel says.
pub fn raise() -> io::Result<()> {
    let given = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: given.maximum,
        ..given
    };
    setrlimit(Resource::Nofile, raised)?;
    let _ = GIVEN.set(given);
    Ok(())
}

/// Has somebody else's program begin with what this process was given.
pub fn give(command: &mut Command) {
    let Some(&given) = GIVEN.get() else { return };
    let begin = move || Ok(setrlimit(Resource::Nofile, given)?);
    // SAFETY: the closure runs between fork and exec in a process with several threads. It makes one system call on
    // two numbers, and allocates nothing.
    unsafe { command.pre_exec(begin) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_shim_has_what_it_may_have_and_others_what_it_was_given() {
        let few = Rlimit {
            current: Some(100),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, few).unwrap();
        raise().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, few.maximum);
        let mut command = Command::new("sh");
        give(command.args(["-c", "ulimit -Sn"]));
        let told = command.output().await.unwrap().stdout;
        assert_eq!(told, b"100\n");
    }
}
