//! The screen: pure drawing of what was fetched.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Widget, Wrap};
use serde_json::Value;
use tokio::time::Instant;

use super::client::Fetched;
use crate::words::several;

/// Requests in flight, and events, that are shown at most.
const LISTED: usize = 8;
/// From worst to best; what is not known is no good news.
const CONDITIONS: [&str; 8] = ["failed", "open", "half-open", "starting", "ailing", "drained", "unknown", "well"];

/// What is shown.
pub(super) struct View {
    address: String,
    fetched: Option<(Fetched, Instant)>,
    /// Why the last fetch brought nothing.
    problem: Option<String>,
    first_row: usize,
    paused: bool,
    /// Whether it is printed once, where no keys are.
    pub(super) printed: bool,
}

impl View {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), fetched: None, problem: None, first_row: 0, paused: false, printed: false }
    }

    pub(super) fn take(&mut self, fetched: Result<Fetched, String>) {
        match fetched {
            Ok(fetched) => {
                self.fetched = Some((fetched, Instant::now()));
                self.problem = None;
            }
            // Whoever answers there may not be a gateway: its words must not steer the terminal.
            Err(problem) => self.problem = Some(problem.replace(char::is_control, " ")),
        }
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    pub(super) fn scroll(&mut self, rows: i32) {
        let last = self.backends().len().saturating_sub(1);
        let moved = i64::try_from(self.first_row).unwrap_or(0) + i64::from(rows);
        self.first_row = usize::try_from(moved.max(0)).unwrap_or(0).min(last);
    }

    pub(super) fn pause(&mut self) {
        self.paused = !self.paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    fn state(&self) -> &Value {
        self.fetched.as_ref().map_or(&Value::Null, |(fetched, _)| &fetched.state)
    }

    fn requests(&self) -> &Value {
        self.fetched.as_ref().map_or(&Value::Null, |(fetched, _)| &fetched.requests)
    }

    /// Backends, worst first.
    fn backends(&self) -> Vec<&Value> {
        let mut backends: Vec<&Value> = self.state()["backends"].as_array().into_iter().flatten().collect();
        let rank = |backend: &Value| CONDITIONS.iter().position(|known| backend["condition"] == **known).unwrap_or(0);
        backends.sort_by_key(|backend| rank(backend));
        backends
    }

    fn backend_rows(&self) -> u16 {
        u16::try_from(self.backends().len()).unwrap_or(u16::MAX).saturating_add(2)
    }

    /// Rows that show everything at this width.
    pub(super) fn height(&self, width: u16) -> u16 {
        let lists = [&self.requests()["in_flight"], &self.state()["events"]].map(rows_of);
        let below = self.backend_rows().max(5).saturating_add(lists[0] + 2 + lists[1] + 1);
        head_height(width).saturating_add(below)
    }

    /// Whether what is shown is not the present.
    fn is_stale(&self) -> bool {
        self.problem.is_some() || self.paused
    }
}

/// Draws a view.
pub(super) struct Screen<'v>(pub(super) &'v View);

impl Widget for Screen<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let view = self.0;
        // Backends come first; what is left is for the others.
        let head = head_height(area.width);
        let below = area.height.saturating_sub(head);
        let backends = view.backend_rows().min(below.saturating_sub(6)).max(5);
        let left = below.saturating_sub(backends);
        let flights = rows_of(&view.requests()["in_flight"]) + 2;
        let flights = flights.min(left.div_ceil(2));
        let rows = [head, backends, flights].map(Constraint::Length);
        let [head, backends, in_flight, journal] = Layout::vertical([rows[0], rows[1], rows[2], Constraint::Min(0)]).areas(area);
        head_of(view).render(head, buffer);
        backends_of(view, backends).render(backends, buffer);
        in_flight_of(view).render(in_flight, buffer);
        journal_of(view).render(journal, buffer);
    }
}

/// Rows for the verdict and the facts, which a narrow terminal wraps.
fn head_height(width: u16) -> u16 {
    if width < 120 { 6 } else { 4 }
}

fn rows_of(list: &Value) -> u16 {
    u16::try_from(list.as_array().map_or(0, Vec::len).clamp(1, LISTED)).unwrap_or(1)
}

fn head_of(view: &View) -> Paragraph<'_> {
    let state = view.state();
    let verdict = &state["verdict"];
    let level = text(&verdict["level"]);
    let color = match level {
        _ if view.is_stale() => Color::DarkGray,
        "serving" => Color::Green,
        "degraded" | "draining" => Color::Yellow,
        "failing" | "down" => Color::Red,
        _ => Color::Gray,
    };
    let said = Line::from(vec![
        Span::styled(format!(" {} ", level.to_uppercase()), Style::new().fg(Color::Black).bg(color).add_modifier(Modifier::BOLD)),
        Span::raw(" "),
        Span::styled(text(&verdict["words"]), Style::new().add_modifier(Modifier::BOLD)),
    ]);
    let facts = format!(
        "up {}  {:.1} requests/s  {} open  {} connections  memory {}  bodies {}  {} {}  configuration {}",
        span(state["uptime_seconds"].as_f64()),
        verdict["requests_per_second"].as_f64().unwrap_or(0.0),
        count(&state["open_requests"]),
        count(&state["connections"]),
        bytes(&state["memory_bytes"]),
        bytes(&state["body_bytes"]),
        text(&state["version"]),
        text(&state["build"]),
        text(&state["configuration"]["sha256"]).get(..8).unwrap_or("-"),
    );
    let age = view.fetched.as_ref().map_or(0, |(_, at)| at.elapsed().as_secs());
    let live = match (&view.problem, view.paused) {
        (Some(problem), _) => Line::from(format!("NOT LIVE: last state {age} s ago; {problem}")).red().bold(),
        (None, true) => Line::from("paused; p goes on").yellow(),
        (None, false) if view.printed => Line::from(view.address.as_str()).dark_gray(),
        (None, false) => Line::from(format!("{}   q quits, p pauses, arrows scroll", view.address)).dark_gray(),
    };
    // The facts come last: they may be cut.
    Paragraph::new(vec![said, live, Line::from(facts)]).wrap(Wrap { trim: true })
}

/// A column of the table of backends.
struct Column {
    title: &'static str,
    /// Letters that it needs.
    width: u16,
    /// Share of the room that is left; 0 takes none.
    fill: u16,
    /// Which goes first where there is no room for all: the highest.
    rank: u8,
    cell: fn(&Value) -> String,
}

const COLUMNS: [Column; 13] = [
    Column { title: "backend", width: 14, fill: 2, rank: 0, cell: |backend| text(&backend["name"]).to_owned() },
    Column { title: "condition", width: 9, fill: 0, rank: 0, cell: |backend| text(&backend["condition"]).to_owned() },
    Column { title: "why", width: 20, fill: 3, rank: 0, cell: |backend| text(&backend["reason"]).to_owned() },
    Column { title: "since", width: 6, fill: 0, rank: 1, cell: |backend| span(backend["since_seconds"].as_f64()) },
    Column { title: "until", width: 6, fill: 0, rank: 4, cell: |backend| span(backend["until_seconds"].as_f64()) },
    Column { title: "share", width: 9, fill: 0, rank: 6, cell: share },
    Column { title: "flight", width: 8, fill: 0, rank: 3, cell: flight },
    Column { title: "queue", width: 5, fill: 0, rank: 8, cell: |backend| count(&backend["queued"]) },
    Column { title: "p50", width: 7, fill: 0, rank: 5, cell: |backend| first_content(backend, "p50") },
    Column { title: "p99", width: 7, fill: 0, rank: 9, cell: |backend| first_content(backend, "p99") },
    Column { title: "tok/s", width: 7, fill: 0, rank: 7, cell: pace },
    Column { title: "failed", width: 10, fill: 0, rank: 2, cell: failed },
    Column { title: "restarts", width: 8, fill: 0, rank: 10, cell: |backend| count(&backend["restarts"]) },
];

/// The columns that have room.
fn columns(width: u16) -> Vec<&'static Column> {
    let mut columns: Vec<&Column> = COLUMNS.iter().collect();
    let needed = |columns: &[&Column]| columns.iter().map(|column| column.width + 1).sum::<u16>();
    while needed(&columns) > width + 1
        && let Some(last) = columns.iter().map(|column| column.rank).max().filter(|rank| *rank > 0)
    {
        columns.retain(|column| column.rank != last);
    }
    columns
}

/// Present and expected share of its pool's traffic.
fn share(backend: &Value) -> String {
    let share = &backend["shares"][0];
    let percent = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |share| format!("{:.0}", share * 100.0));
    if share.is_null() { "-".to_owned() } else { format!("{}/{} %", percent(&share["now"]), percent(&share["expected"])) }
}

/// Requests in flight, of those that may be.
fn flight(backend: &Value) -> String {
    let limit = backend["permits"]["limit"].as_u64().map_or(String::new(), |limit| format!("/{limit}"));
    format!("{}{limit}", count(&backend["permits"]["used"]))
}

fn first_content(backend: &Value, quantile: &str) -> String {
    span(backend["recent"]["first_content_seconds"][quantile].as_f64())
}

fn pace(backend: &Value) -> String {
    format!("{:.1}", backend["recent"]["tokens_per_second"].as_f64().unwrap_or(0.0))
}

/// Tries that failed lately, of how many.
fn failed(backend: &Value) -> String {
    let recent = &backend["recent"];
    let failed: u64 = recent["failures"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    format!("{failed}/{}", count(&recent["tries"]))
}

fn backends_of(view: &View, area: Rect) -> Table<'_> {
    let columns = columns(area.width);
    let backends = view.backends();
    let shown = backends.iter().skip(view.first_row).take(usize::from(area.height));
    let shown: Vec<Row> = shown.map(|backend| backend_row(backend, &columns, view.is_stale())).collect();
    let width = |column: &&Column| match column.fill {
        0 => Constraint::Length(column.width),
        fill => Constraint::Fill(fill),
    };
    let down = count(&view.state()["verdict"]["backends_down"]);
    let title = format!(" {}, {down} down ", several(backends.len() as u64, "backend"));
    Table::new(shown, columns.iter().map(width))
        .header(columns.iter().map(|column| column.title).collect::<Row>().dark_gray())
        .block(Block::new().borders(Borders::TOP).title(title))
}

fn backend_row<'v>(backend: &Value, columns: &[&Column], is_stale: bool) -> Row<'v> {
    let color = match text(&backend["condition"]) {
        _ if is_stale => Color::DarkGray,
        "well" => Color::Green,
        "ailing" | "starting" | "half-open" => Color::Yellow,
        "open" | "failed" => Color::Red,
        "drained" => Color::Blue,
        _ => Color::Gray,
    };
    let cells = columns.iter().map(|column| {
        let cell = Cell::from((column.cell)(backend));
        if column.title == "condition" { cell.style(Style::new().fg(color).add_modifier(Modifier::BOLD)) } else { cell }
    });
    cells.collect()
}

fn in_flight_of(view: &View) -> Table<'_> {
    let flights = view.requests()["in_flight"].as_array();
    let rows = flights.into_iter().flatten().take(LISTED).map(|flight| {
        Row::new([
            text(&flight["id"]).to_owned(),
            span(flight["age_seconds"].as_f64()),
            text(&flight["phase"]).to_owned(),
            text(&flight["backend"]).to_owned(),
            text(&flight["model"]).to_owned(),
            count(&flight["attempt"]),
            count(&flight["content_events"]),
            flight["content_events_per_second"].as_f64().map_or_else(|| "-".to_owned(), |pace| format!("{pace:.1}")),
        ])
    });
    let widths = [
        Constraint::Length(38),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(4),
        Constraint::Length(7),
        Constraint::Length(7),
    ];
    let all = flights.map_or(0, Vec::len);
    let title = match all {
        _ if all > LISTED => format!(" {all} in flight, the {LISTED} longest "),
        _ => format!(" {all} in flight, longest first "),
    };
    Table::new(rows, widths)
        .header(Row::new(["request", "age", "phase", "backend", "model", "try", "tokens", "tok/s"]).dark_gray())
        .block(Block::new().borders(Borders::TOP).title(title))
}

fn journal_of(view: &View) -> Paragraph<'_> {
    let events = view.state()["events"].as_array();
    let lines = events.into_iter().flatten().rev().take(LISTED).map(|event| {
        let ago = view.state()["at"].as_f64().zip(event["at"].as_f64()).map(|(now, at)| now - at);
        let whom = [&event["backend"], &event["model"]].map(text).join(" ");
        Line::from(vec![
            Span::styled(format!("{:>7} ago  ", span(ago)), Style::new().fg(Color::DarkGray)),
            Span::styled(format!("{:<15} ", text(&event["kind"])), Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("{whom}  {}", text(&event["words"]))),
        ])
    });
    Paragraph::new(lines.collect::<Vec<_>>()).block(Block::new().borders(Borders::TOP).title(" events, the last one first "))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// A time in at most six letters.
fn span(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) if seconds < 10.0 => format!("{seconds:.1} s"),
        Some(seconds) if seconds < 120.0 => format!("{seconds:.0} s"),
        Some(seconds) if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        Some(seconds) => format!("{:.0} d", seconds / 86_400.0),
    }
}

fn bytes(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(bytes) if bytes < 1e4 => format!("{bytes:.0} B"),
        Some(bytes) if bytes < 1e7 => format!("{:.0} KiB", bytes / 1024.0),
        Some(bytes) => format!("{:.1} MiB", bytes / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        Screen(view).render(area, &mut buffer);
        let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    fn view() -> View {
        let backend = |name: &str, condition: &str| {
            json!({ "name": name, "condition": condition, "reason": "because", "since_seconds": 3.0, "until_seconds": 65.0,
                "permits": { "used": 2, "limit": 3 }, "queued": 1, "restarts": 4, "shares": [{ "now": 0.25, "expected": 0.5 }],
                "recent": { "attempts": 7, "tries": 9, "failures": { "server": 2 }, "first_content_seconds": { "p50": 0.12, "p99": null }, "tokens_per_second": 55.5 } })
        };
        let state = json!({
            "at": 100.0, "verdict": { "level": "degraded", "words": "Clients are being served.", "backends_down": 1 },
            "backends": [backend("good-one", "well"), backend("bad-one", "open"), backend("odd-one", "unknown")],
            "events": [{ "at": 88.0, "kind": "circuit-open", "backend": "bad-one", "words": "server, 5 in a row" }],
        });
        let requests = json!({ "in_flight": [{ "id": "req_1", "age_seconds": 75.0, "phase": "streaming", "attempt": 1, "content_events": 7 }] });
        let mut view = View::new("http://gateway");
        view.take(Ok(Fetched { state, requests }));
        view
    }

    #[test]
    fn the_worst_backend_comes_first_with_why_and_until_when() {
        let screen = drawn(&view(), 140, 24);
        let place = |name: &str| screen.find(name).unwrap_or_else(|| panic!("{name}: {screen}"));
        assert!(place("bad-one") < place("odd-one") && place("odd-one") < place("good-one"), "{screen}");
        for part in [
            "DEGRADED",
            "Clients are being served.",
            "because",
            "65 s",
            "25/50 %",
            "2/3",
            "120 ms",
            "2/9",
            "req_1",
            "75 s",
            "12 s ago",
        ] {
            assert!(screen.contains(part), "{part}: {screen}");
        }
    }

    #[test]
    fn a_usual_terminal_shows_who_is_ill_and_why_and_drops_what_matters_less() {
        let screen = drawn(&view(), 80, 24);
        for part in ["bad-one", "open", "because", "since", "failed", "q quits", "req_1", "circuit-open"] {
            assert!(screen.contains(part), "{part}: {screen}");
        }
        assert!(!screen.contains("restarts"), "{screen}");
        for width in 40..200 {
            let screen = drawn(&view(), width, 24);
            assert!(screen.contains("bad-one") && screen.contains("open") && screen.contains("because"), "{width}: {screen}");
        }
    }

    #[test]
    fn what_is_not_live_says_so() {
        let mut view = view();
        view.take(Err("no answer".into()));
        assert!(drawn(&view, 140, 24).contains("NOT LIVE: last state 0 s ago; no answer"));
    }

    #[test]
    fn a_small_terminal_or_an_empty_state_is_no_trouble() {
        for (width, height) in [(0, 0), (1, 1), (20, 3), (80, 10)] {
            drawn(&view(), width, height);
            drawn(&View::new("x"), width, height);
        }
        let mut view = view();
        for rows in [-1, 1, i32::MAX, i32::MIN] {
            view.scroll(rows);
            drawn(&view, 80, 24);
        }
    }
}
