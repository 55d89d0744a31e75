//! The page, as it is in the binary. It holds nothing that is secret: all it shows comes from the API.

use actix_web::http::header;
use actix_web::{HttpResponse, Scope};

use crate::http::read;

/// What the page loads, by name.
const FILES: [(&str, &str); 17] = [
    ("page.css", include_str!("page/page.css")),
    ("theme.js", include_str!("page/theme.js")),
    ("page.js", include_str!("page/page.js")),
    ("acts.js", include_str!("page/acts.js")),
    ("api.js", include_str!("page/api.js")),
    ("backends.js", include_str!("page/backends.js")),
    ("dom.js", include_str!("page/dom.js")),
    ("events.js", include_str!("page/events.js")),
    ("gateway.js", include_str!("page/gateway.js")),
    ("keys.js", include_str!("page/keys.js")),
    ("live.js", include_str!("page/live.js")),
    ("requests.js", include_str!("page/requests.js")),
    ("spark.js", include_str!("page/spark.js")),
    ("story.js", include_str!("page/story.js")),
    ("supervisor.js", include_str!("page/supervisor.js")),
    ("verdict.js", include_str!("page/verdict.js")),
    ("words.js", include_str!("page/words.js")),
];

pub(super) async fn html() -> HttpResponse {
    asset("text/html; charset=utf-8", include_str!("page/index.html"))
}

/// Adds a route for each of the page's files.
pub(super) fn files(scope: Scope) -> Scope {
    FILES.into_iter().fold(scope, |scope, (name, text)| {
        let kind = if name.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
        scope.service(read(&format!("/{name}"), move || async move { asset(kind, text) }))
    })
}

fn asset(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, kind)).body(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_every_import_is_one_of_them() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/admin/page");
        let there = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut there: Vec<String> = there.filter(|name| name != "index.html").collect();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        there.sort();
        served.sort_unstable();
        assert_eq!(there, served);
        for (name, text) in FILES {
            for import in text.lines().filter_map(|line| line.split_once(" from \"./")?.1.strip_suffix("\";")) {
                assert!(served.contains(&import), "{name} imports {import}");
            }
        }
    }
}
