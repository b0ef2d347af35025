//! Questions and answers over a session channel: on a terminal, or as lines of standard input.
//!
//! Always holds: a secret is never shown while it is typed. On a terminal the client sends every key as
//! it is (its own is in raw mode), so that showing, deleting and giving up are done here; without one,
//! lines come as they are, questions go to standard error and only what was asked for goes to standard
//! output.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use secrecy::SecretString;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// How long somebody may think about one answer.
const ANSWER: Duration = Duration::from_secs(600);
/// The longest answer, in bytes; what is longer is cut. A public key is the longest there is.
const MAX_ANSWER: usize = 16 * 1024;

const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;
const ESCAPE: u8 = 27;
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CTRL_U: u8 = 21;

/// What somebody types, as it comes; it ends with their input.
pub type Typed = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// There is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The user gave up, by Ctrl-C or Ctrl-D.
    #[error("given up")]
    GivenUp,
    /// The input ended.
    #[error("the input ended before everything was answered")]
    Ended,
    /// Nobody answered in time.
    #[error("nobody answered within {} minutes", ANSWER.as_secs() / 60)]
    TooLate,
}

/// What a byte of a line led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The line goes on.
    More,
    /// The line is whole.
    Whole,
    /// Its writer gave up.
    GivenUp,
}

/// A line while it is typed on a terminal in raw mode.
#[derive(Debug)]
pub struct Line {
    text: Zeroizing<Vec<u8>>,
    most: usize,
    echo: bool,
    /// How far into an escape sequence of a key without a letter (ECMA-48) it is.
    escape: Escape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Inside,
}

impl Line {
    /// An empty line of at most `most` bytes, shown while it is typed if `echo`.
    pub fn new(most: usize, echo: bool) -> Self {
        // Growing would leave copies behind.
        let text = Zeroizing::new(Vec::with_capacity(most));
        Self { text, most, echo, escape: Escape::None }
    }

    /// Takes a byte in; `shown` gets what the terminal is to show for it.
    pub fn push(&mut self, byte: u8, shown: &mut Vec<u8>) -> Next {
        match (self.escape, byte) {
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Inside,
            (Escape::Inside, 0x40..=0x7e) => self.escape = Escape::None,
            (Escape::Inside, 0x20..=0x3f) => {}
            (_, b'\r' | b'\n') => return Next::Whole,
            (_, CTRL_C) => return Next::GivenUp,
            (_, CTRL_D) if self.text.is_empty() => return Next::GivenUp,
            (_, ESCAPE) => self.escape = Escape::Begun,
            (_, BACKSPACE | DELETE) => self.delete(shown),
            (_, CTRL_U) => {
                while !self.text.is_empty() {
                    self.delete(shown);
                }
            }
            (_, byte) => {
                self.escape = Escape::None;
                if byte >= b' ' && self.text.len() < self.most {
                    self.text.push(byte);
                    if self.echo {
                        shown.push(byte);
                    }
                }
            }
        }
        Next::More
    }

    /// Deletes the last character, of however many bytes.
    fn delete(&mut self, shown: &mut Vec<u8>) {
        let mut deleted = None;
        while let Some(byte) = self.text.pop() {
            deleted = Some(byte);
            if byte & 0xc0 != 0x80 {
                break;
            }
        }
        if self.echo && deleted.is_some() {
            shown.extend_from_slice(b"\x08 \x08");
        }
    }

    /// What was typed.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(String::from_utf8_lossy(&self.text).into_owned())
    }
}

/// Somebody at the other end of a session channel who is asked things.
pub struct Dialog<'a> {
    typed: Typed,
    /// What came and belongs to the next answer.
    rest: Bytes,
    terminal: bool,
    /// Whether the last line ended with a carriage return: a line feed after it is part of it.
    returned: bool,
    out: &'a mut (dyn AsyncWrite + Unpin + Send),
    err: &'a mut (dyn AsyncWrite + Unpin + Send),
}

impl std::fmt::Debug for Dialog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialog").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl<'a> Dialog<'a> {
    /// A dialog with whoever types `typed`, on a terminal or not.
    pub fn new(
        typed: Typed,
        terminal: bool,
        out: &'a mut (dyn AsyncWrite + Unpin + Send),
        err: &'a mut (dyn AsyncWrite + Unpin + Send),
    ) -> Self {
        Self { typed, rest: Bytes::new(), terminal, returned: false, out, err }
    }

    /// Whether there is a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// Standard output, for a result.
    pub fn out(&mut self) -> &mut (dyn AsyncWrite + Unpin + Send) {
        self.out
    }

    /// Says something that is no result, in lines of its own.
    ///
    /// # Errors
    /// When nobody takes it.
    pub async fn say(&mut self, text: &str) -> std::io::Result<()> {
        self.show(&format!("{text}\n")).await
    }

    async fn show(&mut self, text: &str) -> std::io::Result<()> {
        let to = if self.terminal { &mut *self.out } else { &mut *self.err };
        to.write_all(text.as_bytes()).await?;
        to.flush().await
    }

    /// Asks for one line; on a terminal it is shown as it is typed only if `echo`.
    ///
    /// # Errors
    /// [`NoAnswer`], or that nobody takes the question.
    pub async fn ask(&mut self, prompt: &str, echo: bool) -> anyhow::Result<SecretString> {
        self.show(prompt).await?;
        let line = tokio::time::timeout(ANSWER, self.line(echo)).await;
        let line = line.unwrap_or_else(|_| Err(NoAnswer::TooLate.into()));
        self.show("\n").await?;
        Ok(SecretString::from(line?.as_str()))
    }

    /// Reads a line that nobody is asked for.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn read(&mut self) -> anyhow::Result<SecretString> {
        let line = tokio::time::timeout(ANSWER, self.line(false)).await;
        let line = line.unwrap_or_else(|_| Err(NoAnswer::TooLate.into()));
        Ok(SecretString::from(line?.as_str()))
    }

    /// Takes `text` as if it had been typed next.
    pub fn answer(&mut self, text: &str) {
        self.rest = [text.as_bytes(), b"\n", &self.rest].concat().into();
    }

    async fn line(&mut self, echo: bool) -> anyhow::Result<Zeroizing<String>> {
        let mut line = Line::new(MAX_ANSWER, echo);
        let mut begun = false;
        loop {
            if self.rest.is_empty() {
                self.rest = match self.typed.next().await {
                    Some(piece) => piece,
                    // The last line of a file may have no end.
                    None if begun && !self.terminal => return Ok(line.text()),
                    None => return Err(NoAnswer::Ended.into()),
                };
            }
            let piece = std::mem::take(&mut self.rest);
            let mut shown = Vec::new();
            let mut next = Next::More;
            let mut used = 0;
            for byte in piece.iter().copied() {
                used += 1;
                let after_return = std::mem::replace(&mut self.returned, byte == b'\r');
                if after_return && byte == b'\n' {
                    continue;
                }
                begun = true;
                next = match (self.terminal, byte) {
                    (true, _) => line.push(byte, &mut shown),
                    // What is no terminal has no keys to delete or give up with.
                    (false, b'\r' | b'\n' | b' '..) => line.push(byte, &mut Vec::new()),
                    (false, _) => Next::More,
                };
                if next != Next::More {
                    break;
                }
            }
            self.rest = piece.slice(used..);
            if self.terminal && !shown.is_empty() {
                self.out.write_all(&shown).await?;
                self.out.flush().await?;
            }
            match next {
                Next::More => {}
                Next::Whole => return Ok(line.text()),
                Next::GivenUp => return Err(NoAnswer::GivenUp.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    /// The answers to `questions` questions, what was shown, and what went to standard error.
    async fn answers(
        pieces: &[&'static [u8]],
        terminal: bool,
        echo: bool,
        questions: usize,
    ) -> (Vec<Result<String, NoAnswer>>, String, String) {
        let typed: Vec<Bytes> = pieces.iter().map(|piece| Bytes::from_static(piece)).collect();
        let typed = Box::pin(futures_util::stream::iter(typed));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut dialog = Dialog::new(typed, terminal, &mut out, &mut err);
        let mut answers = Vec::new();
        for _ in 0..questions {
            let answer = dialog.ask("? ", echo).await;
            answers.push(match answer {
                Ok(text) => Ok(text.expose_secret().to_owned()),
                Err(error) => Err(*error.downcast_ref::<NoAnswer>().unwrap()),
            });
        }
        (answers, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn a_terminal_edits_and_shows() {
        let typed: &[&[u8]] = &[b"ab\x7f", "cü\x08d\x1b[A\x1bOPe\r".as_bytes(), b"\nx\x15yz\r"];
        let (answers, out, err) = answers(typed, true, true, 2).await;
        assert_eq!(answers, [Ok("acde".to_owned()), Ok("yz".to_owned())]);
        assert_eq!(out, "? ab\x08 \x08cü\x08 \x08de\n? x\x08 \x08yz\n");
        assert_eq!(err, "");
    }

    #[tokio::test]
    async fn secrets_are_not_shown() {
        let (answers, out, _) = answers(&[b"sec\x7fret\r"], true, false, 1).await;
        assert_eq!((answers, out.as_str()), (vec![Ok("seret".to_owned())], "? \n"));
    }

    #[tokio::test]
    async fn lines_come_as_they_are_and_questions_go_beside() {
        let (answers, out, err) = answers(&[b"a\r\nb\n", b"", b"\ncd"], false, true, 5).await;
        let right = ["a", "b", "", "cd"].map(|line| Ok(line.to_owned()));
        assert_eq!((&answers[..4], &answers[4]), (&right[..], &Err(NoAnswer::Ended)));
        assert_eq!((out.as_str(), err.as_str()), ("", "? \n".repeat(5).as_str()));
    }

    #[tokio::test]
    async fn giving_up_and_leaving_are_no_answers() {
        for (typed, terminal, no) in [
            (&b"12\x03"[..], true, NoAnswer::GivenUp),
            (b"\x04", true, NoAnswer::GivenUp),
            (b"12", true, NoAnswer::Ended),
            (b"", false, NoAnswer::Ended),
        ] {
            assert_eq!(answers(&[typed], terminal, true, 1).await.0, [Err(no)], "{typed:?}");
        }
        // Ctrl-D in a line is no end of it, and no part of it.
        assert_eq!(answers(&[b"1\x042\r"], true, true, 1).await.0, [Ok("12".to_owned())]);
    }

    proptest! {
        #[test]
        fn a_line_is_bounded_and_shows_what_it_holds(typed in any::<Vec<u8>>()) {
            let mut line = Line::new(8, true);
            let mut shown = Vec::new();
            for byte in typed {
                if line.push(byte, &mut shown) != Next::More {
                    break;
                }
            }
            prop_assert!(line.text.len() <= 8);
            prop_assert!(line.text.iter().all(|byte| *byte >= b' '));
            prop_assert!(shown.iter().all(|byte| *byte >= b' ' || *byte == 8));
        }
    }
}
