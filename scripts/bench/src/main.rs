//! Both ends of the benchmark: `mock` is the upstream, `load` the clients.
//!
//! Each is one thread of hand-made HTTP/1.1, so that the core they share has time to spare and what is measured is
//! what stands between them. `bench.py` decides what runs when.

mod http;
mod load;
mod mock;
mod script;
mod wire;

use std::collections::HashMap;

/// Every failure is a sentence; any of them voids the run.
pub type Result<T> = std::result::Result<T, String>;

/// `--key value` pairs.
pub struct Args(HashMap<String, String>);

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Args> {
        let mut pairs = HashMap::new();
        let mut words = words;
        while let Some(key) = words.next() {
            let name = key
                .strip_prefix("--")
                .ok_or(format!("expected --option, got {key}"))?;
            let value = words.next().ok_or(format!("{key} needs a value"))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Args(pairs))
    }

    pub fn text(&self, name: &str, default: &str) -> String {
        self.0
            .get(name)
            .cloned()
            .unwrap_or_else(|| default.to_owned())
    }

    pub fn number(&self, name: &str, default: u64) -> Result<u64> {
        match self.0.get(name) {
            Some(v) => v
                .parse()
                .map_err(|_| format!("--{name}: {v} is not a number")),
            None => Ok(default),
        }
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    let done = runtime.block_on(tasks.run_until(async {
        let args = Args::parse(words)?;
        match command.as_str() {
            "mock" => mock::run(&args).await,
            "load" => load::run(&args).await,
            _ => Err("usage: stagedoor-bench mock|load [--option value]...".to_owned()),
        }
    }));
    if let Err(why) = done {
        eprintln!("{command}: {why}");
        std::process::exit(1);
    }
    // Open streams have nothing to finish.
    std::process::exit(0);
}
