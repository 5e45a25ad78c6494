//! `/etc/hull/config.toml`: where things are and how large a machine is.

use std::fmt;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

use crate::log_lines::cleaned;

/// Where it is, unless [`VARIABLE`] or the runtime's options say otherwise.
pub const PATH: &str = "/etc/hull/config.toml";

/// The variable of the environment that names another file.
pub const VARIABLE: &str = "HULL_CONFIG";

/// As many as the guest's kernel is made for.
const MAX_VCPUS: u8 = 64;

/// The least that a machine boots with.
const MIN_MEMORY_MIB: u32 = 128;

/// More would leave a machine without interrupts for its other devices.
const MAX_SPARE_DISKS: u8 = 4;

/// Where the configuration is.
#[must_use]
pub fn path() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| PATH.into(), PathBuf::from)
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
    #[error("{}: {}{reason}", path.display(), begun(place.as_ref()))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where in it, if that is known.
        place: Option<Place>,
        /// What is wrong, on one line.
        reason: String,
    },
}

impl ConfigError {
    /// Whether there is just no file.
    fn is_absence(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
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

    /// Reads the configuration; without a file, everything is as by default, unless somebody has named one.
    ///
    /// # Errors
    /// When there is a file and it is wrong, or the one that is named is not there.
    pub fn load() -> Result<Self, ConfigError> {
        let path = path();
        match Self::read(&path) {
            Err(error) if error.is_absence() && path == Path::new(PATH) => Ok(Self::default()),
            read => read,
        }
    }

    /// Where sandboxes keep their state, for what ends and cleans up: a mistake in the file is no reason to leave a
    /// machine running. What is wrong comes with it, and is to be told.
    #[must_use]
    pub fn state_to_clean_up() -> (PathBuf, Option<ConfigError>) {
        state_to_clean_up(&path())
    }

    /// Reads the configuration from this file.
    ///
    /// # Errors
    /// When it is not there, or wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(path)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |place, reason: String| ConfigError::Invalid {
            path: path.to_owned(),
            place,
            reason,
        };
        let config: Self = toml::from_str(text).map_err(|e| {
            let place = e.span().map(|span| Place::at(text, span.start));
            invalid(place, e.message().replace('\n', " "))
        })?;
        config
            .check()
            .map_err(|(key, reason)| invalid(Place::of(text, key), reason))?;
        Ok(config)
    }

    /// Checks what types do not; returns the first key, or table, that is wrong, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let paths = [
            ("kernel", &self.kernel),
            ("image", &self.image),
            ("vmm", &self.vmm),
            ("virtiofsd", &self.virtiofsd),
            ("pasta", &self.pasta),
            ("state", &self.state),
        ];
        if let Some((key, path)) = paths.into_iter().find(|(_, path)| !path.is_absolute()) {
            let reason = format!("{key} is {path:?}, which is no absolute path: start it with /");
            return Err((key, reason));
        }
        let vcpus = 1..=MAX_VCPUS;
        if let Some(wrong) = self.vcpus.filter(|it| !vcpus.contains(it)) {
            let reason = format!("vcpus is {wrong}, not 1 to {MAX_VCPUS}");
            return Err(("vcpus", reason));
        }
        let memory = self.memory_mib;
        if memory < MIN_MEMORY_MIB {
            let reason = format!("memory_mib is {memory}, less than {MIN_MEMORY_MIB}");
            return Err(("memory_mib", reason));
        }
        if let Some(most) = self.memory_max_mib.filter(|&most| most < memory) {
            let reason = format!("memory_max_mib is {most}, less than memory_mib, {memory}");
            return Err(("memory_max_mib", reason));
        }
        let disks = self.spare_disks;
        if disks > MAX_SPARE_DISKS {
            let reason = format!("spare_disks is {disks}, more than {MAX_SPARE_DISKS}");
            return Err(("spare_disks", reason));
        }
        let users = self.jail.users();
        // The last two numbers mean "no user" to the kernel.
        if users.start == 0 || users.is_empty() || users.end > u32::MAX - 1 {
            let reason = format!(
                "jail.first_uid and jail.uids are {} and {}, which are not users 1 to {}",
                self.jail.first_uid,
                self.jail.uids,
                u32::MAX - 2
            );
            return Err(("jail", reason));
        }
        Ok(())
    }
}

/// A line of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 1.
    line: usize,
    /// What it says.
    text: String,
}

impl Place {
    /// The line of a byte.
    fn at(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line = before.matches('\n').count();
        Self {
            line: line + 1,
            text: cleaned(text.lines().nth(line).unwrap_or_default().trim()),
        }
    }

    /// The line of a top-level key, or of the first one of a table; none where the file does not have it.
    fn of(text: &str, key: &str) -> Option<Self> {
        let (table, _) = DeTable::parse_recoverable(text);
        let (key, _) = table.get_ref().get_key_value(key)?;
        Some(Self::at(text, key.span().start))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, `{}`: ", self.line, self.text)
    }
}

/// A place to begin a sentence with, if there is one.
fn begun(place: Option<&Place>) -> String {
    place.map(Place::to_string).unwrap_or_default()
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn state_to_clean_up(path: &Path) -> (PathBuf, Option<ConfigError>) {
    let text = match text_of(path) {
        Ok(text) => text,
        Err(error) => {
            let told = (!error.is_absence()).then_some(error);
            return (Config::default().state, told);
        }
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
    fn what_is_wrong_is_named_with_its_line() {
        for (text, place, reason) in [
            (
                "kernal = \"/k\"",
                "line 1, `kernal = \"/k\"`",
                "unknown field `kernal`",
            ),
            (
                "\n# a\nhost_pid = \"host\"",
                "line 3, `host_pid =",
                "`refuse` or `machine`",
            ),
            ("vcpus = 0", "line 1, `vcpus = 0`", "vcpus is 0"),
            ("vcpus = 65", "line 1, `vcpus", "vcpus is 65"),
            ("vcpus = 300", "line 1, `vcpus = 300`", "300"),
            ("memory_mib = 64", "line 1, `memory_mib", "memory_mib is 64"),
            (
                "vcpus = 1\r\nmemory_max_mib = 511\r\n",
                "line 2, `memory_max_mib = 511`",
                "memory_max_mib is 511",
            ),
            (
                "spare_disks = 5",
                "line 1, `spare_disks",
                "spare_disks is 5",
            ),
            (
                "vcpus = 1\nvcpus = 2",
                "line 2, `vcpus = 2`",
                "duplicate key",
            ),
            (
                "\n\tvcpus = \"two\" # 2",
                "line 2, `vcpus = \"two\" # 2`",
                "invalid type",
            ),
            ("vcpus = two", "line 1, `vcpus = two`", ""),
            ("vcpus =\nmemory_mib = 256", "line 1, `vcpus =`", ""),
            (
                "vhost_net = \"on\"",
                "line 1, `vhost_net = \"on\"`",
                "expected a boolean",
            ),
            (
                "jail.first_uid = 0",
                "line 1, `jail.first_uid = 0`",
                "jail.first_uid",
            ),
            ("\n[jail]\nuids = 0", "line 2, `[jail]`", "jail.uids"),
            (
                "jail.first_uid = 4294967290",
                "line 1, `jail",
                "not users 1 to",
            ),
            (
                "[jail]\n\noff = true",
                "line 3, `off = true`",
                "unknown field `off`",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("config.toml: "), "{error}");
            assert!(error.contains(place) && error.contains(reason), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn paths_are_absolute() {
        for key in ["kernel", "image", "vmm", "virtiofsd", "pasta", "state"] {
            assert!(parse(&format!("{key} = \"/tide\"")).is_ok(), "{key}");
            for wrong in ["tide", "./tide", "~/tide", ""] {
                let error = parse(&format!("vcpus = 1\n{key} = \"{wrong}\"")).unwrap_err();
                let expected = format!(
                    "line 2, `{key} = \"{wrong}\"`: {key} is \"{wrong}\", which is no absolute path"
                );
                assert!(error.contains(&expected), "{error}");
            }
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

    /// What is installed as `/etc/hull/config.toml`.
    const INSTALLED: &str = include_str!("../../dist/config.toml");

    #[test]
    fn the_installed_file_changes_nothing() {
        assert_eq!(parse(INSTALLED), Ok(Config::default()));
    }

    #[test]
    fn the_installed_file_shows_the_defaults() {
        let shown = INSTALLED.lines().filter_map(|line| line.strip_prefix('#'));
        let shown: Vec<_> = shown.filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(parse(&shown.join("\n")), Ok(Config::default()));
    }

    #[test]
    fn the_installed_file_and_its_page_show_every_key() {
        const PAGE: &str = include_str!("../../docs/shim.md");
        // serde lists them where it does not know one.
        let keys = |text: &str| {
            let error = parse(text).unwrap_err();
            let (_, known) = error.split_once("expected one of ").unwrap();
            let known: Vec<_> = known
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect();
            known
        };
        let mut all = keys("unknown = 1");
        all.retain(|key| key != "jail");
        all.extend(
            keys("jail.unknown = 1")
                .iter()
                .map(|key| format!("jail.{key}")),
        );
        assert_eq!(all.len(), 16, "{all:?}");
        for key in all {
            assert!(INSTALLED.contains(&format!("{key} = ")), "{key}");
            assert!(PAGE.contains(&format!("`{key}`")), "{key}");
        }
    }
}
