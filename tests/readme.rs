//! The README's tables of what translation loses are what the code says, and so are its defaults. `UPDATE_README=1` writes the
//! tables anew.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use stagedoor::dialect::Dialect;
use stagedoor::settings;

/// The part of the README between two marks.
fn between<'a>(readme: &'a str, begin: &str, end: &str) -> &'a str {
    readme.split_once(begin).unwrap().1.split_once(end).unwrap().0
}

/// A configuration with every default written means the same as one with none.
#[test]
fn the_defaults_are_those_of_the_code() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let written = between(&readme, "<!-- defaults -->\n```yaml\n", "```\n<!-- /defaults -->");
    let unwritten = "backends:\n  - { name: a-backend, type: simulated }\n  - { name: a-pool, type: pool, backends: [ { name: a-backend } ] }\n\
        routes: [ { name: a-route, path: /v1/chat/completions, backend: a-pool } ]\n";
    let [written, unwritten] = [written, unwritten].map(|text| {
        let settings = settings::from_text("test", text, &BTreeMap::new()).unwrap();
        let settings::Settings { server, recent_requests, backends, pools, routes, .. } = settings;
        let text = format!("{:#?}", (server, recent_requests, backends, pools, routes));
        // The catalogue's maps have no order.
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    });
    let odd = written.iter().zip(&unwritten).find(|(written, unwritten)| written != unwritten);
    assert_eq!(odd, None);
    assert_eq!(written.len(), unwritten.len());
}

#[test]
fn the_tables_of_lossy_fields_are_those_of_the_code() {
    let mut readme = std::fs::read_to_string("README.md").unwrap();
    for (dialect, title) in [(Dialect::Anthropic, "Anthropic"), (Dialect::Google, "Google")] {
        let begin = format!("<!-- lossy {} -->\n", dialect.word());
        let from = readme.find(&begin).unwrap() + begin.len();
        let to = from + readme[from..].find("<!-- /lossy -->").unwrap();
        let rows = dialect.lossy().iter().map(|lossy| format!("| `{}` | {} |\n", lossy.field, lossy.rule));
        let table = format!("| field | {title} |\n|---|---|\n{}", rows.collect::<String>());
        if std::env::var_os("UPDATE_README").is_some() {
            readme.replace_range(from..to, &table);
            std::fs::write("README.md", &readme).unwrap();
        } else {
            assert_eq!(&readme[from..to], table, "the table for {title}");
        }
    }
}

/// Every field that a golden case shows as dropped has a row, so that the tables cannot fall behind the code.
#[test]
fn every_field_that_is_dropped_in_a_golden_case_has_its_row() {
    for dialect in [Dialect::Anthropic, Dialect::Google] {
        for case in std::fs::read_dir(format!("tests/golden/{}", dialect.word())).unwrap() {
            let path = case.unwrap().path();
            let case: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let dropped = case["expected"]["dropped"].as_array().into_iter().flatten();
            for field in dropped.filter_map(|field| field.as_str()).filter(|field| *field != "never_heard_of") {
                assert!(dialect.lossy().iter().any(|lossy| lossy.field == field), "{field} in {}", path.display());
            }
            if let Some(param) =
                case["expected"]["refused"]["param"].as_str().filter(|_| case["expected"]["refused"]["class"] == "unsupported")
            {
                let field = param.split(['[', '.']).next().unwrap();
                let known = ["model", "path", "prompt"].contains(&field);
                assert!(known || dialect.lossy().iter().any(|lossy| lossy.field == field), "{param} in {}", path.display());
            }
        }
    }
}
