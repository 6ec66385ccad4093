//! Counters that a shard publishes and anyone may read. The shard is the only writer and
//! stores them relaxed once per turn, so that reading costs it nothing.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The shard's own copy: plain numbers, written on the hot path.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs, reason = "documented on `Counters`, made by the same macro")]
        pub struct Figures { $(pub $name: u64),* }

        /// The published copy.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64),* }

        impl Counters {
            /// Publishes `figures`.
            pub fn store(&self, figures: &Figures) {
                $(self.$name.store(figures.$name, Ordering::Relaxed);)*
            }

            /// The figures as last published; each is right, together they may be a turn apart.
            #[must_use]
            pub fn load(&self) -> Figures {
                Figures { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl Figures {
            /// Sums of this shard's and another's figures.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name + other.$name),* }
            }

            /// Name and value of each figure, for whoever prints or exports them.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Turns of the shard.
    turns,
    /// Turns after which the shard had nothing to do and slept.
    sleeps,
    /// Connections open now.
    connections,
    /// Connections accepted.
    accepted,
    /// Memberships of this shard's connections now.
    members,
    /// Groups in memory now, replicas included.
    groups,
    /// Messages sequenced.
    messages,
    /// Publishes that were refused.
    refused,
    /// Publishes that had their place already.
    duplicates,
    /// Messages handed to sockets, once per member.
    deliveries,
    /// Bytes received.
    read_bytes,
    /// Socket writes started.
    writes,
    /// Bytes in those writes.
    write_bytes,
    /// Commits on disk.
    commits,
    /// Bytes of those commits, padding included.
    commit_bytes,
    /// Number of the last commit handed to the disk.
    wal_appended,
    /// Number of the last commit that is on disk.
    wal_synced,
    /// Bytes of all tails now.
    tail_bytes,
    /// Bytes held only by unfinished writes now.
    pinned_bytes,
    /// Bytes of unfinished frames now.
    partial_bytes,
    /// Bytes of publishes that wait now, forwarded ones included.
    inbox_bytes,
    /// Members that are served from the log now.
    catch_up_members,
    /// Chunks read for them.
    catch_up_reads,
    /// Reads of the log that failed; a place is tried several times.
    catch_up_read_errors,
    /// Snapshots written.
    snapshots,
    /// Connections that keep up now.
    members_live,
    /// Connections whose writes take long beside those of the others now.
    members_lagging,
    /// Connections that are served from the log in a group now.
    members_catch_up,
    /// Connections whose write does not move now.
    members_stalled,
    /// Connections that are served last until they have recovered, now.
    members_tripped,
    /// Times that this began for a connection.
    trips,
    /// Pages of history sent in answer to FETCH.
    fetches,
    /// Rosters announced.
    rosters,
    /// Keys of groups' states set or deleted.
    state_changes,
    /// GAP frames sent for what retention removed.
    gaps_retention,
    /// GAP frames sent for what is damaged on disk.
    gaps_unreadable,
    /// Connections closed since their write did not move.
    stalled,
    /// Connections closed since they held the most of what a shard may keep of unfinished writes or
    /// unfinished frames.
    closed_for_memory,
    /// Connections closed for silence.
    silent,
    /// Connections closed by an operator.
    disconnected,
    /// Tokens that were refused, and connections closed because theirs had ended.
    tokens_refused,
    /// Requests that a token did not allow.
    forbidden,
    /// Requests and connections above what a member may, and publishes above what a group may.
    rate_limited,
    /// Times a publisher was not read because the inbox was full.
    throttled,
    /// Cursors of durable members staged for the log.
    cursors_written,
    /// Times that messages were sent to a durable member again.
    redeliveries,
    /// Connections closed because a durable member on them never acknowledged.
    unacknowledged,
    /// RECEIPT frames sent.
    receipts,
    /// Receipts given up because too many waited for publishers who stay away.
    receipts_dropped,
    /// Receipts taken as read without proof, since too many on one connection had none.
    receipts_unproved,
    /// Connections closed because another one of their member took over.
    takeovers,
    /// TLS handshakes finished.
    tls_handshakes,
    /// Of these, sessions that were taken up again.
    tls_resumed,
    /// Connections closed because TLS was broken, not finished in time or not served.
    tls_refused,
    /// Connections closed because their request for a WebSocket was not granted.
    upgrades_refused,
    /// Connections closed because their client broke a rule of WebSocket.
    websocket_violations,
    /// Batches pushed to other shards.
    mesh_batches,
    /// Times a ring to another shard was full.
    mesh_full,
    /// Times that another shard slept and was woken for a batch or for room in a ring.
    mesh_wakes,
}
