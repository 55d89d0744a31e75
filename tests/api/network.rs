//! Outgoing connections: TLS, HTTP/2, proxies, and how long a connection is used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use stagedoor::settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::support::{
    Gateway, PATIENCE, Provider, backend, completion, eventually, finish_event, read_chunk, read_head, try_read_head, word_event,
};

/// A provider behind TLS, with a certificate authority of its own.
pub struct TlsProvider {
    port: u16,
    /// File with the authority's certificate.
    pub ca: tempfile::NamedTempFile,
    /// Handshakes completed.
    connections: Arc<AtomicUsize>,
    /// Requests by the protocol they came in.
    http1: Arc<AtomicUsize>,
    http2: Arc<AtomicUsize>,
    /// Streams that the gateway took back.
    resets: watch::Receiver<usize>,
}

impl TlsProvider {
    /// Starts with a certificate for a host, offering these protocols.
    pub async fn start(host: &str, protocols: &[&str]) -> Self {
        Self::start_narrow(host, protocols, 1_000).await
    }

    /// The same; it takes so many requests at once on an HTTP/2 connection.
    async fn start_narrow(host: &str, protocols: &[&str], streams: u32) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, ca.self_signed(&ca_key).unwrap().pem().as_bytes()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], private).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (reset, resets) = watch::channel(0);
        let provider = Self {
            port: listener.local_addr().unwrap().port(),
            ca: file,
            connections: Arc::default(),
            http1: Arc::default(),
            http2: Arc::default(),
            resets,
        };
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let connections = Arc::clone(&provider.connections);
        let (http1, http2) = (Arc::clone(&provider.http1), Arc::clone(&provider.http2));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let (connections, http1, http2) = (Arc::clone(&connections), Arc::clone(&http1), Arc::clone(&http2));
                let reset = reset.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        serve_http2(stream, &http2, &reset, streams).await;
                    } else {
                        serve_http1(stream, &http1).await;
                    }
                });
            }
        });
        provider
    }

    pub fn endpoint(&self) -> String {
        format!("https://localhost:{}/v1", self.port)
    }

    /// A backend that trusts this provider.
    fn backend(&self, more: &str) -> String {
        backend("up", &self.endpoint(), &format!("caFile: \"{}\", {more}", self.ca.path().display()))
    }

    fn counts(&self) -> (usize, usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (read(&self.connections), read(&self.http1), read(&self.http2))
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn serve_http1(mut stream: TlsStream, count: &AtomicUsize) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        if head.starts_with("post") {
            count.fetch_add(1, Ordering::SeqCst);
        }
        let reply = completion("over tls").to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", reply.len());
        if stream.write_all(&[head.as_bytes(), reply.as_bytes()].concat()).await.is_err() {
            return;
        }
    }
}

async fn serve_http2(stream: TlsStream, count: &Arc<AtomicUsize>, reset: &watch::Sender<usize>, streams: u32) {
    let mut server = h2::server::Builder::new();
    let Ok(mut connection) = server.max_concurrent_streams(streams).handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        if request.method() == http::Method::POST {
            count.fetch_add(1, Ordering::SeqCst);
        }
        tokio::spawn(answer_http2(request, respond, reset.clone()));
    }
}

async fn answer_http2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    reset: watch::Sender<usize>,
) {
    let mut body = Vec::new();
    let mut incoming = request.into_body();
    while let Some(Ok(chunk)) = incoming.data().await {
        let _ = incoming.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let question = body["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
    if question.starts_with("silence") {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        reset.send_modify(|count| *count += 1);
        return;
    }
    let stream = body["stream"] == true;
    let kind = if stream { "text/event-stream" } else { "application/json" };
    let head = http::Response::builder().header("content-type", kind).body(()).unwrap();
    let Ok(mut sender) = respond.send_response(head, false) else { return };
    if !stream {
        // Long enough for several to be on their way at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = sender.send_data(Bytes::from(completion(&question).to_string()), true);
        return;
    }
    let _ = sender.send_data(Bytes::from(word_event(&question)), false);
    if question.starts_with("begin") {
        let _ = std::future::poll_fn(|cx| sender.poll_reset(cx)).await;
        reset.send_modify(|count| *count += 1);
        return;
    }
    let _ = sender.send_data(Bytes::from(format!("{}data: [DONE]\n\n", finish_event())), true);
}

#[tokio::test]
async fn a_provider_with_a_certificate_of_its_own_authority_is_reached_with_ca_file() {
    let provider = TlsProvider::start("localhost", &["http/1.1"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("")));
    for _ in 0..3 {
        let reply = gateway.chat("up", "hi").await;
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "over tls");
    }
    assert_eq!(provider.counts(), (1, 3, 0), "one connection serves all");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_a_clear_502() {
    let provider = TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert_eq!(reply.code(), "upstream_unreachable");
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("certificate"), "{message}");
    assert!(!message.contains("localhost"), "no host names: {message}");
    assert_eq!(provider.counts(), (0, 0, 0), "nothing was sent");
}

#[tokio::test]
async fn a_certificate_for_another_host_is_a_clear_502_that_names_no_host() {
    let provider = TlsProvider::start("elsewhere.internal", &["h2", "http/1.1"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("maxRetries: 0")));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.status, 502, "{}", reply.text());
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("certificate"), "{message}");
    assert!(!message.contains("localhost") && !message.contains("elsewhere"), "no host names: {message}");
}

#[tokio::test]
async fn a_provider_that_speaks_no_tls_is_a_clear_502() {
    let provider = Provider::saying("plain").await;
    let endpoint = format!("https://localhost:{}/v1", provider.address.port());
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &endpoint, "maxRetries: 0, timeouts: { connect: 2s }")));
    let reply = gateway.chat("up", "hi").await;
    assert!(matches!(reply.status, 502 | 504), "{}", reply.text());
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("connection"), "{}", reply.text());
}

#[tokio::test]
async fn http2_is_used_where_it_is_offered_and_requests_share_a_connection() {
    let provider = TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let gateway = Arc::new(Gateway::start(&format!("backends:\n{}", provider.backend(""))));
    assert_eq!(gateway.chat("up", "first").await.status, 200);
    let asking: Vec<_> = (0..30)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let question = format!("question {number}");
                if number % 2 == 0 {
                    (gateway.stream("up", &question).await.streamed_text(), question)
                } else {
                    let reply = gateway.chat("up", &question).await.json();
                    (reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned(), question)
                }
            })
        })
        .collect();
    for asking in asking {
        let (said, question) = asking.await.unwrap();
        assert_eq!(said, question);
    }
    assert_eq!(provider.counts(), (1, 0, 31));
}

#[tokio::test]
async fn over_http2_a_client_that_leaves_ends_its_stream_within_a_second_and_no_other() {
    let provider = TlsProvider::start("localhost", &["h2"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("")));
    let mut resets = provider.resets.clone();
    let in_flight = |count: u64| {
        let gateway = &gateway;
        move || async move { gateway.backend("up").await["in_flight"] == count }
    };
    let mut stays = gateway.open_stream("up", "begin and stay").await;
    assert_eq!(read_head(&mut stays).await.status, 200);
    read_chunk(&mut stays).await.unwrap();

    let leaver = gateway.open_stream("up", "silence").await;
    eventually("both are in flight", in_flight(2)).await;
    eventually("it has arrived", || async { provider.counts().2 == 2 }).await;
    drop(leaver);
    timeout(Duration::from_secs(1), resets.wait_for(|count| *count == 1)).await.expect("within a second").unwrap();

    let mut leaver = gateway.open_stream("up", "begin and leave").await;
    assert_eq!(read_head(&mut leaver).await.status, 200);
    read_chunk(&mut leaver).await.unwrap();
    drop(leaver);
    timeout(Duration::from_secs(1), resets.wait_for(|count| *count == 2)).await.expect("within a second").unwrap();
    eventually("the other one goes on", in_flight(1)).await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(provider.counts().0, 1);
}

#[tokio::test]
async fn over_http2_a_full_connection_gets_a_neighbour_and_whoever_leaves_ends_no_other() {
    let provider = TlsProvider::start_narrow("localhost", &["h2"], 2).await;
    let more = "maxStreams: 2, maxConnectionAge: 300ms";
    let gateway = Gateway::start(&format!("server: {{ port: 0, workers: 1 }}\nbackends:\n{}", provider.backend(more)));
    let mut held = Vec::new();
    for number in 0..6 {
        let mut client = gateway.open_stream("up", &format!("begin {number}")).await;
        assert_eq!(read_head(&mut client).await.status, 200);
        read_chunk(&mut client).await.unwrap();
        held.push(client);
    }
    assert_eq!(provider.counts().0, 3, "two on each");
    let leaver = gateway.open_stream("up", "silence").await;
    eventually("it has arrived", || async { provider.counts().2 == 7 }).await;
    drop(leaver);
    let mut resets = provider.resets.clone();
    timeout(PATIENCE, resets.wait_for(|count| *count == 1)).await.expect("it is taken back").unwrap();
    // Beyond their age the connections take nothing new, and end nothing old.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    let up = gateway.backend("up").await;
    assert_eq!((&up["in_flight"], &up["totals"]["truncated"]), (&json!(6), &json!(0)), "{up}");
}

#[tokio::test]
async fn over_http2_a_connection_that_does_not_answer_is_not_asked_again() {
    let provider = TlsProvider::start("localhost", &["h2"]).await;
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 1 }}\nbackends:\n{}",
        provider.backend("maxRetries: 0, timeouts: { head: 300ms }")
    ));
    let mut stays = gateway.open_stream("up", "begin and stay").await;
    assert_eq!(read_head(&mut stays).await.status, 200);
    read_chunk(&mut stays).await.unwrap();
    assert_eq!(gateway.chat("up", "silence").await.status, 504);
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(provider.counts().0, 2, "the next request has a connection of its own");
    let up = gateway.backend("up").await;
    assert_eq!((&up["in_flight"], &up["totals"]["truncated"]), (&json!(1), &json!(0)), "what rides on the old one goes on");
}

#[tokio::test]
async fn http2_can_be_switched_off() {
    let provider = TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("http2: false")));
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(provider.counts(), (1, 1, 0));
}

/// A proxy that knows CONNECT.
struct Proxy {
    port: u16,
    /// Heads received.
    heads: Arc<Mutex<Vec<crate::support::Head>>>,
}

impl Proxy {
    async fn start(admits: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    let Some(head) = try_read_head(&mut client).await else { return };
                    let target = head.line.split(' ').nth(1).unwrap().to_owned();
                    log.lock().unwrap().push(head);
                    if !admits {
                        let _ = client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
                        return;
                    }
                    let mut upstream = TcpStream::connect(target).await.unwrap();
                    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                });
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<crate::support::Head> {
        self.heads.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_proxy_carries_tls_through_a_tunnel() {
    let provider = TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let proxy = Proxy::start(true).await;
    let own = format!("proxyUrl: \"http://app:pa%20ss@127.0.0.1:{}\"", proxy.port);
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend(&own)));
    for _ in 0..2 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1, "the tunnel is kept");
    assert_eq!(heads[0].line, format!("CONNECT localhost:{} HTTP/1.1", provider.port));
    // app:pa ss
    assert_eq!(heads[0].header("proxy-authorization"), Some("Basic YXBwOnBhIHNz"));
    assert_eq!(heads[0].header("authorization"), None, "the proxy learns no provider's key");
    assert_eq!(provider.counts(), (1, 0, 2));
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_clear_502() {
    let provider = TlsProvider::start("localhost", &["h2"]).await;
    let proxy = Proxy::start(false).await;
    let own = format!("maxRetries: 0, proxyUrl: \"http://app:secret-word@127.0.0.1:{}\"", proxy.port);
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend(&own)));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{}", reply.text());
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("proxy") && message.contains("403"), "{message}");
    assert!(!message.contains("secret-word"), "{message}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_not_the_providers_fault() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (proxy, why) in [(format!("http://{free}"), "connection refused"), ("http://no.such.host.invalid:1".into(), "its name")] {
        let config = backend("up", "https://localhost:1/v1", &format!("proxyUrl: \"{proxy}\", maxRetries: 0"));
        let reply = Gateway::start(&format!("backends:\n{config}")).chat("up", "hi").await;
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("the proxy cannot be reached") && message.contains(why), "{message}");
        assert!(!message.contains("provider"), "{message}");
    }
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used_unless_the_host_is_exempt() {
    let provider = TlsProvider::start("localhost", &["http/1.1"]).await;
    for (no_proxy, tunnels) in [("", 1), ("example.com, localhost", 0), ("*", 0), ("ocalhost", 1)] {
        let proxy = Proxy::start(true).await;
        let environment = BTreeMap::from([
            ("HTTPS_PROXY".to_owned(), format!("http://127.0.0.1:{}", proxy.port)),
            ("NO_PROXY".to_owned(), no_proxy.to_owned()),
        ]);
        let gateway = Gateway::start_with(&format!("backends:\n{}", provider.backend("")), &environment);
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
        assert_eq!(proxy.heads().len(), tunnels, "NO_PROXY={no_proxy}");
    }
}

#[tokio::test]
async fn images_and_tokens_come_over_tls_and_through_a_proxy_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("user.json");
    for protocol in ["h2", "http/1.1"] {
        // It answers everything with a chat completion, which is neither an image nor a token.
        let other = TlsProvider::start("localhost", &[protocol]).await;
        let token_uri = format!("https://localhost:{}/token", other.port);
        let user = json!({ "type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r",
            "token_uri": token_uri });
        std::fs::write(&credentials, user.to_string()).unwrap();
        let proxy = Proxy::start(true).await;
        for own in [String::new(), format!("proxyUrl: \"http://127.0.0.1:{}\",", proxy.port)] {
            let common = format!("defaultModel: gemini-3.8-flash, caFile: \"{}\", {own}", other.ca.path().display());
            let gateway = Gateway::start(&format!(
                "backends:\n  - {{ name: gem, type: google, config: {{ apiKey: k, imageHosts: [\"localhost\"], {common} }} }}\n  \
                 - {{ name: vertex, type: google, config: {{ projectId: p, credentialsFile: \"{}\", {common} }} }}\n",
                credentials.display()
            ));
            let image = json!({ "type": "image_url", "image_url": { "url": format!("https://localhost:{}/", other.port) } });
            let asked = json!({ "model": "gem", "messages": [{ "role": "user", "content": [image] }] });
            let reply = gateway.post("/v1/chat/completions", &asked).await;
            assert!(reply.text().contains("it is not a PNG"), "{}", reply.text());
            let reply = gateway.chat("vertex", "hi").await;
            assert!(reply.text().contains("the answer of the token endpoint holds no access token"), "{}", reply.text());
        }
        let lines: Vec<String> = proxy.heads().into_iter().map(|head| head.line).collect();
        let address = |host: &str| format!("CONNECT {host}:{} HTTP/1.1", other.port);
        assert!(lines.contains(&address("127.0.0.1")), "the address that was checked: {lines:?}");
        assert!(lines.contains(&address("localhost")), "{lines:?}");
        assert_eq!(other.counts().0, 4);
    }
}

#[test]
fn which_backends_take_the_proxy_of_the_environment() {
    let environment = BTreeMap::from([
        ("https_proxy".to_owned(), "http://proxy:3128".to_owned()),
        ("no_proxy".to_owned(), ".corp.example,10.0.0.1,plain.example".to_owned()),
    ]);
    for (endpoint, own, expected) in [
        ("https://api.example/v1", "", Some("http://proxy:3128/")),
        ("https://a.corp.example/v1", "", None),
        ("https://corp.example/v1", "", None),
        ("https://notcorp.example/v1", "", Some("http://proxy:3128/")),
        ("https://sub.plain.example/v1", "", None),
        ("https://10.0.0.1/v1", "", None),
        ("http://api.example/v1", "", None),
        ("https://a.corp.example/v1", "proxyUrl: \"http://own:1\"", Some("http://own:1/")),
    ] {
        let yaml = format!("backends:\n{}", backend("up", endpoint, own));
        let settings = settings::from_text("test", &yaml, &environment).unwrap();
        let proxy = settings.backends[0].network.proxy.as_ref().map(url::Url::as_str);
        assert_eq!(proxy, expected, "{endpoint} {own}");
    }
}

/// A plain provider that answers everything, and a gateway in front of it.
async fn plain(more: &str) -> (Provider, Gateway) {
    let provider = Provider::start(|request, mut wire| async move {
        if request.head.line.starts_with("GET") {
            wire.json(200, &json!({ "object": "list", "data": [] })).await;
        } else if request.json()["stream"] == true {
            wire.begin_stream().await;
            wire.chunk(&word_event("one")).await;
            wire.chunk(&finish_event()).await;
            wire.chunk("data: [DONE]\n\n").await;
            wire.end_chunks().await;
        } else {
            wire.json(200, &completion("one")).await;
        }
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), more)));
    (provider, gateway)
}

fn connections(provider: &Provider) -> usize {
    provider.connections.load(Ordering::SeqCst)
}

#[tokio::test]
async fn one_connection_serves_whole_replies_and_streams_in_turn() {
    let (provider, gateway) = plain("").await;
    for _ in 0..10 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
        assert_eq!(gateway.stream("up", "hi").await.streamed_text(), "one");
    }
    assert_eq!(connections(&provider), 1);
}

#[tokio::test]
async fn a_connection_is_not_used_beyond_its_age() {
    let (provider, gateway) = plain("maxConnectionAge: 300ms").await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    let start = tokio::time::Instant::now();
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(connections(&provider), 1);
    tokio::time::sleep_until(start + Duration::from_millis(350)).await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(connections(&provider), 2);
}

#[tokio::test]
async fn over_http2_a_connection_is_not_used_beyond_its_age() {
    let provider = TlsProvider::start("localhost", &["h2"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("maxConnectionAge: 500ms")));
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    let start = tokio::time::Instant::now();
    tokio::time::sleep_until(start + Duration::from_millis(550)).await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(provider.counts(), (2, 0, 2));
}

#[tokio::test]
async fn a_connection_is_closed_after_so_many_requests() {
    let (provider, gateway) = plain("maxConnectionRequests: 3").await;
    for _ in 0..9 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    assert_eq!(connections(&provider), 3);
}

#[tokio::test]
async fn over_http2_a_connection_is_closed_after_so_many_requests() {
    let provider = TlsProvider::start("localhost", &["h2"]).await;
    let gateway = Gateway::start(&format!("backends:\n{}", provider.backend("maxConnectionRequests: 3")));
    for _ in 0..9 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    assert_eq!(provider.counts().0, 3);
}

#[tokio::test]
async fn after_a_restart_a_connection_is_open_before_the_first_request() {
    let (provider, gateway) = plain("").await;
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(connections(&provider), 1);
    assert_eq!(gateway.send("POST", "/admin/api/backends/up/restart", &[], b"").await.status, 202);
    eventually("it is warmed up", || async { provider.requests().iter().any(|request| request.head.line.starts_with("GET")) })
        .await;
    assert_eq!(connections(&provider), 2);
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(connections(&provider), 2, "the first request finds it");
    let warm = &provider.requests()[1];
    assert_eq!(warm.head.header("authorization"), Some("Bearer sk-upstream-secret"));
}

#[tokio::test]
async fn a_warm_up_that_fails_disturbs_nothing() {
    let provider = Provider::start(|request, mut wire| async move {
        if request.head.line.starts_with("GET") {
            return None;
        }
        wire.json(200, &completion("one")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    for _ in 0..5 {
        assert_eq!(gateway.send("POST", "/admin/api/backends/up/restart", &[], b"").await.status, 202);
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    assert_eq!(gateway.member("up", "up").await["failures"], json!({}));
}

#[tokio::test]
async fn a_connection_that_the_provider_has_closed_is_never_the_clients_trouble() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.json(200, &completion("one")).await;
        // Closed without a word, as after an idle timeout.
        None
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    for _ in 0..40 {
        let reply = gateway.chat("up", "hi").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_clear_502() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &endpoint, "maxRetries: 0")));
    for stream in [false, true] {
        let body = crate::support::chat_body("up", "hi", stream);
        let reply = timeout(PATIENCE, gateway.post("/v1/chat/completions", &body)).await.unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"));
        assert_eq!(reply.json()["error"]["type"], "server_error");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("`up`") && message.contains("refused"), "{message}");
        assert!(!message.contains("127.0.0.1"), "no addresses: {message}");
        assert_eq!(reply.header("x-stagedoor-backend"), Some("up"));
    }
}
