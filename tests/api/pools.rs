//! Pools: strategies, weights, conversations, standby checks, stories, and the operator's acts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Gateway, Provider, Reply, backend, chat_body, completion, eventually};

/// A provider that fails with this status while the switch is on, and else answers with its name.
pub async fn switched(name: &'static str, status: u16, failing: &Arc<AtomicBool>) -> Provider {
    let failing = Arc::clone(failing);
    Provider::start(move |_, mut wire| {
        let fails = failing.load(Ordering::SeqCst);
        async move {
            if fails {
                wire.json(status, &json!({ "error": { "message": "no", "type": "t", "code": null } })).await;
            } else {
                wire.json(200, &completion(name)).await;
            }
            Some(wire)
        }
    })
    .await
}

pub fn switch(on: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(on))
}

pub fn pool(strategy: &str, members: &str, more: &str) -> String {
    format!("  - {{ name: p, type: pool, strategy: {strategy}, backends: [ {members} ], {more} }}\n")
}

pub fn said(reply: &Reply) -> String {
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

pub async fn act(gateway: &Gateway, path: &str) -> Reply {
    gateway.send("POST", &format!("/admin/api/backends/{path}"), &[], b"").await
}

pub async fn pool_state(gateway: &Gateway) -> Value {
    gateway.state().await["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == "p").cloned().unwrap()
}

pub async fn with_header(gateway: &Gateway, name: &str, value: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json"), (name, value)];
    gateway.send("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).await
}

#[tokio::test]
async fn a_drained_backend_finishes_what_it_carries_and_gets_nothing_until_it_is_resumed() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { tokens: 40, tokensPerSecond: 100 } }\n  \
         - { name: b, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: p, type: pool, strategy: weighted, backends: [ { name: a, weight: 1 }, { name: b, weight: 0 } ] }\n",
    );
    let streams: Vec<_> = (0..5).map(|_| gateway.stream("p", "x")).collect();
    let draining = async {
        eventually("all are in flight", || async { gateway.backend("a").await["in_flight"] == 5 }).await;
        act(&gateway, "a/drain?wait=1").await
    };
    let (streamed, drained) = tokio::join!(futures_util::future::join_all(streams), draining);
    assert!(streamed.iter().all(|reply| reply.events().last().is_some_and(|data| data == "[DONE]")));
    let report = drained.json();
    assert_eq!(
        (drained.status, &report["in_flight_at_start"], &report["in_flight"], &report["cut"]),
        (200, &json!(5), &json!(0), &json!(0))
    );
    assert_eq!(gateway.backend("a").await["condition"], "drained");
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-backend"), Some("b"));
    let alone = gateway.chat("a", "x").await;
    assert_eq!((alone.status, alone.code().as_str()), (503, "no_backend"));
    assert!(alone.text().contains("an operator has drained it"), "{}", alone.text());
    assert_eq!(act(&gateway, "a/resume").await.json()["was_drained"], true);
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-backend"), Some("a"));
}

#[tokio::test]
async fn a_drain_gives_what_has_no_content_at_its_deadline_to_others() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 20s, maxConcurrent: 1 } }\n  \
         - { name: b, type: simulated, config: { firstToken: 1ms, maxConcurrent: 1 } }\n  \
         - { name: p, type: pool, strategy: weighted, backends: [ { name: a, weight: 1 }, { name: b, weight: 0 } ] }\n",
    );
    let draining = async {
        eventually("it is in flight", || async { gateway.backend("a").await["in_flight"] == 1 }).await;
        act(&gateway, "a/drain?wait=1&deadline=100ms").await.json()
    };
    let (moved, report) = tokio::join!(gateway.chat("p", "x"), draining);
    assert_eq!((moved.status, moved.header("x-stagedoor-backend")), (200, Some("b")), "{}", moved.text());
    assert_eq!((&report["moved"], &report["cut"], &report["in_flight"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!(gateway.member("p", "a").await["cut"], 1, "its attempt was, the request was not");
    assert_eq!(gateway.get("/admin/api/state").await.json()["verdict"]["absorbed"], 1);
    assert_eq!(act(&gateway, "a/drain?nonsense=1").await.status, 400);
}

#[tokio::test]
async fn the_story_of_a_request_that_nobody_could_take_says_why_not_each() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated }\n  - { name: b, type: simulated }\n  \
         - { name: p, type: pool, strategy: weighted, backends: [ { name: a }, { name: b } ] }\n",
    );
    for name in ["a", "b"] {
        assert_eq!(act(&gateway, &format!("{name}/drain?wait=1")).await.status, 200);
    }
    let body = chat_body("p", "hi", false).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "nobodys")];
    assert_eq!(gateway.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await.status, 503);
    let story = gateway.get("/admin/api/requests/nobodys").await.json();
    let choices = story["choices"].as_array().unwrap();
    assert_eq!((choices.len(), &choices[0]["backend"], &choices[0]["why"]), (1, &Value::Null, &json!("nobody")), "{story}");
    let passed_over = choices[0]["passed_over"].as_array().unwrap();
    let mut told: Vec<_> =
        passed_over.iter().map(|one| (one["backend"].as_str().unwrap(), one["reason"].as_str().unwrap())).collect();
    told.sort_unstable();
    assert_eq!(told, [("a", "drained"), ("b", "drained")], "{story}");
}

#[tokio::test]
async fn a_weight_that_is_set_in_a_pool_holds_where_the_pool_is_a_member() {
    let gateway = Gateway::start(
        "backends:\n  - { name: fast, type: simulated }\n  - { name: slow, type: simulated }\n  - { name: other, type: simulated }\n  \
         - { name: cheap, type: pool, strategy: weighted, backends: [ { name: fast, weight: 9 }, { name: slow, weight: 1 } ] }\n  \
         - { name: nested, type: pool, strategy: round-robin, backends: [ { name: cheap }, { name: other } ] }\n",
    );
    let reply = act(&gateway, "fast/weight?weight=0&pool=cheap").await;
    assert_eq!(reply.json()["changed"], json!([{ "pool": "cheap", "before": 9.0, "weight": 0.0 }]));
    for _ in 0..8 {
        let reply = gateway.chat("nested", "hi").await;
        assert!(["slow", "other"].contains(&reply.header("x-stagedoor-backend").unwrap()), "{:?}", reply.headers);
    }
    let refused = act(&gateway, "fast/weight?weight=1&pool=nested").await;
    assert_eq!((refused.status, refused.text().contains("in `cheap` only")), (404, true), "{}", refused.text());
    assert!(act(&gateway, "cheap/weight?weight=1").await.text().contains("it is a pool"));
}

#[tokio::test]
async fn weights_are_set_while_it_runs() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: b, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: p, type: pool, strategy: weighted, backends: [ { name: a, weight: 1 }, { name: b, weight: 0 } ] }\n",
    );
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-backend"), Some("a"));
    let reply = act(&gateway, "b/weight?weight=1&pool=p").await;
    assert_eq!(reply.json()["changed"], json!([{ "pool": "p", "before": 0.0, "weight": 1.0 }]));
    assert_eq!(act(&gateway, "a/weight?weight=0").await.status, 200);
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-backend"), Some("b"));
    assert_eq!(gateway.member("p", "b").await["weight"], 1.0);
    for (path, status) in
        [("a/weight?weight=-1", 400), ("a/weight?weight=nan", 400), ("a/weight", 400), ("a/weight?weight=1&pool=q", 404)]
    {
        assert_eq!(act(&gateway, path).await.status, status, "{path}");
    }
    let state = gateway.state().await;
    let acts: Vec<&Value> = state["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "act").collect();
    assert_eq!(acts.len(), 2, "{acts:?}");
    assert!(acts[0]["words"].as_str().unwrap().starts_with("weight by loopback"));
}

#[tokio::test]
async fn a_conversation_stays_with_its_member_and_moves_when_that_is_out() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: b, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: p, type: pool, strategy: round-robin, affinity: {}, backends: [ { name: a }, { name: b } ] }\n",
    );
    let served = |reply: &Reply| reply.header("x-stagedoor-backend").unwrap().to_owned();
    let turn = |turns: usize| {
        let mut messages = vec![json!({ "role": "user", "content": "begin" })];
        for _ in 0..turns {
            messages.push(json!({ "role": "assistant", "content": "yes" }));
            messages.push(json!({ "role": "user", "content": "go on" }));
        }
        json!({ "model": "p", "messages": messages })
    };
    let first = served(&gateway.post("/v1/chat/completions", &turn(0)).await);
    for turns in 1..6 {
        assert_eq!(served(&gateway.post("/v1/chat/completions", &turn(turns)).await), first);
    }
    let named = served(&with_header(&gateway, "x-session-id", "s1", &chat_body("p", "one", false)).await);
    for text in ["two", "three", "four"] {
        assert_eq!(served(&with_header(&gateway, "x-session-id", "s1", &chat_body("p", text, false)).await), named);
    }
    assert_eq!(act(&gateway, &format!("{first}/drain")).await.status, 200);
    assert_ne!(served(&gateway.post("/v1/chat/completions", &turn(6)).await), first);
    let state = pool_state(&gateway).await;
    assert_eq!(state["conversations"], json!({ "kept": 8, "moved": 1, "new": 2 }));
}

#[tokio::test]
async fn the_share_of_cached_tokens_is_shown() {
    let provider = Provider::start(|_, mut wire| async move {
        let mut reply = completion("x");
        reply["usage"] = json!({ "prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102, "prompt_tokens_details": { "cached_tokens": 75 } });
        wire.json(200, &reply).await;
        Some(wire)
    })
    .await;
    let gateway =
        Gateway::start(&format!("backends:\n{}{}", backend("a", &provider.endpoint(), ""), pool("latency", "{ name: a }", "")));
    assert_eq!(gateway.chat("p", "x").await.status, 200);
    eventually("it is counted", || async { gateway.member("p", "a").await["cache_hit_ratio"] == 0.75 }).await;
}

#[tokio::test]
async fn a_standby_without_traffic_is_checked_and_a_dead_one_is_known() {
    let (alive, dead) = (Provider::saying("x").await, switched("dead", 401, &switch(true)).await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}{}",
        backend("a", &alive.endpoint(), ""),
        backend("b", &dead.endpoint(), "maxRetries: 0"),
        backend("c", &alive.endpoint(), ""),
        pool("weighted", "{ name: a }, { name: b, weight: 0 }", "standby: { interval: 1s }"),
    ));
    assert_eq!(gateway.backend("c").await["condition"], "unknown", "nobody has asked it");
    eventually("both are checked", || async {
        gateway.backend("a").await["condition"] == "well" && gateway.backend("b").await["condition"] == "open"
    })
    .await;
    let sent = alive.requests()[0].json();
    assert_eq!((&sent["max_tokens"], sent["messages"].as_array().unwrap().len()), (&json!(1), 1));
    assert_eq!(gateway.backend("c").await["condition"], "unknown");
    let events = gateway.state().await["events"].to_string();
    assert!(events.contains("standby-well") && events.contains("standby-ill"), "{events}");
}

#[tokio::test]
async fn a_standby_is_not_checked_before_its_time_nor_while_a_check_is_under_way() {
    let limited = Provider::start(|_, mut wire| async move {
        let body = json!({ "error": { "message": "slow down", "type": "t", "code": null } });
        wire.reply(429, "application/json", &[("retry-after", "600")], body.to_string().as_bytes()).await;
        Some(wire)
    })
    .await;
    let mute = Provider::start(|_, mut wire| async move {
        wire.await_close().await;
        None
    })
    .await;
    let odd = switched("odd", 400, &switch(true)).await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}{}",
        backend("limited", &limited.endpoint(), "maxRetries: 0"),
        backend("mute", &mute.endpoint(), ""),
        backend("odd", &odd.endpoint(), ""),
        pool("weighted", "{ name: limited }, { name: mute }, { name: odd }", "standby: { interval: 1s }"),
    ));
    eventually("the odd one is checked again", || async { odd.requests().len() >= 3 }).await;
    assert_eq!((limited.requests().len(), mute.requests().len()), (1, 1));
    assert!(gateway.backend("limited").await["until_seconds"].as_f64().unwrap() < 599.0, "it runs out");
    assert_eq!(gateway.backend("odd").await["condition"], "well", "who finds fault with a check is there");
}

#[tokio::test]
async fn a_request_that_is_refused_before_it_is_read_is_told_of_too() {
    let gateway = Gateway::start("backends:\n  - { name: up, type: simulated }\nauth: { keys: [{ name: app, key: k }] }\n");
    let ask = |id: &'static str, key: &'static str, path: &'static str| {
        let headers = [("x-request-id", id), ("authorization", key), ("content-type", "application/json")];
        let gateway = &gateway;
        async move { gateway.send("POST", path, &headers, b"{broken").await.status }
    };
    assert_eq!(ask("broken-1", "Bearer k", "/v1/chat/completions").await, 400);
    assert_eq!(ask("nobody-1", "Bearer wrong", "/v1/chat/completions").await, 401);
    assert_eq!(ask("nowhere-1", "Bearer k", "/nowhere").await, 404);
    eventually("it is told", || async { gateway.get("/admin/api/requests/broken-1").await.status == 200 }).await;
    let story = gateway.get("/admin/api/requests/broken-1").await.json();
    assert_eq!(
        (&story["status"], &story["outcome"], &story["caller"]),
        (&json!(400), &json!("failed"), &json!("app")),
        "{story}"
    );
    assert_eq!((&story["class"], &story["attempts"], &story["tries"]), (&json!("caller"), &json!(0), &json!([])), "{story}");
    for unknown in ["nobody-1", "nowhere-1"] {
        assert_eq!(gateway.get(&format!("/admin/api/requests/{unknown}")).await.status, 404, "strangers fill no memory");
    }
}

#[tokio::test]
async fn a_request_keeps_its_story() {
    let (ill, well) = (switched("ill", 500, &switch(true)).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), "maxRetries: 0"),
        backend("b", &well.endpoint(), ""),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", ""),
    ));
    let reply = with_header(&gateway, "x-request-id", "story-1", &chat_body("p", "secret words", false)).await;
    assert_eq!(reply.status, 200);
    eventually("the story is kept", || async { gateway.get("/admin/api/requests/story-1").await.json()["state"] == "ended" })
        .await;
    let story = gateway.get("/admin/api/requests/story-1").await.json();
    assert_eq!((&story["outcome"], &story["absorbed"], &story["backend"]), (&json!("served"), &json!(true), &json!("b")));
    assert_eq!(story["choices"][0]["compared"].as_array().unwrap().len(), 2, "{story}");
    assert_eq!(story["choices"][1]["passed_over"], json!([{ "backend": "a", "reason": "tried" }]));
    let tries = story["tries"].as_array().unwrap();
    assert_eq!(
        (&tries[0]["backend"], &tries[0]["class"], &tries[0]["outcome"]),
        (&json!("a"), &json!("server_error"), &json!("failed"))
    );
    assert!(tries[0]["head_seconds"].is_number() && tries[0]["reason"].is_string(), "{story}");
    assert_eq!(
        (&tries[1]["backend"], &tries[1]["outcome"], &tries[1]["prompt_tokens"]),
        (&json!("b"), &json!("served"), &json!(3))
    );
    assert!(tries[1]["ended_seconds"].as_f64() >= tries[1]["head_seconds"].as_f64());
    assert!(!story.to_string().contains("secret words"));
    let listed = gateway.get("/admin/api/requests?outcome=absorbed&limit=5").await.json();
    assert_eq!(listed["recent"].as_array().unwrap().len(), 1);
    assert_eq!(listed["recent"][0]["id"], "story-1");
    assert_eq!(gateway.get("/admin/api/requests?outcome=odd").await.status, 400);
    assert_eq!(gateway.get("/admin/api/requests/nobody").await.status, 404);
}

#[tokio::test]
async fn a_request_in_flight_tells_its_story_so_far() {
    let gateway = Gateway::start("backends:\n  - { name: a, type: simulated, config: { firstToken: 1500ms } }\n");
    let body = chat_body("a", "x", true);
    let asking = with_header(&gateway, "x-request-id", "open-1", &body);
    let looking = async {
        eventually("it is in flight", || async {
            gateway.get("/admin/api/requests/open-1").await.json()["tries"][0]["outcome"] == "open"
        })
        .await;
        gateway.get("/admin/api/requests/open-1").await.json()
    };
    let (reply, story) = tokio::join!(asking, looking);
    assert_eq!(reply.status, 200);
    assert_eq!(
        (&story["state"], &story["pool"], &story["choices"][0]["why"]),
        (&json!("in-flight"), &json!("a"), &json!("only"))
    );
}

#[tokio::test]
async fn the_cheapest_member_comes_first_by_the_size_of_the_request() {
    let (dear, cheap) = (Provider::saying("dear").await, Provider::saying("cheap").await);
    let gateway = Gateway::start(&format!(
        "catalogue:\n  openai/d: {{ price: {{ input: 10, output: 30 }} }}\n  openai/c: {{ price: {{ input: 1, output: 3 }} }}\nbackends:\n{}{}{}",
        backend("a", &dear.endpoint(), "").replace("defaultModel: m", "defaultModel: d"),
        backend("b", &cheap.endpoint(), "").replace("defaultModel: m", "defaultModel: c"),
        pool("cost", "{ name: a, weight: 9 }, { name: b }", ""),
    ));
    for _ in 0..5 {
        assert_eq!(said(&gateway.chat("p", "x").await), "cheap");
    }
}

#[tokio::test]
async fn latency_leaves_a_member_that_hangs_long_before_its_timeout() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 10ms } }\n  \
         - { name: b, type: simulated, config: { firstToken: 10ms, timeout: 60s, faults: [ { kind: slow-head, after: 30s, probability: 1 } ] } }\n  \
         - { name: p, type: pool, backends: [ { name: a }, { name: b } ] }\n",
    );
    let body = chat_body("p", "x", true).to_string();
    let mut hanging = Vec::new();
    // Requests come steadily; those that hang are left hanging.
    for _ in 0..150 {
        let stream = gateway.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await;
        hanging.push(stream);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stuck = gateway.backend("b").await["in_flight"].as_u64().unwrap();
    assert!(stuck < 40, "{stuck} of 150 hang");
    let after = gateway.member("p", "a").await["attempts"].as_u64().unwrap();
    assert!(after > 100, "{after} were answered elsewhere");
}

#[tokio::test]
async fn the_outcomes_of_a_pool_add_up_to_its_requests() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 5ms, maxRetries: 0, faults: [ { kind: status, status: 500, probability: 0.3 }, { kind: cut, event: 3, probability: 0.3 } ] } }\n  \
         - { name: p, type: pool, backends: [ { name: a } ] }\n",
    );
    for number in 0..40 {
        gateway.post("/v1/chat/completions", &chat_body("p", "x", number % 2 == 0)).await;
    }
    drop(gateway.open_stream("p", "gone").await);
    eventually("all have ended", || async {
        let state = pool_state(&gateway).await;
        let sum: u64 = state["outcomes"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        state["requests"] == 41 && sum == 41
    })
    .await;
}

#[tokio::test]
async fn a_job_waits_where_there_is_room_to_wait() {
    let member = |name: &str, queue: u32| {
        format!("  - {{ name: {name}, type: simulated, config: {{ firstToken: 300ms, maxConcurrent: 1, maxQueue: {queue} }} }}\n")
    };
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 1 }}\nbackends:\n{}{}{}",
        member("a", 0),
        member("b", 16),
        pool("round-robin", "{ name: a }, { name: b }", "")
    ));
    let replies = futures_util::future::join_all((0..6).map(|_| gateway.chat("p", "x"))).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{:?}",
        replies.iter().map(|reply| reply.status).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn absurd_deadlines_of_acts_are_refused() {
    let gateway = Gateway::start("backends:\n  - { name: a, type: simulated }\n");
    for path in ["a/restart?deadline=500000000000y", "a/drain?deadline=500000000000y", "a/drain?deadline=soon"] {
        assert_eq!(act(&gateway, path).await.status, 400, "{path}");
    }
    assert_eq!(gateway.backend("a").await["drained"], false);
    assert_eq!(gateway.chat("a", "x").await.status, 200);
}
