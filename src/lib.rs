//! Stagedoor: a self-hosted LLM gateway. Applications speak the OpenAI API to one address; supervised provider actors
//! perform each request, each in its provider's format.
//!
//! # The life of a request
//!
//! 1. A worker accepts the connection; `http::span` opens the root span with a request id.
//! 2. `http::front` authenticates, bounds the body, scans it once ([`chat::scan`]), finds route, pool and deadline, and
//!    sends one [`actors::Dispatch`] to the pool actor on its own thread.
//! 3. [`actors::pool`] picks a member ([`balance::choose`]: circuits, averages, strategy) and forwards the job, with the caller's reply sender, to its provider.
//! 4. [`actors::provider`] admits it with a permit, or gives it back; admitted, it flies as one task.
//! 5. [`attempt`] encodes ([`dialect`]), sends over the network or to the [`simulate`]d provider, judges the reply, retries.
//! 6. A whole reply is checked and answered. A stream is held until its first content, then answered as a body that the
//!    client pulls; after that there is no second backend, only a well-formed error event.
//! 7. A failure that another member may mend goes back to the pool; the front end never knows.
//! 8. The flight's guard reports one outcome to the pool, on whatever path it ends.
//!
//! # Where things live
//!
//! Dependencies point one way: `main -> startup -> {http, shard} -> monitor -> actors -> attempt -> dialect -> {balance, chat}`;
//! [`error`], [`settings`], [`telemetry`] and [`unix_time`] are leaves; [`top`] is a client. Every worker owns a full copy of pools, providers and
//! connections ([`shard`]); what the process shares is in [`actors::slots::Shared`]. What became of a request is told in
//! its [`story`], what became of backends in the [`journal`]; [`monitor`] adds up what the workers count and makes what
//! operators see, served by `http::admin` and `http::metrics`.

pub mod actors;
pub mod attempt;
pub mod balance;
pub mod catalogue;
pub mod chat;
pub mod dialect;
pub mod error;
pub mod http;
pub mod journal;
pub mod monitor;
pub mod settings;
pub mod shard;
pub mod simulate;
pub mod startup;
pub mod story;
pub mod telemetry;
pub mod top;
pub mod unix_time;
pub mod words;
