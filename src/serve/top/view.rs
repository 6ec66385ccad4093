//! `fanfare top` on a terminal: rates, latencies, shards, and members that do not keep up.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use serde_json::Value;

use super::{Sample, figure};

/// Values of the history; more than a terminal is wide.
const HISTORY: usize = 512;
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// What is shown.
struct View {
    before: Option<Sample>,
    now: Sample,
    deliveries_per_s: VecDeque<u64>,
    /// Why there is no newer answer.
    error: Option<String>,
}

/// Shows answers until somebody presses q. The terminal is as before when this returns.
pub(super) fn run(
    first: Value,
    interval: Duration,
    ask: impl Fn() -> Result<Value, String>,
) -> io::Result<()> {
    let mut view = View::new(Sample { at: Instant::now(), answer: first });
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        loop {
            terminal.draw(|frame| view.draw(frame))?;
            let next = view.now.at + interval;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                if event::poll(left)? && is_end(&event::read()?) {
                    return Ok(());
                }
                // The size may have changed.
                terminal.draw(|frame| view.draw(frame))?;
            }
            view.take(Instant::now(), ask());
        }
    })();
    ratatui::restore();
    result
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    key.kind == KeyEventKind::Press && (quits || control_c)
}

impl View {
    fn new(now: Sample) -> Self {
        Self { before: None, now, deliveries_per_s: VecDeque::new(), error: None }
    }

    fn take(&mut self, at: Instant, answer: Result<Value, String>) {
        match answer {
            Ok(answer) => {
                let now = Sample { at, answer };
                self.before = Some(std::mem::replace(&mut self.now, now));
                self.error = None;
                let rate = self.rate("deliveries").unwrap_or(0);
                if self.deliveries_per_s.len() == HISTORY {
                    self.deliveries_per_s.pop_front();
                }
                self.deliveries_per_s.push_back(rate);
            }
            Err(error) => {
                self.now.at = at;
                self.error = Some(error);
            }
        }
    }

    /// Per second since the answer before.
    fn rate(&self, name: &str) -> Option<u64> {
        self.before.as_ref().map(|before| self.now.rate(before, name))
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let shards = self.now.shards().len() as u16;
        let [head, history, latencies, table, slow] = Layout::vertical([
            Constraint::Length(4),
            Constraint::Length(7),
            Constraint::Length(5),
            Constraint::Length((shards + 3).min(12)),
            Constraint::Min(3),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_history(frame, history);
        self.draw_latencies(frame, latencies);
        self.draw_shards(frame, table);
        self.draw_slow(frame, slow);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let version = self.now.answer["version"].as_str().unwrap_or("");
        let rate = |name| self.rate(name).map_or_else(|| "-".into(), short);
        let pair = |name: &'static str, value: String| {
            [Span::styled(format!("{name} "), DIM), Span::styled(format!("{value}   "), BOLD)]
        };
        let rates = [
            pair("messages/s", rate("messages")),
            pair("deliveries/s", rate("deliveries")),
            pair("sent B/s", rate("write_bytes")),
            pair("commits/s", rate("commits")),
            pair("wake-ups/s", rate("sleeps")),
        ];
        let held = [
            pair("connections", short(self.now.total("connections"))),
            pair("memberships", short(self.now.total("members"))),
            pair("groups", short(self.now.total("groups"))),
            pair("waiting B", short(self.now.total("inbox_bytes"))),
            pair("tails B", short(self.now.total("tail_bytes"))),
        ];
        let title = Line::from(vec![
            Span::styled(format!("Fanfare {version}"), BOLD),
            Span::styled("   q quits", DIM),
        ]);
        let lines = vec![
            title,
            Line::from(rates.into_iter().flatten().collect::<Vec<_>>()),
            Line::from(held.into_iter().flatten().collect::<Vec<_>>()),
            self.problems(),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    /// What must not be overlooked.
    fn problems(&self) -> Line<'static> {
        let mut problems = Vec::new();
        problems.extend(self.error.as_ref().map(|error| format!("no new answer: {error}")));
        let silent = &self.now.answer["silent_shards"];
        if silent.as_array().is_some_and(|list| !list.is_empty()) {
            problems.push(format!("no answer from shards {silent}"));
        }
        for shard in self.now.shards() {
            let says = [
                ("log_poisoned", "its log failed, restart the server"),
                ("log_full", "no room on disk"),
                ("draining", "stopping"),
            ];
            let says = says.iter().filter(|(name, _)| shard[name] == true);
            problems.extend(says.map(|(_, what)| format!("shard {}: {what}", shard["shard"])));
        }
        Line::styled(problems.join("; "), BAD)
    }

    fn draw_history(&self, frame: &mut Frame<'_>, area: Rect) {
        let width = usize::from(area.width.saturating_sub(2));
        let skip = self.deliveries_per_s.len().saturating_sub(width);
        let values: Vec<u64> = self.deliveries_per_s.iter().skip(skip).copied().collect();
        let top = values.iter().copied().max().unwrap_or(0);
        let block = Block::bordered().title(format!(" deliveries/s, up to {} ", short(top)));
        let sparkline =
            Sparkline::default().block(block).data(&values).style(Style::new().fg(Color::Cyan));
        frame.render_widget(sparkline, area);
    }

    fn draw_latencies(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = [
            ("publish: place to publication", "publish_ns"),
            ("commit: to the disk", "commit_ns"),
            ("turn of a shard", "turn_ns"),
        ];
        let rows = rows.map(|(title, name)| {
            let p = |share| self.percentile(name, share).map_or_else(|| "-".into(), time);
            Row::new([title.to_owned(), p(0.5), p(0.9), p(0.99)])
        });
        let widths = [
            Constraint::Length(30),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(10),
        ];
        let head = Row::new(["times since the last look", "p50", "p90", "p99"]).style(DIM);
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }

    /// Of what all shards did since the answer before. Within a bucket values count as even.
    fn percentile(&self, name: &str, share: f64) -> Option<u64> {
        let before = self.before.as_ref()?;
        let sums = |sample: &Sample| -> (Vec<(u64, u64)>, u64) {
            let (mut buckets, mut count) = (Vec::<(u64, u64)>::new(), 0);
            for shard in sample.shards() {
                let of = &shard["distributions"][name];
                count += of["count"].as_u64().unwrap_or(0);
                for (i, pair) in of["up_to"].as_array().into_iter().flatten().enumerate() {
                    let (bound, n) = (pair[0].as_u64().unwrap_or(0), pair[1].as_u64().unwrap_or(0));
                    match buckets.get_mut(i) {
                        Some((_, sum)) => *sum += n,
                        None => buckets.push((bound, n)),
                    }
                }
            }
            (buckets, count)
        };
        let ((old, old_count), (new, count)) = (sums(before), sums(&self.now));
        let count = count.checked_sub(old_count).filter(|count| *count > 0)?;
        let wanted = count as f64 * share;
        let (mut low, mut below) = (0, 0);
        for (i, (bound, n)) in new.into_iter().enumerate() {
            let up_to = n.saturating_sub(old.get(i).map_or(0, |(_, n)| *n));
            if up_to as f64 >= wanted {
                let within = (wanted - below as f64) / (up_to - below).max(1) as f64;
                return Some(low + ((bound - low) as f64 * within) as u64);
            }
            (low, below) = (bound, up_to);
        }
        Some(low)
    }

    fn draw_shards(&self, frame: &mut Frame<'_>, area: Rect) {
        let head = [
            "shard",
            "conns",
            "members",
            "groups",
            "messages/s",
            "deliveries/s",
            "writes/s",
            "inbox B",
            "log B",
            "ring",
        ];
        let rows = self.now.shards().iter().map(|shard| {
            let rate = |name| {
                let before = self.before.as_ref();
                let rate = before.and_then(|before| self.now.shard_rate(before, shard, name));
                rate.map_or_else(|| "-".into(), short)
            };
            Row::new([
                shard["shard"].to_string(),
                short(figure(shard, "connections")),
                short(figure(shard, "members")),
                short(figure(shard, "groups")),
                rate("messages"),
                rate("deliveries"),
                rate("writes"),
                short(figure(shard, "inbox_bytes")),
                short(shard["log_bytes"].as_u64().unwrap_or(0)),
                format!("{}/{}", shard["ring_batches"], shard["ring_slots"]),
            ])
        });
        let table = Table::new(rows, [Constraint::Fill(1); 10])
            .header(Row::new(head).style(DIM))
            .block(Block::bordered().title(" shards "));
        frame.render_widget(table, area);
    }

    fn draw_slow(&self, frame: &mut Frame<'_>, area: Rect) {
        let slow = |shard: &Value| {
            let of = shard["slowest"].as_array().cloned().unwrap_or_default();
            of.into_iter().map(|member| (shard["shard"].clone(), member)).collect::<Vec<_>>()
        };
        let slow: Vec<_> = self.now.shards().iter().flat_map(slow).collect();
        let title = match slow.len() {
            0 => " every member keeps up ".to_owned(),
            n => format!(" {n} members do not keep up "),
        };
        let rows = slow.into_iter().map(|(shard, member)| {
            // A member chose its id; a terminal must not obey it.
            let name = member["member"].as_str().unwrap_or("").escape_debug().to_string();
            let row = Row::new([
                name,
                member["state"].as_str().unwrap_or("").to_owned(),
                if member["tripped"] == true { "last".into() } else { "in turn".into() },
                member["drain_bytes_per_s"].as_u64().map_or_else(|| "-".into(), short),
                member["lag_messages"].to_string(),
                shard.to_string(),
            ]);
            if member["tripped"] == true { row.style(BAD) } else { row }
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(6),
        ];
        let head = Row::new(["member", "state", "served", "B/s", "behind", "shard"]).style(DIM);
        let table = Table::new(rows, widths).header(head).block(Block::bordered().title(title));
        frame.render_widget(table, area);
    }
}

/// A number in a few characters.
fn short(n: u64) -> String {
    let scales = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match scales.into_iter().find(|(by, _)| n >= *by) {
        None => n.to_string(),
        Some((by, letter)) => format!("{:.1}{letter}", n as f64 / by as f64),
    }
}

fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn answer(messages: u64, tripped: bool) -> Value {
        let commits = [[8192, 0], [16_384, messages], [32_768, messages]];
        let slow = json!([{
            "member": "bad\u{1b}[2J", "state": "stalled", "tripped": true,
            "drain_bytes_per_s": 2048, "lag_messages": 7, "groups": 1,
        }]);
        json!({
            "version": "1.2.3",
            "total": { "messages": messages, "deliveries": 1_000 * messages, "connections": 12 },
            "silent_shards": if tripped { json!([1]) } else { json!([]) },
            "shards": [{
                "shard": 0, "log_poisoned": tripped, "ring_batches": 3, "ring_slots": 1024,
                "figures": { "messages": messages, "connections": 12 },
                "distributions": { "commit_ns": { "count": messages, "up_to": commits } },
                "slowest": if tripped { slow } else { json!([]) },
            }],
        })
    }

    fn lines(view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 32)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn rates_and_percentiles_are_between_two_answers() {
        let start = Instant::now();
        let mut view = View::new(Sample { at: start, answer: answer(1_000, false) });
        let text = lines(&view);
        assert!(text.contains("Fanfare 1.2.3") && text.contains("messages/s -"), "{text}");
        view.take(start + Duration::from_secs(2), Ok(answer(3_000, false)));
        let text = lines(&view);
        assert!(text.contains("messages/s 1.0k") && text.contains("deliveries/s 1.0M"), "{text}");
        // All 2,000 in the bucket from 8,192 to 16,384 ns: the median is in its middle.
        assert_eq!(view.percentile("commit_ns", 0.5), Some(12_288));
        assert!(text.contains("12 us") && text.contains("every member keeps up"), "{text}");
        assert!(text.contains("3/1024"), "{text}");
    }

    #[test]
    fn troubles_are_shown_and_ids_do_not_reach_the_terminal_raw() {
        let start = Instant::now();
        let mut view = View::new(Sample { at: start, answer: answer(1, true) });
        view.take(start + Duration::from_secs(1), Err("gone".into()));
        let text = lines(&view);
        for what in
            ["no new answer: gone", "shards [1]", "shard 0: its log failed", "stalled", "last"]
        {
            assert!(text.contains(what), "{what} is not in\n{text}");
        }
        assert!(text.contains("1 members do not keep up") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn it_fits_any_size() {
        let view = View::new(Sample { at: Instant::now(), answer: answer(1, true) });
        for (width, height) in [(1, 1), (10, 3), (40, 12), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| view.draw(frame)).unwrap();
        }
    }

    #[test]
    fn an_empty_answer_is_shown_too() {
        let view = View::new(Sample { at: Instant::now(), answer: json!({}) });
        assert!(lines(&view).contains("every member keeps up"));
    }
}
