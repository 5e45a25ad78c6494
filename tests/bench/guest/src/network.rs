//! TCP to the host and back.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Instant;

use crate::{latency, rate, say};
use hull_bench_guest::ports::{BYTES, ECHO, SINK, SOURCE};

/// How many times a byte goes there and back.
const ROUNDS: u64 = 1000;

pub(crate) fn network(host: IpAddr) -> io::Result<()> {
    let mut buffer = vec![0x5a; 1 << 18];

    let mut sink = TcpStream::connect((host, SINK))?;
    let begin = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        sink.write_all(&buffer)?;
        left -= buffer.len() as u64;
    }
    // It says that it has got everything.
    sink.shutdown(std::net::Shutdown::Write)?;
    sink.read_to_end(&mut Vec::new())?;
    say("send", rate(BYTES, begin));

    let mut source = TcpStream::connect((host, SOURCE))?;
    let begin = Instant::now();
    let mut got = 0;
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            length => got += length as u64,
        }
    }
    say("receive", rate(got, begin));

    let mut echo = TcpStream::connect((host, ECHO))?;
    echo.set_nodelay(true)?;
    let mut byte = [0];
    let round = latency(ROUNDS, |_| {
        echo.write_all(&byte)?;
        echo.read_exact(&mut byte)
    })?;
    say("round-trip", round);
    Ok(())
}
