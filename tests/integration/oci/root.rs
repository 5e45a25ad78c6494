//! config.md: the root, the names, annotations.

use serde_json::json;

use super::{contains, demand, fact, section};

#[test]
fn root() {
    section("config.md#configRoot", |cases| {
        cases.inside(
            |spec| spec["root"]["readonly"] = json!(true),
            &[
                fact(
                    "a readonly root cannot be written",
                    "touch /new",
                    "touch: /new: Read-only file system",
                ),
                fact(
                    "mounts below a readonly root can",
                    "touch /run/new && echo written",
                    "written",
                ),
                fact("a readonly root is mounted so", "option / ro", "yes"),
            ],
        );
        cases.runs(
            demand("a working directory that a readonly root lacks is made"),
            |spec| {
                spec["root"]["readonly"] = json!(true);
                spec["process"]["cwd"] = json!("/new-to/all");
                spec["process"]["args"] = json!(["/bin/pwd"]);
            },
            (0, "/new-to/all"),
        );
        cases.inside(
            |_| (),
            &[fact(
                "a root is writable unless readonly",
                "touch /new && echo written",
                "written",
            )],
        );
        cases.story(demand("the root is the directory at path"), |stage| {
            std::fs::write(stage.bundle.path("rootfs/srv/mark"), "low")
                .map_err(|e| e.to_string())?;
            let run = stage.run(|spec| spec["process"]["args"] = json!(["/bin/cat", "/srv/mark"]));
            contains(&run.stdout, "low")
        });
        cases.refused(
            demand("a directory has to be at path"),
            |spec| spec["root"]["path"] = json!("/run/nothing-of-the-kind"),
            "/run/nothing-of-the-kind",
        );
    });
}

#[test]
fn names() {
    section("config.md#configHostname", |cases| {
        cases.inside(
            |spec| {
                spec["hostname"] = json!("mrsdalloway");
                spec["domainname"] = json!("foobarbaz.test");
            },
            &[
                fact(
                    "hostname is the host's name inside",
                    "hostname",
                    "mrsdalloway",
                ),
                fact(
                    "domainname is the domain's name inside",
                    "cat /proc/sys/kernel/domainname",
                    "foobarbaz.test",
                ),
            ],
        );
    });
}

#[test]
fn annotations() {
    section("config.md#configAnnotations", |cases| {
        cases.runs(
            demand("annotations that nobody knows are no error"),
            |spec| {
                spec["annotations"] =
                    json!({ "com.example.gpu-cores": "2", "com.example.empty": "" });
                spec["process"]["args"] = json!(["/bin/echo", "it runs"]);
            },
            (0, "it runs"),
        );
    });
}
