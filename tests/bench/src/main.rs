//! `hull-vmm` and QEMU's microvm machine, one after the other, again and again, in one run.
//!
//! Absolute times mean little where this runs (docs/test-host.md); what holds is the ratio of two
//! machines that ran a moment apart, so that is what is reported: the median of the pairs' ratios.

mod hull;
mod machine;
mod measures;
mod process;
mod profile;
mod qemu;
mod report;
mod server;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use machine::Vmm;
use measures::MEASURES;
use report::Report;

/// Compares hull-vmm with QEMU's microvm machine: the same kernel, the same backends, in turns.
#[derive(Debug, Parser)]
struct Args {
    /// How many pairs of machines for each measure
    #[arg(long, value_name = "N", default_value_t = 10)]
    pairs: usize,
    /// Only measures whose name contains this
    #[arg(long, value_name = "WORD", default_value = "")]
    only: String,
    /// The program that starts QEMU
    #[arg(long, value_name = "FILE")]
    qemu: PathBuf,
    /// The program that measures inside
    #[arg(long, value_name = "FILE")]
    guest: PathBuf,
    /// Where the report goes, as Markdown
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let setting = measures::Setting::prepare(&args.qemu, &args.guest)?;
    let mut report = Report::default();
    for measure in MEASURES.iter().filter(|it| it.name.contains(&args.only)) {
        for pair in 1..=args.pairs {
            eprintln!("bench: {}, pair {pair} of {}", measure.name, args.pairs);
            // Who goes first changes, so that neither always finds warm what the other has used.
            let order = if pair % 2 == 0 {
                [Vmm::Hull, Vmm::Qemu]
            } else {
                [Vmm::Qemu, Vmm::Hull]
            };
            for vmm in order {
                let figures = (measure.run)(&setting, vmm)
                    .with_context(|| format!("measure {} of {vmm:?}", measure.name))?;
                report.add(measure, vmm, figures);
            }
        }
    }
    let text = report.markdown();
    print!("{text}");
    std::fs::write(&args.report, text).context("write the report")
}
