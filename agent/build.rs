//! How the agent is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // It is a program that may lie anywhere in memory, so it first puts its own addresses into 33,000
    // places. A table of them takes 8 KiB in this format and 800 in the usual one, all of which would be
    // read at every boot. On aarch64 Debian 12's linker does not know it.
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
