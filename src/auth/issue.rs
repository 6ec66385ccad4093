//! `fanfare token`: makes tokens with a secret, to try a server out and to load it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Map, Value, json};

use super::keys::{Expected, KEY_FILE_MAX, Keys, secret_of};
use super::rights::Rights;
use crate::limits::{MEMBER_ID_MAX, TOKEN_MAX};

/// Flags of `fanfare token`.
#[derive(Clone, Debug, clap::Args)]
pub struct TokenArgs {
    /// File with the secret that the server has as --auth-keys
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// How long they hold, such as 30s, 5m or 12h
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = valid_for)]
    valid: Duration,
    /// Group to join, and to read the history of; a * at the end is every name that starts like it;
    /// may be repeated
    #[arg(long, value_name = "GROUP")]
    join: Vec<String>,
    /// Group to publish to; likewise
    #[arg(long, value_name = "GROUP")]
    publish: Vec<String>,
    /// Group to read the history of, if that is not as --join
    #[arg(long, value_name = "GROUP")]
    history: Option<Vec<String>>,
    /// Group to set the state of
    #[arg(long, value_name = "GROUP")]
    state: Vec<String>,
    /// Audience
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,
    /// Issuer
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,
    /// Member ids. One prints its token, several print lines of a member and its token
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<String>,
}

fn valid_for(text: &str) -> Result<Duration, String> {
    crate::config::parse_interval(text).ok_or_else(|| "a time from 10ms to 24h, such as 1h".into())
}

/// Runs `fanfare token`.
#[must_use]
pub fn run(args: &TokenArgs) -> ExitCode {
    match tokens(args) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// A token with these claims (RFC 7515, 7.1).
pub(super) fn signed(key: &hmac::Key, header: &Value, claims: &Value) -> String {
    let parts = [header.to_string(), claims.to_string()];
    let message = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(key, message.as_bytes()));
    format!("{message}.{signature}")
}

fn tokens(args: &TokenArgs) -> Result<String, String> {
    let path = args.keys.display();
    let file = std::fs::read(&args.keys).map_err(|error| format!("cannot read {path}: {error}"))?;
    if file.len() > KEY_FILE_MAX {
        return Err(format!("{path} is longer than a key file may be"));
    }
    Keys::parse(&file, &Expected::default()).map_err(|what| format!("{path}: {what}"))?;
    let secret = secret_of(&file).ok_or_else(|| {
        format!("{path} holds no secret; tokens for other keys are made where the private key is")
    })?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut rights = Map::new();
    let lists = [("join", &args.join), ("publish", &args.publish), ("state", &args.state)];
    for (name, list) in lists.into_iter().chain(args.history.as_ref().map(|h| ("history", h))) {
        rights.insert(name.into(), json!(list));
    }
    let rights = Value::Object(rights);
    if Rights::read(Some(&rights)).is_none() {
        return Err(
            "a group has a * before its end, is empty or too long, or a list has more than 64"
                .into(),
        );
    }
    let mut out = String::new();
    for member in &args.members {
        if !(1..=MEMBER_ID_MAX).contains(&member.len()) {
            return Err(format!(
                "the member id {member:?} does not have 1 to {MEMBER_ID_MAX} bytes"
            ));
        }
        let mut claims =
            json!({"sub": member, "exp": now + args.valid.as_secs().max(1), "fanfare": rights});
        for (name, value) in [("aud", &args.audience), ("iss", &args.issuer)] {
            if let Some(value) = value {
                claims[name] = json!(value);
            }
        }
        let token = signed(&key, &json!({"alg": "HS256", "typ": "JWT"}), &claims);
        if token.len() > TOKEN_MAX {
            return Err(format!("the token is longer than {TOKEN_MAX} bytes; name fewer groups"));
        }
        if args.members.len() > 1 {
            out.push_str(member);
            out.push(' ');
        }
        out.push_str(&token);
        out.push('\n');
    }
    Ok(out)
}
