//! Which route takes a request, and what the fixed paths answer.

use crate::support::{Gateway, chat_body, read_head};

const JSON: (&str, &str) = ("content-type", "application/json");

fn simulated(names: &[&str]) -> String {
    names.iter().map(|name| format!("  - {{ name: {name}, type: simulated }}\n")).collect()
}

#[tokio::test]
async fn a_route_is_chosen_by_path_method_headers_and_priority() {
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n\
         \x20 - {{ name: rest, path: /v1/*, methods: [GET, POST], backend: rest, priority: 300 }}\n\
         \x20 - {{ name: all, path: /v1/chat/completions, backend: all }}\n\
         \x20 - {{ name: both, path: /v1/chat/completions, backend: both, priority: 1, headers: {{ X-Team: a, X-Tier: gold }} }}\n\
         \x20 - {{ name: team, path: /v1/chat/completions, backend: team, priority: 2, headers: {{ X-Team: a }} }}\n",
        simulated(&["all", "both", "team", "rest"])
    ));
    let chosen = async |headers: &[(&str, &str)]| {
        let headers = [&[JSON], headers].concat();
        let body = chat_body("any", "hi", false).to_string();
        let reply = gateway.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
        reply.header("x-stagedoor-backend").map(str::to_owned)
    };
    assert_eq!(chosen(&[]).await.as_deref(), Some("all"));
    assert_eq!(chosen(&[("x-team", "a")]).await.as_deref(), Some("team"));
    assert_eq!(chosen(&[("x-team", "A")]).await.as_deref(), Some("all"), "values are compared as they are");
    assert_eq!(chosen(&[("x-tier", "gold"), ("x-team", "a")]).await.as_deref(), Some("both"));
    assert_eq!(chosen(&[("x-tier", "gold")]).await.as_deref(), Some("all"));
    // Of another method, it is the one that takes it.
    let reply = gateway.get("/v1/chat/completions").await;
    assert_eq!(reply.header("x-stagedoor-backend"), Some("rest"), "{}", reply.text());
    let reply = gateway.send("PUT", "/v1/chat/completions", &[], b"").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, POST")));
}

#[tokio::test]
async fn what_can_be_read_can_be_asked_for_by_head() {
    let gateway = Gateway::start(&format!("backends:\n{}", simulated(&["up"])));
    for path in ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/up", "/admin", "/admin/page.css"] {
        let by_get = gateway.get(path).await;
        assert_eq!(by_get.status, 200, "{path}");
        let mut stream = gateway.open("HEAD", path, &[("connection", "close")], b"").await;
        let head = read_head(&mut stream).await;
        assert_eq!((head.status, head.header("content-type")), (200, by_get.header("content-type")), "{path}");
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.unwrap();
        assert_eq!(rest, b"", "{path}: a reply to HEAD has no body");
        let refused = gateway.send("PUT", path, &[], b"").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[tokio::test]
async fn a_refusal_for_want_of_a_key_says_how_to_show_one() {
    let gateway = Gateway::start(&format!(
        "auth: {{ keys: [ {{ name: a, key: sk-a-long-enough-key }} ] }}\nadmin: {{ token: an-admin-token-long-enough }}\nbackends:\n{}",
        simulated(&["up"])
    ));
    for path in ["/v1/models", "/v1/chat/completions", "/admin/api/state", "/metrics"] {
        let method = if path.ends_with("completions") { "POST" } else { "GET" };
        let refused = gateway.send(method, path, &[JSON], b"{}").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")), "{path}");
    }
}
