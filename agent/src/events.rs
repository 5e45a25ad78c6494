//! What happens to containers, kept until the shim has taken it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_protocol::Event;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// A queue with any number of publishers and one subscriber at a time.
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    arrived: Notify,
    seat: Semaphore,
}

/// The one subscriber; its place is free again when it is dropped.
pub struct Subscription<'a> {
    events: &'a Events,
    _seat: SemaphorePermit<'a>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Notify::new(),
            seat: Semaphore::new(1),
        }
    }
}

impl Events {
    /// Appends an event.
    pub fn publish(&self, event: Event) {
        self.queue().push_back(event);
        self.arrived.notify_one();
    }

    /// Takes the subscriber's place, or returns `None` when it is taken.
    pub fn subscribe(&self) -> Option<Subscription<'_>> {
        let seat = self.seat.try_acquire().ok()?;
        Some(Subscription {
            events: self,
            _seat: seat,
        })
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription<'_> {
    /// Waits for the oldest event. It stays in the queue until `taken`.
    pub async fn oldest(&self) -> Event {
        loop {
            if let Some(event) = self.events.queue().front() {
                return event.clone();
            }
            self.events.arrived.notified().await;
        }
    }

    /// Removes the oldest event, which has reached its reader.
    pub fn taken(&self) {
        self.events.queue().pop_front();
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::{Oom, event};

    use super::*;

    fn oom(container_id: &str) -> Event {
        Event {
            what: Some(event::What::Oom(Oom {
                container_id: container_id.into(),
                ..Oom::default()
            })),
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn an_event_is_kept_until_it_was_taken() {
        let events = Events::default();
        events.publish(oom("first"));
        events.publish(oom("second"));

        let lost = events.subscribe().unwrap().oldest().await;
        let subscription = events.subscribe().unwrap();
        let again = subscription.oldest().await;
        subscription.taken();
        let next = subscription.oldest().await;

        assert_eq!(
            (&lost, &again, &next),
            (&oom("first"), &oom("first"), &oom("second"))
        );
    }

    #[test]
    fn there_is_one_subscriber_at_a_time() {
        let events = Events::default();
        let first = events.subscribe();

        assert!(events.subscribe().is_none());
        drop(first);
        assert!(events.subscribe().is_some());
    }
}
