//! A daemon for tests, on the back end of the crate `vhost`: an implementation of the protocol that
//! is not ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_RING_F_INDIRECT_DESC`, one that no
/// driver may see (`VHOST_F_LOG_ALL`), and `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 26 | 1 << 30;

/// What the daemon was told, and what it does about it: each ring that is enabled has its chains
/// answered, once, with the bytes they carry in reverse.
#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) features: u64,
    pub(crate) acked: u64,
    protocol: u64,
    pub(crate) owned: bool,
    pub(crate) resets: usize,
    pub(crate) enabled: [bool; 2],
    /// Rings taken back with `GET_VRING_BASE`.
    pub(crate) stopped: [bool; 2],
    regions: Vec<(VhostUserMemoryRegion, Option<File>)>,
    rings: [Ring; 2],
}

#[derive(Default)]
struct Ring {
    size: u16,
    base: u16,
    addresses: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
}

/// A daemon in a thread.
pub(crate) struct Running {
    daemon: Arc<Mutex<Daemon>>,
    thread: JoinHandle<()>,
    socket: UnixStream,
}

impl Daemon {
    pub(crate) fn offering(features: u64, protocol: VhostUserProtocolFeatures) -> Self {
        Self {
            features,
            protocol: protocol.bits(),
            ..Self::default()
        }
    }

    /// Lets it serve in a thread; the descriptor is the front end's.
    pub(crate) fn run(self) -> (Running, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = ours.try_clone().unwrap();
        let daemon = Arc::new(Mutex::new(self));
        let mut handler = BackendReqHandler::from_stream(ours, Arc::clone(&daemon));
        let end = socket.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            while handler.handle_request().is_ok() {}
            let _ = end.shutdown(std::net::Shutdown::Both);
        });
        let running = Running {
            daemon,
            thread,
            socket,
        };
        (running, theirs.into())
    }

    fn answer(&mut self, index: usize) -> std::io::Result<()> {
        let regions = self.regions.iter().map(|(region, file)| {
            let file = file.as_ref().unwrap().try_clone().unwrap();
            let offset = FileOffset::new(file, region.mmap_offset);
            let size = usize::try_from(region.memory_size).unwrap();
            (GuestAddress(region.guest_phys_addr), size, Some(offset))
        });
        let ram = GuestMemoryMmap::<()>::from_ranges_with_files(regions).unwrap();
        let gpa = |user: u64| {
            let region = self.regions.iter().map(|(region, _)| region);
            let region = { region }
                .find(|r| (r.user_addr..r.user_addr + r.memory_size).contains(&user))
                .unwrap();
            GuestAddress(user - region.user_addr + region.guest_phys_addr)
        };
        let ring = &mut self.rings[index];
        let mut queue = Queue::new(ring.size).unwrap();
        queue
            .try_set_desc_table_address(gpa(ring.addresses[0]))
            .unwrap();
        queue
            .try_set_used_ring_address(gpa(ring.addresses[1]))
            .unwrap();
        queue
            .try_set_avail_ring_address(gpa(ring.addresses[2]))
            .unwrap();
        queue.set_next_avail(ring.base);
        queue.set_next_used(ring.base);
        queue.set_ready(true);
        ring.kick.as_ref().unwrap().read_exact(&mut [0; 8])?;
        while let Some(chain) = queue.iter(&ram).unwrap().next() {
            let mut bytes = Vec::new();
            let mut reader = chain.clone().reader(&ram).unwrap();
            Read::read_to_end(&mut reader, &mut bytes)?;
            bytes.reverse();
            let head = chain.head_index();
            chain.writer(&ram).unwrap().write_all(&bytes)?;
            let written = u32::try_from(bytes.len()).unwrap();
            queue.add_used(&ram, head, written).unwrap();
        }
        ring.base = queue.next_avail();
        ring.call.as_ref().unwrap().write_all(&1_u64.to_ne_bytes())
    }
}

impl Running {
    pub(crate) fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.join().unwrap();
    }
}

fn unasked<T>() -> Result<T> {
    Err(Error::InvalidOperation(
        "a front end without this feature asks",
    ))
}

impl VhostUserBackendReqHandlerMut for Daemon {
    fn set_owner(&mut self) -> Result<()> {
        self.owned = true;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.resets += 1;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.features != 0 {
            return Err(Error::InvalidParam);
        }
        self.acked = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let files = files.into_iter().map(Some);
        self.regions = regions.iter().copied().zip(files).collect();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.rings[index as usize].size = u16::try_from(num).unwrap();
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        assert!(flags.is_empty());
        self.rings[index as usize].addresses = [descriptor, used, available];
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.rings[index as usize].base = u16::try_from(base).unwrap();
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        assert!(!self.enabled[index as usize]);
        self.stopped[index as usize] = true;
        let base = self.rings[index as usize].base;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.rings[usize::from(index)].kick = fd;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.rings[usize::from(index)].call = fd;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::from_bits_truncate(self.protocol))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // The crate always offers, and does, acknowledgements.
        let offered = self.protocol | VhostUserProtocolFeatures::REPLY_ACK.bits();
        if features & !offered != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.enabled[index as usize] = enable;
        if enable {
            // Without a notification there is nothing to do.
            let _ = self.answer(index as usize);
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        unasked()
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        unasked()
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        unasked()
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unasked()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unasked()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unasked()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unasked()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unasked()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unasked()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unasked()
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unasked()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unasked()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unasked()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unasked()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unasked()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unasked()
    }
}
