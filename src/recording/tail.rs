//! Reads a recording while it is still written.
//!
//! Always holds: only whole lines are taken; what is not there yet is asked for again later.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use super::asciicast::{self, Event, Header, Kind, MAX_LINE, parse_event};
use super::screen::Screen;

/// A recording that goes on.
pub struct Tail {
    input: BufReader<File>,
    line: Vec<u8>,
    header: Header,
}

impl Tail {
    /// Opens the recording at `path`, which must hold its header already.
    ///
    /// # Errors
    /// When it cannot be read, or is no recording that is still written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let input = BufReader::new(File::open(path)?);
        let mut tail = Self { input, line: Vec::new(), header: Header::default() };
        if !tail.read_line()? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the recording has no header"));
        }
        tail.header = serde_json::from_slice(&tail.line)?;
        tail.line.clear();
        Ok(tail)
    }

    /// What the first line says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads what is there, and gives what paints the screen as it is now. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn present(&mut self) -> io::Result<String> {
        let damaged = |error: asciicast::Error| io::Error::other(error.to_string());
        let mut screen = Screen::new(&self.header).map_err(damaged)?;
        while let Some(event) = self.next_event()? {
            match event.kind {
                Kind::Output(text) => screen.feed(&text),
                Kind::Resize { columns, rows } => screen.resize(columns, rows),
                Kind::Input(_) | Kind::Marker(_) => {}
            }
        }
        Ok(screen.frame())
    }

    /// The output that is there, until it is `most` bytes or a little more. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn output(&mut self, most: usize) -> io::Result<String> {
        let mut output = String::new();
        while output.len() < most
            && let Some(event) = self.next_event()?
        {
            if let Kind::Output(text) = event.kind {
                output.push_str(&text);
            }
        }
        Ok(output)
    }

    /// The next event, if it is there already.
    ///
    /// # Errors
    /// When the file cannot be read, or a line has no end.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        while self.read_line()? {
            let event = parse_event(&self.line);
            self.line.clear();
            if let Some(Ok(event)) = event {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Whether the line is whole; if not, what is there of it stays.
    fn read_line(&mut self) -> io::Result<bool> {
        self.input.read_until(b'\n', &mut self.line)?;
        if self.line.len() > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line has no end"));
        }
        Ok(self.line.last() == Some(&b'\n'))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    #[test]
    fn events_are_read_as_they_come_and_never_by_half() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"version":2,"width":80,"height":24}"#).unwrap();
        assert!(Tail::open(file.path()).is_err());
        file.write_all(b"\n[0.5,\"o\",\"hel").unwrap();
        let mut tail = Tail::open(file.path()).unwrap();
        assert_eq!((tail.header().width, tail.header().height), (80, 24));
        assert_eq!(tail.next_event().unwrap(), None);
        file.write_all(b"lo\"]\n[0.75,\"x\",\"?\"]\n[1,\"o\",\"!\"]\n").unwrap();
        let event = tail.next_event().unwrap().unwrap();
        assert_eq!(event.kind, Kind::Output("hello".into()));
        assert_eq!(event.time, Duration::from_millis(500));
        assert_eq!(tail.next_event().unwrap().unwrap().kind, Kind::Output("!".into()));
        assert_eq!(tail.next_event().unwrap(), None);
    }
}
