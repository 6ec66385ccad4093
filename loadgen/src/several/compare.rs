//! Two runs against each other, interleaved, since a machine drifts: A, B, and A again in each
//! round. The ratio of B to A is only as good as that of A to itself.

use clap::Args;
use serde_json::{Value, json};

use super::{Results, Runner, shown};
use crate::error::LoadError;
use crate::figures::{FIGURES, Figure, Spread};

const AGAIN: &str = "A again";

/// Options of `loadgen compare`.
#[derive(Debug, Args)]
pub struct CompareOptions {
    /// Arguments of one run, e.g. "fanout --spawn --members 1000"; with the server it is for.
    #[arg(long, value_name = "ARGS")]
    pub a: String,
    /// Arguments of the other.
    #[arg(long, value_name = "ARGS")]
    pub b: String,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    #[command(flatten)]
    pub results: Results,
}

/// Makes the rounds and shows them.
pub fn run(o: &CompareOptions) -> Result<bool, LoadError> {
    let mut runner = Runner::new()?;
    for round in 0..o.pairs {
        for (label, args) in [("A", &o.a), ("B", &o.b), (AGAIN, &o.a)] {
            let report = runner.run(label, args, json!({ "round": round }))?;
            let values = FIGURES.iter().filter_map(|f| Some((f.name, (f.of)(&report)?)));
            let values: Vec<String> = values.map(|(name, v)| format!("{name} {v:.1}")).collect();
            println!("round {round} {label:<7} {}", values.join(", "));
        }
    }
    let rows: Vec<Row> = FIGURES.iter().map(|figure| Row::new(figure, &runner)).collect();
    let text = format!(
        "A: {}\nB: {}\nmedian (lowest..highest) of {} rounds; ratios by round\n\n{}",
        o.a,
        o.b,
        o.pairs,
        table(&rows)
    );
    println!("{text}");
    let summary: Vec<Value> = rows.iter().map(Row::json).collect();
    runner.finish("compare", json!({ "a": o.a, "b": o.b, "summary": summary }), &text, &o.results)
}

struct Row {
    figure: &'static Figure,
    a: Option<Spread>,
    b: Option<Spread>,
    ratio: Option<Spread>,
    against_itself: Option<Spread>,
}

impl Row {
    fn new(figure: &'static Figure, runner: &Runner) -> Self {
        let values = |label| -> Vec<f64> {
            runner.reports(label).map(|r| (figure.of)(r).unwrap_or(f64::NAN)).collect()
        };
        Self::of(figure, &values("A"), &values("B"), &values(AGAIN))
    }

    fn of(figure: &'static Figure, a: &[f64], b: &[f64], again: &[f64]) -> Self {
        let ratio = |to: &[f64]| Spread::of(to.iter().zip(a).map(|(to, a)| to / a));
        Self {
            figure,
            a: Spread::of(a.iter().copied()),
            b: Spread::of(b.iter().copied()),
            ratio: ratio(b),
            against_itself: ratio(again),
        }
    }

    /// Who is ahead, if it is more than A differs from itself.
    fn verdict(&self) -> &'static str {
        let (Some(ratio), Some(itself)) = (self.ratio, self.against_itself) else { return "-" };
        // A run in which A was as much slower as faster than itself says the same of the machine.
        let noise = itself.lowest.ln().abs().max(itself.highest.ln().abs());
        if ratio.median.ln().abs() <= noise {
            return "within the spread";
        }
        if (ratio.median > 1.0) == self.figure.more_is_better { "B is ahead" } else { "A is ahead" }
    }

    fn json(&self) -> Value {
        json!({
            "figure": self.figure.name, "a": self.a, "b": self.b, "ratio": self.ratio,
            "a_against_itself": self.against_itself, "verdict": self.verdict(),
        })
    }
}

fn table(rows: &[Row]) -> String {
    let head = format!(
        "{:<24} {:>32} {:>32} {:>18} {:>18}  {}",
        "", "A", "B", "B / A", "A / A", "verdict"
    );
    let lines = rows.iter().filter(|row| row.a.is_some() && row.b.is_some()).map(|row| {
        format!(
            "{:<24} {:>32} {:>32} {:>18} {:>18}  {}",
            row.figure.name,
            shown(row.a, 1),
            shown(row.b, 1),
            shown(row.ratio, 2),
            shown(row.against_itself, 2),
            row.verdict()
        )
    });
    std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_ahead_by_less_than_a_differs_from_itself() {
        let of = |index: usize, b: &[f64], again: &[f64]| {
            Row::of(&FIGURES[index], &[100.0, 110.0, 90.0], b, again).verdict()
        };
        assert_eq!(of(0, &[130.0, 140.0, 120.0], &[101.0, 108.0, 91.0]), "B is ahead");
        assert_eq!(of(2, &[130.0, 140.0, 120.0], &[101.0, 108.0, 91.0]), "A is ahead");
        assert_eq!(of(0, &[130.0, 140.0, 120.0], &[60.0, 108.0, 140.0]), "within the spread");
        // Better than A itself was is no loss, and less than that no gain.
        assert_eq!(of(2, &[80.0, 90.0, 70.0], &[50.0, 60.0, 50.0]), "within the spread");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine became twice as slow from one round to the next.
        let row = Row::of(&FIGURES[0], &[100.0, 50.0], &[120.0, 60.0], &[100.0, 50.0]);
        assert_eq!(row.ratio, Some(Spread { median: 1.2, lowest: 1.2, highest: 1.2 }));
    }
}
