//! Figures of pairs, as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::machine::Vmm;
use crate::measures::{Figure, Figures, Goal, MEASURES, Measure};

/// What was measured so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// By measure and key: Hull's figures and QEMU's, in the order of the pairs.
    figures: BTreeMap<(&'static str, String), [Vec<f64>; 2]>,
}

impl Report {
    /// Adds what one run has told.
    pub(crate) fn add(&mut self, measure: &Measure, vmm: Vmm, figures: Figures) {
        for (key, value) in figures {
            let both = self.figures.entry((measure.name, key)).or_default();
            both[usize::from(vmm == Vmm::Qemu)].push(value);
        }
    }

    /// A row for each figure that there is.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| what | unit | Hull | QEMU | Hull / QEMU (from - to) | goal | reached |\n|---|---|---|---|---|---|---|\n",
        );
        for measure in MEASURES {
            for figure in measure.figures {
                let found = self.figures.get(&(measure.name, figure.key.to_owned()));
                if let Some([hull, qemu]) = found {
                    row(&mut text, measure.name, figure, hull, qemu);
                }
            }
        }
        text
    }
}

fn row(text: &mut String, measure: &str, figure: &Figure, hull: &[f64], qemu: &[f64]) {
    let ratios: Vec<f64> = hull
        .iter()
        .zip(qemu)
        .map(|(hull, qemu)| hull / qemu)
        .collect();
    let ratio = median(&ratios);
    let (low, high) = (
        ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratios.iter().copied().fold(0.0, f64::max),
    );
    let (goal, reached) = match figure.goal {
        Goal::AtMost(hundredths) => {
            let goal = f64::from(hundredths) / 100.0;
            (format!("≤ {goal}x"), Some(ratio <= goal))
        }
        Goal::AtLeast(hundredths) => {
            let goal = f64::from(hundredths) / 100.0;
            (format!("≥ {goal}x"), Some(ratio >= goal))
        }
        Goal::Within(most) => (format!("≤ {most}"), Some(median(hull) <= f64::from(most))),
        Goal::None => (String::new(), None),
    };
    let reached = reached.map_or("", |reached| if reached { "yes" } else { "no" });
    writeln!(
        text,
        "| {measure}: {} | {} | {:.0} | {:.0} | {ratio:.2} ({low:.2} - {high:.2}) | {goal} | {reached} |",
        figure.what,
        figure.unit,
        median(hull),
        median(qemu),
    )
    .expect("a string takes all");
}

/// The middle one; of two, their mean.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_pairs_ratios() {
        let mut report = Report::default();
        let measure = &MEASURES[0];
        for (hull, qemu) in [(1.0, 4.0), (2.0, 4.0), (9.0, 9.0)] {
            report.add(measure, Vmm::Qemu, vec![("ready".into(), qemu)]);
            report.add(measure, Vmm::Hull, vec![("ready".into(), hull)]);
        }

        let text = report.markdown();

        assert!(
            text.contains("| 2 | 4 | 0.50 (0.25 - 1.00) | ≤ 0.4x | no |"),
            "{text}"
        );
    }
}
