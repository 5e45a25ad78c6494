//! Which containerd a machine is of. A host can have several, dockerd's own among them, and containers of two may have
//! one name in namespaces of one name: what is the one's is not for the other to join, nor to clean up.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::socket;

/// A containerd, as its shims see it. `hull oci` is one as well, without an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its socket.
    address: PathBuf,
    /// The folder that has the bundles of one of its namespaces.
    bundles: PathBuf,
}

/// Somebody else's container has the name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{sandbox} (containerd namespace/container) is in use by another containerd ({address}); use another name or another \
     containerd namespace, or remove that one there"
)]
pub struct InUse {
    /// The sandbox.
    pub sandbox: String,
    /// Where that containerd is.
    pub address: String,
}

impl Instance {
    /// The containerd that has a shim started or run with this address, for this bundle.
    #[must_use]
    pub fn new(address: &str, bundle: &Path) -> Self {
        let bundles = bundle.parent().unwrap_or(bundle);
        Self {
            address: socket::path_of(address),
            // The same by whichever way it was reached.
            bundles: fs::canonicalize(bundles).unwrap_or_else(|_| bundles.to_owned()),
        }
    }

    /// Whether it is the same containerd. One that was started again may have another address, or another folder for its
    /// state; two that run have neither in common.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.address == other.address || self.bundles == other.bundles
    }

    /// Where it is, for people.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.display().to_string()
    }
}

/// A line each, as it is noted.
impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.address.display())?;
        writeln!(f, "{}", self.bundles.display())
    }
}

impl FromStr for Instance {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bundles) = text.split_once('\n').unwrap_or((text, ""));
        Ok(Self {
            address: address.into(),
            bundles: bundles.trim_end_matches('\n').into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "/run/containerd/containerd.sock";
    const BUNDLE: &str = "/run/no-such/io.containerd.runtime.v2.task/sea/tide";

    #[test]
    fn a_containerd_that_was_started_again_elsewhere_is_the_same_and_a_second_one_is_not() {
        let one = Instance::new(ADDRESS, Path::new(BUNDLE));
        let neighbour = BUNDLE.replace("tide", "ebb");
        let others = "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/sea/tide";
        for (address, bundle, same) in [
            (ADDRESS, &neighbour[..], true),
            ("unix:///run/containerd/containerd.sock", BUNDLE, true),
            ("/run/moved.sock", BUNDLE, true),
            (ADDRESS, others, true),
            ("/run/docker/containerd/containerd.sock", others, false),
        ] {
            let other = Instance::new(address, Path::new(bundle));
            assert_eq!(one.is(&other), same, "{other:?}");
            assert_eq!(other.is(&one), same, "{other:?}");
        }
    }

    #[test]
    fn it_reads_back_as_it_was_noted() {
        for address in [ADDRESS, ""] {
            let noted = Instance::new(address, Path::new(BUNDLE));
            assert_eq!(noted.to_string().parse(), Ok(noted));
        }
    }
}
