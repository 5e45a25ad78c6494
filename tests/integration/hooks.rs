//! Hooks of the OCI configuration: where they run, in which order, and what becomes of failures.

use std::fs;
use std::path::Path;

use hull_tests::{Bundle, Finished, Host, command, wait};
use serde_json::{Value, json};

/// Runs `ls /tmp` in a container with these hooks.
fn run(host: &Host, bundle: &Bundle, hooks: &Value) -> Finished {
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["/bin/ls", "/tmp"]);
    spec["hooks"] = hooks.clone();
    bundle.container(host, "hooked", &spec).run(&[])
}

fn appends(log: &Path, what: &str) -> String {
    let status = r#"sed 's/.*"status":"\([a-z]*\)".*/\1/'"#;
    format!("echo \"{what} $({status})\" >>{}", log.display())
}

#[test]
fn hooks_run_where_their_programs_are_and_in_order() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let log = bundle.path("log");
    let hook = |name: &str| json!([bundle.hook(name, &appends(&log, name))]);
    let hooks = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "startContainer": [{ "path": "/bin/touch", "args": ["touch", "/tmp/from-hook"] }],
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });

    let run = run(&host, &bundle, &hooks);

    assert_eq!(run.output(), "from-hook", "{run:#?}");
    assert_eq!(
        bundle.take_log(),
        [
            "prestart creating",
            "createRuntime creating",
            "poststart running",
            "poststop stopped"
        ]
    );
}

#[test]
fn a_hook_that_fails_before_the_container_runs_is_the_error() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let fails = json!([bundle.hook("fails", "echo no water >&2; exit 3")]);

    for (hooks, words) in [
        (json!({ "createRuntime": fails }), "no water"),
        (json!({ "createContainer": fails }), "hooks.createContainer"),
    ] {
        let run = run(&host, &bundle, &hooks);

        assert_eq!(run.status, 1, "{run:#?}");
        assert!(run.stderr.contains(words), "{run:#?}");
        assert_eq!(run.stdout, "");
    }
}

/// runtime.md "Lifecycle", 7: "the runtime MUST generate an error, stop the container, and continue
/// the lifecycle at" its end.
#[test]
fn a_start_container_hook_that_fails_ends_the_container() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let log = bundle.path("log");
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["/bin/touch", "/ran"]);
    spec["hooks"] = json!({
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] }],
        "poststart": [bundle.hook("poststart", &appends(&log, "poststart"))],
        "poststop": [bundle.hook("poststop", &appends(&log, "poststop"))],
    });
    let container = bundle.container(&host, "hooked", &spec);

    let started = container.try_start(&[]);

    assert_eq!(started.status, 1, "{started:#?}");
    assert!(started.stderr.contains("hook"), "{started:#?}");
    container.wait_until_stopped();
    assert!(!bundle.path("rootfs/ran").exists(), "its process has run");
    container.remove();
    assert_eq!(bundle.take_log(), ["poststop stopped"]);
}

#[test]
fn a_poststop_hook_runs_even_when_the_shim_was_killed() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let log = bundle.path("log");
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    spec["hooks"] = json!({ "poststop": [bundle.hook("poststop", &appends(&log, "poststop"))] });
    let container = bundle.container(&host, "crashed", &spec).start(&[]);

    let killed = command("pkill", &["-KILL", "containerd-shim"], b"");
    assert_eq!(killed.status, 0, "{killed:#?}");

    // The shell makes the file before it knows what to write.
    let is_written = || fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'));
    wait::until("the hook has run", || is_written().then_some(()));
    assert_eq!(bundle.take_log(), ["poststop stopped"]);
    wait::until("containerd has noticed", || {
        container.listed().is_none().then_some(())
    });
    let removed = host.ctr(&["container", "rm", "crashed"]);
    assert_eq!(removed.status, 0, "{removed:#?}");
}
