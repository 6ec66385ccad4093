//! Who may ask. With a token, who has it. Without one the address is a loopback address (the
//! configuration is refused otherwise) and every local user may; then requests that a browser
//! makes for the page of another site are refused, since that site's author is no local user.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State as Shared};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::State;

/// Shortest token: 16 characters of base 64 are 96 bits.
const TOKEN_MIN: usize = 16;
/// Longest token.
const TOKEN_MAX: usize = 1024;

/// A secret that requests bring. It is never printed.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Others than its owner may read it.
    #[error("others than its owner may read it (mode {0:o}); chmod 600 it")]
    Mode(u32),
    /// It is no token.
    #[error(
        "must hold one line of {TOKEN_MIN} to {TOKEN_MAX} visible ASCII characters, such as \
         `openssl rand -base64 32` makes"
    )]
    Form,
}

impl Token {
    /// Reads it from a file that is its owner's alone.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode(mode));
        }
        Self::parse(&std::fs::read(path)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, TokenError> {
        let token = bytes.trim_ascii_end();
        let fits = (TOKEN_MIN..=TOKEN_MAX).contains(&token.len());
        if fits && token.iter().all(u8::is_ascii_graphic) {
            Ok(Self(token.into()))
        } else {
            Err(TokenError::Form)
        }
    }

    /// Whether this is it. The time says how long the token is, and nothing else.
    fn is(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

/// The token that is asked for; `None` asks for none. It may change while the server runs.
#[derive(Clone, Debug)]
pub struct TokenCell(Arc<Mutex<Option<Token>>>);

impl TokenCell {
    /// Begins with this one.
    #[must_use]
    pub fn new(token: Option<Token>) -> Self {
        Self(Arc::new(Mutex::new(token)))
    }

    /// Asks for this one from now on.
    pub fn set(&self, token: Option<Token>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Guard {
    token: TokenCell,
}

impl Guard {
    pub fn new(token: TokenCell) -> Self {
        Self { token }
    }

    fn judge(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), (StatusCode, &'static str)> {
        if *method == Method::POST && !is_json(headers) {
            // A form of another site cannot send this type without asking first.
            let why = "a POST must say `Content-Type: application/json`";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        match &*self.token.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(token) if bearer(headers).is_some_and(|brought| token.is(brought)) => Ok(()),
            Some(_) => {
                let why = "this needs `Authorization: Bearer` with the token of http_token_file";
                Err((StatusCode::UNAUTHORIZED, why))
            }
            None => local(headers).map_err(|why| (StatusCode::FORBIDDEN, why)),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let of = |value: &HeaderValue| value.to_str().ok().map(str::to_ascii_lowercase);
    headers
        .get(header::CONTENT_TYPE)
        .and_then(of)
        .is_some_and(|t| t.starts_with("application/json"))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether the request names this host as a local user would, and comes from no other site. A
/// name that another site gave to 127.0.0.1 is not such a name.
fn local(headers: &HeaderMap) -> Result<(), &'static str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let authority: Result<Authority, _> = host.parse();
    let named = authority.as_ref().map(Authority::host).unwrap_or_default();
    let ip: Option<IpAddr> = named.trim_matches(['[', ']']).parse().ok();
    if !ip.is_some_and(|ip| ip.to_canonical().is_loopback()) && named != "localhost" {
        return Err(
            "without http_token_file this is for http://127.0.0.1 and http://localhost only",
        );
    }
    let origin = headers.get(header::ORIGIN).map(|origin| origin.as_bytes());
    if origin.is_some_and(|origin| origin != format!("http://{host}").as_bytes()) {
        return Err("pages of other sites may not ask");
    }
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err("pages of other sites may not ask");
    }
    Ok(())
}

/// Lets requests through that may be answered.
pub(super) async fn check(
    Shared(state): Shared<Arc<State>>,
    request: Request,
    next: Next,
) -> Response {
    match state.guard.judge(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => {
            let mut answer = super::api::refusal(status, why).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let scheme = HeaderValue::from_static("Bearer realm=\"fanfare\"");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            answer
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        });
        pairs.collect()
    }

    fn judge(guard: &Guard, list: &[(&'static str, &str)]) -> u16 {
        match guard.judge(&Method::GET, &headers(list)) {
            Ok(()) => 200,
            Err((status, _)) => status.as_u16(),
        }
    }

    #[test]
    fn only_the_token_itself_lets_in() {
        let guard = Guard::new(TokenCell::new(Some(Token::parse(b"0123456789abcdef\n").unwrap())));
        let with = |value| judge(&guard, &[("host", "evil.example"), ("authorization", value)]);
        assert_eq!(with("Bearer 0123456789abcdef"), 200);
        assert_eq!(with("bearer 0123456789abcdef"), 200);
        for wrong in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
        assert_eq!(judge(&guard, &[]), 401);
        assert!(!format!("{guard:?}").contains("0123"));
    }

    #[test]
    fn without_a_token_only_local_names_and_no_pages_of_other_sites_are_let_in() {
        let guard = Guard::new(TokenCell::new(None));
        for host in ["127.0.0.1:7411", "localhost", "[::1]:7411", "127.1.2.3"] {
            assert_eq!(judge(&guard, &[("host", host)]), 200, "{host}");
            let origin = format!("http://{host}");
            assert_eq!(judge(&guard, &[("host", host), ("origin", &origin)]), 200);
            let fetch = |site| judge(&guard, &[("host", host), ("sec-fetch-site", site)]);
            assert_eq!((fetch("none"), fetch("same-origin")), (200, 200));
            assert_eq!((fetch("cross-site"), fetch("same-site")), (403, 403));
            for origin in ["http://evil.example", "null", "https://localhost", "http://localhost:1"]
            {
                assert_eq!(judge(&guard, &[("host", host), ("origin", origin)]), 403, "{origin}");
            }
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil"] {
            assert_eq!(judge(&guard, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(judge(&guard, &[]), 403);
    }

    #[test]
    fn a_post_of_a_form_is_refused() {
        let guard = Guard::new(TokenCell::new(None));
        let post = |kind| {
            guard.judge(&Method::POST, &headers(&[("host", "localhost"), ("content-type", kind)]))
        };
        assert!(post("application/json; charset=utf-8").is_ok());
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert_eq!(post(kind).unwrap_err().0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }

    #[test]
    fn a_token_is_long_and_its_file_the_owners_alone() {
        for wrong in [&b""[..], b"short", b"with a space in it..", b"0123456789abcdef\n0123"] {
            assert!(matches!(Token::parse(wrong), Err(TokenError::Form)));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Mode(0o640))));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(Token::read(&path).unwrap().is(b"0123456789abcdef"));
    }
}
