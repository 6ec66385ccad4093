//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::encoding::Encoding;
use crate::plot::{Pages, PlotOptions};
use crate::priority::PriorityOptions;
use crate::several::compare::CompareOptions;
use crate::several::durability::DurabilityOptions;
use crate::several::repeat::RepeatOptions;
use crate::several::sweep::SweepOptions;
use crate::target::Target;

/// Publishes to a Fanfare server, verifies every delivery and records latency histograms.
///
/// Exit codes: 0 everything verified; 1 a message was lost, duplicated, reordered or damaged,
/// or a publish was not answered; 2 the run could not be made.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub task: Task,
}

/// What can be run.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// One run.
    #[command(flatten)]
    Run(Box<Workload>),
    /// Realtime groups alone and beside a bulk flood, in pairs, on a server of its own.
    Priority(Box<PriorityOptions>),
    /// The same run several times: median and range of each figure.
    Repeat(Box<RepeatOptions>),
    /// Two runs against each other, interleaved, beside one of them against itself.
    Compare(Box<CompareOptions>),
    /// Raise the rate until p99 passes a bound: the knee.
    Sweep(Box<SweepOptions>),
    /// Latency of the publisher's answer against offered rate and level.
    Durability(Box<DurabilityOptions>),
    /// Plot a result that was written with --json.
    Plot(Box<PlotOptions>),
}

/// The workloads.
#[derive(Debug, Subcommand)]
pub enum Workload {
    /// One group, many members.
    Fanout(Options),
    /// Many groups, members and publishers spread over them.
    Groups(GroupOptions),
    /// Join members and let them idle: join latency, memory per member, idle CPU.
    Connect(ConnectOptions),
    /// A long run over groups of very different sizes, with interval lines.
    Soak(GroupOptions),
    /// One group as with fanout, of which some members read slowly or not at all.
    Slow(SlowOptions),
    /// All members drop at once, come back at once, and get what they missed.
    Herd(HerdOptions),
    /// One group as with fanout, measured beside members that read history from disk.
    Catchup(CatchUpOptions),
    /// Lay down history and end.
    Fill(FillOptions),
}

impl Workload {
    /// Name as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fanout(_) => "fanout",
            Self::Groups(_) => "groups",
            Self::Connect(_) => "connect",
            Self::Soak(_) => "soak",
            Self::Slow(_) => "slow",
            Self::Herd(_) => "herd",
            Self::Catchup(_) => "catchup",
            Self::Fill(_) => "fill",
        }
    }

    /// Length of an interval.
    pub fn interval(&self) -> Duration {
        let usual = Duration::from_secs(if matches!(self, Self::Soak(_)) { 10 } else { 1 });
        self.options().interval.unwrap_or(usual)
    }

    /// The options that all workloads have.
    pub fn options(&self) -> &Options {
        match self {
            Self::Fanout(o) => o,
            Self::Connect(c) => &c.options,
            Self::Groups(g) | Self::Soak(g) => &g.options,
            Self::Slow(s) => &s.options,
            Self::Herd(h) => &h.options,
            Self::Catchup(c) => &c.options,
            Self::Fill(f) => &f.options,
        }
    }
}

/// Options of herd.
#[derive(Debug, Args)]
pub struct HerdOptions {
    #[command(flatten)]
    pub options: Options,
    /// When they drop, from the start of the measured time.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub drop_after: Duration,
    /// How long they stay away.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub away: Duration,
}

/// Options of slow.
#[derive(Debug, Args)]
pub struct SlowOptions {
    #[command(flatten)]
    pub options: Options,
    /// Share of the members that is slow.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=99))]
    pub slow_percent: u8,
    /// Bytes per second that each of them reads; 0: nothing.
    #[arg(long, default_value_t = 0)]
    pub slow_rate: u32,
}

impl SlowOptions {
    /// Members that are slow.
    pub fn slow(&self) -> u32 {
        let all = u64::from(self.options.members);
        (all * u64::from(self.slow_percent)).div_ceil(100) as u32
    }
}

/// Options of connect.
#[derive(Debug, Args)]
pub struct ConnectOptions {
    #[command(flatten)]
    pub options: Options,
    /// A storm: connect everybody as fast as it goes, not 128 of a thread at a time.
    #[arg(long, conflicts_with = "rate")]
    pub storm: bool,
}

/// Options of catchup.
#[derive(Debug, Args)]
pub struct CatchUpOptions {
    #[command(flatten)]
    pub options: Options,
    /// Members that read history, from its start to its end, over and over; 0 for a run to compare
    /// with.
    #[arg(long, default_value_t = 500)]
    pub readers: u32,
    /// History that is laid down first, in bytes of payload.
    #[arg(long, default_value = "256MiB", value_parser = parse_bytes)]
    pub history_bytes: u64,
    /// Groups of the history.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub history_groups: u32,
    /// Bytes of each message in it.
    #[arg(long, default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(12..=fanfare::limits::PAYLOAD_MAX as i64))]
    pub history_payload: u32,
}

/// Options of fill. The payload is at least 12 bytes long.
#[derive(Debug, Args)]
pub struct FillOptions {
    #[command(flatten)]
    pub options: Options,
    /// Bytes of payload in all, e.g. 100MiB, 1GiB.
    #[arg(long, value_parser = parse_bytes)]
    pub bytes: u64,
    /// Groups that they are spread over.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
}

/// Options of the workloads with several groups.
#[derive(Debug, Args)]
pub struct GroupOptions {
    #[command(flatten)]
    pub options: Options,
    /// Number of groups.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// Groups that each member joins.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub groups_per_member: u32,
    /// Sizes of the groups.
    #[arg(long, value_enum, default_value_t = SizeLaw::Even)]
    pub sizes: SizeLaw,
    /// Zipf: members of the smallest group.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub size_min: u32,
    /// Zipf: members of the largest group [default: 10000, or all members if they are fewer].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub size_max: Option<u32>,
    /// Zipf: who is in which group is drawn by this number.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How many members groups have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SizeLaw {
    /// All the same (soak: one large, the others the same).
    Even,
    /// As real rooms: few are large, most are small.
    Zipf,
}

/// Options of every workload.
#[derive(Debug, Args)]
pub struct Options {
    /// Members that read and verify.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    /// Publishers; each is a connection of its own that joins no group.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub publishers: u32,
    /// Extra members that read nothing from the first publish on. They are not verified and
    /// no broadcast waits for them.
    #[arg(long, default_value_t = 0)]
    pub stalled: u32,
    /// Bytes of each message.
    #[arg(long, default_value_t = 128, conflicts_with = "payload_file",
          value_parser = clap::value_parser!(u32).range(1..=fanfare::limits::PAYLOAD_MAX as i64))]
    pub payload: u32,
    /// Messages to publish, one a line, over and over.
    #[arg(long)]
    pub payload_file: Option<PathBuf>,
    /// Tokens for a server that takes nobody without one: lines of a member id and its token, as
    /// `fanfare token` prints them. Not for catchup and fill.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Closed loop: broadcasts in flight in each group; one is in flight until every member
    /// has it [default: 64 for fanout, 1 for groups].
    #[arg(long, conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub window: Option<u32>,
    /// Open loop: broadcasts per second over all groups, on a fixed schedule [default: 100
    /// for soak]. For connect: joins per second.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Open loop: publish nothing while a publisher has this many broadcasts of a group in flight.
    /// What was due meanwhile is sent late and measured from when it was due.
    #[arg(long, requires = "rate", value_parser = clap::value_parser!(u32).range(1..))]
    pub in_flight_max: Option<u32>,
    /// Measured time, e.g. 500ms, 5s, 2m, 1h [default: 5s, soak 1h].
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Time before that which is verified but not part of the figures.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// How long after the end a message may still arrive before it counts as lost.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub drain_timeout: Duration,
    /// Level to ask for [default: left to the server].
    #[arg(long, value_enum)]
    pub level: Option<LevelArg>,
    /// Members acknowledge what they have verified, as often as the server asks for.
    #[arg(long)]
    pub acks: bool,
    /// Members are durable; they acknowledge.
    #[arg(long)]
    pub durable: bool,
    /// Ask for a receipt of each message at this share of the durable members, in percent.
    #[arg(long, requires = "durable", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub receipts: Option<u8>,
    /// Fanout: this share of the members, in percent, is on another shard than the group's own one,
    /// the rest is on that one. Where connections come from is chosen for it.
    #[arg(long, conflicts_with = "target",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub foreign: Option<u8>,
    /// Give way to other processes on the same cores (SCHED_IDLE).
    #[arg(long)]
    pub background: bool,

    /// What the server is: the same load, clock and verification for each of them.
    #[arg(long, value_enum, default_value_t = Target::Fanfare)]
    pub target: Target,
    /// How frames go to a Fanfare server and come from it. With several, members and publishers take
    /// them in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "native", num_args = 1..)]
    pub encoding: Vec<Encoding>,
    /// Authorities, in PEM, of which one has signed the server's certificate; for encodings by TLS.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Name that the server's certificate must be for.
    #[arg(long, value_name = "NAME", default_value = "localhost", requires = "tls_ca")]
    pub tls_name: String,
    /// Quality of service of publishes and subscriptions, for --target mqtt [default: 0].
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: Option<u8>,
    /// The server.
    #[arg(long, default_value = "127.0.0.1:7400", conflicts_with = "spawn")]
    pub addr: SocketAddr,
    /// Process to take CPU time and memory from, when the server was not spawned.
    #[arg(long, conflicts_with = "spawn")]
    pub server_pid: Option<u32>,
    /// Start a server in a temporary directory, and stop it afterwards.
    #[arg(long)]
    pub spawn: bool,
    /// Shards of the spawned server.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Cores of the spawned server, e.g. 0 or 0,1.
    #[arg(long)]
    pub server_cores: Option<String>,
    /// Further argument for the spawned server; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// The server's binary [default: `fanfare` beside this one].
    #[arg(long)]
    pub server_bin: Option<PathBuf>,
    /// Where the spawned server's temporary data directory is made [default: the system's].
    #[arg(long)]
    pub server_data_parent: Option<PathBuf>,

    /// Threads; members are spread over them, publishers are on the first.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Cores for the threads [default: the last ones].
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Receive buffers of each thread, a power of two.
    #[arg(long, default_value_t = 64)]
    pub recv_buffers: u16,
    /// Bytes of each of them.
    #[arg(long, default_value_t = 64 * 1024)]
    pub recv_buffer_bytes: u32,

    /// Names of groups start with this [default: one made for the run].
    #[arg(long)]
    pub group_prefix: Option<String>,
    /// Write the results as JSON; `-` is standard output and silences the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub pages: Pages,
    /// Write percentile distributions to PREFIX.WHAT.hgrm, one for each latency.
    #[arg(long, value_name = "PREFIX")]
    pub hgrm: Option<PathBuf>,
    /// Write an HdrHistogram interval log.
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Length of an interval in it, in the run over time, and between the lines of soak [default:
    /// 1s, soak 10s].
    #[arg(long, value_parser = parse_duration)]
    pub interval: Option<Duration>,
}

/// Levels by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LevelArg {
    /// On disk before anyone sees it.
    Durable,
    /// Delivered at once.
    Memory,
}

impl From<LevelArg> for fanfare::position::Level {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Durable => Self::Durable,
            LevelArg::Memory => Self::Memory,
        }
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("unknown unit `{unit}`; use B, KiB, MiB or GiB, e.g. 1GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no size; use e.g. 1GiB"))?;
    match number.checked_mul(1 << shift) {
        Some(bytes @ 1..) => Ok(bytes),
        _ => Err(format!("`{text}` is out of range")),
    }
}

/// Reads a time with its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit `{unit}`; use us, ms, s, m or h, e.g. 5s")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no time; use e.g. 5s"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| format!("`{text}`: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1.5m").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("7").unwrap(), Duration::from_secs(7));
        assert!(parse_duration("5 parsecs").is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("1GiB").unwrap(), 1 << 30);
        assert_eq!(parse_bytes("17").unwrap(), 17);
        for bad in ["0", "1GB", "x", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
