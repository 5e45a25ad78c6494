//! The OCI runtime specification 1.2, one case for each thing that it demands.
//!
//! A test is a section of the specification, by its anchor; what it prints is kept in the verdicts
//! that `tests/integration/run` counts. Demands that do not disturb each other share a container.
//!
//! A case has to be right before it can be passed: with `HULL_OCI_REFERENCES` set, each runs on runc
//! and on crun too, and one of them has to agree.

mod devices;
mod hooks;
mod lifecycle;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod root;
mod seccomp;
mod users;

use std::fs::OpenOptions;
use std::io::Write;

use hull_tests::{Bundle, Container, Finished, Host, RUNTIME};
use serde_json::{Value, json};

const ID: &str = "oci";

/// A container that others join.
const FIRST: &str = "first";

/// What every script may use: `option MOUNT NAME` says whether a mount has an option, `propagation
/// MOUNT` how it propagates, `type MOUNT` what it is.
const PRELUDE: &str = r#"
line() { awk -v at="$1" '$5 == at { line = $0 } END { print line }' /proc/self/mountinfo; }
option() {
	line "$1" | awk -v name="$2" '{
		count = split($6 "," $NF, all, ",")
		for (i = 1; i <= count; i++) if (all[i] == name) found = 1
		print (NF == 0 ? "no mount" : found ? "yes" : "no")
	}'
}
propagation() { line "$1" | awk '{ for (i = 7; $i != "-"; i++) print $i }' | sed 's/:.*//'; }
type() { line "$1" | awk '{ for (i = 7; $i != "-"; i++); print $(i + 1) }'; }
"#;

/// A runtime that a case runs on.
struct Runtime {
    name: &'static str,
    shim: &'static str,
    options: &'static [&'static str],
}

const HULL: Runtime = Runtime {
    name: "hull",
    shim: RUNTIME,
    options: &[],
};
const RUNC: Runtime = Runtime {
    name: "runc",
    shim: "io.containerd.runc.v2",
    options: &[],
};
const CRUN: Runtime = Runtime {
    name: "crun",
    options: &["--runc-binary", "/usr/bin/crun"],
    ..RUNC
};

/// One thing that the specification demands.
#[derive(Clone, Copy)]
struct Demand {
    text: &'static str,
    /// Why neither runc nor crun can show that the case is right.
    unproven: Option<&'static str>,
    /// It cannot be in a virtual machine: Hull refuses it, as docs/limits.md says.
    is_limit: bool,
}

const fn demand(text: &'static str) -> Demand {
    Demand {
        text,
        unproven: None,
        is_limit: false,
    }
}

/// A demand that a virtual machine cannot meet, so that Hull has to say so.
const fn limit(text: &'static str) -> Demand {
    Demand {
        is_limit: true,
        ..demand(text)
    }
}

/// A demand, and a script that prints something inside a container when it is met.
struct Fact {
    demand: Demand,
    script: &'static str,
    prints: &'static str,
}

const fn fact(text: &'static str, script: &'static str, prints: &'static str) -> Fact {
    Fact {
        demand: demand(text),
        script,
        prints,
    }
}

impl Demand {
    /// Neither runc nor crun does it.
    const fn unproven(self, why: &'static str) -> Self {
        Self {
            unproven: Some(why),
            ..self
        }
    }
}

/// What a story is told with.
struct Stage<'a> {
    host: &'a Host,
    bundle: &'a Bundle,
    runtime: &'a Runtime,
}

impl<'a> Stage<'a> {
    fn is_hull(&self) -> bool {
        self.runtime.name == HULL.name
    }

    /// A container of the default configuration, changed.
    fn container(&self, change: impl Fn(&mut Value)) -> Container<'a> {
        self.named(ID, change)
    }

    fn named(&self, id: &'static str, change: impl Fn(&mut Value)) -> Container<'a> {
        let mut spec = self.bundle.spec();
        // The groups of containerd's namespace are nobody's leftovers.
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{id}"));
        // The root is shared by all cases; what scripts write is not.
        mount(&mut spec, "/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
        change(&mut spec);
        let container = self.bundle.container(self.host, id, &spec);
        container
            .runtime(self.runtime.shim)
            .options(self.runtime.options)
    }

    /// Has another container run meanwhile; `tell` gets its pid.
    fn beside<T>(
        &self,
        change: impl Fn(&mut Value),
        tell: impl FnOnce(&Container<'_>, u32) -> T,
    ) -> T {
        let sleeps = |spec: &mut Value| {
            spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
            change(spec);
        };
        let first = self.named(FIRST, sleeps).start(&[]);
        let told = tell(&first, first.pid());
        first.end();
        told
    }

    /// Runs it to its end.
    fn run(&self, change: impl Fn(&mut Value)) -> Finished {
        let run = self.container(change).run(&[]);
        if run.status != 0 {
            // `ctr run --rm` removes nothing when it fails early.
            let _ = self.host.ctr(&["task", "rm", "--force", ID]);
            let _ = self.host.ctr(&["container", "rm", ID]);
            // crun leaves its group then; Hull makes none here.
            let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/default/{ID}"));
        }
        run
    }
}

/// Whether a demand was met; if not, what was there instead.
type Verdict = Result<(), String>;

#[expect(
    clippy::needless_pass_by_value,
    reason = "what is compared is made for it"
)]
fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Verdict {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found:?} is not {expected:?}"))
    }
}

fn contains(text: &str, words: &str) -> Verdict {
    if text.contains(words) {
        Ok(())
    } else {
        Err(format!("{text:?} does not contain {words:?}"))
    }
}

/// The cases of one section.
struct Cases {
    anchor: &'static str,
    host: Host,
    bundle: Bundle,
    references: &'static [Runtime],
    count: usize,
    failures: Vec<String>,
}

/// Runs the cases of the section at `anchor`.
#[track_caller]
fn section(anchor: &'static str, tell: impl FnOnce(&mut Cases)) {
    let host = Host::take();
    let with_references = std::env::var_os("HULL_OCI_REFERENCES").is_some();
    let mut cases = Cases {
        anchor,
        bundle: Bundle::new(&host),
        host,
        references: if with_references { &[RUNC, CRUN] } else { &[] },
        count: 0,
        failures: Vec::new(),
    };
    tell(&mut cases);
    let Cases {
        count, failures, ..
    } = cases;
    assert!(count > 0, "{anchor}: no case was run");
    assert!(
        failures.is_empty(),
        "{anchor}: {} of {count} cases: {failures:#?}",
        failures.len()
    );
}

impl Cases {
    /// Runs the scripts of `facts` in one container, with the configuration changed.
    fn inside(&mut self, change: impl Fn(&mut Value), facts: &[Fact]) {
        let mut script = String::from(PRELUDE);
        for fact in facts {
            script += &format!("echo; echo '@@@'; ({}\n) 2>&1\n", fact.script);
        }
        let check = |stage: &Stage<'_>| -> Vec<Verdict> {
            let run = stage.run(|spec| {
                spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
                change(spec);
            });
            let mut outputs = run.stdout.split("\n@@@\n").skip(1);
            let verdict = |fact: &Fact| match outputs.next() {
                Some(output) => same(output.trim(), fact.prints),
                None => Err(format!("status {}: {}", run.status, run.stderr.trim())),
            };
            facts.iter().map(verdict).collect()
        };
        let demands: Vec<&Demand> = facts.iter().map(|fact| &fact.demand).collect();
        self.judge(&demands, check);
    }

    /// Runs `process.args` of the changed configuration, which print `prints` and exit with `status`.
    fn runs(&mut self, demand: Demand, change: impl Fn(&mut Value), (status, prints): (i32, &str)) {
        self.story(demand, |stage| {
            let run = stage.run(&change);
            match same((run.status, run.stdout.trim()), (status, prints)) {
                Err(differs) => Err(format!("{differs}: {}", run.stderr.trim())),
                met => met,
            }
        });
    }

    /// Expects an error before anything runs. Hull's says `words`; others have their own.
    fn refused(&mut self, demand: Demand, change: impl Fn(&mut Value), words: &str) {
        let is_limit = demand.is_limit;
        self.story(demand, |stage| {
            let run = stage.run(|spec| {
                spec["process"]["args"] = json!(["/bin/echo", "it runs"]);
                change(spec);
            });
            let is_hull = stage.is_hull();
            if is_limit && !is_hull {
                return same(run.stdout.trim(), "it runs");
            }
            same((run.status, run.stdout.as_str()), (1, ""))?;
            if is_hull {
                contains(&run.stderr, words)
            } else {
                Ok(())
            }
        });
    }

    /// Does whatever shows whether the demand is met.
    fn story(&mut self, demand: Demand, tell: impl Fn(&Stage<'_>) -> Verdict) {
        self.judge(&[&demand], |stage| vec![tell(stage)]);
    }

    /// Checks demands on Hull and, if asked to, on the references; notes the verdicts.
    fn judge(&mut self, demands: &[&Demand], check: impl Fn(&Stage<'_>) -> Vec<Verdict>) {
        let on = |runtime: &Runtime| {
            check(&Stage {
                host: &self.host,
                bundle: &self.bundle,
                runtime,
            })
        };
        let hull = on(&HULL);
        let references: Vec<_> = self.references.iter().map(on).collect();
        for (number, demand) in demands.iter().enumerate() {
            let word = match &hull[number] {
                Ok(()) if demand.is_limit => "limit",
                Ok(()) => "pass",
                Err(_) => "fail",
            };
            let mut row = vec![self.anchor, demand.text, word];
            if let Err(reason) = &hull[number] {
                self.failures.push(format!("{}: {reason}", demand.text));
            }
            let mut doubts = Vec::new();
            for (runtime, verdicts) in self.references.iter().zip(&references) {
                row.push(if verdicts[number].is_ok() {
                    "pass"
                } else {
                    "fail"
                });
                if let Err(reason) = &verdicts[number] {
                    doubts.push(format!("{}: {reason}", runtime.name));
                }
            }
            row.extend(demand.unproven);
            let is_proven = doubts.len() < self.references.len();
            if !self.references.is_empty() && is_proven == demand.unproven.is_some() {
                let what = if is_proven {
                    "is proven"
                } else {
                    "is not proven"
                };
                self.failures
                    .push(format!("{} {what}: {doubts:?}", demand.text));
            }
            note(&self.host, &row);
        }
        self.count += demands.len();
    }
}

/// Adds a line to the verdicts, which the machine that started the tests counts.
fn note(host: &Host, row: &[&str]) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(host.shared("oci-cases"))
        .expect("open the verdicts");
    writeln!(file, "{}", row.join("\t")).expect("write the verdicts");
}

/// Appends a mount to the configuration.
fn mount(spec: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let mount = json!({
        "destination": destination, "type": kind, "source": source, "options": options,
    });
    push(&mut spec["mounts"], mount);
}

/// Appends to an array, which need not exist.
fn push(array: &mut Value, value: Value) {
    match array {
        Value::Array(values) => values.push(value),
        other => *other = json!([value]),
    }
}
