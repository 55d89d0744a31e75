//! A streamed reply on its way to the client: bytes of the provider in, events of the OpenAI API out. Same-dialect
//! streams pass through [`openai::Relay`]; all others are decoded piece by piece and written anew here.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use super::openai::{self, ChunkWriter};
use super::sse::{self, Splitter};
use super::{Ask, EVENT_LIMIT};
use crate::chat::{Failure, FailureClass, Keepsake, Piece, Sink, Usage};

/// Decodes the events of one stream of a foreign dialect.
pub trait EventDecoder {
    /// Takes the data of one event; true when it was the last.
    ///
    /// # Errors
    /// The failure that an error event means, or `Malformed`.
    fn event(&mut self, data: &[u8], sink: &mut dyn Sink) -> Result<bool, Failure>;

    /// Whether the stream may end here although no last event has come; what is still held goes to the sink.
    fn end(&mut self, sink: &mut dyn Sink) -> bool;

    /// Tokens, if reported so far.
    fn usage(&self) -> Option<Usage>;

    /// What must be kept for later requests, taken out.
    fn keepsakes(&mut self) -> Vec<Keepsake>;
}

/// Relays one streamed reply.
pub enum Relay {
    /// The provider speaks the client's dialect.
    Same(openai::Relay),
    /// It speaks another.
    Translated(Translated),
}

impl Relay {
    /// Takes bytes of the provider in; what they yield is fetched with [`Self::pop`].
    ///
    /// # Errors
    /// The failure that an error event means, or `Malformed`. The relay must not be fed afterwards.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), Failure> {
        match self {
            Self::Same(relay) => relay.feed(chunk),
            Self::Translated(relay) => relay.feed(chunk),
        }
    }

    /// Ends the stream when the provider's bytes have ended.
    ///
    /// # Errors
    /// `Malformed` when the reply was cut before its end.
    pub fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Same(relay) => relay.finish(),
            Self::Translated(relay) => relay.finish(),
        }
    }

    /// The next bytes for the client.
    pub fn pop(&mut self) -> Option<Bytes> {
        match self {
            Self::Same(relay) => relay.pop(),
            Self::Translated(relay) => relay.sink.out.pop_front(),
        }
    }

    /// Whether the first content has come.
    pub fn has_content(&self) -> bool {
        match self {
            Self::Same(relay) => relay.has_content(),
            Self::Translated(relay) => relay.sink.has_content,
        }
    }

    /// Whether the last event has come.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Same(relay) => relay.is_done(),
            Self::Translated(relay) => relay.done,
        }
    }

    /// Tokens, if reported so far.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Self::Same(relay) => relay.usage(),
            Self::Translated(relay) => relay.usage(),
        }
    }

    /// Events with content so far, for estimates.
    pub fn content_events(&self) -> u64 {
        match self {
            Self::Same(relay) => relay.content_events(),
            Self::Translated(relay) => relay.sink.content_events,
        }
    }

    /// What must be kept for later requests, taken out. It is there with the finish: a client that has seen that may hang up
    /// and ask again before the provider's stream ends.
    pub fn keepsakes(&mut self) -> Vec<Keepsake> {
        match self {
            Self::Same(_) => Vec::new(),
            Self::Translated(relay) if relay.sink.has_finish => relay.decoder.keepsakes(),
            Self::Translated(_) => Vec::new(),
        }
    }
}

/// A stream of a foreign dialect.
pub struct Translated {
    splitter: Splitter,
    decoder: Box<dyn EventDecoder>,
    sink: Chunks,
    include_usage: bool,
    done: bool,
}

/// The chunks that are ready for the client.
struct Chunks {
    writer: ChunkWriter,
    out: VecDeque<Bytes>,
    has_content: bool,
    has_finish: bool,
    content_events: u64,
}

impl Sink for Chunks {
    fn identify(&mut self, id: &str, model: &str) {
        self.writer.identify(id, model);
    }

    fn piece(&mut self, choice: u32, piece: &Piece<'_>) {
        if piece.is_content() {
            self.has_content = true;
            self.content_events += 1;
        }
        self.has_finish |= matches!(piece, Piece::Finish { .. });
        let chunk = self.writer.chunk(choice, piece);
        self.out.push_back(chunk);
    }
}

impl Translated {
    /// Starts for one request.
    pub fn new(ask: &Ask<'_>, decoder: Box<dyn EventDecoder>) -> Self {
        let writer = ChunkWriter::new(ask);
        Self {
            splitter: Splitter::new(EVENT_LIMIT),
            decoder,
            sink: Chunks { writer, out: VecDeque::new(), has_content: false, has_finish: false, content_events: 0 },
            include_usage: ask.scan.include_usage,
            done: false,
        }
    }

    fn feed(&mut self, chunk: Bytes) -> Result<(), Failure> {
        let mut events: SmallVec<[Bytes; 4]> = SmallVec::new();
        let fed = self.splitter.feed(chunk, |event| events.push(event));
        for event in events {
            self.event(&event)?;
        }
        fed.map_err(|error| Failure::new(FailureClass::Malformed, error.to_string()))
    }

    fn event(&mut self, event: &[u8]) -> Result<(), Failure> {
        let Some(data) = sse::data(event).filter(|data| !self.done && !data.trim_ascii().is_empty()) else {
            return Ok(());
        };
        if self.decoder.event(&data, &mut self.sink)? {
            self.close();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        if let Some(rest) = self.splitter.finish() {
            self.event(&rest)?;
        }
        if !self.done && self.decoder.end(&mut self.sink) {
            self.close();
        }
        match (self.done, self.sink.has_content) {
            (true, true) => Ok(()),
            (true, false) => Err(Failure::new(FailureClass::Malformed, "the provider's stream ended without any content")),
            (false, _) => Err(Failure::new(FailureClass::Malformed, "the provider's stream was cut before its end")),
        }
    }

    /// Tokens as reported; while the output is not, it is guessed from what has come.
    fn usage(&self) -> Option<Usage> {
        let usage = self.decoder.usage()?;
        let guessed = if usage.estimated { self.sink.content_events } else { 0 };
        Some(Usage { completion_tokens: usage.completion_tokens.max(guessed), ..usage })
    }

    fn close(&mut self) {
        self.done = true;
        if self.include_usage
            && let Some(usage) = self.usage()
        {
            self.sink.out.push_back(self.sink.writer.usage(&usage));
        }
        self.sink.out.push_back(sse::event(openai::DONE));
    }
}
