//! The console page: three files that are part of the program. The page itself says nothing of
//! the server, so it needs no token; what it shows it asks for as any other client does.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::State;

/// Nothing from elsewhere runs in the page or is loaded by it, and no other page shows it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<State>> {
    let file = |content_type, text| get(move || async move { answer(content_type, text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("console/console.html")))
        .route("/console.css", file("text/css; charset=utf-8", include_str!("console/console.css")))
        .route(
            "/console.js",
            file("text/javascript; charset=utf-8", include_str!("console/console.js")),
        )
}

fn answer(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
