//! What is typed, as runc(8) has it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// The version, as callers of runc read it.
pub const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// Containers are kept apart by this folder.
pub(super) const ROOT: &str = "/run/hull-oci";

/// Options of every command, and the command.
#[derive(Debug, Args)]
pub struct OciArgs {
    /// Where the containers' state is; containers of different roots do not know each other
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    pub root: PathBuf,
    /// Append what goes wrong to this file as well
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How it is written there
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Keep the shim's log as `log` in the container's folder below the root
    #[arg(long)]
    pub debug: bool,
    /// Accepted for runc's sake: a cgroup whose path has systemd's form is systemd's
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted for runc's sake: Hull needs root
    #[arg(long, value_name = "BOOL")]
    pub rootless: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: OciCommand,
}

/// How errors are written to `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`.
    Text,
    /// An object a line.
    Json,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// An array.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum OciCommand {
    /// Create a container that waits for `start`
    Create(CreateArgs),
    /// Create a container, start it, wait for its end and delete it
    Run(RunArgs),
    /// Start a container that was created
    Start(IdArgs),
    /// Print a container's state as JSON
    State(IdArgs),
    /// Send a container's first process a signal
    Kill(KillArgs),
    /// Delete a container that has stopped
    Delete(DeleteArgs),
    /// Run a further process in a container
    Exec(ExecArgs),
    /// List a container's processes by their pids on the host
    Ps(PsArgs),
    /// List the containers of the root
    List(ListArgs),
    /// Make a container stand still
    Pause(IdArgs),
    /// Let it go on
    Resume(IdArgs),
    /// Change a running container's limits
    Update(UpdateArgs),
    /// Print what the runtime can do as JSON
    Features,
    /// Write a configuration to start from, config.json
    Spec(SpecArgs),
    /// Follow a detached process to its end
    #[command(hide = true)]
    Monitor(MonitorArgs),
    /// Kill what a monitor that was killed has left
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// A container.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The container
    pub id: String,
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Folder of config.json; the working directory without
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Write the pid of a process to this file that lives as long as the container does
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the terminal's master to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Accepted for runc's sake: the root is the guest's to change
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for runc's sake: keyrings are the guest's
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Refused, unless it is 0: descriptors of the host are of no use in a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// What the container is called
    pub id: String,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What `create` takes, too
    #[command(flatten)]
    pub create: CreateArgs,
    /// Leave it running
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete it when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted for runc's sake
    #[arg(long)]
    pub no_subreaper: bool,
}

/// `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// All its processes
    #[arg(long, short)]
    pub all: bool,
    /// The container
    pub id: String,
    /// By number or name
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill it first; one that is not there is no error
    #[arg(long, short)]
    pub force: bool,
    /// The container
    pub id: String,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The process as JSON, as in a configuration
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Leave it running
    #[arg(long, short)]
    pub detach: bool,
    /// Write the pid of a process to this file that lives as long as the new one does
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the terminal's master to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// On a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// A variable, NAME=VALUE
    #[arg(long, short, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// UID[:GID]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// A further group
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// A further capability
    #[arg(long, short, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Without new privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Accepted for runc's sake: the guest has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Accepted for runc's sake: the guest has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Refused, unless it is 0: descriptors of the host are of no use in a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// How
    #[arg(long, short, default_value = "table")]
    pub format: Format,
    /// The container
    pub id: String,
    /// Refused: the host's ps does not know the guest's processes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How
    #[arg(long, short, default_value = "table")]
    pub format: Format,
    /// Names alone
    #[arg(long, short)]
    pub quiet: bool,
}

/// `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Limits as JSON, as in a configuration (`linux.resources`); - is standard input
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory, in bytes
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<i64>,
    /// Memory below which nothing is taken away, in bytes
    #[arg(long, value_name = "BYTES")]
    pub memory_reservation: Option<i64>,
    /// Memory and swap, in bytes; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Microseconds of processor time in each period; -1 is no limit
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Length of a period
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// Weight among containers, 2 to 262144
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Processors, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Number of processes; -1 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// The container
    pub id: String,
}

/// `spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Folder to write it to; the working directory without
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
}

/// `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Its standard streams are a terminal, the slave of the one that the caller has
    #[arg(long)]
    pub terminal: bool,
    /// The process that was added; the first one without
    #[arg(long, value_name = "ID")]
    pub exec: Option<String>,
    /// The container
    pub id: String,
}

/// `guard`.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Delete the container, too
    #[arg(long)]
    pub delete: bool,
    /// The process that was added; the first one without
    #[arg(long, value_name = "ID")]
    pub exec: Option<String>,
    /// The container
    pub id: String,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        oci: OciArgs,
    }

    fn parse(line: &str) -> OciArgs {
        let words = std::iter::once("oci").chain(line.split_whitespace());
        Command::try_parse_from(words).unwrap().oci
    }

    #[test]
    fn buildkit_calls_are_understood() {
        let run = parse(
            "--log /x/runc-log.json --log-format json run --bundle /x/id --no-pivot --keep id",
        );
        assert_eq!(run.log_format, LogFormat::Json);
        let OciCommand::Run(run) = run.command else {
            panic!("{run:?}");
        };
        assert!(run.keep && !run.detach && run.create.no_pivot);
        assert_eq!(run.create.bundle.as_deref(), Some("/x/id".as_ref()));
        let kill = parse("--log /x --log-format json kill id 9");
        assert!(matches!(kill.command, OciCommand::Kill(kill) if kill.signal == "9"));
    }

    #[test]
    fn conmon_calls_are_understood() {
        let create = parse(
            "--systemd-cgroup --log-format=json --log=/x create --bundle /b --pid-file /p \
             --no-new-keyring --console-socket /s id",
        );
        let OciCommand::Create(create) = create.command else {
            panic!("{create:?}");
        };
        assert_eq!(create.console_socket.as_deref(), Some("/s".as_ref()));
        let exec = parse("exec --pid-file /p --process /e --detach --console-socket /s id");
        assert!(
            matches!(exec.command, OciCommand::Exec(exec) if exec.detach && exec.args.is_empty())
        );
        let exec = parse("--root /r exec -t id sh -c true");
        assert!(
            matches!(exec.command, OciCommand::Exec(exec) if exec.args == ["sh", "-c", "true"])
        );
        let update = parse("update --resources=- id");
        assert!(matches!(update.command, OciCommand::Update(it) if it.resources.is_some()));
        assert!(matches!(
            parse("ps --format json id").command,
            OciCommand::Ps(_)
        ));
    }
}
