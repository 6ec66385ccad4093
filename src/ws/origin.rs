//! From which web pages a browser may connect.

use serde::{Deserialize, Serialize};

/// The origins that are allowed beside the server's own. A browser says in `Origin` which page
/// asks; other clients say nothing, and are not held back by this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origins {
    any: bool,
    /// In lower case, without the port that belongs to the scheme.
    allowed: Vec<String>,
}

impl Origins {
    /// Whether a page of this origin may connect to a server that was called `host`.
    ///
    /// The server's own origin may if the host is an address or `localhost`. A name proves
    /// nothing: whoever owns a name can let it point to this server after a browser has loaded
    /// their page (DNS rebinding), and then the page's origin is that name too.
    #[must_use]
    pub fn allow(&self, origin: Option<&[u8]>, host: &[u8]) -> bool {
        let Some(origin) = origin else { return true };
        if self.any {
            return true;
        }
        let (Ok(origin), Ok(host)) = (std::str::from_utf8(origin), std::str::from_utf8(host))
        else {
            return false;
        };
        let Some(origin) = normal(origin) else { return false };
        if self.allowed.contains(&origin) {
            return true;
        }
        let host = host.to_ascii_lowercase();
        is_own_name(&host)
            && ["http", "https"]
                .into_iter()
                .any(|scheme| normal(&format!("{scheme}://{host}")).as_ref() == Some(&origin))
    }
}

/// Whether a host, perhaps with a port, is an address or `localhost`.
fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}

/// An origin in the form in which origins are compared; `None` if it is none.
fn normal(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    if origin == "null" {
        return Some(origin);
    }
    let (scheme, host) = origin.split_once("://")?;
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_host =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let fits = !scheme.is_empty() && scheme.chars().all(is_scheme);
    if !fits || host.is_empty() || !host.chars().all(is_host) {
        return None;
    }
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(port).unwrap_or(host);
    Some(format!("{scheme}://{host}"))
}

impl TryFrom<String> for Origins {
    type Error = String;

    /// Reads `*`, or origins with commas between them; nothing for none.
    fn try_from(text: String) -> Result<Self, String> {
        let mut origins = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if item == "*" {
                origins.any = true;
            } else {
                let origin = normal(item).ok_or_else(|| format!("{item:?} is not an origin"))?;
                origins.allowed.push(origin);
            }
        }
        Ok(origins)
    }
}

impl From<Origins> for String {
    fn from(origins: Origins) -> Self {
        let any = origins.any.then(|| "*".to_owned());
        any.into_iter().chain(origins.allowed).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn allow(list: &str, origin: &str, host: &str) -> bool {
        let origins = Origins::try_from(list.to_owned()).unwrap();
        origins.allow(Some(origin.as_bytes()), host.as_bytes())
    }

    #[test]
    fn without_a_list_only_the_servers_own_address_may() {
        assert!(Origins::default().allow(None, b"127.0.0.1:7400"));
        for (origin, host) in [
            ("http://127.0.0.1:7400", "127.0.0.1:7400"),
            ("http://localhost:7400", "LocalHost:7400"),
            ("http://[::1]:7400", "[::1]:7400"),
            ("http://192.0.2.1", "192.0.2.1:80"),
            ("https://192.0.2.1", "192.0.2.1"),
        ] {
            assert!(allow("", origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://evil.example", "127.0.0.1:7400"),
            ("http://127.0.0.1:8000", "127.0.0.1:7400"),
            // A name that its owner let point here.
            ("http://evil.example:7400", "evil.example:7400"),
            ("http://localhost.evil.example", "localhost.evil.example"),
            ("null", "127.0.0.1:7400"),
            ("", "127.0.0.1:7400"),
            ("http://127.0.0.1:7400/", "127.0.0.1:7400"),
            ("http://\u{e9}", "127.0.0.1"),
        ] {
            assert!(!allow("", origin, host), "{origin} {host}");
        }
        assert!(!Origins::default().allow(Some(b"\xFF"), b"127.0.0.1"));
    }

    #[test]
    fn a_list_allows_what_is_on_it_and_nothing_like_it() {
        let list = "https://chat.example, HTTP://Other.example:80 ,null";
        for origin in ["https://chat.example", "https://chat.example:443", "http://other.example"] {
            assert!(allow(list, origin, "broker.example"), "{origin}");
        }
        assert!(allow(list, "null", "broker.example"));
        for origin in
            ["http://chat.example", "https://chat.example.evil", "https://a.chat.example", "x"]
        {
            assert!(!allow(list, origin, "broker.example"), "{origin}");
        }
        assert!(allow("*", "http://whatever.example", "broker.example"));
    }

    #[test]
    fn a_list_is_printed_as_it_can_be_read_again() {
        for text in ["", "*", "https://chat.example, http://127.0.0.1:8000"] {
            assert_eq!(String::from(Origins::try_from(text.to_owned()).unwrap()), text);
        }
        for wrong in ["chat.example", "https://", "https://chat.example/", "https://a b"] {
            assert!(Origins::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
