//! What tokens cost others is bounded, and what a token allows costs nothing per message.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "common/shard_rig.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod shard_rig;
#[path = "common/tokens.rs"]
mod tokens;

use std::sync::Arc;

use allocation_counter::measure;
use fanfare::auth::{Expected, Keys};
use fanfare::config::ShardConfig;
use fanfare::limits::TOKENS_PER_TURN;
use fanfare::position::Level;
use serde_json::json;
use shard_rig::Rig;
use tokens::Issuer;

fn with_keys(issuer: &Issuer) -> ShardConfig {
    let keys = Keys::parse(issuer.key_file().as_bytes(), &Expected::default()).unwrap();
    ShardConfig { keys: Some(Arc::new(keys)), ..ShardConfig::default() }
}

#[test]
fn a_turn_checks_a_few_tokens_however_many_wait_and_each_has_its_turn() {
    const STORM: u64 = 500;
    let (issuer, other) = (Issuer::eddsa("a"), Issuer::eddsa("b"));
    let mut rig = Rig::with(1, with_keys(&issuer));
    rig.sides[0].world.may_pause = true;
    for n in 1..=STORM {
        let conn = rig.connect(0);
        let good = n % 5 == 0;
        let signed = if good { &issuer } else { &other };
        rig.auth(0, conn, &signed.token(&format!("member-{n}"), 600, json!({"join": ["*"]})));
    }
    let (mut refused, mut checks) = (0, 0);
    for turn in 1..=STORM {
        rig.turn();
        let now = rig.figures().tokens_refused;
        assert!(now - refused <= u64::from(TOKENS_PER_TURN), "turn {turn}");
        checks += now - refused;
        refused = now;
    }
    assert_eq!(checks, STORM - STORM / 5);
    rig.settle();
}

#[test]
fn publishing_with_a_token_allocates_nothing_more_than_without() {
    let issuer = Issuer::eddsa("a");
    let counted = [ShardConfig::default(), with_keys(&issuer)].map(|config| {
        let asks = config.keys.is_some();
        let mut rig = Rig::with(1, config);
        let mut publisher = rig.publisher(0, b"room.7");
        if asks {
            let allowed = json!({"publish": ["lobby", "room.*"], "join": ["room.*"]});
            rig.auth(0, publisher.connection(), &issuer.token("member-1", 600, allowed));
        }
        for _ in 0..200 {
            rig.publish(&mut publisher, 20, Level::Durable, b"hello");
            rig.settle();
        }
        assert_eq!(rig.figures().messages, 4_000, "they are taken");
        let counted = measure(|| {
            for _ in 0..100 {
                rig.publish(&mut publisher, 20, Level::Durable, b"hello");
                rig.settle();
            }
        });
        counted.count_total
    });
    assert_eq!(counted[0], counted[1]);
}
