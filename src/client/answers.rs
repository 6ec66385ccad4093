//! Answers to questions: history, state, rosters.

use std::sync::Arc;

use super::event::{Event, GroupName, Message, Page, QueryId, RosterPage, StateItem, StatePage};
use super::session::{Request, Session};
use crate::position::Seq;
use crate::wire::ServerFrame;

impl Session {
    /// The question of a request that has its answer now, or the first part of it.
    pub fn query(&mut self, request: u32, more: bool) -> Option<(QueryId, GroupName)> {
        match self.requests.open.get(&request) {
            Some(Request::Query { group, id, .. }) => {
                let answered = (*id, Arc::clone(&self.groups.get(*group)?.name));
                if more {
                    return Some(answered);
                }
                self.requests.open.remove(&request);
                self.queries = self.queries.saturating_sub(1);
                Some(answered)
            }
            _ => None,
        }
    }

    pub fn answer(&mut self, frame: &ServerFrame<'_>) -> Option<Event> {
        let request = match frame {
            ServerFrame::Fetched(f) => f.request,
            ServerFrame::State(s) => s.head.request,
            ServerFrame::StateSet(s) => s.request,
            ServerFrame::Conflict(c) => c.request,
            ServerFrame::Roster(r) if r.head.request == 0 => {
                let index = self.by_handle(r.head.handle)?;
                let group = Arc::clone(&self.groups.get(index)?.name);
                return Some(Event::Roster(roster(None, group, r)));
            }
            ServerFrame::Roster(r) => r.head.request,
            _ => return None,
        };
        let more = matches!(frame, ServerFrame::State(s) if s.head.more);
        let Some((id, group)) = self.query(request, more) else {
            return self.broken("an answer that nobody waits for");
        };
        Some(match frame {
            ServerFrame::Fetched(f) => Event::Fetched(Page {
                id,
                epoch: f.epoch,
                messages: f.messages().map(|d| Message::new(&group, f.epoch, &d)).collect(),
                head: f.head,
                gap: f.gap,
                next: f.more.then(|| {
                    let end = f.gap.map_or(f.last, |(_, to, _)| f.last.max(to));
                    Seq(end.0.saturating_add(1))
                }),
                group,
            }),
            ServerFrame::State(s) => Event::State(StatePage {
                id,
                group,
                form: s.head.form,
                version: s.head.version,
                more: s.head.more,
                entries: s
                    .entries()
                    .map(|e| StateItem {
                        key: e.key.into(),
                        version: e.version,
                        stamp: e.stamp,
                        data: e.data.map(Into::into),
                    })
                    .collect(),
            }),
            ServerFrame::StateSet(s) => {
                Event::StateSet { id, group, version: s.version, stamp: s.stamp }
            }
            ServerFrame::Conflict(c) => Event::Conflict {
                id,
                group,
                version: c.version,
                stamp: c.stamp,
                data: c.data.map(Into::into),
            },
            ServerFrame::Roster(r) => Event::Roster(roster(Some(id), group, r)),
            _ => return None,
        })
    }
}

fn roster(id: Option<QueryId>, group: GroupName, r: &crate::wire::Roster<'_>) -> RosterPage {
    RosterPage {
        id,
        group,
        form: r.head.form,
        version: r.head.version,
        members: r.head.members,
        online: r.head.online,
        next: Some(r.head.next).filter(|next| *next != 0),
        entries: r.entries().map(|e| (e.what, e.member.into())).collect(),
    }
}
