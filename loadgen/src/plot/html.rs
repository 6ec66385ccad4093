//! A result as one page: nothing is loaded from elsewhere.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Plot, list};

const STYLE: &str = "
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;
background:#fff;color:#1f2328}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
td,th{padding:.2em .8em;border-bottom:1px solid #8885;text-align:right}
td:first-child,th:first-child{text-align:left}
pre{white-space:pre-wrap;background:#8882;padding:.8em;border-radius:6px}
figure{margin:1.5em 0}svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{background:#14181d;color:#d8dee6}}
";

/// The page.
pub fn page(result: &Value, plots: &[Plot]) -> String {
    let name = result["workload"].as_str().unwrap_or("run");
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>loadgen {name}</title><style>{STYLE}</style></head><body>\n<h1>loadgen {name}</h1>\n"
    );
    if let Some(command) = result["command"].as_str() {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(command));
    }
    let verdict = match result["passed"].as_bool() {
        Some(true) => {
            "VERIFIED: every member got every message once, unchanged, in the order that its system \
             promises."
        }
        _ => "FAILED: see the findings in the JSON report.",
    };
    let _ = writeln!(out, "<p><strong>{verdict}</strong></p>");
    if let Some(summary) = result["summary_text"].as_str() {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(summary));
    }
    for plot in plots {
        let _ = writeln!(out, "<figure id=\"{}\">{}</figure>", plot.name, plot.svg);
    }
    latencies(&mut out, result);
    values(&mut out, result);
    out.push_str("</body></html>\n");
    out
}

fn latencies(out: &mut String, result: &Value) {
    let rows = list(&result["latency"]);
    if rows.is_empty() {
        return;
    }
    out.push_str("<h2>Latency in us</h2>\n<table><tr><th></th><th>count</th>");
    let columns = ["mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "p9999_us", "max_us"];
    for name in ["mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr>\n");
    for row in rows {
        let what = row["what"].as_str().unwrap_or_default();
        let _ = write!(out, "<tr><td>{}</td><td>{}</td>", escaped(what), row["count"]);
        for column in columns {
            let _ = write!(out, "<td>{:.1}</td>", row[column].as_f64().unwrap_or(f64::NAN));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// Everything that is one number or one word.
fn values(out: &mut String, result: &Value) {
    let Some(all) = result.as_object() else { return };
    out.push_str("<h2>All values</h2>\n<table>\n");
    for (key, value) in all {
        let text = match value {
            Value::Number(number) => number
                .as_f64()
                .filter(|n| n.fract() != 0.0)
                .map_or_else(|| number.to_string(), |n| format!("{n:.3}")),
            Value::String(text) if key != "summary_text" && key != "command" => text.clone(),
            Value::Bool(flag) => flag.to_string(),
            _ => continue,
        };
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escaped(key), escaped(&text));
    }
    out.push_str("</table>\n");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
