//! A vCPU, and why it stopped running the guest.

use std::fmt::Write as _;
use std::sync::Arc;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KVMIO, kvm_pre_fault_memory, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::kick::Registration;
use crate::memory::Ram;

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    /// Dropped before the next two.
    fd: VcpuFd,
    /// The guest's interrupts stay bound.
    _vm: Arc<VmFd>,
    /// What the guest runs on stays mapped.
    _ram: Ram,
}

/// A vCPU on the thread that runs it, which [`super::Kicker::kick`] can get out of the guest.
#[derive(Debug)]
pub struct Runner {
    /// Dropped before the vCPU, into whose memory it points.
    _registration: Registration,
    vcpu: Vcpu,
}

/// What a vCPU left the guest for.
#[derive(Debug)]
pub enum Exit<'a> {
    /// A load from a port; the data is to be filled.
    IoIn(u16, &'a mut [u8]),
    /// A store to a port.
    IoOut(u16, &'a [u8]),
    /// A load from an address that is not memory; the data is to be filled.
    MmioRead(u64, &'a mut [u8]),
    /// A store to an address that is not memory.
    MmioWrite(u64, &'a [u8]),
    /// The processor shut down: it could not even deliver a double fault.
    Shutdown,
    /// The guest asked its firmware, which is KVM, for a reset.
    Reset,
    /// The guest asked it to be turned off.
    PowerOff,
    /// A signal arrived, or the vCPU was told to leave. Nothing happened to the guest.
    Interrupted,
    /// KVM gave up on it; [`Runner::diagnose`] says why, [`Runner::may_go_on`] whether for ever.
    InternalError,
    /// It cannot go on; the text says why.
    Unexpected(String),
}

impl Vcpu {
    pub(super) fn new(id: u8, fd: VcpuFd, vm: Arc<VmFd>, ram: Ram) -> Self {
        Self {
            id,
            fd,
            _vm: vm,
            _ram: ram,
        }
    }

    /// Its number, from 0.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// What KVM's interface offers beyond this, for the architecture's part.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Maps memory for the guest before it runs, as if it had read each page from `start` to `end`: an
    /// exit less for each page that it uses (KVM api.rst 4.143, Linux 6.11). Where KVM does not know
    /// how, the guest's own faults do it.
    pub fn pre_fault(&self, start: GuestAddress, end: GuestAddress) {
        let page = 4096;
        let start = start.0 / page * page;
        let mut range = kvm_pre_fault_memory {
            gpa: start,
            size: (end.0.saturating_add(page - 1) / page * page).saturating_sub(start),
            ..Default::default()
        };
        while range.size > 0 {
            // It moves the range on by what it has done, and is interrupted now and then.
            let left = range.size;
            if !pre_fault_memory(&self.fd, &mut range) && range.size == left {
                return;
            }
        }
    }

    /// Prepares to run on this thread. One vCPU a thread: a second one would not be kicked.
    #[must_use]
    pub fn on_this_thread(mut self) -> Runner {
        Runner {
            _registration: Registration::of(&mut self.fd),
            vcpu: self,
        }
    }
}

impl Runner {
    /// Its number, from 0.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.vcpu.id
    }

    /// Runs the guest until it needs something.
    pub fn run(&mut self) -> Exit<'_> {
        match self.vcpu.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Exit::IoIn(port, data),
            Ok(VcpuExit::IoOut(port, data)) => Exit::IoOut(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => Exit::MmioRead(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => Exit::MmioWrite(address, data),
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Exit::Reset,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Exit::PowerOff,
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::InternalError) => Exit::InternalError,
            Ok(VcpuExit::FailEntry(reason, cpu)) => Exit::Unexpected(format!(
                "the host's processor {cpu} refuses to enter the guest, reason {reason:#x}"
            )),
            Ok(other) => Exit::Unexpected(format!("an exit nobody asked for, {other:?}")),
            // EAGAIN: it is not yet woken by another vCPU.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
            Err(e) => Exit::Unexpected(format!("KVM_RUN: {e}")),
        }
    }

    /// Whether the guest is as it was before the last exit, which was an [`Exit::InternalError`], so that it may
    /// run again. KVM could not emulate an instruction: it fetches it through the guest's page tables, in which
    /// another vCPU may just have taken the page away, and this one's processor still had the translation. The
    /// guest's next try faults as it should. Hosts whose processors do not tell where the next instruction begins
    /// (AMD without NRIPS) do so even for what needs no more than to be stepped over.
    #[must_use]
    pub fn may_go_on(&mut self) -> bool {
        let (suberror, _) = internal_error(self.vcpu.fd.get_kvm_run());
        suberror == KVM_INTERNAL_ERROR_EMULATION
    }

    /// Describes the last exit, which was an [`Exit::InternalError`], with where the guest was: the
    /// architecture's `program_counter`.
    #[must_use]
    pub fn diagnose(&mut self, program_counter: fn(&VcpuFd) -> Option<u64>) -> String {
        let (suberror, data) = internal_error(self.vcpu.fd.get_kvm_run());
        let mut text = describe(suberror, &data);
        if let Some(address) = program_counter(&self.vcpu.fd) {
            let _ = write!(text, ", at {address:#x}");
        }
        text
    }
}

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Maps a part of the range, and makes the range the rest. Whether the kernel has gone to its end.
#[expect(unsafe_code, reason = "the library has no wrapper for this ioctl")]
fn pre_fault_memory(vcpu: &VcpuFd, range: &mut kvm_pre_fault_memory) -> bool {
    // SAFETY: the descriptor is a vCPU's, and the kernel reads and writes the structure alone, which
    // is of the ioctl's type. It touches no memory of ours: what it maps is the guest's.
    unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), range) == 0 }
}

/// Takes an internal error's code and data out of the shared page.
#[expect(unsafe_code, reason = "a member of a union that the kernel fills")]
fn internal_error(run: &kvm_run) -> (u32, Vec<u64>) {
    // SAFETY: the member is integers alone, for which any bits are a value, and lies within the
    // page. The kernel writes it only during KVM_RUN, which takes the vCPU by unique reference.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let length = usize::try_from(internal.ndata).unwrap_or(usize::MAX);
    let data = internal.data.iter().take(length).copied().collect();
    (internal.suberror, data)
}

/// KVM api.rst 5, `KVM_EXIT_INTERNAL_ERROR`.
fn describe(suberror: u32, data: &[u64]) -> String {
    let mut text = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".to_owned(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions while an exception was delivered".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered".to_owned(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit KVM does not know".to_owned(),
        other => format!("KVM's internal error {other}"),
    };
    let instruction = (suberror == KVM_INTERNAL_ERROR_EMULATION).then(|| instruction(data));
    if let Some(bytes) = instruction.flatten() {
        text.push(':');
        for byte in bytes {
            let _ = write!(text, " {byte:02x}");
        }
    } else if !data.is_empty() {
        let _ = write!(text, " {data:x?}");
    }
    text
}

/// The bytes of the instruction, if KVM tells them: flags, then their number and 15 bytes.
fn instruction(data: &[u64]) -> Option<Vec<u8>> {
    let &[flags, first, second, ..] = data else {
        return None;
    };
    if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
        return None;
    }
    let bytes = [first.to_ne_bytes(), second.to_ne_bytes()].concat();
    let (&length, bytes) = bytes.split_first()?;
    Some(bytes.iter().take(length.into()).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_cannot_be_emulated_is_named_by_its_bytes() {
        let xrstor = u64::from_ne_bytes([4, 0x48, 0x0f, 0xae, 0x2f, 0x90, 0x90, 0x90]);
        assert_eq!(
            describe(KVM_INTERNAL_ERROR_EMULATION, &[1, xrstor, 0]),
            "KVM cannot emulate an instruction: 48 0f ae 2f"
        );
    }

    #[test]
    fn without_bytes_the_raw_data_is_told() {
        assert_eq!(
            describe(KVM_INTERNAL_ERROR_EMULATION, &[0, 0x10, 0]),
            "KVM cannot emulate an instruction [0, 10, 0]"
        );
        assert_eq!(
            describe(KVM_INTERNAL_ERROR_EMULATION, &[]),
            "KVM cannot emulate an instruction"
        );
        assert_eq!(describe(9, &[0xff]), "KVM's internal error 9 [ff]");
    }

    #[test]
    fn a_length_beyond_the_bytes_there_are_is_cut() {
        let first = u64::from_ne_bytes([255, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            instruction(&[1, first, 0]).map(|bytes| bytes.len()),
            Some(15)
        );
    }
}
