//! An initial RAM file system with busybox and one script.

use std::fs;
use std::io::Write;

use tempfile::tempfile;

/// Builds the archive (`newc`, see the kernel's "initramfs buffer format").
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

impl Initramfs {
    /// Busybox with all its applets in `/bin`, and an `/init` that mounts `/proc`, `/sys` and `/dev`,
    /// runs `script` and then reboots.
    ///
    /// # Panics
    /// When this host has no busybox.
    #[must_use]
    pub fn with_script(script: &str) -> Self {
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        let applets = crate::command("/bin/busybox", &["--list"], b"");
        let mut this = Self::default();
        for directory in ["bin", "dev", "proc", "sys", "tmp", "mnt"] {
            this.add(directory, DIRECTORY, b"");
        }
        this.add("bin/busybox", PROGRAM, &busybox);
        for applet in applets
            .output()
            .lines()
            .filter(|&applet| applet != "busybox")
        {
            this.add(&format!("bin/{applet}"), SYMLINK, b"busybox");
        }
        let init = format!(
            "#!/bin/sh\nexport PATH=/bin\n\
             mount -t proc proc /proc\nmount -t sysfs sysfs /sys\nmount -t devtmpfs dev /dev\n\
             exec </dev/console >/dev/console 2>&1\n\
             {script}\n\
             echo THE-END\nreboot -f\n"
        );
        this.add("init", PROGRAM, init.as_bytes());
        this
    }

    /// Adds a program.
    #[must_use]
    pub fn program(mut self, name: &str, content: &[u8]) -> Self {
        self.add(name, PROGRAM, content);
        self
    }

    /// The archive as a file without a name.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn into_file(mut self) -> fs::File {
        self.add("TRAILER!!!", 0, b"");
        let mut file = tempfile().expect("make a temporary file");
        file.write_all(&self.archive)
            .expect("write a temporary file");
        file
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = content.len();
        let name_size = name.len() + 1;
        // Fields: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
        // namesize check.
        let header = format!(
            "070701{:08x}{mode:08x}{zero}{zero}{:08x}{zero}{size:08x}{zero}{zero}{zero}{zero}{name_size:08x}{zero}",
            self.inode,
            1,
            zero = "00000000",
        );
        self.archive.extend_from_slice(header.as_bytes());
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents start at multiples of four bytes.
    fn pad(&mut self) {
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}
