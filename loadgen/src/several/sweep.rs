//! The rate is raised until the latency passes a bound, then the place where it does is narrowed
//! down: the knee.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Results, Runner};
use crate::args::parse_duration;
use crate::error::LoadError;
use crate::figures::latency;

/// A server that completes less than this share of what is offered does not keep up, whatever
/// the latency of what it did complete.
const KEEPS_UP: f64 = 0.97;

/// Options of `loadgen sweep`.
#[derive(Debug, Args)]
pub struct SweepOptions {
    /// Arguments of each run but for its --rate, e.g. "fanout --spawn --members 1000".
    pub args: String,
    /// Corrected p99 of deliveries that must not be passed.
    #[arg(long, default_value = "10ms", value_parser = parse_duration)]
    pub p99_max: Duration,
    /// First rate, in broadcasts per second.
    #[arg(long, default_value_t = 50.0)]
    pub from: f64,
    /// What each rate is multiplied by for the next.
    #[arg(long, default_value_t = 1.5)]
    pub factor: f64,
    /// Highest rate that is tried.
    #[arg(long, default_value_t = 1e6)]
    pub to: f64,
    /// Runs between the last good and the first bad rate, each in the middle of what is left.
    #[arg(long, default_value_t = 3)]
    pub refine: u32,
    #[command(flatten)]
    pub results: Results,
}

/// One rate.
struct Step {
    rate: f64,
    deliveries_per_s: f64,
    p99_us: f64,
    good: bool,
}

/// Sweeps and shows the knee.
pub fn run(o: &SweepOptions) -> Result<bool, LoadError> {
    if !(o.from > 0.0 && o.factor > 1.0 && o.to >= o.from) {
        let text = "--from must be above 0, --factor above 1, and --to not below --from";
        return Err(LoadError::Usage(text.to_owned()));
    }
    let mut runner = Runner::new()?;
    let p99_max_us = o.p99_max.as_secs_f64() * 1e6;
    let mut measure = |rate: f64| -> Result<Step, LoadError> {
        let args = format!("{} --rate {rate:.3}", o.args);
        let report = runner.run(&format!("{rate:.0}/s"), &args, json!({ "rate": rate }))?;
        let step = judge(rate, &report, p99_max_us);
        println!(
            "{rate:>10.1} broadcasts/s {:>14.0} deliveries/s {:>11.1} us p99 {}",
            step.deliveries_per_s,
            step.p99_us,
            if step.good { "" } else { "past the bound" }
        );
        Ok(step)
    };
    println!("--p99-max {:?}, corrected; `loadgen {}`", o.p99_max, o.args);
    let (knee, worse) = search(o, &mut measure)?;
    let open = knee.is_some() && worse.is_none();
    let text = match &knee {
        Some(k) if open => format!(
            "no rate up to {:.1} broadcasts/s passes the bound: {:.0} deliveries/s at a p99 of {:.1} us; raise --to",
            k.rate, k.deliveries_per_s, k.p99_us
        ),
        Some(k) => format!(
            "knee: {:.1} broadcasts/s, {:.0} deliveries/s at a p99 of {:.1} us",
            k.rate, k.deliveries_per_s, k.p99_us
        ),
        None => format!("no rate from {} broadcasts/s on keeps the bound; lower --from", o.from),
    };
    println!("{text}");
    let knee = knee.map(
        |k| json!({ "rate": k.rate, "deliveries_per_s": k.deliveries_per_s, "p99_us": k.p99_us }),
    );
    let said = json!({ "p99_max_us": p99_max_us, "knee": knee, "args": o.args, "open": open });
    runner.finish("sweep", said, &text, &o.results)
}

/// The highest rate that was good, and the lowest above it that was not.
fn search(
    o: &SweepOptions,
    measure: &mut dyn FnMut(f64) -> Result<Step, LoadError>,
) -> Result<(Option<Step>, Option<f64>), LoadError> {
    let (mut good, mut bad, mut rate) = (None::<Step>, None, o.from);
    while bad.is_none() && rate <= o.to {
        let step = measure(rate)?;
        if step.good {
            good = Some(step);
        } else {
            bad = Some(rate);
        }
        rate *= o.factor;
    }
    for _ in 0..o.refine {
        let (Some(low), Some(high)) = (good.as_ref().map(|step| step.rate), bad) else { break };
        let step = measure((low + high) / 2.0)?;
        if step.good {
            good = Some(step);
        } else {
            bad = Some(step.rate);
        }
    }
    Ok((good, bad))
}

fn judge(rate: f64, report: &Value, p99_max_us: f64) -> Step {
    let number = |key: &str| report[key].as_f64().unwrap_or(0.0);
    let p99_us = latency(report, "delivery corrected", "p99_us").unwrap_or(f64::INFINITY);
    let keeps_up = number("broadcasts_per_s") >= KEEPS_UP * rate;
    let good = report["passed"] == true && keeps_up && p99_us <= p99_max_us;
    Step { rate, deliveries_per_s: number("deliveries_per_s"), p99_us, good }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(line: &str) -> SweepOptions {
        use clap::Parser;
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            o: SweepOptions,
        }
        Only::parse_from(line.split(' ')).o
    }

    fn knee(line: &str, limit: f64) -> Option<f64> {
        let step =
            |rate: f64| Ok(Step { rate, deliveries_per_s: rate, p99_us: 0.0, good: rate <= limit });
        search(&options(line), &mut { step }).unwrap().0.map(|step| step.rate)
    }

    #[test]
    fn knee_is_narrowed_down_between_good_and_bad() {
        let found = knee("x a --from 100 --factor 2 --refine 6", 777.0).unwrap();
        assert!(found <= 777.0 && found > 765.0, "{found}");
        assert_eq!(knee("x a --from 100 --factor 2 --to 300", 777.0), Some(200.0));
        assert_eq!(knee("x a --from 100", 50.0), None);
    }

    #[test]
    fn server_that_does_not_keep_up_is_past_the_bound_with_any_latency() {
        let report = |done: f64, p99: f64, passed: bool| {
            json!({ "passed": passed, "broadcasts_per_s": done, "deliveries_per_s": 1.0,
                    "latency": [{ "what": "delivery corrected", "p99_us": p99 }] })
        };
        assert!(judge(100.0, &report(99.0, 900.0, true), 1000.0).good);
        assert!(!judge(100.0, &report(90.0, 900.0, true), 1000.0).good);
        assert!(!judge(100.0, &report(99.0, 1001.0, true), 1000.0).good);
        assert!(!judge(100.0, &report(99.0, 900.0, false), 1000.0).good);
    }
}
