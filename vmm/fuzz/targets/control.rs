//! The control socket: packets of anything, with descriptors of any kind, as the first of a machine and
//! while it runs.
#![no_main]

use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use hull_vmm::jail::Filters;
use hull_vmm::machine::{self, testing::Headless};
use libfuzzer_sys::fuzz_target;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vmm_control::{Channel, Event, ExitReason};

const DESCRIPTORS: &str = "/proc/self/fd";

fn descriptor(bytes: &mut Unstructured<'_>) -> Result<OwnedFd> {
    Ok(match bytes.int_in_range(0..=3)? {
        0 => File::open("/dev/null").expect("it is there").into(),
        1 => UnixStream::pair().expect("sockets").0.into(),
        2 => std::io::pipe().expect("a pipe").0.into(),
        _ => rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).expect("memory"),
    })
}

/// JSON that is nearly a boot request, so that what is behind the decoder is reached.
fn boot(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let index = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=7_u8);
    let number = |bytes: &mut Unstructured<'_>| bytes.arbitrary::<u8>();
    Ok(format!(
        r#"{{"Boot":{{"kvm":{},"kernel":{},"initrd":null,"cmdline":"quiet","vcpus":{},
            "memory_mib":{},"serial":{},"disks":[{{"file":{},"read_only":true,"serial":"a"}}],
            "nics":[{{"tap":{},"mac":"02:00:00:00:00:01","mtu":{}}}],
            "shares":[{{"daemon":{},"tag":"hull"}}]}}}}"#,
        index(bytes)?,
        index(bytes)?,
        number(bytes)?,
        number(bytes)?,
        index(bytes)?,
        index(bytes)?,
        index(bytes)?,
        bytes.arbitrary::<u16>()?,
        index(bytes)?,
    )
    .into_bytes())
}

/// Since Linux 6.2 the directory's length is their number.
fn open_descriptors() -> u64 {
    match fs::metadata(DESCRIPTORS) {
        Ok(directory) if directory.len() > 0 => directory.len(),
        _ => fs::read_dir(DESCRIPTORS).map_or(0, |all| all.count() as u64),
    }
}

/// A request to a machine that runs, or nearly one.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let number: u64 = match bytes.int_in_range(0..=3)? {
        0 => bytes.arbitrary()?,
        _ => bytes.int_in_range(0..=2)?,
    };
    Ok(match bytes.int_in_range(0..=9)? {
        0 => boot(bytes)?,
        1 => br#""Counters""#.to_vec(),
        2 => br#""Stop""#.to_vec(),
        3 => format!(r#"{{"Plug":{{"nic":{number}}}}}"#).into_bytes(),
        4 => format!(r#"{{"Balloon":{{"mib":{number}}}}}"#).into_bytes(),
        5 => bytes.bytes(bytes.len().min(64))?.to_vec(),
        6 => format!(r#"{{"PlugDisk":{{"disk":{number},"read_only":true,"serial":"a"}}}}"#)
            .into_bytes(),
        7 => format!(r#"{{"UnplugDisk":{{"disk":{number}}}}}"#).into_bytes(),
        _ => format!(r#"{{"Connect":{{"port":{number}}}}}"#).into_bytes(),
    })
}

fn send(shim: &Channel, packet: &[u8], bytes: &mut Unstructured<'_>) -> Result<()> {
    let descriptors = bytes.int_in_range(0..=8)?;
    let fds: Vec<OwnedFd> = (0..descriptors)
        .map(|_| descriptor(bytes))
        .collect::<Result<_>>()?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let iov = [IoSlice::new(packet)];
    sendmsg(shim, &iov, &mut ancillary, SendFlags::empty()).expect("it is connected");
    Ok(())
}

fn first(bytes: &mut Unstructured<'_>) -> Result<()> {
    let packet = if bytes.ratio(3, 4)? {
        boot(bytes)?
    } else {
        bytes.bytes(bytes.len() / 2)?.to_vec()
    };
    let (shim, vmm) = Channel::pair().expect("sockets");
    send(&shim, &packet, bytes)?;
    // None of the descriptors is KVM: whatever was asked for, there is no machine.
    let reason = machine::run(vmm, Filters::unjailed());
    assert!(matches!(reason, ExitReason::Failed(_)), "{reason:?}");
    let (last, _) = shim.receive::<Event>().expect("the VMM says why");
    assert!(matches!(last, Event::Exited { .. }), "{last:?}");
    Ok(())
}

fn later(bytes: &mut Unstructured<'_>) -> Result<()> {
    let (shim, vmm) = Channel::pair().expect("sockets");
    let machine = Headless::new(vmm);
    while !bytes.is_empty() {
        let packet = request(bytes)?;
        send(&shim, &packet, bytes)?;
        if machine.serve().is_some() {
            break;
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let before = open_descriptors();
    let mut bytes = Unstructured::new(bytes);
    let _ = match bytes.arbitrary() {
        Ok(true) => first(&mut bytes),
        _ => later(&mut bytes),
    };
    assert_eq!(open_descriptors(), before, "a descriptor leaks");
});
