//! Every fixed bound of the engine, and how they relate. What an operator may change is in
//! [`crate::config`]; each value there is checked against these.

/// Longest member id, in bytes.
pub const MEMBER_ID_MAX: usize = 64;
/// Longest group name, in bytes.
pub const GROUP_NAME_MAX: usize = 128;
/// Longest key of a group's state, in bytes.
pub const STATE_KEY_MAX: usize = 128;
/// Longest payload of one message, in bytes.
pub const PAYLOAD_MAX: usize = 256 * 1024;
/// Longest frame a client may send, in bytes after the length field.
pub const FRAME_MAX: usize = PAYLOAD_MAX + 1024;
/// Longest token of an AUTH, in bytes.
pub const TOKEN_MAX: usize = 4096;
/// Longest AUTH, in bytes after the length field; what a connection without a token may send.
pub const AUTH_FRAME_MAX: usize = 4 + 8 + TOKEN_MAX;
/// Tokens whose signatures are checked in one turn, so that a storm of them does not stall a shard.
pub const TOKENS_PER_TURN: u32 = 2;
/// Most groups in one JOIN or LEAVE, and most entries in one ACK.
pub const FRAME_ENTRIES_MAX: usize = 256;
/// Classes of groups in a configuration.
pub const CLASSES_MAX: usize = 64;
/// Patterns of one class.
pub const CLASS_PATTERNS_MAX: usize = 256;
/// Shards of one node; bounded by the 12 bits a [`crate::position::Handle`] has for it.
pub const SHARDS_MAX: usize = 64;
/// Generations of logs: each change of the number of shards begins one.
pub const GENERATIONS_MAX: u16 = 1_000;
/// Most staged message bytes in one commit before sequencing waits.
pub const COMMIT_STAGED_MAX: usize = 1024 * 1024;
/// What realtime groups may have of it, if there are groups of several priorities.
pub const COMMIT_REALTIME_MAX: usize = COMMIT_STAGED_MAX / 4;
/// What normal groups may have of it then.
pub const COMMIT_NORMAL_MAX: usize = COMMIT_STAGED_MAX / 2;
/// What bulk groups may have of it while nothing of normal groups waits.
pub const COMMIT_BULK_MAX: usize = COMMIT_STAGED_MAX / 4;
/// What bulk groups may have of it beside normal ones: 1 to 8.
pub const COMMIT_BULK_BESIDE_NORMAL: usize = COMMIT_NORMAL_MAX / 8;
/// Largest commit on disk, in bytes: the staged bytes, one more message, its directory and
/// checksums.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Logical block of the log: every commit starts on one and no block is written twice.
pub const LOG_BLOCK: usize = 4096;
/// Sector of the log: the unit that a disk writes whole, and that has its own checksum.
pub const LOG_SECTOR: usize = 512;
/// Longest message of a WebSocket client, in bytes; it may carry several frames.
pub const WS_MESSAGE_MAX: u64 = 1024 * 1024;
/// Longest message that the WebSocket echo sends back, in bytes.
pub const WS_ECHO_MAX: u64 = 16 * 1024 * 1024;
/// What a compressed message may come to when it is decompressed: this many bytes, and so many for
/// each of its own. Before HELLO that is a bound; members' messages above it have a pace, since a few bytes
/// may cost a shard milliseconds.
pub const WS_INFLATED_MIN: u64 = 4096;
/// See [`WS_INFLATED_MIN`].
pub const WS_INFLATED_RATIO: u64 = 32;
/// That pace: after one of so many bytes a shard takes the next one this many ns later for each of them, so
/// that they have a fiftieth of its time.
pub const WS_INFLATED_NS_PER_BYTE: u64 = 100;
/// What it may come to, in bytes, on a connection that has not shown the token that is asked for:
/// HELLO, AUTH and first requests, and nothing that a stranger could keep a shard busy with.
pub const WS_INFLATED_UNKNOWN: u64 = 16 * 1024;
/// Smallest segment file.
pub const SEGMENT_BYTES_MIN: u64 = 2 * COMMIT_BYTES_MAX as u64;
/// Places that the log's reader keeps per producer and group to recognise a publish that is
/// sent again; the most that `publish_window` can ask for.
pub const PUBLISH_WINDOW_MAX: usize = 1024;
/// Producers per group that the log's reader keeps; those that published last.
pub const PRODUCERS_KEPT_MAX: usize = 64 * 1024;
/// Receipts asked for per group that the log's reader keeps; the newest.
pub const RECEIPTS_KEPT_MAX: usize = 64 * 1024;
/// Most bytes of records in one commit; further ones wait for the next.
pub const COMMIT_RECORDS_MAX: usize = 512 * 1024;
/// Most bytes of one record: fits a state value as long as a payload.
pub const RECORD_BYTES_MAX: usize = FRAME_MAX;
/// Most parts (iovecs) in one socket write.
pub const SEND_PARTS_MAX: usize = 64;
/// Socket writes started in one turn before the shard looks at its inputs again.
pub const SENDS_PER_TURN: usize = 64;
/// Entries in each ring between two shards.
pub const MESH_RING_ENTRIES: usize = 1024;
/// FETCH, SYNC, ROSTER_QUERY and SET_STATE under way on one connection.
pub const QUERIES_MAX: usize = 8;
/// Bytes of answers made in one turn before the shard looks at its other inputs again.
pub const QUERY_BYTES_PER_TURN: usize = 256 * 1024;
/// What a question counts against that beside the bytes of its answer.
pub const QUERY_COST: usize = 4 * 1024;
/// Bytes of history handed to members in a turn when nothing live waits: a live message that
/// comes meanwhile waits for about a slice of small writes.
pub const HISTORY_BYTES_PER_TURN: usize = 256 * 1024;
/// The same while live messages wait: what they lose, and what history keeps.
pub const HISTORY_BYTES_BESIDE_LIVE: usize = 16 * 1024;
/// What a write of history counts at least.
pub const HISTORY_WRITE_COST: usize = 4 * 1024;
/// A place of the log that could not be read so often is given up. What lies there may be sound,
/// and who is told of a hole never gets it: a disk that fails for a moment must not be enough.
pub const HISTORY_READ_TRIES: u32 = 5;
/// Bytes read from the log that wait for members; above these no more are read.
pub const HISTORY_READY_MAX: usize = 1024 * 1024;
/// Keys in the state of a group.
pub const STATE_KEYS_MAX: usize = 1024;
/// Deleted keys that the state of a group remembers, so that clients learn of deletions.
pub const STATE_TOMBSTONES_MAX: usize = 1024;
/// Newest changes of a group's roster that are kept for clients that know an older version.
pub const ROSTER_CHANGES_KEPT_MAX: usize = 1024;
/// Changes of a roster that one announcement names; more are counted.
pub const ROSTER_CHANGES_ANNOUNCED_MAX: usize = 128;
/// Newest changes that an announcement names when they are only counted.
pub const ROSTER_SAMPLE_MAX: usize = 16;
/// Places of a roster that are looked at for one page, and members that are looked at in one
/// turn for announcements.
pub const ROSTER_VISITS_MAX: usize = 4096;
/// Groups whose rosters are announced in one turn.
pub const ANNOUNCED_GROUPS_PER_TURN: usize = 64;
/// Bytes of announcements handed to members in one turn.
pub const ANNOUNCED_BYTES_PER_TURN: usize = 256 * 1024;
/// Bytes of a TLS handshake that a client may send before it has to go on: a hello is below
/// 2 KiB, a chain of client certificates some more.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// Plaintext of one write to a TLS connection, unless one segment alone is longer. What is
/// encrypted is of one connection alone, so this is what each may hold.
pub const TLS_WRITE_BYTES_MAX: usize = 64 * 1024;
/// Steps of TLS handshakes in one turn.
pub const TLS_STEPS_PER_TURN: usize = 1;
/// Largest file of certificates or keys.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Slots of the direct descriptor table that are not for members: the rest is there so that
/// a typed ERROR can be sent before a connection too many is closed.
pub const DESCRIPTORS_SPARE: usize = 64;

const _: () = {
    assert!(FRAME_MAX > PAYLOAD_MAX + GROUP_NAME_MAX + 64);
    assert!(COMMIT_BYTES_MAX > COMMIT_STAGED_MAX * 2 + FRAME_MAX);
    // Each share may be passed by one message, and still the others get in.
    assert!(COMMIT_REALTIME_MAX + COMMIT_BULK_BESIDE_NORMAL + 2 * FRAME_MAX < COMMIT_STAGED_MAX);
    assert!(
        COMMIT_BYTES_MAX
            > 2 * (COMMIT_STAGED_MAX + FRAME_MAX + COMMIT_RECORDS_MAX) + RECORD_BYTES_MAX
    );
    assert!(WS_MESSAGE_MAX >= (4 + FRAME_MAX) as u64);
    // A turn of history is no more writes than a slice has.
    assert!(HISTORY_BYTES_PER_TURN / HISTORY_WRITE_COST <= SENDS_PER_TURN);
    assert!(LOG_BLOCK.is_multiple_of(LOG_SECTOR));
    assert!(SEGMENT_BYTES_MIN.is_multiple_of(LOG_BLOCK as u64));
    assert!(CLASSES_MAX < u16::MAX as usize);
    assert!(SHARDS_MAX <= 1 << 12);
    assert!(GROUP_NAME_MAX <= u8::MAX as usize);
    assert!(STATE_KEY_MAX <= u8::MAX as usize);
    assert!(MEMBER_ID_MAX <= u8::MAX as usize);
};
