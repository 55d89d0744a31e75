#![allow(missing_docs, reason = "wip")]
pub mod settings;
pub mod chat;
pub mod dialect;
pub mod balance;
pub mod attempt;
pub mod error;
pub mod simulate;
pub mod actors;
pub mod shard;
pub mod http;
pub mod startup;
pub mod telemetry;
