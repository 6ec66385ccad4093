#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

#[path = "../../tests/common/tokens.rs"]
mod issue;

use serde_json::{Value, json};

use super::*;
use crate::wire::ErrorCode;
use issue::{Issuer, RSA_PUBLIC, base64url, claims, everything, now_s};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn expected() -> Expected {
    Expected::default()
}

fn keys(file: &str) -> Keys {
    Keys::parse(file.as_bytes(), &expected()).unwrap()
}

fn check(keys: &Keys, token: &str, member: &str) -> Result<Grant, (ErrorCode, &'static str)> {
    keys.check(token.as_bytes(), member.as_bytes(), now_s() * 1000)
        .map_err(|refused| (refused.code, refused.field))
}

fn refused(field: &'static str) -> Option<(ErrorCode, &'static str)> {
    Some((ErrorCode::TokenRefused, field))
}

fn issuers() -> [Issuer; 3] {
    [Issuer::hs256(SECRET), Issuer::eddsa("a"), Issuer::rs256()]
}

#[test]
fn each_algorithm_is_accepted_from_each_kind_of_key_file() {
    for issuer in issuers() {
        let jwks = json!({"keys": [issuer.jwk("k1")]}).to_string();
        for file in [issuer.key_file(), jwks] {
            let token = issuer.token("ann", 60, json!({"join": ["a"]}));
            let grant = check(&keys(&file), &token, "ann").unwrap();
            assert_eq!(grant.exp_s, now_s() + 60);
            assert!(grant.rights.of(b"a").has(Right::Join));
            assert!(!grant.rights.of(b"b").has(Right::Join));
        }
    }
}

#[test]
fn each_attack_gets_its_refusal() {
    let hs = Issuer::hs256(SECRET);
    let (ed, other_ed) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let rs = Issuer::rs256();
    let all = json!({"keys": [hs.jwk("h"), ed.jwk("e"), rs.jwk("r")]}).to_string();
    let ed_and_rs = json!({"keys": [ed.jwk("e"), rs.jwk("r")]}).to_string();
    let good = claims("ann", 60, everything());
    let text = good.to_string();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let token = ed.sign(&good);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let forged = base64url(text.replace("ann", "eve"));
    let unsigned = |alg: &str| {
        format!("{}.{}.", base64url(format!("{{\"alg\":\"{alg}\"}}")), base64url(&text))
    };
    // The public key as a secret: the classic confusion of algorithms.
    let confused = Issuer::hs256(RSA_PUBLIC).sign(&good);
    let deep = format!("{{\"sub\":\"ann\",\"x\":{}{}}}", "[".repeat(900), "]".repeat(900));
    let header_of = |header: &str| ed.sign_raw(header, &text);
    let attacks: Vec<(&str, String, &str, &'static str)> = vec![
        ("nothing", String::new(), &all, "token"),
        ("no JWT", "hello".into(), &all, "token"),
        ("dots", "..".into(), &all, "token"),
        ("alg none", unsigned("none"), &all, "alg"),
        ("alg None", unsigned("None"), &all, "alg"),
        ("alg of another kind", unsigned("ES256"), &all, "alg"),
        ("alg HS512", unsigned("HS512"), &all, "alg"),
        ("no signature", format!("{message}."), &all, "signature"),
        ("a signature that is cut", format!("{message}.{}", &signature[..40]), &all, "signature"),
        ("another key", other_ed.sign(&good), &all, "signature"),
        ("other claims", format!("{header}.{forged}.{signature}"), &all, "signature"),
        ("the public key as a secret", confused.clone(), &all, "signature"),
        ("the same where there is no secret", confused, &ed_and_rs, "alg"),
        (
            "signed by another algorithm",
            ed.sign_raw("{\"alg\":\"RS256\"}", &text),
            &all,
            "signature",
        ),
        ("a key in the header", header_of("{\"alg\":\"EdDSA\",\"kid\":\"none\"}"), &all, "kid"),
        ("four parts", format!("{header}.{payload}.{signature}.{signature}"), &all, "token"),
        ("five parts", format!("{token}.a.b"), &all, "token"),
        ("crit", header_of("{\"alg\":\"EdDSA\",\"crit\":[\"exp\"],\"exp\":1}"), &all, "token"),
        ("a header that is no object", header_of("[]"), &all, "token"),
        ("claims that are no object", ed.sign_raw("{\"alg\":\"EdDSA\"}", "[1]"), &all, "token"),
        ("deep claims", ed.sign_raw("{\"alg\":\"EdDSA\"}", &deep), &all, "token"),
        ("a huge number", ed.sign_raw("{\"alg\":\"EdDSA\"}", "{\"exp\":1e999}"), &all, "token"),
        ("no exp", ed.sign(&without("exp")), &all, "exp"),
        ("exp as text", ed.sign(&with("exp", json!("9999999999"))), &all, "exp"),
        ("exp below 0", ed.sign(&with("exp", json!(-1))), &all, "exp"),
        ("nbf in the future", ed.sign(&with("nbf", json!(now_s() + 100))), &all, "nbf"),
        ("no sub", ed.sign(&without("sub")), &all, "sub"),
        ("sub of another member", ed.sign(&with("sub", json!("bob"))), &all, "sub"),
        ("sub as a number", ed.sign(&with("sub", json!(1))), &all, "sub"),
        ("for another audience", ed.sign(&with("aud", json!("shop"))), &all, "aud"),
        ("rights as text", ed.sign(&with("fanfare", json!("all"))), &all, "fanfare"),
        ("a list as text", ed.sign(&with("fanfare", json!({"join": "*"}))), &all, "fanfare"),
        ("a star inside", ed.sign(&with("fanfare", json!({"join": ["a*b"]}))), &all, "fanfare"),
        ("an empty name", ed.sign(&with("fanfare", json!({"join": [""]}))), &all, "fanfare"),
        (
            "too many patterns",
            ed.sign(&with("fanfare", json!({"join": vec!["a"; 65]}))),
            &all,
            "fanfare",
        ),
    ];
    for (name, token, file, field) in attacks {
        let got = check(&keys(file), &token, "ann").err();
        assert_eq!(got, refused(field), "{name}");
    }
    let expired = ed.sign(&with("exp", json!(now_s() - 1)));
    let expired = check(&keys(&all), &expired, "ann").err();
    assert_eq!(expired, Some((ErrorCode::TokenExpired, "exp")));
    assert!(check(&keys(&all), &token, "ann").is_ok(), "and what all of them were made of is good");
}

#[test]
fn times_have_the_allowance_that_was_set() {
    let ed = Issuer::eddsa("a");
    let lenient = Expected { leeway_s: 10, ..expected() };
    let keys = Keys::parse(ed.key_file().as_bytes(), &lenient).unwrap();
    let late = ed.token("ann", -9, json!({}));
    assert_eq!(check(&keys, &late, "ann").unwrap().ends_ms, (now_s() + 1) * 1000);
    assert!(check(&keys, &ed.token("ann", -11, json!({})), "ann").is_err());
    let mut early = claims("ann", 60, json!({}));
    early["nbf"] = json!(now_s() + 9);
    assert!(check(&keys, &ed.sign(&early), "ann").is_ok());
}

#[test]
fn audience_and_issuer_are_required_if_they_are_set() {
    let ed = Issuer::eddsa("a");
    let strict =
        Expected { audience: Some("chat".into()), issuer: Some("login".into()), leeway_s: 0 };
    let keys = Keys::parse(ed.key_file().as_bytes(), &strict).unwrap();
    let with = |aud: Value, iss: Value| {
        let mut claims = claims("ann", 60, json!({}));
        (claims["aud"], claims["iss"]) = (aud, iss);
        check(&keys, &ed.sign(&claims), "ann").err()
    };
    assert_eq!(with(json!("chat"), json!("login")), None);
    assert_eq!(with(json!(["shop", "chat"]), json!("login")), None);
    assert_eq!(with(json!("shop"), json!("login")), refused("aud"));
    assert_eq!(with(json!("chat"), json!("eve")), refused("iss"));
    let bare = claims("ann", 60, json!({}));
    assert!(matches!(check(&keys, &ed.sign(&bare), "ann"), Err((_, "aud" | "iss"))));
}

#[test]
fn a_token_says_which_key_if_there_are_several() {
    let (a, b) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let keys = keys(&json!({"keys": [a.jwk("a"), b.jwk("b")]}).to_string());
    let good = claims("ann", 60, json!({}));
    assert!(check(&keys, &a.sign_named("a", &good), "ann").is_ok());
    assert!(check(&keys, &b.sign_named("b", &good), "ann").is_ok());
    assert_eq!(check(&keys, &a.sign_named("b", &good), "ann").err(), refused("signature"));
    assert_eq!(check(&keys, &a.sign_named("c", &good), "ann").err(), refused("kid"));
    assert_eq!(check(&keys, &a.sign(&good), "ann").err(), refused("kid"));
}

#[test]
fn a_key_file_that_cannot_be_meant_is_refused() {
    let private = issue::RSA_PRIVATE;
    let short = include_str!("../../tests/keys/rsa-too-short.pub.pem");
    let cut = &RSA_PUBLIC[..200];
    for (file, why) in [
        ("", "empty"),
        ("\n", "empty"),
        ("too short", "too short"),
        (private, "private key"),
        (short, "1024 bits"),
        (cut, "does not end"),
        ("{}", "no JWKS"),
        ("{\"keys\": []}", "no key"),
        ("{\"keys\": [{\"kty\":\"EC\"}]}", "no key"),
        ("{\"keys\": [{\"kty\":\"oct\",\"k\":\"YQ\"}]}", "too short"),
        ("{\"keys\": [{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"YQ\"}]}", "32 bytes"),
        ("{ keys", "no JSON"),
    ] {
        let error = Keys::parse(file.as_bytes(), &expected()).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn nothing_that_is_secret_is_in_what_is_printed() {
    let issuer = Issuer::hs256(SECRET);
    let keys = keys(SECRET);
    let printed = format!("{keys:?} {:?}", check(&keys, &issuer.token("ann", 9, json!({})), "ann"));
    assert!(!printed.contains(SECRET) && !printed.contains("48, 49, 50"), "{printed}");
}

#[test]
fn history_is_as_join_unless_it_is_listed() {
    let read = |claim: Value| Rights::read(Some(&claim)).unwrap();
    let rights = read(json!({"join": ["room.*"], "publish": ["room.1"], "other": 7}));
    for (group, join, publish) in
        [("room.1", true, true), ("room.", true, false), ("room", false, false)]
    {
        let allowed = rights.of(group.as_bytes());
        assert_eq!(allowed.has(Right::Join), join, "{group}");
        assert_eq!(allowed.has(Right::History), join, "{group}");
        assert_eq!(allowed.has(Right::Publish), publish, "{group}");
        assert!(!allowed.has(Right::State));
    }
    assert!(!read(json!({"join": ["*"], "history": []})).of(b"a").has(Right::History));
    assert!(!Rights::read(None).unwrap().of(b"a").has(Right::Join));
}

#[test]
fn what_is_remembered_is_what_the_patterns_say() {
    let claim = json!({"join": ["a*", "b1"], "publish": ["*"], "state": ["a1*"], "history": []});
    let rights = Rights::read(Some(&claim)).unwrap();
    let mut cached = CachedRights::new(rights.clone());
    let mut random = 7_u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let name =
            format!("{}{}", ["a", "b", "c"][(random >> 33) as usize % 3], (random >> 40) % 90);
        assert_eq!(cached.of(name.as_bytes()), rights.of(name.as_bytes()), "{name}");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let issuer = Issuer::eddsa("a");
    let keys = keys(&issuer.key_file());
    let good = issuer.token("ann", 60, everything());
    let jwks = json!({"keys": [issuer.jwk("a"), Issuer::rs256().jwk("b")]}).to_string();
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (random >> 33) as usize % below
    };
    for _ in 0..5_000 {
        let mut token = good.clone().into_bytes();
        let mut files = [jwks.clone().into_bytes(), RSA_PUBLIC.as_bytes().to_vec()];
        for bytes in files.iter_mut().chain([&mut token]) {
            let at = next(bytes.len());
            bytes[at] = next(256) as u8;
            bytes.truncate(1 + next(bytes.len()));
        }
        if token != good.as_bytes() {
            assert!(keys.check(&token, b"ann", now_s() * 1000).is_err());
        }
        for file in files {
            let _ = Keys::parse(&file, &expected());
        }
    }
}

#[test]
fn nobody_else_opens_as_the_server_itself() {
    let opening = own_opening().unwrap();
    assert!(is_own_opening(&opening));
    for n in 0..opening.len() {
        let mut other = opening;
        other[n] ^= 1;
        assert!(!is_own_opening(&other), "byte {n}");
        assert!(!is_own_opening(&opening[..n]), "{n} bytes");
    }
}

#[test]
fn the_server_has_tokens_of_its_own_that_allow_what_they_name_and_only_with_its_key() {
    for file in [SECRET.to_owned(), json!({"keys": [Issuer::rs256().jwk("k1")]}).to_string()] {
        let keys = keys(&file);
        let token = own_token("probe", "probe/");
        let grant = check(&keys, &token, "probe").unwrap();
        assert!(keys.has(grant.key), "a reload does not take it away");
        assert!(grant.rights.of(b"probe/1").has(Right::Join));
        assert!(!grant.rights.of(b"lobby").has(Right::Join));
        assert!(check(&keys, &token, "ann").is_err());
        // The name of its key is no way around the signature.
        let (head, _) = token.rsplit_once('.').unwrap();
        let forged = Issuer::hs256(SECRET).token("probe", 60, json!({}));
        let (_, signature) = forged.rsplit_once('.').unwrap();
        assert!(check(&keys, &format!("{head}.{signature}"), "probe").is_err());
    }
}
