//! What stands between a client and its socket: nothing, or TLS. No I/O.

use std::io;

use super::core::Core;
use super::options::Options;

/// Bytes of one connection on their way between a [`Core`] and a socket.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    #[cfg(feature = "tls")]
    tls: Option<super::tls::Session>,
}

impl Pipe {
    /// The pipe of a new connection.
    pub fn new(options: &Options) -> io::Result<Self> {
        #[cfg(feature = "tls")]
        {
            let tls = options.tls.as_ref().map(super::tls::Session::begin).transpose()?;
            Ok(Self { tls })
        }
        #[cfg(not(feature = "tls"))]
        {
            let _ = options;
            Ok(Self {})
        }
    }

    /// Whether nothing of the client can be sent yet, since a handshake is under way.
    pub fn is_opening(&self) -> bool {
        #[cfg(feature = "tls")]
        {
            self.tls.as_ref().is_some_and(super::tls::Session::is_opening)
        }
        #[cfg(not(feature = "tls"))]
        {
            false
        }
    }

    /// Bytes for the socket.
    pub fn output<'a>(&'a mut self, core: &'a mut Core) -> &'a [u8] {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.output(core);
        }
        core.output()
    }

    /// So many of them went.
    pub fn sent(&mut self, core: &mut Core, len: usize) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.sent(len);
        }
        core.sent(len);
    }

    /// Bytes of the socket.
    ///
    /// # Errors
    /// They are no TLS, or the server is not who it should be.
    pub fn receive(&mut self, core: &mut Core, bytes: &[u8]) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.receive(core, bytes);
        }
        core.receive(bytes);
        Ok(())
    }

    /// Nothing more is to be sent after what there is.
    pub fn end(&mut self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.end();
        }
    }
}
