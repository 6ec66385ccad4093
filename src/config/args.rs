//! The flags of `fanfare serve`. Values are checked where the file's and the environment's
//! are, so that all three get the same messages.

use std::path::PathBuf;

use super::ConfigError;
use super::load::{ENV_CONFIG, Layers, Loaded, load};

macro_rules! serve_args {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Flags of `fanfare serve`.
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct ServeArgs {
            /// Configuration file, TOML [env: FANFARE_CONFIG]
            #[arg(long, value_name = "FILE")]
            config: Option<PathBuf>,
            $($(#[$meta])* #[arg(long)] $name: Option<String>,)*
            /// Allow an address beyond loopback although there are no keys
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
                  value_name = "BOOL")]
            insecure_no_auth: Option<String>,
            /// Any key of the configuration, as in the file; may be repeated
            #[arg(long, value_name = "KEY=VALUE")]
            set: Vec<String>,
            /// Take over from the server that runs on the data directory: it drains, hands over
            /// its sockets and ends. An ordinary start if there is none
            #[arg(long)]
            pub takeover: bool,
            /// Print the effective configuration as TOML and exit
            #[arg(long)]
            pub print_config: bool,
        }

        impl ServeArgs {
            fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
                [$((stringify!($name), &self.$name),)* ("insecure_no_auth", &self.insecure_no_auth)]
                    .into_iter()
                    .filter_map(|(name, value)| value.as_ref().map(|value| (name, value)))
            }
        }
    };
}

serve_args! {
    /// Address to listen on [default: 127.0.0.1:7400]
    #[arg(value_name = "ADDRESS")]
    listen,
    /// Where the logs are [default: ./fanfare-data]
    #[arg(value_name = "DIR")]
    data_dir,
    /// Number of shards [default: one per core]
    #[arg(value_name = "COUNT")]
    shards,
    /// Cores for the shards, such as 0,1 [default: all]
    #[arg(value_name = "LIST")]
    cores,
    /// What is logged, such as info or info,fanfare::shard=debug [default: info]
    #[arg(value_name = "FILTER")]
    log,
    /// A line of figures this often, such as 1s [default: off]
    #[arg(value_name = "TIME")]
    stats_interval,
    /// Address of the HTTP interface for operators, such as 127.0.0.1:7411 [default: off]
    #[arg(value_name = "ADDRESS")]
    http,
    /// File with the token that it asks for
    #[arg(value_name = "FILE")]
    http_token_file,
    /// File with the keys of tokens: JWKS, PEM or a secret; nobody is served without a token then
    #[arg(value_name = "FILE")]
    auth_keys,
    /// Tokens must be for this audience
    #[arg(value_name = "TEXT")]
    auth_audience,
    /// Tokens must be from this issuer
    #[arg(value_name = "TEXT")]
    auth_issuer,
    /// Level of a publish that asks for none: durable or memory [default: durable]
    #[arg(value_name = "LEVEL")]
    level,
    /// Clients say something this often; 0 switches heartbeats off [default: 30000]
    #[arg(value_name = "MS")]
    heartbeat_ms,
    /// HELLO must have come by then [default: 10000]
    #[arg(value_name = "MS")]
    handshake_timeout_ms,
    /// A write without progress for this long ends the connection [default: 10000]
    #[arg(value_name = "MS")]
    stall_timeout_ms,
    /// How long a stopping server waits for its clients [default: 2000]
    #[arg(value_name = "MS")]
    drain_grace_ms,
    /// Connections per shard [default: 100000, or what the limit of open files allows]
    #[arg(value_name = "COUNT")]
    connections_max,
    /// Longest payload [default: 65536]
    #[arg(value_name = "BYTES")]
    payload_max,
    /// Newest messages kept in memory, per shard [default: 67108864]
    #[arg(value_name = "BYTES")]
    tail_bytes_max,
    /// Older messages held by unfinished writes, per shard [default: 67108864]
    #[arg(value_name = "BYTES")]
    pinned_bytes_max,
    /// SO_SNDBUF of member sockets [default: 262144]
    #[arg(value_name = "BYTES")]
    socket_send_buffer,
    /// Size of a log file [default: 33554432]
    #[arg(value_name = "BYTES")]
    segment_bytes,
    /// Log kept per shard [default: 1073741824]
    #[arg(value_name = "BYTES")]
    retention_bytes,
    /// Log files older than this go; 0 keeps them [default: 0]
    #[arg(value_name = "MS")]
    retention_age_ms,
}

impl ServeArgs {
    /// Reads the file, puts everything together and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load(&self, env: Vec<(String, String)>) -> Result<Loaded, ConfigError> {
        let from_env = || env.iter().find(|(name, _)| name == ENV_CONFIG).map(|(_, v)| v.into());
        let file = match self.config.clone().or_else(from_env) {
            None => None,
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => Some((path, text)),
                Err(source) => return Err(ConfigError::Read { path, source }),
            },
        };
        let mut flags = Vec::new();
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or(ConfigError::Set(pair.clone()))?;
            flags.push((key.trim().to_owned(), value.to_owned()));
        }
        flags.extend(self.named().map(|(name, value)| (name.to_owned(), value.clone())));
        load(&Layers { file, env, flags })
    }
}
