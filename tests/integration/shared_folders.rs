//! Folders of the host in containers: whose they stay, whatever happens around them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hull_tests::{Container, Host, command};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A tmpfs of the host's, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).expect("make a directory");
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &path, tmpfs, MsFlags::empty(), None::<&str>).expect("mount a tmpfs");
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn with_folder<'a>(host: &'a Host, name: &'a str, folder: &Path, options: &str) -> Container<'a> {
    let mount = format!(
        "type=bind,src={},dst=/folder,options={options}",
        folder.display()
    );
    host.container(name)
        .options(&["--privileged", "--mount", &mount])
}

#[test]
fn a_mount_of_the_hosts_whose_name_is_no_text_harms_no_folder() {
    let host = Host::take();
    let places = tempfile::tempdir_in("/run").unwrap();
    let folder = places.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("kept"), "high").unwrap();
    let _odd = Tmpfs::at(places.path().join(OsStr::from_bytes(b"odd\xff")));

    let run = with_folder(&host, "odd", &folder, "rbind:rw").run(&["cat", "/folder/kept"]);

    assert_eq!(run.output(), "high");
    assert_eq!(fs::read_to_string(folder.join("kept")).unwrap(), "high");
}

#[test]
fn a_privileged_container_cannot_write_where_it_was_given_to_read() {
    let host = Host::take();
    let folder = tempfile::tempdir_in("/run").unwrap();
    for options in ["rbind:ro", "rbind:rro"] {
        let script = "mount -o remount,bind,rw /folder && touch /folder/new";
        let run = with_folder(&host, "reader", folder.path(), options).run(&["sh", "-c", script]);
        assert!(
            run.stderr.contains("Read-only file system"),
            "{options} {run:?}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{options}");
    }
}

#[test]
fn what_the_host_mounts_in_a_folder_later_is_not_the_containers() {
    let host = Host::take();
    let folder = tempfile::tempdir_in("/run").unwrap();
    let later = folder.path().join("later");
    fs::create_dir(&later).unwrap();
    // As systemd has it: what is mounted shows in all copies that let it.
    let path = folder.path().display().to_string();
    for words in [
        ["--bind", &path, &path].as_slice(),
        &["--make-shared", &path],
    ] {
        assert_eq!(command("mount", words, b"").status, 0);
    }
    let reader = with_folder(&host, "later", folder.path(), "rbind:ro").start(&["sleep", "1000"]);

    let mounted = Tmpfs::at(later);
    fs::write(mounted.0.join("secret"), "").unwrap();
    let script = "ls /folder/later; mount -o remount,bind,rw /folder; touch /folder/later/new";
    let looked = reader.exec("look", &["sh", "-c", script]);

    assert_eq!(looked.stdout, "", "{looked:?}");
    assert!(
        looked.stderr.contains("Read-only file system"),
        "{looked:?}"
    );
    assert_eq!(fs::read_dir(&mounted.0).unwrap().count(), 1);
    reader.end();
    drop(mounted);
    umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
}
