//! `/etc/hull/config.toml`: where things are and how large a machine is.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where it is, unless `HULL_CONFIG` says otherwise.
pub const PATH: &str = "/etc/hull/config.toml";

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
    /// Where each sandbox keeps its state.
    pub state: PathBuf,
    /// vCPUs of a machine, 1 to 64.
    pub vcpus: u8,
    /// Memory of a machine in MiB. A container with a higher limit gets a larger machine.
    pub memory_mib: u32,
    /// Writes what the guest's kernel says to `console.log` in the sandbox's state, and slows it
    /// down.
    pub debug_console: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/hull/vmlinux".into(),
            image: "/usr/lib/hull/guest.erofs".into(),
            vmm: "/usr/lib/hull/hull-vmm".into(),
            virtiofsd: "/usr/libexec/virtiofsd".into(),
            state: "/run/hull".into(),
            vcpus: 1,
            memory_mib: 512,
            debug_console: false,
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
    /// Reads the configuration; without a file, everything is as by default.
    ///
    /// # Errors
    /// When there is a file and it is wrong.
    pub fn load() -> Result<Self, ConfigError> {
        let path = path();
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |reason: String| ConfigError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let config: Self =
            toml::from_str(text).map_err(|e| invalid(e.message().replace('\n', " ")))?;
        if !(1..=64).contains(&config.vcpus) {
            return Err(invalid(format!("vcpus is {}, not 1 to 64", config.vcpus)));
        }
        if config.memory_mib < 128 {
            return Err(invalid(format!(
                "memory_mib is {}, less than 128",
                config.memory_mib
            )));
        }
        Ok(config)
    }
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
                vcpus: 4,
                kernel: "/k".into(),
                ..Config::default()
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            ("kernal = \"/k\"", "kernal"),
            ("vcpus = 0", "vcpus is 0"),
            ("vcpus = 65", "vcpus is 65"),
            ("memory_mib = 64", "memory_mib is 64"),
            ("vcpus = \"two\"", "config.toml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
        }
    }
}
