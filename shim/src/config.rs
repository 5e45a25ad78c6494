//! `/etc/hull/config.toml`: where things are and how large a machine is.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

/// Where it is, unless `HULL_CONFIG` says otherwise.
pub const PATH: &str = "/etc/hull/config.toml";

/// As many as the guest's kernel is made for.
const MAX_VCPUS: u8 = 64;

/// More would leave a machine without interrupts for its other devices.
const MAX_SPARE_DISKS: u8 = 4;

/// Where the configuration is.
#[must_use]
pub fn path() -> PathBuf {
    std::env::var_os("HULL_CONFIG").map_or_else(|| PATH.into(), PathBuf::from)
}

/// Hull's configuration. Every key may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's root image.
    pub image: PathBuf,
    /// The virtual machine monitor.
    pub vmm: PathBuf,
    /// The file-system daemon.
    pub virtiofsd: PathBuf,
    /// What connects containers with the host's own network to it.
    pub pasta: PathBuf,
    /// Where each sandbox keeps its state.
    pub state: PathBuf,
    /// vCPUs of a machine, 1 to 64; as many as there are processors for the shim, unless they are named.
    pub vcpus: Option<u8>,
    /// Memory that a machine boots with, in MiB.
    pub memory_mib: u32,
    /// The most memory that it grows to, in MiB; what the host has, unless it is named.
    pub memory_max_mib: Option<u32>,
    /// Block devices that containers which join a machine can have; each is a thread of the VMM.
    pub spare_disks: u8,
    /// Has the host's kernel move frames between guest and network (`vhost_net`), in place of hull-vmm:
    /// faster, and more of that kernel for a guest to reach.
    pub vhost_net: bool,
    /// Writes what the guest's kernel says to `console.log` in the sandbox's state, and slows it
    /// down.
    pub debug_console: bool,
    /// What becomes of containers that ask for the host's pid namespace.
    pub host_pid: HostPid,
    /// What holds a machine's processes.
    pub jail: Jail,
}

/// What becomes of containers that ask for the host's pid namespace, which no machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPid {
    /// They are refused: nobody takes the machine's processes for the host's.
    #[default]
    Refuse,
    /// They have the machine's.
    Machine,
}

/// What holds a machine's processes (docs/security.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jail {
    /// The first of the users that machines run as: one each, which nobody else on the host is.
    pub first_uid: u32,
    /// How many there are: as many machines can run.
    pub uids: u32,
    /// Lets no other process run on a core beside a machine's threads.
    pub core_scheduling: bool,
}

impl Jail {
    /// The users.
    #[must_use]
    pub fn users(&self) -> Range<u32> {
        self.first_uid..self.first_uid.saturating_add(self.uids)
    }
}

impl Default for Jail {
    fn default() -> Self {
        Self {
            // Neither people's, nor systemd's dynamic users, nor in a container's usual ranges
            // (systemd's UIDS-GIDS.md: unused).
            first_uid: 2_000_000_000,
            uids: 65_536,
            core_scheduling: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/hull/vmlinux".into(),
            image: "/usr/lib/hull/guest.erofs".into(),
            vmm: "/usr/lib/hull/hull-vmm".into(),
            virtiofsd: "/usr/libexec/virtiofsd".into(),
            pasta: "/usr/bin/pasta".into(),
            state: "/run/hull".into(),
            vcpus: None,
            memory_mib: 512,
            memory_max_mib: None,
            spare_disks: 2,
            vhost_net: false,
            debug_console: false,
            host_pid: HostPid::default(),
            jail: Jail::default(),
        }
    }
}

/// Why the configuration is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is not what this module describes.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// The key and what is wrong with it, on one line.
        reason: String,
    },
}

impl Config {
    /// vCPUs of a machine.
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus.unwrap_or_else(|| {
            let there = std::thread::available_parallelism().map_or(1, NonZero::get);
            u8::try_from(there).unwrap_or(MAX_VCPUS).min(MAX_VCPUS)
        })
    }

    /// Reads the configuration; without a file, everything is as by default.
    ///
    /// # Errors
    /// When there is a file and it is wrong.
    pub fn load() -> Result<Self, ConfigError> {
        let path = path();
        Self::parse(&read(&path)?, &path)
    }

    /// Where sandboxes keep their state, for what ends and cleans up: a mistake in the file is no reason to leave a
    /// machine running. What is wrong comes with it, and is to be told.
    #[must_use]
    pub fn state_to_clean_up() -> (PathBuf, Option<ConfigError>) {
        state_to_clean_up(&path())
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |reason: String| ConfigError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let config: Self =
            toml::from_str(text).map_err(|e| invalid(e.message().replace('\n', " ")))?;
        if let Some(vcpus) = config
            .vcpus
            .filter(|vcpus| !(1..=MAX_VCPUS).contains(vcpus))
        {
            return Err(invalid(format!("vcpus is {vcpus}, not 1 to {MAX_VCPUS}")));
        }
        if config.memory_mib < 128 {
            return Err(invalid(format!(
                "memory_mib is {}, less than 128",
                config.memory_mib
            )));
        }
        if let Some(most) = config
            .memory_max_mib
            .filter(|&most| most < config.memory_mib)
        {
            return Err(invalid(format!(
                "memory_max_mib is {most}, less than memory_mib, {}",
                config.memory_mib
            )));
        }
        if config.spare_disks > MAX_SPARE_DISKS {
            return Err(invalid(format!(
                "spare_disks is {}, more than {MAX_SPARE_DISKS}",
                config.spare_disks
            )));
        }
        let users = config.jail.users();
        // The last two numbers mean "no user" to the kernel.
        if users.start == 0 || users.is_empty() || users.end > u32::MAX - 1 {
            return Err(invalid(format!(
                "jail.first_uid and jail.uids are {} and {}, which are not users 1 to {}",
                config.jail.first_uid,
                config.jail.uids,
                u32::MAX - 2
            )));
        }
        Ok(config)
    }
}

/// The file's text; empty where there is none.
fn read(path: &Path) -> Result<String, ConfigError> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn state_to_clean_up(path: &Path) -> (PathBuf, Option<ConfigError>) {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => return (Config::default().state, Some(error)),
    };
    match Config::parse(&text, path) {
        Ok(config) => (config.state, None),
        Err(error) => (
            state_alone(&text).unwrap_or(Config::default().state),
            Some(error),
        ),
    }
}

/// The value of `state`, as far as it can be read, whatever is wrong with the other keys and lines.
fn state_alone(text: &str) -> Option<PathBuf> {
    let (table, _) = DeTable::parse_recoverable(text);
    let state = Path::new(table.get_ref().get("state")?.get_ref().as_str()?);
    state.is_absolute().then(|| state.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("config.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_key_replaces_its_default_alone() {
        let config = parse("vcpus = 4\nkernel = \"/k\"").unwrap();
        assert_eq!(
            config,
            Config {
                vcpus: Some(4),
                kernel: "/k".into(),
                ..Config::default()
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            ("kernal = \"/k\"", "kernal"),
            ("host_pid = \"host\"", "`refuse` or `machine`"),
            ("vcpus = 0", "vcpus is 0"),
            ("vcpus = 65", "vcpus is 65"),
            ("memory_mib = 64", "memory_mib is 64"),
            ("memory_max_mib = 511", "memory_max_mib is 511"),
            ("spare_disks = 5", "spare_disks is 5"),
            ("vcpus = \"two\"", "config.toml"),
            ("vhost_net = \"on\"", "config.toml"),
            ("jail.first_uid = 0", "jail.first_uid"),
            ("jail.uids = 0", "jail.uids"),
            ("jail.first_uid = 4294967290", "not users 1 to"),
            ("jail.off = true", "off"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_mistake_elsewhere_does_not_hide_the_state_from_who_cleans_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, state, wrong) in [
            ("", "/run/hull", false),
            ("state = \"/tide\"\nvcpus = 2", "/tide", false),
            ("state = \"/tide\"\nvcpus = 0", "/tide", true),
            ("kernal = \"/k\"\nstate = \"/tide\"", "/tide", true),
            ("vcpus = two\nstate = \"/tide\"", "/tide", true),
            ("state = \"/tide\"\n[jail", "/tide", true),
            ("state = \"/tide", "/tide", true),
            ("state = 7", "/run/hull", true),
            ("vcpus = 0\nstate = \"tide\"", "/run/hull", true),
            ("vcpus = 0\n[jail]\nstate = \"/tide\"", "/run/hull", true),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let (found, error) = state_to_clean_up(file.path());
            assert_eq!(
                (found.as_path(), error.is_some()),
                (Path::new(state), wrong),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_default_to_who_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let (state, error) = state_to_clean_up(folder.path());
        assert_eq!(state, Config::default().state);
        assert!(matches!(error, Some(ConfigError::Read { .. })), "{error:?}");
        let (state, error) = state_to_clean_up(&folder.path().join("none"));
        assert_eq!(state, Config::default().state);
        assert!(error.is_none(), "{error:?}");
    }
}
