//! ROSTER_QUERY.

use super::Shard;
use super::inbox::Origin;
use crate::position::Handle;
use crate::wire::{Roster, RosterForm, RosterHead};

impl Shard {
    pub(super) fn query_roster(
        &mut self,
        origin: Origin,
        name: &[u8],
        _known: u64,
        _after: u32,
        _limit: u32,
    ) -> usize {
        let group = self.by_name.get(name).map(|&key| &self.groups[key as usize]);
        let handle = group.map_or(Handle(0), |group| group.handle);
        let (form, request) = (RosterForm::UpToDate, origin.request);
        let head = RosterHead { request, form, handle, version: 0, members: 0, online: 0, next: 0 };
        let mut frames = Vec::new();
        Roster::encode(&mut frames, &head, std::iter::empty());
        let len = frames.len();
        self.answered(origin, frames, None);
        len
    }
}
