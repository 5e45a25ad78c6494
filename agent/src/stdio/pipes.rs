//! Streams that are pipes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;

use super::BUFFER;

/// Moves one stream's data until it ends.
pub(super) type Pump = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// A stream that goes nowhere.
pub(super) fn null() -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    Ok(null.into())
}

/// The end of a pipe that a process reads what the host sends from.
pub(super) fn input(
    connection: impl AsyncRead + Unpin + Send + Sync + 'static,
    pumps: &mut Vec<Pump>,
) -> io::Result<OwnedFd> {
    let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let ours = pipe::Sender::from_owned_fd(ours)?;
    pumps.push(Box::pin(feed(connection, ours)));
    Ok(theirs)
}

/// The end of a pipe to which a process writes what the host is to have.
pub(super) fn output(
    connection: impl AsyncWrite + Unpin + Send + Sync + 'static,
    pumps: &mut Vec<Pump>,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let ours = pipe::Receiver::from_owned_fd(ours)?;
    pumps.push(Box::pin(drain(ours, connection)));
    Ok(theirs)
}

/// Copies from the host to a pipe; the end of either is the end of both.
async fn feed(mut from: impl AsyncRead + Unpin, mut to: pipe::Sender) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // Nobody can read the pipe any more (pipe(7)): do not hold the connection open.
            _ = to.ready(Interest::ERROR) => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Copies from a pipe to the host, then says that this was all.
async fn drain(mut from: pipe::Receiver, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn all_output_arrives_before_the_end_of_the_stream() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = output(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));
        let written = vec![b'x'; 60 << 10];

        File::from(theirs).write_all(&written).unwrap();

        let mut read = Vec::new();
        shim.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), written.len());
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_hosts_data_is_end_of_file() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = input(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));

        shim.write_all(b"typed").await.unwrap();
        drop(shim);

        pump.await.unwrap();
        let mut read = String::new();
        File::from(theirs).read_to_string(&mut read).unwrap();
        assert_eq!(read, "typed");
    }

    #[tokio::test]
    async fn input_ends_with_its_last_reader() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = input(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));

        drop(theirs);

        pump.await.unwrap();
        assert_eq!(shim.read(&mut [0]).await.unwrap(), 0);
    }
}
