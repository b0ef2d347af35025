//! Where a verb's output goes: standard output, or a session's channel.

use std::io::{self, Write};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Output that is put together in memory and sent on in pieces, so that a long list neither fills
/// the memory nor outruns a slow reader: verbs call [`Out::send`] between pieces.
pub struct Out<'a> {
    buffer: Vec<u8>,
    terminal: bool,
    sink: &'a mut (dyn AsyncWrite + Unpin + Send),
}

impl std::fmt::Debug for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl<'a> Out<'a> {
    /// Output that goes to `sink`.
    pub fn new(sink: &'a mut (dyn AsyncWrite + Unpin + Send)) -> Self {
        Self { buffer: Vec::new(), terminal: false, sink }
    }

    /// The same output, which goes to a terminal if `terminal` says so.
    pub fn on_terminal(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }

    /// Whether it goes to a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The sink behind it, after what was not sent is dropped.
    pub fn into_sink(self) -> &'a mut (dyn AsyncWrite + Unpin + Send) {
        self.sink
    }

    /// The sink itself, for what must not wait in memory; send first what was written.
    pub fn sink(&mut self) -> &mut (dyn AsyncWrite + Unpin + Send) {
        self.sink
    }

    /// Sends on what was written so far.
    ///
    /// # Errors
    /// When nobody takes it.
    pub async fn send(&mut self) -> io::Result<()> {
        let sent = async {
            self.sink.write_all(&self.buffer).await?;
            self.sink.flush().await
        };
        let sent = sent.await;
        self.buffer.clear();
        // A reader that leaves early, as `head` does, is told from other faults by its marker.
        sent.map_err(super::output::mark)
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
