//! Groups that systemd makes: it owns the hierarchy of most hosts, and who wants a group there asks for a transient
//! scope (org.freedesktop.systemd1(5); systemd's CONTROL_GROUP_INTERFACE).

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{sleep, timeout};
use zbus::Connection;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::weights::Weights;

/// How long systemd may take to answer, or to do what it was asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often, and how many times, a scope whose name is still in use is asked for again.
const RETRY: Duration = Duration::from_millis(20);
const RETRIES: u32 = 100;

/// What is counted for a scope.
const ACCOUNTING: [&str; 4] = [
    "CPUAccounting",
    "IOAccounting",
    "MemoryAccounting",
    "TasksAccounting",
];

/// The slice of scopes for which none is named, as runc has it.
const DEFAULT_SLICE: &str = "system.slice";

/// Why systemd has not made or changed a scope.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// There is no bus, or systemd refuses.
    #[error("ask systemd, over the system's bus")]
    Bus(#[from] zbus::Error),
    /// It has taken the job and not done it.
    #[error("systemd's job is {0:?}; \"journalctl -u\" and the scope's name may say why")]
    Job(String),
    /// It does not answer.
    #[error("systemd did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// A scope, by the name that a configuration gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    slice: String,
    unit: String,
}

impl Scope {
    /// Reads a cgroup's path in systemd's form, `slice:prefix:name`; any other is none.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let path = path.to_str().filter(|path| !path.starts_with('/'))?;
        let fields: Vec<_> = path.split(':').collect();
        let &[slice, prefix, name] = &fields[..] else {
            return None;
        };
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let dash = if prefix.is_empty() { "" } else { "-" };
        Some(Self {
            slice: slice.to_owned(),
            unit: format!("{prefix}{dash}{name}.scope"),
        })
    }

    /// Has systemd start the scope with process `pid` in it. It ends with its last process.
    pub(super) async fn start(&self, pid: u32, weights: &Weights) -> Result<(), SystemdError> {
        let description = format!("hull virtual machine {}", self.unit);
        let mut properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", Value::from(description)),
            ("Slice", Value::from(self.slice.as_str())),
            ("PIDs", Value::from(vec![pid])),
            // What is below is not systemd's.
            ("Delegate", Value::from(true)),
            // It ends when its container does, not before the engine at shutdown.
            ("DefaultDependencies", Value::from(false)),
            // Nothing is kept of one that failed: the next of its name is a container's restart.
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        properties.extend(ACCOUNTING.map(|key| (key, Value::from(true))));
        properties.extend(properties_of(weights));
        let mut retries = 0..RETRIES;
        within_patience(async {
            let manager = manager().await?;
            let mut removed = manager.receive_job_removed().await?;
            let start = || manager.start_transient_unit(&self.unit, "fail", &properties, &[]);
            let mut job = start().await;
            // A container that is started again may be faster than the end of the scope it had.
            while job.as_ref().is_err_and(is_there) && retries.next().is_some() {
                sleep(RETRY).await;
                job = start().await;
            }
            let job = job?;
            while let Some(signal) = removed.next().await {
                let ended = signal.args()?;
                if ended.job == job {
                    return match ended.result.as_str() {
                        "done" => Ok(()),
                        other => Err(SystemdError::Job(other.to_owned())),
                    };
                }
            }
            Err(SystemdError::Silent)
        })
        .await
    }

    /// Has systemd give the scope these weights, until it ends.
    pub(super) async fn weigh(&self, weights: &Weights) -> Result<(), SystemdError> {
        let properties = properties_of(weights);
        if properties.is_empty() {
            return Ok(());
        }
        within_patience(async {
            let set = manager().await?;
            let set = set.set_unit_properties(&self.unit, true, &properties);
            Ok(set.await?)
        })
        .await
    }
}

fn is_there(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else {
        return false;
    };
    name.as_str() == "org.freedesktop.systemd1.UnitExists"
}

fn properties_of<'a>(weights: &Weights) -> Vec<(&'a str, Value<'a>)> {
    let weights = [("CPUWeight", weights.cpu), ("IOWeight", weights.io())];
    let asked = weights.into_iter();
    asked
        .filter_map(|(key, weight)| Some((key, Value::from(weight?))))
        .collect()
}

async fn within_patience<T>(
    work: impl Future<Output = Result<T, SystemdError>>,
) -> Result<T, SystemdError> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or(Err(SystemdError::Silent))
}

/// systemd, over a connection of its own: they are rare, and a bus has a limited number.
async fn manager() -> zbus::Result<ManagerProxy<'static>> {
    let bus = Connection::system().await?;
    ManagerProxy::new(&bus).await
}

/// What of systemd's manager is used here (org.freedesktop.systemd1(5), "The Manager Object").
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Manager {
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_named_as_runc_names_it() {
        for (path, slice, unit) in [
            ("system.slice:docker:0f", "system.slice", "docker-0f.scope"),
            (":libpod:1", "system.slice", "libpod-1.scope"),
            ("user.slice::sea", "user.slice", "sea.scope"),
        ] {
            let scope = Scope::parse(Path::new(path)).unwrap();
            assert_eq!((&*scope.slice, &*scope.unit), (slice, unit));
        }
        for other in ["/a:b:c", "a:b", "sea", "a:b:c:d", ""] {
            assert_eq!(Scope::parse(Path::new(other)), None, "{other}");
        }
    }
}
