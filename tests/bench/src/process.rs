//! What a VMM costs, as its host's kernel tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

/// Memory of a process but for its guest's, in KiB: the proportional shares of all mappings whose
/// file is neither a memory file nor `image`, which the guest may read in place (proc_pid_smaps(5)).
pub(crate) fn private_kib(pid: u32, image: &Path) -> anyhow::Result<f64> {
    // The fifth word; the name, in a jail, may be another.
    let image = fs::metadata(image).context("look at the guest's image")?;
    let image = format!(" {} ", image.ino());
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("read its mappings")?;
    let (mut is_guest, mut sum) = (false, 0.0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") if !is_guest => {
                let kib = words.next().context("a share has a size")?;
                sum += kib.parse::<f64>().context("its size is a number")?;
            }
            // A mapping's first line begins with its addresses.
            Some(word) if word.contains('-') && !word.ends_with(':') => {
                is_guest = line.contains("/memfd:") || line.contains(image.as_str());
            }
            _ => {}
        }
    }
    Ok(sum)
}

/// Names of its threads.
pub(crate) fn threads(pid: u32) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("read its threads")? {
        let name = fs::read_to_string(task?.path().join("comm"))?;
        names.push(name.trim().to_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A counter of KVM's for its machine (`/sys/kernel/debug/kvm`).
pub(crate) fn counter(pid: u32, name: &str) -> anyhow::Result<f64> {
    let machines = fs::read_dir("/sys/kernel/debug/kvm").context("read KVM's counters")?;
    for entry in machines {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{pid}-"))
        {
            let text = fs::read_to_string(entry.path().join(name))
                .with_context(|| format!("read KVM's {name}"))?;
            return Ok(text.trim().parse()?);
        }
    }
    anyhow::bail!("KVM counts nothing for process {pid}")
}
