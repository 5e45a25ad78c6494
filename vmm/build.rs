//! Compiles the lists of system calls into filters (`src/jail/filter_list.rs`).

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use serde_json::{Value, json};

#[path = "src/jail/filter_list.rs"]
mod filter_list;

const FILTERS: [&str; 4] = ["vcpu", "event_loop", "disk", "card"];

fn main() -> Result<(), Box<dyn Error>> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH")?;
    let out = env::var("OUT_DIR")?;
    println!("cargo::rerun-if-changed=src/jail/filter_list.rs");
    for name in FILTERS {
        let path = format!("src/jail/{name}.filter");
        println!("cargo::rerun-if-changed={path}");
        let compiled = compile(&fs::read_to_string(&path)?, &architecture);
        let instructions = compiled.map_err(|e| format!("{path}: {e}"))?;
        fs::write(Path::new(&out).join(format!("{name}.rs")), instructions)?;
    }
    Ok(())
}

/// The filter's instructions as a Rust expression, an array.
fn compile(list: &str, architecture: &str) -> Result<String, Box<dyn Error>> {
    let rules: Vec<Value> = filter_list::parse(list, architecture)?
        .iter()
        .map(rule)
        .collect();
    // A call that is not listed raises SIGSYS, whose handler says which it was and ends the process.
    let filter = json!({ "filter": {
        "mismatch_action": "trap",
        "match_action": "allow",
        "filter": rules,
    }});
    let mut programs =
        seccompiler::compile_from_json(filter.to_string().as_bytes(), architecture.try_into()?)?;
    let program = programs.remove("filter").ok_or("no filter")?;
    let instructions = program.iter().map(|i| {
        let (code, jt, jf, k) = (i.code, i.jt, i.jf, i.k);
        format!("seccompiler::sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},\n")
    });
    Ok(format!("[\n{}]", instructions.collect::<String>()))
}

/// A rule in the crate's own form.
fn rule(rule: &filter_list::Rule<'_>) -> Value {
    match rule.condition {
        None => json!({ "syscall": rule.name }),
        Some(condition) => json!({ "syscall": rule.name, "args": [{
            "index": condition.argument,
            "type": "dword",
            "op": { "masked_eq": condition.mask },
            "val": condition.value,
        }]}),
    }
}
