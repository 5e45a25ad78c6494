//! The machine's memory, which grows with what its containers use.
//!
//! The machine boots with little; the shim may have more plugged (virtio-mem), up to what it allows.
//! Whoever allocates memory does not wait for that: the kernel kills when there is none. So the
//! containers' cgroup has a bound below what the machine has (`memory.high`), where the kernel makes
//! them wait instead, and a lower one at which more is asked for (`policy`, `growth`).

mod growth;
mod policy;
mod uevents;

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{Event, MemoryWanted, event};
use log::{info, warn};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use self::growth::{Ask, Growth};
use self::policy::Look;
use self::uevents::Uevents;
use crate::cgroup::{Cgroup, value_of};
use crate::events::Events;

/// A cgroup at its bound says so all the time; where that means nothing it is listened to this often.
const INTERVAL: Duration = Duration::from_millis(100);

/// Memory comes in blocks, many at once, and the containers may be waiting for it: the machine is looked
/// at no more often than this because of that.
const BLOCKS_INTERVAL: Duration = Duration::from_millis(10);

/// Where all containers are.
const CONTAINERS: &str = "/hull";

/// How much may be plugged, as the shim says; see [`manage`].
#[derive(Debug)]
pub struct Grants(watch::Sender<u64>);

impl Default for Grants {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Grants {
    /// The machine may have `mib` MiB plugged, and gets them.
    pub fn grant(&self, mib: u32) {
        // Also when it is as before: that is the answer to who asked for more.
        self.0.send_replace(u64::from(mib) << 20);
    }
}

/// Has the machine grow with its containers, for as long as it is there. What is wanted is published,
/// and answered by a grant.
pub async fn manage(events: Arc<Events>, grants: Arc<Grants>) {
    let containers = Cgroup::at(CONTAINERS.as_ref());
    if let Err(error) = follow(&containers, &events, &grants).await {
        warn!("the machine keeps the memory it has: {error}");
        // Nobody would move the bound any more.
        bind(&containers, None);
    }
}

async fn follow(containers: &Cgroup, events: &Events, grants: &Grants) -> io::Result<()> {
    let uevents = Uevents::listen()?;
    let over = containers.high_watch();
    let mut granted = grants.0.subscribe();
    let mut now = look(containers)?;
    let mut growth = Growth::new(now);
    let (mut listen, mut heed) = (Instant::now(), Instant::now());
    loop {
        bind(containers, growth.bound(now));
        let over_bound = async {
            sleep_until(listen).await;
            over.happened().await
        };
        let memory_changed = async {
            sleep_until(heed).await;
            uevents.memory_changed().await
        };
        let ask = tokio::select! {
            told = over_bound => {
                told?;
                now = look(containers)?;
                listen = Instant::now() + INTERVAL;
                growth.over(now)
            }
            changed = memory_changed => {
                changed?;
                now = look(containers)?;
                listen = Instant::now();
                heed = listen + BLOCKS_INTERVAL;
                growth.changed(now)
            }
            // The sender is there as long as this is.
            _ = granted.changed() => {
                let granted = *granted.borrow_and_update();
                now = look(containers)?;
                growth.granted(now, granted);
                None
            }
            () = reached(growth.deadline()) => {
                warn!("memory that was asked for did not come");
                now = look(containers)?;
                growth.give_up();
                None
            }
        };
        if let Some(Ask(bytes)) = ask {
            let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
            info!("the containers use {} MiB: ask for {mib}", now.used >> 20);
            events.publish(wanted(mib));
        }
    }
}

fn wanted(mib: u32) -> Event {
    Event {
        what: Some(event::What::MemoryWanted(MemoryWanted {
            mib,
            ..MemoryWanted::default()
        })),
        ..Event::default()
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Makes the containers wait where they use more than `bytes`. It is never below what they use, so
/// nothing has to be reclaimed, which the agent would wait for.
fn bind(containers: &Cgroup, bytes: Option<u64>) {
    let text = bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
    if let Err(error) = containers.set_high(&text) {
        warn!("bound the containers' memory: {error}");
    }
}

/// Looks at the machine and at what its containers use.
fn look(containers: &Cgroup) -> io::Result<Look> {
    let folder = containers.directory();
    let current = fs::read_to_string(folder.join("memory.current"))?;
    let stat = fs::read_to_string(folder.join("memory.stat"))?;
    let of = |key| value_of(&stat, key).unwrap_or(0);
    Ok(Look {
        total: total(&fs::read_to_string("/proc/meminfo")?),
        used: current.trim().parse().unwrap_or(0),
        cache: of("inactive_file") + of("active_file"),
        // Counted in pages.
        refaulted: of("workingset_refault_file") * 4096,
    })
}

/// `MemTotal` of a `/proc/meminfo` in bytes.
fn total(meminfo: &str) -> u64 {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read_in_bytes() {
        let text = "MemTotal:         480116 kB\nMemFree:          400000 kB\n";
        assert_eq!(total(text), 480_116 << 10);
        assert_eq!(total("MemFree: 1 kB\n"), 0);
    }

    #[test]
    fn a_grant_is_heard_again_although_it_is_as_before() {
        let grants = Grants::default();
        let mut heard = grants.0.subscribe();
        for _ in 0..2 {
            grants.grant(3);
            assert!(heard.has_changed().unwrap());
            assert_eq!(*heard.borrow_and_update(), 3 << 20);
        }
    }
}
