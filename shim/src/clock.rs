//! The guest's wall clock follows the host's.
//!
//! A guest knows the time when it boots, and counts on from there by what the processor counts: neither what NTP
//! makes of the host's clock nor a step of it reaches the guest. So it is asked for its time, and told by how much
//! that is behind: at first, when the host's clock is set, and now and then.
//!
//! Threat: a guest that tells any time. It is told the difference, which is its own.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use agent_protocol::{AgentClient, ClockAdjustment};
use log::{debug, warn};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::error::TaskError;
use crate::supervise::Gone;

/// How long a guest goes by its own clock. Oscillators are off by some ten parts in a million: a millisecond.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer that took no longer than twice this is good enough, and so is a clock that is no further off.
const EXACT: Duration = Duration::from_micros(500);

/// How often the guest is asked for an answer that is good enough. The best one counts otherwise.
const QUESTIONS: u32 = 5;

/// Holds the guest's clock to the host's until the sandbox is over.
pub async fn follow(agent: AgentClient, gone: Gone) {
    let followed = async {
        loop {
            // Before the host's is looked at, so that no change is missed.
            let changes = Changes::watch();
            if let Err(e) = adjust(&agent).await {
                debug!("the guest's clock goes by itself: {}", TaskError::from(e));
            }
            match changes {
                Ok(changes) => changes.next(INTERVAL).await,
                Err(e) => {
                    warn!("notice changes of the host's clock: {e}");
                    tokio::time::sleep(INTERVAL).await;
                }
            }
        }
    };
    tokio::select! {
        () = followed => {}
        _ = gone.reason() => {}
    }
}

/// Asks the guest for its time, and tells it by how much that is behind.
async fn adjust(agent: &AgentClient) -> ttrpc::Result<()> {
    let mut best = Sample::take(agent).await?;
    for _ in 1..QUESTIONS {
        if best.uncertain <= EXACT {
            break;
        }
        let next = Sample::take(agent).await?;
        if next.uncertain < best.uncertain {
            best = next;
        }
    }
    let off = Duration::from_nanos(best.behind.unsigned_abs());
    if off > best.uncertain.max(EXACT) {
        debug!("the guest's clock is {} ns behind", best.behind);
        tell(agent, best.behind).await?;
    }
    Ok(())
}

/// Tells the guest how many nanoseconds its clock is behind; returns what it showed before, since 1970.
async fn tell(agent: &AgentClient, nanoseconds: i64) -> ttrpc::Result<i64> {
    let context = ttrpc::context::with_duration(PATIENCE);
    let adjustment = ClockAdjustment {
        nanoseconds,
        ..Default::default()
    };
    let clock = agent.adjust_clock(context, &adjustment).await?;
    Ok(clock.unix_nanoseconds)
}

/// What one question has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// How many nanoseconds the guest's clock is behind the host's.
    behind: i64,
    /// By how much that may be wrong: the guest has answered at some time between question and answer.
    uncertain: Duration,
}

impl Sample {
    async fn take(agent: &AgentClient) -> ttrpc::Result<Self> {
        let (asked, began) = (SystemTime::now(), Instant::now());
        let guest = tell(agent, 0).await?;
        Ok(Self::of(asked, began.elapsed(), guest))
    }

    fn of(asked: SystemTime, took: Duration, guest: i64) -> Self {
        let uncertain = took / 2;
        let host = asked + uncertain;
        let since = host.duration_since(SystemTime::UNIX_EPOCH);
        let host = since.map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        });
        Self {
            behind: host.saturating_sub(guest),
            uncertain,
        }
    }
}

/// Tells when the host's clock is set, which is also when the host wakes from sleep.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Those from now on.
    fn watch() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        // It is there to be cancelled (timerfd_create(2)).
        let never = Expiration::OneShot(TimeSpec::new(i64::from(u32::MAX) * 2, 0));
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        timer.set(never, flags)?;
        #[expect(unsafe_code, reason = "tokio knows no timers of this kind")]
        // SAFETY: it is the one that owns the descriptor, which stays in the `AsyncFd`.
        let registered = unsafe { AsyncFd::register(OwnedFd::from(timer)) };
        Ok(Self(registered?))
    }

    /// Waits for one, or for as long as this.
    async fn next(self, longest: Duration) {
        let _ = timeout(longest, self.0.readable()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use agent_protocol::{Agent, Clock, create_agent};
    use async_trait::async_trait;
    use tokio::net::{UnixListener, UnixStream};
    use ttrpc::r#async::transport::{Listener, Socket};
    use ttrpc::r#async::{Client, Server, TtrpcContext};

    use super::*;

    /// A guest whose clock is that much ahead of the host's, in nanoseconds.
    struct Guest(Mutex<i64>);

    #[async_trait]
    impl Agent for Guest {
        async fn adjust_clock(
            &self,
            _: &TtrpcContext,
            adjustment: ClockAdjustment,
        ) -> ttrpc::Result<Clock> {
            let mut ahead = self.0.lock().unwrap();
            let host = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
            let unix_nanoseconds = i64::try_from(host).unwrap() + *ahead;
            *ahead += adjustment.nanoseconds;
            Ok(Clock {
                unix_nanoseconds,
                ..Default::default()
            })
        }
    }

    #[tokio::test]
    async fn a_guest_that_is_off_is_told_by_how_much() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let hour = 3_600_000_000_000;
        let guest = Arc::new(Guest(Mutex::new(-hour)));
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_agent(guest.clone()));
        server.start().await.unwrap();
        let connection = UnixStream::connect(&socket).await.unwrap();
        let agent = AgentClient::new(Client::new(Socket::new(connection)));

        let gone = Gone::default();
        let following = tokio::spawn(follow(agent, gone.clone()));
        while *guest.0.lock().unwrap() == -hour {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gone.tell("it is over".to_owned());
        following.await.unwrap();

        let off = guest.0.lock().unwrap().unsigned_abs();
        assert!(off < 1_000_000_000, "{off}");
    }

    #[test]
    fn the_middle_of_question_and_answer_is_when_the_guest_looked() {
        let asked = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let took = Duration::from_millis(2);
        let sample = |guest| Sample::of(asked, took, guest);

        let uncertain = Duration::from_millis(1);
        let behind = 4_000_000;
        let exact = Sample { behind, uncertain };
        assert_eq!(sample(4_997_000_000), exact);
        assert_eq!(sample(i64::MIN).behind, i64::MAX);
        assert_eq!(sample(i64::MAX).behind, 5_001_000_000 - i64::MAX);
    }
}
