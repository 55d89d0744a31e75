//! The table of faults: what is due to a client for each fault of a backend, as the README says it too. `UPDATE_README=1`
//! writes the README's table anew.

/// One fault, and what is due.
pub struct Row {
    /// The fault in the words of the README.
    pub title: &'static str,
    /// The line of the fault script, without when it happens.
    pub fault: &'static str,
    /// Whether only the first request meets it, not every one.
    pub once: bool,
    /// A whole reply, or a stream that fails before its first content, when the faulty backend is the pool's only member.
    pub alone: Due,
    /// The same when it is tried first and a healthy one stands behind it.
    pub first: Due,
    /// Code of the error event that ends a stream which fails after its first content, if the fault has that form.
    pub after: Option<&'static str>,
    /// Failures that the statistics of the faulty member hold before first content.
    pub counted: u64,
    /// Their class: in a whole reply, in a stream before first content, after it.
    pub class: [&'static str; 3],
    /// Crashes of the faulty backend, alone and first of two.
    pub crashes: [u64; 2],
}

/// What is due to the client before first content.
#[derive(Clone, Copy)]
pub enum Due {
    /// An error; tries are those that its header tells, if it has one.
    Error { status: u16, code: &'static str, tries: Option<u32>, wait: Wait, is_final: bool },
    /// The reply, from the faulty member or from the healthy one.
    Reply { healthy: bool, tries: u32 },
}

/// What is due in `Retry-After`.
#[derive(Clone, Copy)]
pub enum Wait {
    /// No such header.
    No,
    /// This many seconds.
    Seconds(u64),
    /// Any number of seconds.
    Some,
}

const fn error(status: u16, code: &'static str, tries: u32) -> Due {
    Due::Error { status, code, tries: Some(tries), wait: Wait::No, is_final: false }
}

/// An error that asks for patience.
const fn wait(status: u16, code: &'static str, tries: u32, wait: Wait) -> Due {
    Due::Error { status, code, tries: Some(tries), wait, is_final: false }
}

/// An error for which sending again is no use.
const fn hopeless(status: u16, code: &'static str, tries: u32) -> Due {
    Due::Error { status, code, tries: Some(tries), wait: Wait::No, is_final: true }
}

/// A reply of the healthy member.
const fn second(tries: u32) -> Due {
    Due::Reply { healthy: true, tries }
}

/// A reply of the faulty member itself.
const fn mended(tries: u32) -> Due {
    Due::Reply { healthy: false, tries }
}

/// A fault that befalls every request, is tried once, and has no form after first content.
const ROW: Row = Row {
    title: "",
    fault: "",
    once: false,
    alone: mended(1),
    first: second(2),
    after: None,
    counted: 1,
    class: [""; 3],
    crashes: [0, 0],
};

/// Every backend may try once more (`maxRetries: 1`).
pub const TABLE: &[Row] = &[
    Row {
        title: "connection refused",
        fault: "kind: connect-refused",
        alone: error(502, "upstream_unreachable", 2),
        first: second(3),
        // Neither try was over a connection that may have died meanwhile.
        counted: 2,
        class: ["socket"; 3],
        ..ROW
    },
    Row {
        title: "connection reset before a reply byte",
        fault: "kind: reset",
        alone: error(502, "upstream_unreachable", 2),
        first: second(3),
        class: ["socket"; 3],
        ..ROW
    },
    // Sending again over a fresh connection is free, and a stale connection nobody's failure.
    Row {
        title: "connection reset, once",
        fault: "kind: reset",
        once: true,
        alone: mended(2),
        first: mended(2),
        counted: 0,
        ..ROW
    },
    Row {
        title: "429 without `Retry-After`",
        fault: "kind: status, status: 429",
        alone: error(429, "rate_limit_exceeded", 1),
        class: ["rate_limited"; 3],
        ..ROW
    },
    Row {
        title: "429, `Retry-After: 30`",
        fault: "kind: status, status: 429, retryAfter: 30s",
        alone: wait(429, "rate_limit_exceeded", 1, Wait::Seconds(30)),
        class: ["rate_limited"; 3],
        ..ROW
    },
    Row {
        title: "429, `Retry-After: 1`",
        fault: "kind: status, status: 429, retryAfter: 1s",
        alone: wait(429, "rate_limit_exceeded", 2, Wait::Seconds(1)),
        first: second(3),
        counted: 2,
        class: ["rate_limited"; 3],
        ..ROW
    },
    Row {
        title: "429, `Retry-After: 1`, once",
        fault: "kind: status, status: 429, retryAfter: 1s",
        once: true,
        alone: mended(2),
        first: mended(2),
        class: ["rate_limited"; 3],
        ..ROW
    },
    Row {
        title: "500",
        fault: "kind: status, status: 500",
        alone: error(502, "upstream_error", 2),
        first: second(3),
        counted: 2,
        class: ["server_error"; 3],
        ..ROW
    },
    Row {
        title: "500, once",
        fault: "kind: status, status: 500",
        once: true,
        alone: mended(2),
        first: mended(2),
        class: ["server_error"; 3],
        ..ROW
    },
    Row {
        title: "503",
        fault: "kind: status, status: 503",
        alone: wait(503, "upstream_overloaded", 2, Wait::Some),
        first: second(3),
        counted: 2,
        class: ["overloaded"; 3],
        ..ROW
    },
    Row {
        title: "529",
        fault: "kind: status, status: 529",
        alone: wait(503, "upstream_overloaded", 2, Wait::Some),
        first: second(3),
        counted: 2,
        class: ["overloaded"; 3],
        ..ROW
    },
    Row {
        title: "401",
        fault: "kind: status, status: 401",
        alone: hopeless(502, "upstream_credential", 1),
        class: ["credential"; 3],
        ..ROW
    },
    Row {
        title: "402",
        fault: "kind: status, status: 402",
        alone: hopeless(429, "insufficient_quota", 1),
        class: ["billing"; 3],
        ..ROW
    },
    Row {
        title: "404",
        fault: "kind: status, status: 404",
        alone: hopeless(404, "model_not_found", 1),
        class: ["model_unknown"; 3],
        ..ROW
    },
    // The provider's own code is kept.
    Row {
        title: "400",
        fault: "kind: status, status: 400",
        alone: hopeless(400, "simulated", 1),
        first: hopeless(400, "simulated", 1),
        class: ["caller"; 3],
        ..ROW
    },
    Row {
        title: "no answer within `timeout`",
        fault: "kind: slow-head, after: 60s",
        alone: error(504, "upstream_timeout", 1),
        class: ["timeout_head"; 3],
        ..ROW
    },
    Row {
        title: "silence within the reply",
        fault: "kind: stall",
        alone: error(504, "upstream_timeout", 1),
        after: Some("stream_ended"),
        class: ["timeout_total", "timeout_first_content", "timeout_idle"],
        ..ROW
    },
    Row {
        title: "reply cut off",
        fault: "kind: cut",
        alone: error(502, "upstream_malformed", 1),
        after: Some("upstream_malformed"),
        class: ["malformed"; 3],
        ..ROW
    },
    Row {
        title: "reply that is no JSON",
        fault: "kind: malformed",
        alone: error(502, "upstream_malformed", 1),
        after: Some("upstream_malformed"),
        class: ["malformed"; 3],
        ..ROW
    },
    Row {
        title: "error event (whole reply: status 500)",
        fault: "kind: error-event",
        alone: error(502, "upstream_error", 2),
        first: second(3),
        after: Some("upstream_error"),
        counted: 2,
        class: ["server_error"; 3],
        ..ROW
    },
    // A handler's panic sends nothing, so nobody tried. Past `restarts` crashes a minute the backend is failed.
    Row {
        title: "panic in the gateway before sending, every time",
        fault: "kind: panic-handler",
        alone: Due::Error { status: 503, code: "no_backend", tries: None, wait: Wait::Some, is_final: false },
        first: second(1),
        counted: 0,
        crashes: [RESTARTS + 1, 1],
        ..ROW
    },
    Row {
        title: "panic in the gateway before sending, once",
        fault: "kind: panic-handler",
        once: true,
        alone: mended(1),
        first: second(1),
        counted: 0,
        crashes: [1, 1],
        ..ROW
    },
    Row {
        title: "panic in the gateway while sending",
        fault: "kind: panic-task",
        alone: error(500, "internal_error", 1),
        class: ["crashed"; 3],
        crashes: [1, 1],
        ..ROW
    },
    Row {
        title: "panic in the gateway while reading",
        fault: "kind: panic-body",
        alone: error(500, "internal_error", 1),
        after: Some("internal_error"),
        class: ["crashed"; 3],
        crashes: [1, 1],
        ..ROW
    },
];

/// Crash restarts a minute before a backend counts as failed.
pub const RESTARTS: u64 = 3;

impl Due {
    /// As the README says it.
    fn words(self) -> String {
        let Self::Error { status, code, wait, is_final, .. } = self else {
            let Self::Reply { healthy, .. } = self else { unreachable!("there are two kinds") };
            return if healthy { "200 from the second" } else { "200" }.to_owned();
        };
        // The simulated provider's own code says nothing about others.
        let code = if code == "simulated" { "the provider's code".to_owned() } else { format!("`{code}`") };
        let wait = match wait {
            Wait::No => String::new(),
            Wait::Seconds(seconds) => format!(", `Retry-After: {seconds}`"),
            Wait::Some => ", `Retry-After`".to_owned(),
        };
        format!("{status} {code}{wait}{}", if is_final { ", final" } else { "" })
    }
}

/// Tries at the faulty member.
fn tries(row: &Row) -> String {
    match row.alone {
        Due::Error { tries: Some(tries), .. } | Due::Reply { tries, .. } => tries.to_string(),
        Due::Error { tries: None, .. } => "0".to_owned(),
    }
}

#[test]
fn the_readme_says_what_a_client_sees() {
    let mut table =
        "| the backend | tries | only member | first of two, the second healthy | after first content |\n|---|---|---|---|---|\n"
            .to_owned();
    for row in TABLE {
        let after = row.after.map_or_else(|| "–".to_owned(), |code| format!("`{code}`"));
        table.push_str(&format!(
            "| {} | {} | {} | {} | {after} |\n",
            row.title,
            tries(row),
            row.alone.words(),
            row.first.words()
        ));
    }
    let mut readme = std::fs::read_to_string("README.md").unwrap();
    let begin = "<!-- faults -->\n";
    let from = readme.find(begin).unwrap() + begin.len();
    let to = from + readme[from..].find("<!-- /faults -->").unwrap();
    if std::env::var_os("UPDATE_README").is_some() {
        readme.replace_range(from..to, &table);
        std::fs::write("README.md", &readme).unwrap();
    } else {
        assert_eq!(&readme[from..to], table);
    }
}
