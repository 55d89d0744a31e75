//! The live stream: once a second the state, the requests, and every event of the journal since the last time. A client that
//! does not read misses states, never events that are still kept, and costs nothing but its connection.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Problem, Refused, enter, refuse, reply};
use crate::http::Gateway;
use crate::monitor::{AskTick, Tick};

/// Streams at once.
const MOST: usize = 100;
/// How long a stream lasts; then its client comes again and shows who it is.
const LASTS: Duration = Duration::from_secs(900);

/// Once a second: `state` (a State without its events), `requests` (Requests), and `journal` (an Event) for each that has
/// happened. With `Last-Event-ID` the journal goes on behind that one.
#[utoipa::path(
    get, path = "/admin/api/events", tag = "state", params(("Last-Event-ID" = Option<u64>, Header, description = "number of the last journal event that was seen")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 401, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn stream(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let Some(ticks) = gateway.ticks.watch(MOST) else {
        let words = format!("{MOST} clients watch already");
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &words, "too_many_watchers"));
    };
    let first = gateway.monitor.send(AskTick).await.map_err(|_| Refused::internal())?;
    let seen = reply::text(&request, "last-event-id").parse().unwrap_or(0);
    let mut watcher = Watcher { gateway, ticks, seen, ends: Instant::now() + LASTS, waiting: VecDeque::new() };
    watcher.waiting.push_back(Bytes::from_static(b"retry: 2000\n\n"));
    watcher.take(&first);
    let body = stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watcher))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body))
}

struct Watcher {
    gateway: Rc<Gateway>,
    ticks: watch::Receiver<Tick>,
    /// Number of the last event that was told.
    seen: u64,
    ends: Instant,
    waiting: VecDeque<Bytes>,
}

impl Watcher {
    /// The next piece; the newest tick when there is none, so that nothing piles up.
    async fn next(&mut self) -> Option<Bytes> {
        while self.waiting.is_empty() {
            if Instant::now() >= self.ends {
                return None;
            }
            self.ticks.changed().await.ok()?;
            let tick = self.ticks.borrow_and_update().clone();
            self.take(&tick);
        }
        self.waiting.pop_front()
    }

    fn take(&mut self, tick: &Tick) {
        self.waiting.extend([tick.state.clone(), tick.requests.clone()]);
        for event in self.gateway.shared.journal.after(self.seen) {
            self.seen = event.id;
            let data = serde_json::to_string(&event).unwrap_or_default();
            self.waiting.push_back(Bytes::from(format!("event: journal\nid: {}\ndata: {data}\n\n", event.id)));
        }
    }
}
