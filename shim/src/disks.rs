//! The disks of a machine that runs: whose they are, and how they come and go with containers.
//!
//! ```text
//! add:    the VMM gets the file ─▶ the agent finds the disk ─▶ the container is created
//! remove: the container is gone ─▶ the agent lets go of it ─▶ the VMM closes the file
//! ```
//! The machine starts with a number of disks that have no file. What one had that is gone counts as
//! one of them.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::AgentClient;
use log::warn;
use vmm_control::{Disk, SendError};

use crate::error::TaskError;
use crate::vmm_process::Control;

/// How long the agent may take to find disks, or to write back what it holds of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a container does not get its disks.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// All are taken.
    #[error(
        "the machine that the container joins can be given {free} more block devices, not {wanted}: start it \
         with more by \"spare_disks\" in {}",
        crate::config::PATH
    )]
    Full {
        /// What the container needs.
        wanted: usize,
        /// What there is.
        free: usize,
    },
    /// The VMM does not take it.
    #[error("give the virtual machine a block device")]
    Vmm(#[from] SendError),
    /// The guest does not see it.
    #[error("find the block device in the virtual machine")]
    Agent(#[from] ttrpc::Error),
}

/// The disks of a machine.
pub struct Disks {
    control: Control,
    agent: AgentClient,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// Who has which of the machine's disks, by the VMM's numbers: all are containers'.
    owners: Vec<Option<Owner>>,
    /// How many block devices the machine has ever had.
    count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    container: String,
    serial: String,
}

impl Slots {
    /// Those of container `id`, by the VMM's numbers.
    fn of(&self, id: &str) -> Vec<(usize, String)> {
        let owners = self.owners.iter().enumerate();
        let owned = owners.filter_map(|(number, owner)| Some((number, owner.as_ref()?)));
        owned
            .filter(|(_, owner)| owner.container == id)
            .map(|(number, owner)| (number, owner.serial.clone()))
            .collect()
    }

    /// Gives container `id` disks with these serial numbers; returns the disks' own.
    fn take(&mut self, id: &str, serials: &[String]) -> Result<Vec<usize>, DiskError> {
        let owners = self.owners.iter_mut().enumerate();
        let mut free: Vec<_> = owners.filter(|(_, owner)| owner.is_none()).collect();
        if free.len() < serials.len() {
            let (wanted, free) = (serials.len(), free.len());
            return Err(DiskError::Full { wanted, free });
        }
        free.truncate(serials.len());
        let mut taken = Vec::new();
        for ((number, owner), serial) in free.into_iter().zip(serials) {
            *owner = Some(Owner {
                container: id.to_owned(),
                serial: serial.clone(),
            });
            taken.push(number);
        }
        self.count += taken.len();
        Ok(taken)
    }
}

impl Disks {
    /// Takes over from the boot: the machine has disks with the serial numbers `first` for container
    /// `id`, and `spare` without a file.
    #[must_use]
    pub fn of(id: &str, first: &[String], spare: u8, control: Control, agent: AgentClient) -> Self {
        let mut slots = Slots {
            owners: vec![None; first.len() + usize::from(spare)],
            count: 0,
        };
        let taken = slots.take(id, first);
        taken.expect("a slot was made for each");
        Self {
            control,
            agent,
            slots: Mutex::new(slots),
        }
    }

    /// How many block devices containers have ever had: what is to come has serial numbers from there on.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots().count
    }

    /// Gives container `id` its disks.
    ///
    /// # Errors
    /// When there are too few that are free, or the guest does not find them; none is the container's then.
    pub async fn add(&self, id: &str, disks: Vec<Disk<OwnedFd>>) -> Result<(), DiskError> {
        if disks.is_empty() {
            return Ok(());
        }
        let serials: Vec<String> = disks.iter().map(|disk| disk.serial.clone()).collect();
        let taken = self.slots().take(id, &serials)?;
        let added = async {
            for (number, disk) in taken.into_iter().zip(disks) {
                self.control.plug_disk(number, disk)?;
            }
            let context = ttrpc::context::with_duration(PATIENCE);
            self.agent.add_disks(context, &named(serials)).await?;
            Ok(())
        };
        let added = added.await;
        if added.is_err() {
            self.remove(id).await;
        }
        added
    }

    /// Takes container `id`'s disks away, and closes their files. It has no processes any more. A guest
    /// that does not let go of them loses them.
    pub async fn remove(&self, id: &str) {
        let (numbers, serials): (Vec<_>, Vec<_>) = self.slots().of(id).into_iter().unzip();
        if numbers.is_empty() {
            return;
        }
        let context = ttrpc::context::with_duration(PATIENCE);
        if let Err(e) = self.agent.remove_disks(context, &named(serials)).await {
            warn!("the guest keeps the disks of {id}: {}", TaskError::from(e));
        }
        for number in numbers {
            // A VMM that is gone has closed them all.
            if let Err(e) = self.control.unplug_disk(number) {
                warn!("close a disk of {id}: {e}");
            }
            self.slots().owners[number] = None;
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn named(serials: Vec<String>) -> agent_protocol::Disks {
    agent_protocol::Disks {
        serials,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(serials: &[&str]) -> Vec<String> {
        serials.iter().map(|&serial| serial.to_owned()).collect()
    }

    #[test]
    fn a_disk_is_one_containers_until_it_is_free_again() {
        let mut slots = Slots {
            owners: vec![None; 3],
            count: 0,
        };
        assert_eq!(slots.take("ebb", &names(&["volume0"])).unwrap(), [0]);
        assert_eq!(slots.take("flow", &names(&["volume1"])).unwrap(), [1]);
        let two = slots.take("reef", &names(&["volume2", "volume3"]));
        let error = two.unwrap_err().to_string();
        assert!(error.contains("1 more block devices, not 2"), "{error}");
        assert_eq!((slots.of("reef"), slots.count), (vec![], 2));
        assert_eq!(slots.of("flow"), [(1, "volume1".to_owned())]);

        slots.owners[0] = None;
        let taken = slots.take("reef", &names(&["volume2", "volume3"]));
        assert_eq!(taken.unwrap(), [0, 2]);
        assert_eq!(slots.count, 4);
    }
}
