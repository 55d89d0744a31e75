//! Fetching over sockets. The loopback interface stands for a private network: what is listed there is fetched.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::*;
use crate::attempt::scripted::{Reply, Scripted};
use crate::attempt::tls_config;
use crate::settings;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n the rest of it";

fn fetcher(listed: &[&Scripted]) -> Fetcher {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let hosts: Vec<_> = listed.iter().map(|server| server.address.to_string()).collect();
    let config = json!({ "apiKey": "k", "imageHosts": hosts });
    let document = json!({ "backends": [{ "name": "b", "type": "google", "config": config }] }).to_string();
    let settings = settings::from_text("test", &document, &std::collections::BTreeMap::new()).unwrap();
    let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
    Fetcher::of(&settings.backends[0], &tls, &Arc::default(), 64 << 20).unwrap()
}

async fn fetch(fetcher: &Fetcher, urls: &[&str]) -> Result<Images, Failure> {
    fetcher.fetch_all(urls.iter().copied(), Instant::now() + TIME).await
}

/// Why an image is refused.
async fn refusal(fetcher: &Fetcher, url: &str) -> String {
    let failure = fetch(fetcher, &[url]).await.unwrap_err();
    assert_eq!((failure.class, failure.status), (FailureClass::Unsupported, Some(400)), "{url}: {}", failure.message);
    assert_eq!(failure.param.as_deref(), Some("messages"));
    failure.message
}

fn image(bytes: &[u8]) -> Reply {
    (200, String::new(), bytes.to_vec())
}

fn redirect(to: &str) -> Reply {
    (302, format!("location: {to}\r\n"), Vec::new())
}

#[actix_rt::test]
async fn each_image_is_fetched_once_and_known_by_its_bytes() {
    let server = Scripted::answering(|_, request| {
        let body = if request.starts_with("GET /jpeg?q=1 ") { b"\xff\xd8\xff\xe0".to_vec() } else { PNG.to_vec() };
        (200, "content-type: text/html\r\n".into(), body)
    })
    .await;
    let fetcher = fetcher(&[&server]);
    let (png, jpeg) = (server.url("/png"), server.url("/jpeg?q=1#part"));
    let images = fetch(&fetcher, &[&png, &jpeg, &png]).await.unwrap();
    assert_eq!((images[&png].media, STANDARD.decode(&images[&png].base64).unwrap().as_slice()), ("image/png", PNG));
    assert_eq!(images[&jpeg].media, "image/jpeg");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.contains("accept: image/*")), "{requests:?}");
    assert_eq!(fetcher.held.load(Ordering::Relaxed), (PNG.len() + 4) as u64, "counted while they are held");
    drop(images);
    assert_eq!(fetcher.held.load(Ordering::Relaxed), 0);
}

#[actix_rt::test]
async fn what_is_not_public_is_not_dialled() {
    let server = Scripted::start(&[(200, "", "")]).await;
    let fetcher = fetcher(&[]);
    let port = server.address.port();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "0.0.0.0", "127.0.0.1."] {
        let message = refusal(&fetcher, &format!("https://{host}:{port}/")).await;
        assert!(message.ends_with("cannot be fetched: its host has no public address"), "{host}: {message}");
    }
    for host in ["169.254.169.254", "10.1.2.3", "[fd00:ec2::254]", "168.63.129.16", "nowhere.invalid"] {
        let message = refusal(&fetcher, &format!("https://{host}/latest/meta-data")).await;
        assert!(message.ends_with("cannot be fetched: its host has no public address"), "{host}: {message}");
    }
    assert!(server.requests().is_empty());
}

#[actix_rt::test]
async fn only_https_without_credentials_is_fetched() {
    let fetcher = fetcher(&[]);
    for url in ["http://example.com/a.png", "ftp://example.com/a.png", "file:///etc/passwd", "gopher://127.0.0.1:25/", "data:,x"]
    {
        let message = refusal(&fetcher, url).await;
        assert!(message.ends_with("only https addresses are fetched"), "{url}: {message}");
    }
    assert!(refusal(&fetcher, "https://user:pass@example.com/").await.ends_with("holds a user name or password"));
    assert_eq!(refusal(&fetcher, "not a url").await, "the image cannot be fetched: its address is not a URL");
    let long = format!("http://{}/", "a".repeat(200));
    assert!(!refusal(&fetcher, &long).await.contains("aaa"), "a name of any length is not repeated");
}

#[actix_rt::test]
async fn redirects_are_followed_and_each_is_checked() {
    let target = Scripted::start(&[(200, "", "GIF89a")]).await;
    let inside = Scripted::start(&[(200, "", "GIF89a")]).await;
    let (to_target, to_inside) = (target.url("/image"), inside.url("/secret"));
    let server = Scripted::answering(move |_, request| match request.split(' ').nth(1).unwrap_or_default() {
        "/relative" => redirect("/absolute"),
        "/absolute" => redirect(&to_target),
        "/inside" => redirect(&to_inside),
        "/inside-tls" => redirect(&to_inside.replace("http:", "https:")),
        "/metadata" => redirect("https://169.254.169.254/"),
        "/file" => redirect("file:///etc/passwd"),
        "/user" => redirect("https://user@example.com/"),
        "/nowhere" => (302, String::new(), Vec::new()),
        _ => redirect("/loop"),
    })
    .await;
    let fetcher = fetcher(&[&server, &target]);
    let url = server.url("/relative");
    assert_eq!(fetch(&fetcher, &[&url]).await.unwrap()[&url].media, "image/gif");
    for path in ["/inside", "/inside-tls", "/metadata", "/file", "/user"] {
        let message = refusal(&fetcher, &server.url(path)).await;
        assert!(message.ends_with("it is redirected to an address that may not be fetched"), "{path}: {message}");
    }
    assert!(inside.requests().is_empty());
    assert!(refusal(&fetcher, &server.url("/nowhere")).await.ends_with("it is redirected to nowhere"));
    let before = server.requests().len();
    assert!(refusal(&fetcher, &server.url("/loop")).await.ends_with("it is redirected too often"));
    assert_eq!(server.requests().len() - before, 4);
}

#[actix_rt::test]
async fn the_images_of_a_request_have_a_limit_together() {
    let server = Scripted::answering(|_, request| {
        let mut body = PNG.to_vec();
        body.resize(if request.contains("/large") { 11 << 20 } else { 9 << 20 }, 0);
        let length = if request.contains("/declared") { "content-length: 20971521\r\n" } else { "" };
        (200, length.into(), body)
    })
    .await;
    let fetcher = fetcher(&[&server]);
    let urls = [server.url("/1"), server.url("/large"), server.url("/2"), server.url("/declared")];
    assert!(fetch(&fetcher, &[&urls[0], &urls[1]]).await.is_ok());
    for sets in [&[&urls[0], &urls[1], &urls[2]][..], &[&urls[3]]] {
        let urls: Vec<&str> = sets.iter().map(|url| url.as_str()).collect();
        let failure = fetch(&fetcher, &urls).await.unwrap_err();
        assert!(failure.message.ends_with("the images of a request may have 20MiB at most"), "{}", failure.message);
    }
    let many: Vec<String> = (0..=MOST).map(|index| server.url(&format!("/{index}"))).collect();
    let before = server.requests().len();
    let failure = fetcher.fetch_all(many.iter().map(String::as_str), Instant::now() + TIME).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Unsupported);
    assert_eq!(server.requests().len(), before);
    assert_eq!(fetcher.held.load(Ordering::Relaxed), 0, "nothing is held after a failure");
}

#[actix_rt::test]
async fn a_gateway_that_holds_as_much_as_it_may_fetches_nothing() {
    let server = Scripted::answering(|_, _| image(PNG)).await;
    let mut fetcher = fetcher(&[&server]);
    fetcher.held_limit = 4;
    let failure = fetch(&fetcher, &[&server.url("/")]).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Overloaded);
    assert_eq!(fetcher.held.load(Ordering::Relaxed), 0);
}

#[actix_rt::test]
async fn what_is_no_image_or_does_not_come_whole_is_refused() {
    let server = Scripted::answering(|_, request| match request.split(' ').nth(1).unwrap_or_default() {
        "/page" => (200, "content-type: image/png\r\n".into(), vec![b'<'; 1 << 20]),
        "/short" => image(b"GIF"),
        "/empty" => image(b""),
        "/missing" => (404, String::new(), PNG.to_vec()),
        "/cut" => (200, "content-length: 1000\r\n".into(), PNG.to_vec()),
        _ => (200, "transfer-encoding: chunked\r\ncontent-length-of-all: 0\r\n".into(), b"5\r\nGIF89".to_vec()),
    })
    .await;
    let fetcher = fetcher(&[&server]);
    for (path, reason) in [
        ("/page", NOT_AN_IMAGE),
        ("/short", NOT_AN_IMAGE),
        ("/empty", NOT_AN_IMAGE),
        ("/missing", "its host answered with status 404"),
        ("/cut", BROKE_OFF),
        ("/chunked", BROKE_OFF),
    ] {
        let message = refusal(&fetcher, &server.url(path)).await;
        assert_eq!(message, format!("the image at 127.0.0.1 cannot be fetched: {reason}"), "{path}");
    }
}

#[actix_rt::test]
async fn a_host_that_is_silent_or_closed_is_refused_in_time() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Scripted { address: silent.local_addr().unwrap(), requests: Rc::default() };
    let fetcher = fetcher(&[&server]);
    let url = server.url("/");
    let failure = fetcher.fetch_all([url.as_str()], Instant::now() + Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Unsupported);
    assert!(failure.message.ends_with("it did not come in time"), "{}", failure.message);
    drop(silent);
    let message = refusal(&fetcher, &url).await;
    assert!(message.ends_with("no connection to its host: connection refused"), "{message}");
}
