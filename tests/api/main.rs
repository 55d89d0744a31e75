//! End-to-end tests: the real application on a real port against scripted providers, with plain sockets as clients.
#![expect(clippy::unwrap_used, reason = "tests")]

mod chat;
mod failures;
mod panics;
mod permits;
mod restarts;
mod streams;
mod support;
