//! The README's tables of what translation loses are what the code says. `UPDATE_README=1` writes them anew.

use stagedoor::dialect::Dialect;

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
