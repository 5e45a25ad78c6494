//! Where the network is measured.

/// Where the host takes all it gets.
pub const SINK: u16 = 5001;
/// Where it sends [`BYTES`].
pub const SOURCE: u16 = 5002;
/// Where it sends back what it gets.
pub const ECHO: u16 = 5003;

/// How much is sent each way.
pub const BYTES: u64 = 64 << 20;
