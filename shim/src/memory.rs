//! How much memory a machine has: what its containers may use, as they come to need it.
//!
//! A machine boots with `memory_mib` of the configuration. More of it is plugged when the agent says
//! that it is needed, and for a container with a limit at once, so that what the guest shows as its
//! memory is no less than that.
//!
//! Threat: a guest that asks for all it can. It gets what the limits of its containers add up to and
//! what the kernel needs besides, or, when one of them has no limit, what the configuration allows
//! any machine; how often it asks does not matter.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::{AgentClient, MemoryGrant};
use log::warn;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::TaskError;
use crate::vmm_process::Control;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two grants, so that an agent that asks without end is heard now and then.
const SHORTEST: Duration = Duration::from_millis(10);

/// After a grant that the agent has refused.
const PAUSE: Duration = Duration::from_secs(1);

/// What is plugged at a time: a memory block of Linux, in MiB.
const BLOCK: u64 = 128;

/// Memory of a machine beyond its containers' limits in MiB: the guest's kernel and agent, and what they
/// leave free (`agent/src/memory/policy.rs`), so that a container meets its own limit first.
const OVERHEAD: u64 = 192;
/// The part of the limits that is added to it: 1/this.
const OVERHEAD_PART: u64 = 15;

/// What is known of the memory of one machine. Sizes are in MiB.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// What it boots with.
    boot: u64,
    /// The most it may ever have.
    most: u64,
    /// The most its agent has asked for, besides `boot`.
    asked: u64,
    /// The limits of its containers.
    limits: HashMap<String, Option<u64>>,
}

impl Sizes {
    /// A machine that boots with `boot` MiB, and may have `most` or what the host has.
    #[must_use]
    pub fn new(boot: u32, most: Option<u32>) -> Self {
        let host = || host_memory_mib().unwrap_or_else(|| boot.into());
        Self {
            boot: boot.into(),
            most: most.map_or_else(host, u64::from).max(boot.into()),
            ..Self::default()
        }
    }

    /// A container is there with this limit in bytes, or what the specification says instead of one.
    pub fn limit(&mut self, id: &str, limit: Option<i64>) {
        let bytes = limit.filter(|&limit| limit > 0).map(i64::unsigned_abs);
        let mib = bytes.map(|bytes| bytes.div_ceil(1 << 20));
        self.limits.insert(id.to_owned(), mib);
    }

    /// A container has gone.
    fn forget(&mut self, id: &str) {
        self.limits.remove(id);
    }

    /// Has something change, and nobody who has no limit lose memory by it that he may be using: what was plugged for
    /// another's limit is his as well. What is free goes back to the host by the balloon.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let had = self.target();
        change(self);
        if self.limits.values().any(Option::is_none) {
            self.asked = self.asked.max(had.into());
        }
    }

    /// The most that may ever be plugged.
    #[must_use]
    pub fn pluggable(&self) -> u32 {
        blocks(self.most - self.boot)
    }

    /// How much should be plugged.
    #[must_use]
    pub fn target(&self) -> u32 {
        let known = self.limits.values().flatten().copied();
        let sum = known.fold(0, u64::saturating_add);
        let whole = sum.saturating_add(sum / OVERHEAD_PART + OVERHEAD);
        let limited = !self.limits.is_empty() && self.limits.values().all(Option::is_some);
        let least = if sum > 0 { whole } else { 0 };
        let most = if limited { whole } else { u64::MAX };
        let wanted = self.boot.saturating_add(self.asked).max(least).min(most);
        blocks(wanted.min(self.most).saturating_sub(self.boot))
    }
}

/// Rounded up to what is plugged at a time.
fn blocks(mib: u64) -> u32 {
    let whole = mib.checked_next_multiple_of(BLOCK).unwrap_or(mib);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

fn host_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut lines = info.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib >> 10)
}

/// The memory of a machine that runs.
#[derive(Debug)]
pub struct Memory {
    sizes: Mutex<Sizes>,
    target: watch::Sender<u32>,
}

impl Memory {
    /// Takes over from the boot: the VMM has been asked for the target there is.
    #[must_use]
    pub fn of(sizes: Sizes, control: Control, agent: AgentClient) -> Self {
        let target = watch::Sender::new(sizes.target());
        tokio::spawn(follow(target.subscribe(), control, agent));
        Self {
            sizes: Mutex::new(sizes),
            target,
        }
    }

    /// A container has come, or its limit has changed.
    pub fn limit(&self, id: &str, limit: Option<i64>) {
        self.change(|sizes| sizes.limit(id, limit));
    }

    /// A container has gone.
    pub fn forget(&self, id: &str) {
        self.change(|sizes| sizes.forget(id));
    }

    /// The agent asks for `mib` MiB to be plugged.
    pub fn wanted(&self, mib: u32) {
        self.change(|sizes| sizes.asked = sizes.asked.max(mib.into()));
    }

    /// Whoever asked is answered, even if nothing changes.
    fn change(&self, change: impl FnOnce(&mut Sizes)) {
        let mut sizes = self.sizes();
        sizes.change(change);
        self.target.send_replace(sizes.target());
    }

    fn sizes(&self) -> MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells VMM and agent each new target, until the machine is over.
async fn follow(mut target: watch::Receiver<u32>, control: Control, agent: AgentClient) {
    while target.changed().await.is_ok() {
        let mib = *target.borrow_and_update();
        if let Err(e) = control.set_memory(mib) {
            return warn!("ask for memory: {e}");
        }
        let grant = MemoryGrant {
            mib,
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(PATIENCE);
        if let Err(e) = agent.grant(context, &grant).await {
            warn!("grant memory: {}", TaskError::from(e));
            sleep(PAUSE).await;
        }
        sleep(SHORTEST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn sizes(asked: u64, limits: &[Option<i64>]) -> Sizes {
        let mut sizes = Sizes {
            asked,
            ..Sizes::new(512, Some(16_384))
        };
        for (id, limit) in limits.iter().enumerate() {
            sizes.limit(&id.to_string(), *limit);
        }
        sizes
    }

    #[test]
    fn a_machine_without_limits_gets_what_its_agent_asks_for_up_to_what_it_may_have() {
        for (asked, target) in [(0, 0), (1, 128), (256, 256), (1 << 40, 15_872)] {
            assert_eq!(sizes(asked, &[None]).target(), target, "{asked}");
        }
        assert_eq!(sizes(0, &[]).pluggable(), 15_872);
    }

    #[test]
    fn limits_fit_at_once_and_are_the_most_there_is() {
        for (asked, limits, target) in [
            (0, vec![Some(64 * MIB)], 0),
            // 1024 and 68 and 192, less 512, in blocks.
            (0, vec![Some(1024 * MIB)], 896),
            (9999, vec![Some(1024 * MIB)], 896),
            (0, vec![Some(512 * MIB), Some(512 * MIB)], 896),
            // One without a limit may want more than the others' limits.
            (9999, vec![Some(1024 * MIB), None], 10_112),
            (0, vec![Some(1024 * MIB), None], 896),
            // What the specification means by no limit.
            (1000, vec![Some(-1)], 1024),
            (0, vec![Some(i64::MAX)], 15_872),
            (0, vec![Some(i64::MAX), Some(i64::MAX)], 15_872),
        ] {
            assert_eq!(sizes(asked, &limits).target(), target, "{asked} {limits:?}");
        }
    }

    #[test]
    fn a_machine_is_never_smaller_than_it_boots() {
        let machine = Sizes::new(512, Some(100));
        assert_eq!((machine.pluggable(), machine.target()), (0, 0));
        assert!(Sizes::new(512, None).most >= 512);
    }

    #[test]
    fn what_is_plugged_for_one_stays_for_another_without_a_limit() {
        let mut machine = sizes(0, &[None, Some(1024 * MIB)]);
        let plugged = machine.target();
        assert!(plugged > 0);
        machine.change(|machine| machine.forget("1"));
        assert_eq!(machine.target(), plugged);
        machine.change(|machine| machine.forget("0"));
        machine.change(|machine| machine.limit("2", Some(64 * MIB)));
        assert!(machine.target() < plugged);
    }

    #[test]
    fn a_limit_that_changes_or_goes_counts_no_more() {
        let mut machine = sizes(0, &[Some(1024 * MIB)]);
        machine.limit("0", Some(2048 * MIB));
        assert_eq!(machine.target(), 1920);
        machine.forget("0");
        assert_eq!(machine.target(), 0);
    }
}
