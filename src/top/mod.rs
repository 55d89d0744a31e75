//! `stagedoor top`: what /admin shows, in a terminal. A client of the operator's API like any other.

mod client;
mod screen;

use std::future::poll_fn;
use std::io::{IsTerminal as _, Write as _};
use std::task::Poll;
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::widgets::Widget as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use client::Client;
pub use client::Source;
use screen::{Screen, View};

/// How often the state is fetched.
const REFRESH: Duration = Duration::from_secs(1);
/// Width of what is printed where there is no terminal.
const PRINTED: u16 = 160;

/// Shows the state of a gateway until the user has seen enough; `once` prints it as text instead.
///
/// # Errors
/// A gateway that does not answer when it is asked first, or a terminal that cannot be used.
pub async fn run(source: Source, once: bool) -> anyhow::Result<()> {
    let client = Client::new(source);
    let mut view = View::new(client.address());
    view.take(client.fetch().await);
    if let Some(problem) = view.problem() {
        anyhow::bail!("{}: {problem}", client.address());
    }
    if once || !std::io::stdout().is_terminal() {
        return print(&mut view);
    }
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, &client, &mut view).await;
    ratatui::restore();
    shown
}

fn print(view: &mut View) -> anyhow::Result<()> {
    view.printed = true;
    let area = Rect::new(0, 0, PRINTED, view.height(PRINTED));
    let mut buffer = Buffer::empty(area);
    Screen(view).render(area, &mut buffer);
    let mut out = std::io::stdout().lock();
    for row in 0..area.height {
        let line: String = (0..area.width).map(|column| buffer[(column, row)].symbol()).collect();
        match writeln!(out, "{}", line.trim_end()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(())
}

async fn show(terminal: &mut ratatui::DefaultTerminal, client: &Client, view: &mut View) -> anyhow::Result<()> {
    let mut keys = keys();
    // Whoever ends it finds the terminal as it was.
    let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal);
    let mut next = Instant::now() + REFRESH;
    loop {
        terminal.draw(|frame| frame.render_widget(Screen(view), frame.area()))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Key::Quit) | None => return Ok(()),
                Some(Key::Move(rows)) => view.scroll(rows),
                Some(Key::Pause) => view.pause(),
                Some(Key::Redraw) => {}
            },
            () = any_of(&mut ends) => return Ok(()),
            () = tokio::time::sleep_until(next) => {
                if !view.is_paused() {
                    view.take(client.fetch().await);
                }
                next = Instant::now() + REFRESH;
            }
        }
    }
}

async fn any_of(signals: &mut [std::io::Result<Signal>]) {
    poll_fn(|cx| {
        let mut signals = signals.iter_mut().filter_map(|signal| signal.as_mut().ok());
        if signals.any(|signal| signal.poll_recv(cx).is_ready()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What the user wants.
enum Key {
    Quit,
    Pause,
    /// Rows up or down.
    Move(i32),
    Redraw,
}

/// Keys are read by a thread of their own: it ends with the process.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(key) = key(&event)
                && sender.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    keys
}

fn key(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else { return matches!(event, Event::Resize(..)).then_some(Key::Redraw) };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('p' | ' ') => Some(Key::Pause),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Move(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Move(1)),
        KeyCode::PageUp => Some(Key::Move(-10)),
        KeyCode::PageDown => Some(Key::Move(10)),
        KeyCode::Home => Some(Key::Move(i32::MIN)),
        _ => None,
    }
}
