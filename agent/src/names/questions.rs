//! Many questions over one connection to the host.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_protocol::question::{self, Bytes, Question, Transport};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait to be sent.
const QUEUE: usize = 16;

/// The way to the host; clones share it.
#[derive(Clone)]
pub(super) struct Questions {
    queue: mpsc::Sender<Asked>,
}

/// A question, and where its answer is waited for.
struct Asked {
    transport: Transport,
    message: Bytes,
    answer: oneshot::Sender<Bytes>,
}

impl Questions {
    /// Sends questions over this connection while somebody holds a clone.
    pub(super) fn over(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE);
        tokio::spawn(carry(connection, asked));
        Self { queue }
    }

    /// Asks the host; `None` when there is no answer.
    pub(super) async fn ask(&self, transport: Transport, message: Bytes) -> Option<Bytes> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            transport,
            message,
            answer,
        };
        self.queue.send(asked).await.ok()?;
        answered.await.ok().filter(|message| !message.is_empty())
    }
}

/// Carries questions there and answers back until either side ends. Answers are taken while a question
/// waits to be sent: the host takes no more questions before it has given its answers.
async fn carry(connection: impl AsyncRead + AsyncWrite, asked: mpsc::Receiver<Asked>) {
    let (sink, answers) = question::framed(connection).split();
    let waiting = Waiting::default();
    let ended = tokio::select! {
        ended = send(sink, asked, &waiting) => ended,
        ended = receive(answers, &waiting) => ended,
    };
    if let Err(error) = ended {
        log::warn!("ask the host for names: {error}");
    }
}

/// Where answers are waited for, by their questions' numbers. Locked for one look-up.
type Waiting = Mutex<HashMap<u32, oneshot::Sender<Bytes>>>;

async fn send(
    mut sink: impl Sink<Question, Error = io::Error> + Unpin,
    mut asked: mpsc::Receiver<Asked>,
    waiting: &Waiting,
) -> io::Result<()> {
    let mut number = 0_u32;
    while let Some(asked) = asked.recv().await {
        number = number.wrapping_add(1);
        table(waiting).insert(number, asked.answer);
        let question = Question {
            number,
            transport: asked.transport,
            message: asked.message,
        };
        sink.send(question).await?;
    }
    Ok(())
}

async fn receive(
    mut answers: impl Stream<Item = io::Result<Question>> + Unpin,
    waiting: &Waiting,
) -> io::Result<()> {
    while let Some(answer) = answers.next().await {
        let Question {
            number, message, ..
        } = answer?;
        let asker = table(waiting).remove(&number);
        if let Some(asker) = asker {
            let _ = asker.send(message);
        }
    }
    Ok(())
}

fn table(waiting: &Waiting) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Bytes>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that answers in the reverse order, and leaves "nobody" without an answer.
    async fn host(connection: tokio::io::DuplexStream, questions: usize) {
        let mut connection = question::framed(connection);
        let mut asked = Vec::new();
        while asked.len() < questions {
            asked.push(connection.next().await.unwrap().unwrap());
        }
        for mut question in asked.into_iter().rev() {
            if question.message == "nobody" {
                question.message = Bytes::new();
            }
            connection.send(question).await.unwrap();
        }
    }

    #[tokio::test]
    async fn each_question_gets_its_own_answer() {
        let (ours, theirs) = tokio::io::duplex(64);
        let questions = Questions::over(ours);
        let ask = |name| questions.ask(Transport::Datagram, Bytes::from_static(name));

        let (first, second, none, ()) = tokio::join!(
            ask(b"first"),
            ask(b"second"),
            ask(b"nobody"),
            host(theirs, 3)
        );

        assert_eq!(first.unwrap(), "first");
        assert_eq!(second.unwrap(), "second");
        assert_eq!(none, None);
    }

    #[tokio::test]
    async fn who_asks_is_told_when_the_host_is_gone() {
        let (ours, theirs) = tokio::io::duplex(64);
        let questions = Questions::over(ours);
        let question = questions.ask(Transport::Connection, Bytes::from_static(b"name"));
        drop(theirs);
        assert_eq!(question.await, None);
        let later = questions.ask(Transport::Connection, Bytes::from_static(b"name"));
        assert_eq!(later.await, None);
    }
}
