//! `/api/v1`: JSON for operators. Lists come in pages; a page says where the next one begins.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::info;

use super::State;
use crate::position::ShardId;
use crate::serve::ask::{Answers, NotRunning};
use crate::serve::control::Order;
use crate::serve::json::{durable_json, group_json, member_json, slow_json, status_json};
use crate::serve::reload::ReloadError;
use crate::shard::ConnId;
use crate::shard::look::{ENTRIES_MAX, Look, Range, Seen, Who};

/// Entries of a page that is asked for without a limit.
const ENTRIES: u32 = 100;

type At = Shared<Arc<State>>;

pub(super) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/shards", get(shards))
        .route("/slow", get(slow))
        .route("/groups", get(groups))
        .route("/groups/{group}", get(group))
        .route("/groups/{group}/members", get(group_members))
        .route("/groups/{group}/durable", get(group_durable))
        .route("/members", get(members))
        .route("/config", get(config))
        .route("/disconnect", post(disconnect))
        .route("/reload", post(reload))
        .route("/drain", post(drain))
        .fallback(|| async { Refused(StatusCode::NOT_FOUND, "there is nothing here".into()) })
}

/// Why there is no answer.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1).into_response()
    }
}

impl From<NotRunning> for Refused {
    fn from(error: NotRunning) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

pub(super) fn refusal(status: StatusCode, why: &str) -> impl IntoResponse {
    (status, Json(json!({ "error": why })))
}

fn silent(shard: ShardId) -> Refused {
    Refused(StatusCode::GATEWAY_TIMEOUT, format!("shard {shard} did not answer in time"))
}

type Answer = Result<Json<Value>, Refused>;

async fn shards(Shared(state): At) -> Answer {
    Ok(Json(status_json(state.asker.ask(Look::Status { slowest: true }, None).await?)))
}

async fn slow(Shared(state): At) -> Answer {
    let answers = state.asker.ask(Look::Status { slowest: true }, None).await?;
    let (mut slowest, mut silent) = (Vec::new(), Vec::new());
    for (shard, seen) in answers {
        let Some(Seen::Status(status)) = seen else {
            silent.push(shard.0);
            continue;
        };
        slowest.extend(status.slowest.iter().map(|member| {
            let mut json = slow_json(member);
            json["shard"] = shard.0.into();
            json
        }));
    }
    Ok(Json(json!({ "slow": slowest, "silent_shards": silent })))
}

/// Which part of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(default)]
    shard: u16,
    #[serde(default)]
    from: u32,
    limit: Option<u32>,
}

impl Part {
    fn range(&self) -> Result<Range, Refused> {
        let limit = self.limit.unwrap_or(ENTRIES);
        if !(1..=ENTRIES_MAX).contains(&limit) {
            let why = format!("limit = {limit} is not allowed: it must be from 1 to {ENTRIES_MAX}");
            return Err(Refused(StatusCode::BAD_REQUEST, why));
        }
        Ok(Range { from: self.from, limit })
    }
}

/// Asks the shard that a part names.
async fn ask_one(state: &State, shard: u16, look: Look) -> Result<Seen, Refused> {
    let shards = state.counters.len();
    if usize::from(shard) >= shards {
        let why = format!("shard = {shard} is not allowed: there are {shards} shards");
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    let answers = state.asker.ask(look, Some(ShardId(shard))).await?;
    let answer = answers.into_iter().next().and_then(|(_, seen)| seen);
    answer.ok_or_else(|| silent(ShardId(shard)))
}

/// Where the next page begins: on the same shard, or on the one after it.
fn next(state: &State, shard: u16, from: Option<u32>) -> Value {
    match from {
        Some(from) => json!({ "shard": shard, "from": from }),
        None if usize::from(shard) + 1 < state.counters.len() => {
            json!({ "shard": shard + 1, "from": 0 })
        }
        None => Value::Null,
    }
}

/// Groups where they are owned; so each comes once.
async fn groups(Shared(state): At, Query(part): Query<Part>) -> Answer {
    let Seen::Groups(page) = ask_one(&state, part.shard, Look::Groups(part.range()?)).await? else {
        return Err(silent(ShardId(part.shard)));
    };
    let owned = page.entries.iter().filter(|group| group.owned.is_some());
    let groups: Vec<_> = owned.map(group_json).collect();
    Ok(Json(json!({ "groups": groups, "next": next(&state, part.shard, page.next) })))
}

async fn group(Shared(state): At, Path(name): Path<String>) -> Answer {
    let answers = state.asker.ask(Look::Group(name.into_bytes().into()), None).await?;
    let (mut owner, mut shards) = (None, Vec::new());
    for (shard, seen) in answers {
        let Some(Seen::Groups(page)) = seen else { return Err(silent(shard)) };
        for group in &page.entries {
            shards.push(json!({
                "shard": shard.0,
                "members": group.local_members,
                "published": group.published.0,
                "tail_bytes": group.tail_bytes,
            }));
            if group.owned.is_some() {
                owner = Some(group_json(group));
            }
        }
    }
    let Some(mut group) = owner else {
        return Err(Refused(StatusCode::NOT_FOUND, "there is no group of this name".into()));
    };
    group["shards"] = shards.into();
    Ok(Json(group))
}

async fn members(Shared(state): At, Query(part): Query<Part>) -> Answer {
    members_of(&state, None, &part).await
}

async fn group_members(
    Shared(state): At,
    Path(name): Path<String>,
    Query(part): Query<Part>,
) -> Answer {
    members_of(&state, Some(name.into_bytes().into()), &part).await
}

async fn members_of(state: &State, group: Option<Box<[u8]>>, part: &Part) -> Answer {
    let look = Look::Members(group, part.range()?);
    let Seen::Members(page) = ask_one(state, part.shard, look).await? else {
        return Err(silent(ShardId(part.shard)));
    };
    let members: Vec<_> = page.entries.iter().map(|m| member_json(part.shard, m)).collect();
    Ok(Json(json!({ "members": members, "next": next(state, part.shard, page.next) })))
}

/// The durable members of a group; only its owner has some, so the part's shard says nothing.
async fn group_durable(
    Shared(state): At,
    Path(name): Path<String>,
    Query(part): Query<Part>,
) -> Answer {
    let look = Look::Roster(name.into_bytes().into(), part.range()?);
    let (mut members, mut next) = (Vec::new(), Value::Null);
    for (shard, seen) in state.asker.ask(look, None).await? {
        let Some(Seen::Roster(page)) = seen else { return Err(silent(shard)) };
        members.extend(page.entries.iter().map(durable_json));
        if let Some(from) = page.next {
            next = json!({ "from": from });
        }
    }
    Ok(Json(json!({ "durable_members": members, "next": next })))
}

async fn config(Shared(state): At) -> Json<Value> {
    Json(state.config.get().to_json())
}

/// Whose connections are closed: a member's, or one connection as the list of members names it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
enum Disconnect {
    Member { member: String },
    Connection { shard: u16, slot: u32, generation: u32 },
}

type Body<T> = Result<Json<T>, JsonRejection>;

fn body<T>(body: Body<T>) -> Result<T, Refused> {
    body.map(|Json(body)| body).map_err(|error| Refused(error.status(), error.body_text()))
}

fn closed(answers: Answers) -> Result<u64, Refused> {
    answers.into_iter().try_fold(0, |sum, (shard, seen)| match seen {
        Some(Seen::Disconnected(count)) => Ok(sum + count),
        _ => Err(silent(shard)),
    })
}

async fn disconnect(Shared(state): At, who: Body<Disconnect>) -> Answer {
    let who = body(who)?;
    let closed = match who {
        Disconnect::Member { member } => {
            let look = Look::Disconnect(Who::Member(member.into_bytes().into()));
            closed(state.asker.ask(look, None).await?)?
        }
        Disconnect::Connection { shard, slot, generation } => {
            let look = Look::Disconnect(Who::Conn(ConnId { slot, generation }));
            match ask_one(&state, shard, look).await? {
                Seen::Disconnected(count) => count,
                _ => return Err(silent(ShardId(shard))),
            }
        }
    };
    info!(closed, "an operator closed connections");
    Ok(Json(json!({ "closed": closed })))
}

/// Nothing may be said yet, so that something can be later.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn reload(Shared(state): At, nothing: Body<Nothing>) -> Answer {
    body(nothing)?;
    let (to, from) = oneshot::channel();
    state.asker.0.send(Order::Reload(Some(to))).map_err(|_| NotRunning)?;
    let wrong = |error: ReloadError| Refused(StatusCode::CONFLICT, error.to_string());
    from.await.map_err(|_| NotRunning)?.map(Json).map_err(wrong)
}

async fn drain(Shared(state): At, nothing: Body<Nothing>) -> Result<Response, Refused> {
    body(nothing)?;
    info!("an operator asked the server to stop in good order");
    state.asker.0.send(Order::Stop).map_err(|_| NotRunning)?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "stopping": true }))).into_response())
}
