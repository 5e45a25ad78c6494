//! The way to the host.

use std::io;

use agent_protocol::HOST_CID;
use tokio_vsock::{VsockAddr, VsockStream};

/// Where the shim listens.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    cid: u32,
}

impl Host {
    /// The host of this virtual machine.
    pub const MACHINE: Self = Self { cid: HOST_CID };

    /// A shim at another vsock address, e.g. `VMADDR_CID_LOCAL` for one on the same kernel.
    pub const fn at(cid: u32) -> Self {
        Self { cid }
    }

    /// Connects to a port of the host.
    ///
    /// # Errors
    /// `ConnectionReset` if nobody waits there (vsock(7)).
    pub async fn connect(self, port: u32) -> io::Result<VsockStream> {
        VsockStream::connect(VsockAddr::new(self.cid, port)).await
    }
}
