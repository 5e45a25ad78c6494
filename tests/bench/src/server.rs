//! The host's side of the network's measure: takes, gives, and gives back.

use std::io::{Read, Write, copy, sink};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::Context;
use hull_bench_guest::ports;

/// Serves for as long as the process lives.
pub(crate) fn serve() -> anyhow::Result<()> {
    answer(ports::SINK, |mut client| {
        copy(&mut client, &mut sink()).map(drop)
    })?;
    answer(ports::SOURCE, |mut client| {
        let chunk = vec![0x5a; 1 << 18];
        for _ in 0..ports::BYTES / chunk.len() as u64 {
            client.write_all(&chunk)?;
        }
        Ok(())
    })?;
    answer(ports::ECHO, |mut client| {
        client.set_nodelay(true)?;
        let mut byte = [0];
        loop {
            if client.read(&mut byte)? == 0 {
                return Ok(());
            }
            client.write_all(&byte)?;
        }
    })
}

fn answer(
    port: u16,
    serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + Copy + 'static,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listen for guests")?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A guest that is ended hangs up.
            thread::spawn(move || serve(client));
        }
    });
    Ok(())
}
