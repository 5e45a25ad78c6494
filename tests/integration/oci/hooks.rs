//! config.md and runtime.md: hooks.

use serde_json::{Value, json};

use super::{Stage, contains, demand, limit, same, section};

/// A hook that writes `what` and the status it is told to the bundle's log.
fn logs(stage: &Stage<'_>, what: &str) -> Value {
    let log = stage.bundle.path("log");
    let status = r#"sed 's/.*"status": *"\([a-z]*\)".*/\1/'"#;
    stage.bundle.hook(
        what,
        &format!(
            "echo \"{what} $({status} | tr -d '\\n')\" >>{}",
            log.display()
        ),
    )
}

fn fails(stage: &Stage<'_>) -> Value {
    stage.bundle.hook("fails", "echo no water >&2; exit 3")
}

fn echo(spec: &mut Value, hooks: &Value) {
    spec["process"]["args"] = json!(["/bin/echo", "it runs"]);
    spec["hooks"] = hooks.clone();
}

#[test]
fn hooks() {
    section("config.md#configHooks", |cases| {
        cases.story(
            demand("hooks are called at their time and in the listed order"),
            |stage| {
                let hooks = json!({
                    "prestart": [logs(stage, "prestart")],
                    "createRuntime": [logs(stage, "createRuntime"), logs(stage, "second")],
                    "poststart": [logs(stage, "poststart")],
                    "poststop": [logs(stage, "poststop"), logs(stage, "last")],
                });
                let run = stage.run(|spec| echo(spec, &hooks));
                let names: Vec<String> = stage.bundle.take_log();
                let names: Vec<&str> = names
                    .iter()
                    .filter_map(|line| line.split(' ').next())
                    .collect();
                same(run.stdout.trim(), "it runs")?;
                same(
                    names,
                    vec![
                        "prestart",
                        "createRuntime",
                        "second",
                        "poststart",
                        "poststop",
                        "last",
                    ],
                )
            },
        );
        let told = [
            (
                demand("a createRuntime hook is told creating"),
                "createRuntime creating",
            ),
            (
                demand("a poststart hook is told running"),
                "poststart running",
            ),
            (
                demand("a poststop hook is told stopped"),
                "poststop stopped",
            ),
        ];
        cases.judge(&told.each_ref().map(|(demand, _)| demand), |stage| {
            let hooks = json!({
                "createRuntime": [logs(stage, "createRuntime")],
                "poststart": [logs(stage, "poststart")],
                "poststop": [logs(stage, "poststop")],
            });
            let _ = stage.run(|spec| echo(spec, &hooks));
            let log = stage.bundle.take_log().join("\n");
            told.iter().map(|(_, line)| contains(&log, line)).collect()
        });
        cases.story(demand("the state is on a hook's standard input"), |stage| {
            let log = stage.bundle.path("log");
            let hook = stage
                .bundle
                .hook("state", &format!("cat >{}", log.display()));
            let run = stage.run(|spec| {
                echo(spec, &json!({ "createRuntime": [hook] }));
                spec["annotations"] = json!({ "com.example.tide": "high" });
            });
            same(run.stdout.trim(), "it runs")?;
            let text = stage.bundle.take_log().concat();
            let state: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
            same(state["id"].as_str(), Some(super::ID))?;
            same(
                state["annotations"]["com.example.tide"].as_str(),
                Some("high"),
            )?;
            same(state["pid"].as_i64().is_some_and(|pid| pid > 0), true)?;
            same(
                state["ociVersion"]
                    .as_str()
                    .is_some_and(|v| v.starts_with("1.")),
                true,
            )?;
            contains(&state["bundle"].to_string(), "/run/containerd/")
        });
        cases.story(
            demand("a hook has its own arguments and environment"),
            |stage| {
                let log = stage.bundle.path("log");
                let mut hook = stage
                    .bundle
                    .hook("own", &format!("echo \"$1 $TIDE\" >{}", log.display()));
                hook["args"] = json!(["own", "an argument"]);
                hook["env"] = json!(["PATH=/bin", "TIDE=low"]);
                let run = stage.run(|spec| echo(spec, &json!({ "createRuntime": [hook] })));
                same(run.stdout.trim(), "it runs")?;
                same(
                    stage.bundle.take_log().concat(),
                    "an argument low".to_owned(),
                )
            },
        );
        cases.story(demand("a hook is over after its timeout"), |stage| {
            let mut hook = stage.bundle.hook("slow", "exec sleep 60");
            hook["timeout"] = json!(1);
            let run = stage.run(|spec| echo(spec, &json!({ "createRuntime": [hook] })));
            same((run.status, run.stdout.as_str()), (1, ""))
        });
        cases.runs(
            demand("startContainer hooks run in the container, before the process"),
            |spec| {
                spec["process"]["args"] = json!(["/bin/cat", "/srv/from-hook"]);
                spec["hooks"] = json!({ "startContainer": [
                    { "path": "/bin/sh", "args": ["sh", "-c", "hostname >/srv/from-hook"] },
                ] });
                spec["hostname"] = json!("inside");
            },
            (0, "inside"),
        );
        cases.story(
            demand("startContainer hooks are confined as the process, and told created"),
            |stage| {
                let script = "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status >/tmp/status; \
                              cat >/tmp/state";
                let run = stage.run(|spec| {
                    spec["process"]["args"] = json!(["/bin/cat", "/tmp/status", "/tmp/state"]);
                    for set in ["bounding", "permitted", "effective"] {
                        spec["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
                    }
                    spec["linux"]["seccomp"] = json!({
                        "defaultAction": "SCMP_ACT_ALLOW",
                        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }],
                    });
                    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
                    spec["hooks"] = json!({ "startContainer": [hook] });
                });
                let words = "CapEff:\t0000000000000021\nCapBnd:\t0000000000000021\nSeccomp:\t2\n";
                let state = run.stdout.strip_prefix(words);
                let state = state.ok_or_else(|| format!("{run:?}"))?;
                let state: Value = serde_json::from_str(state).map_err(|e| e.to_string())?;
                same(state["id"].as_str(), Some(super::ID))?;
                same(state["status"].as_str(), Some("created"))?;
                same(state["pid"].as_i64().is_some_and(|pid| pid > 0), true)
            },
        );
        cases.story(
            demand("a startContainer hook is over after its timeout"),
            |stage| {
                let hook = json!({ "path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1 });
                let run = stage.run(|spec| echo(spec, &json!({ "startContainer": [hook] })));
                same((run.status, run.stdout.as_str()), (1, ""))
            },
        );
        cases.refused(
            limit("createContainer hooks"),
            |spec| spec["hooks"] = json!({ "createContainer": [{ "path": "/bin/true" }] }),
            "hooks.createContainer",
        );
    });
}

#[test]
fn failures() {
    section("runtime.md#runtimeLifecycle (hooks that fail)", |cases| {
        for (text, kind) in [
            ("a prestart hook that fails is an error", "prestart"),
            (
                "a createRuntime hook that fails is an error",
                "createRuntime",
            ),
        ] {
            cases.story(demand(text), |stage| {
                let run = stage.run(|spec| echo(spec, &json!({ kind: [fails(stage)] })));
                same((run.status, run.stdout.as_str()), (1, ""))?;
                contains(&run.stderr, "no water")
            });
        }
        cases.story(
            demand("a startContainer hook that fails is an error"),
            |stage| {
                let hook = json!({ "path": "/bin/false" });
                let run = stage.run(|spec| echo(spec, &json!({ "startContainer": [hook] })));
                same((run.status, run.stdout.as_str()), (1, ""))
            },
        );
        cases.story(
            demand("after a startContainer hook that fails poststop hooks are called"),
            |stage| {
                let hooks = json!({
                    "startContainer": [{ "path": "/bin/false" }],
                    "poststop": [logs(stage, "poststop")],
                });
                let run = stage.run(|spec| echo(spec, &hooks));
                same((run.status, run.stdout.as_str()), (1, ""))?;
                same(stage.bundle.take_log(), vec!["poststop stopped".to_owned()])
            },
        );
        cases.story(demand("a poststart hook that fails is an error"), |stage| {
            let run = stage.run(|spec| {
                echo(spec, &json!({ "poststart": [fails(stage)] }));
                spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
            });
            same(run.status, 1)?;
            contains(&run.stderr, "no water")
        });
        cases.story(
            demand("a poststart hook that fails after the process has ended is an error"),
            |stage| {
                let script = r#"pid=$(sed 's/.*"pid": *\([0-9]*\).*/\1/' | tr -d '\n')
                    while [ -d "/proc/$pid" ]; do sleep 0.1; done
                    echo no water >&2; exit 3"#;
                let hook = stage.bundle.hook("late", script);
                let run = stage.run(|spec| echo(spec, &json!({ "poststart": [hook] })));
                same(run.status, 1)?;
                contains(&run.stderr, "no water")
            },
        );
        cases.story(
            demand("a poststop hook that fails is no error, and the next one is called"),
            |stage| {
                let hooks = json!({ "poststop": [fails(stage), logs(stage, "next")] });
                let run = stage.run(|spec| echo(spec, &hooks));
                same((run.status, run.stdout.trim()), (0, "it runs"))?;
                same(stage.bundle.take_log().len(), 1)
            },
        );
        cases.story(
            demand("after an error poststop hooks are called"),
            |stage| {
                let hooks =
                    json!({ "createRuntime": [fails(stage)], "poststop": [logs(stage, "stop")] });
                let run = stage.run(|spec| echo(spec, &hooks));
                same(run.status, 1)?;
                same(stage.bundle.take_log().len(), 1)
            },
        );
    });
}
