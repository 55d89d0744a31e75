//! The binary under faults: what a client sees of each, and that nothing is lost or grows under a mixture of them.
#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests, in modules of one crate")]

mod books;
mod cases;
mod client;
mod process;
mod soak;
mod table;
