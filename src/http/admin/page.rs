//! The page, as it is in the binary. It holds nothing that is secret: all it shows comes from the API.

use actix_web::HttpResponse;
use actix_web::http::header;

pub(super) async fn html() -> HttpResponse {
    asset("text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(super) async fn css() -> HttpResponse {
    asset("text/css; charset=utf-8", include_str!("page/page.css"))
}

pub(super) async fn js() -> HttpResponse {
    asset("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

fn asset(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, kind)).body(text)
}
