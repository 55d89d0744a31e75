//! End-to-end tests: the real application on a real port against scripted providers, with plain sockets as clients.
#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests, in modules of one crate")]
#![expect(clippy::disallowed_methods, reason = "stand-ins and clients run on a runtime of their own")]

mod admin;
mod bad_input;
mod bad_replies;
mod chat;
mod circuits;
mod embeddings;
mod failures;
mod hedges;
mod images;
mod network;
mod panics;
mod passthrough;
mod permits;
mod pools;
mod process;
mod readers;
mod restarts;
mod routes;
mod streams;
mod support;
mod tokens;
mod translated;
mod usage;
