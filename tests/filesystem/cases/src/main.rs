//! Tests the file system of a directory: what POSIX and Linux promise and pjdfstest leaves out.
//!
//! `posix-cases DIR [NAME]...` runs the cases in whose names a NAME occurs, each in a fresh
//! directory below DIR that is its working directory, as root. A case is a line of output like
//! pjdfstest's; a failure's reason is on the next line, after the manual page with the promise.
//!
//! `posix-cases --other ACTION ARGUMENT...` is the other process that some cases need.

use std::path::Path;
use std::process::ExitCode;

use crate::check::{Case, Outcome};

mod acls;
mod attributes;
mod check;
mod directories;
mod locks;
mod maps;
mod open_files;
mod other;
mod renames;
mod space;
mod special;
mod sys;
mod user;
mod xattrs;

const GROUPS: &[(&str, &[Case])] = &[
    ("acls", acls::CASES),
    ("attributes", attributes::CASES),
    ("directories", directories::CASES),
    ("locks", locks::CASES),
    ("maps", maps::CASES),
    ("open_files", open_files::CASES),
    ("renames", renames::CASES),
    ("space", space::CASES),
    ("special", special::CASES),
    ("xattrs", xattrs::CASES),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(first) = arguments.next() else {
        eprintln!("usage: posix-cases DIR [NAME]...");
        return ExitCode::from(2);
    };
    let rest: Vec<String> = arguments.collect();
    if first == "--other" {
        return other::act(&rest);
    }
    // A file's mode is what a case asks for.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut failed = false;
    for (group, cases) in GROUPS {
        for case in *cases {
            let name = format!("{group}::{}", case.name);
            if !rest.is_empty() && !rest.iter().any(|part| name.contains(part)) {
                continue;
            }
            match run(Path::new(&first), &name, case) {
                Ok(()) => println!("posix::{name} ok"),
                Err(failure) => {
                    failed = true;
                    println!("posix::{name} FAILED\n\t{}: {failure}", case.promise);
                }
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

fn run(base: &Path, name: &str, case: &Case) -> Outcome {
    let directory = base.join(name);
    std::fs::create_dir(&directory)?;
    std::env::set_current_dir(&directory)?;
    let outcome = (case.run)();
    std::env::set_current_dir(base)?;
    std::fs::remove_dir_all(&directory)?;
    outcome
}
