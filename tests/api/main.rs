//! End-to-end tests: the real application on a real port against scripted providers, with plain sockets as clients.
#![expect(clippy::unwrap_used, reason = "tests")]

mod chat;
mod support;
