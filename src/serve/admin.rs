//! The admin socket: a Unix socket in the data directory that says how the server is, as JSON.
//! One thread answers one question after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::ask::Asker;
use super::handover::{QUESTION, Successor};
use super::json::status_json;
use crate::shard::look::Look;

/// Name of the socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Longest question.
const QUESTION_MAX: u64 = 64;
/// How long whoever asks may take to ask, and to read the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// Before it accepts again after an error.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// The socket; its file and its thread go when this is dropped.
pub(super) struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl AdminSocket {
    /// Listens in `dir`, for the owner of the server alone.
    pub fn open(dir: &Path, asker: Asker) -> io::Result<Self> {
        let path = dir.join(ADMIN_SOCKET);
        // Under its own name it never has other rights than these. The lock of the data
        // directory says that nobody else uses what is there.
        let unnamed = dir.join("admin.sock.new");
        let _ = std::fs::remove_file(&unnamed);
        let listener = UnixListener::bind(&unnamed)?;
        std::fs::set_permissions(&unnamed, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&unnamed, &path)?;
        let clients = listener.try_clone()?;
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            for client in clients.incoming() {
                match client {
                    // A client that went away or is silent is its own affair.
                    Ok(client) => drop(answer(client, &asker)),
                    // It was shut down.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                    // The system is out of something.
                    Err(_) => std::thread::sleep(RETRY_TIME),
                }
            }
        })?;
        Ok(Self { path, listener })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn answer(mut client: UnixStream, asker: &Asker) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let mut question = String::new();
    BufReader::new((&client).take(QUESTION_MAX)).read_line(&mut question)?;
    let answer = match question.trim() {
        QUESTION => return Successor::meet(client, asker.0.clone()),
        "status" => status(asker),
        other => {
            json!({ "error": format!("unknown question {other:?}; ask for status or for {QUESTION:?}") })
        }
    };
    client.write_all(format!("{answer}\n").as_bytes())
}

fn status(asker: &Asker) -> Value {
    match asker.ask_blocking(Look::Status { slowest: true }, None) {
        Ok(answers) => status_json(answers),
        Err(error) => json!({ "error": error.to_string() }),
    }
}
