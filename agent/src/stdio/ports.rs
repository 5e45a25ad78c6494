//! Where a process's streams go.

use std::num::NonZeroU32;

use super::StdioError;

/// Which port each stream goes to; `None` stands for /dev/null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Three streams.
    Pipes {
        /// Standard input.
        stdin: Option<NonZeroU32>,
        /// Standard output.
        stdout: Option<NonZeroU32>,
        /// Standard error.
        stderr: Option<NonZeroU32>,
    },
    /// One terminal.
    Terminal {
        /// What is typed.
        input: Option<NonZeroU32>,
        /// What it shows.
        output: Option<NonZeroU32>,
    },
}

impl Ports {
    /// Whether this is a terminal.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Terminal { .. })
    }
}

impl TryFrom<&agent_protocol::Stdio> for Ports {
    type Error = StdioError;

    fn try_from(stdio: &agent_protocol::Stdio) -> Result<Self, StdioError> {
        let stdin = NonZeroU32::new(stdio.stdin);
        let stdout = NonZeroU32::new(stdio.stdout);
        match (stdio.terminal, NonZeroU32::new(stdio.stderr)) {
            (false, stderr) => Ok(Self::Pipes {
                stdin,
                stdout,
                stderr,
            }),
            (true, None) => Ok(Self::Terminal {
                input: stdin,
                output: stdout,
            }),
            (true, Some(port)) => Err(StdioError::TerminalStderr(port.get())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(terminal: bool, stderr: u32) -> agent_protocol::Stdio {
        agent_protocol::Stdio {
            terminal,
            stdin: 0,
            stdout: 1025,
            stderr,
            ..agent_protocol::Stdio::default()
        }
    }

    #[test]
    fn port_0_is_dev_null() {
        let ports = Ports::try_from(&request(false, 1026)).unwrap();

        let expected = Ports::Pipes {
            stdin: None,
            stdout: NonZeroU32::new(1025),
            stderr: NonZeroU32::new(1026),
        };
        assert_eq!(ports, expected);
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        assert!(Ports::try_from(&request(true, 0)).unwrap().is_terminal());
        assert!(matches!(
            Ports::try_from(&request(true, 1026)),
            Err(StdioError::TerminalStderr(1026))
        ));
    }
}
