//! The text format of Prometheus (version 0.0.4): one family after the other, each with its
//! HELP, its TYPE and its samples. What is needed of it is this; a client library would keep the
//! numbers itself, and here the shards do.

use std::fmt::{Display, Write};

/// Content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, from the start of the process on.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
}

/// Labels of a sample.
pub(super) type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {name} {}", escaped(help, false));
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"{}\"", escaped(&value.to_string(), true));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "Things\nand \\ more.");
        page.sample("a_total", &[("who", &"\"x\"\n\\"), ("n", &1)], 1.5);
        page.sample("a_total", &[], 2);
        let expected = concat!(
            "# HELP a_total Things\\nand \\\\ more.\n# TYPE a_total counter\n",
            "a_total{who=\"\\\"x\\\"\\n\\\\\",n=\"1\"} 1.5\na_total 2\n",
        );
        assert_eq!(page.finish(), expected);
    }
}
