#![allow(missing_docs, reason = "wip")]
pub mod actors;
pub mod attempt;
pub mod balance;
pub mod chat;
pub mod dialect;
pub mod error;
pub mod http;
pub mod settings;
pub mod shard;
pub mod simulate;
pub mod startup;
pub mod telemetry;
