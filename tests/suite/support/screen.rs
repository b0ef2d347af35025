//! A program on a terminal of 80 columns and 24 rows, and what its screen shows.

use std::process::Stdio;
use std::time::Duration;

use image::{GrayImage, Luma};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{PATIENCE, command};

pub struct Screen {
    terminal: vt100::Parser,
    /// What came since the last match.
    fresh: String,
    input: ChildStdin,
    output: ChildStdout,
    child: Child,
    /// Where the name of its terminal is written.
    tty: tempfile::NamedTempFile,
}

impl Screen {
    /// Runs `program` on a terminal, through `script`, which makes one.
    pub fn run(program: &Command) -> Self {
        let program = program.as_std();
        let quoted =
            |s: &std::ffi::OsStr| format!("'{}'", s.to_str().unwrap().replace('\'', r"'\''"));
        let words = std::iter::once(program.get_program()).chain(program.get_args()).map(quoted);
        let line = words.collect::<Vec<_>>().join(" ");
        let tty = tempfile::NamedTempFile::new().unwrap();
        let line = format!("tty > {}; stty rows 24 cols 80; exec {line}", tty.path().display());
        let mut child = command("/usr/bin/script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let terminal = vt100::Parser::new(24, 80, 0);
        Self { terminal, fresh: String::new(), input, output, child, tty }
    }

    /// Makes the terminal another size, which its program is told by a signal.
    pub async fn resize(&mut self, rows: u16, columns: u16) {
        let tty = std::fs::read_to_string(self.tty.path()).unwrap();
        self.terminal.screen_mut().set_size(rows, columns);
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let mut stty = command("/bin/stty");
        stty.args(["-F", tty.trim(), "rows", &rows, "cols", &columns]);
        assert!(super::ended(&mut stty.spawn().unwrap()).await.success());
    }

    /// Waits until the program takes every key as it is, ^C too.
    pub async fn raw(&self) {
        super::eventually("the terminal is raw", async || {
            let tty = std::fs::read_to_string(self.tty.path()).unwrap();
            let stty = command("/bin/stty").args(["-F", tty.trim(), "-a"]).output().await.unwrap();
            String::from_utf8_lossy(&stty.stdout).contains("-isig").then_some(())
        })
        .await;
    }

    /// Waits until `text` is printed, after what was waited for before.
    pub async fn expect(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.fresh.find(text) {
                self.fresh.drain(..at + text.len());
                return;
            }
            let read = tokio::time::timeout(PATIENCE, self.output.read(&mut buffer)).await;
            let read = match read {
                Ok(Ok(read)) if read > 0 => read,
                other => panic!("{text:?} did not come ({other:?}); the screen:\n{}", self.text()),
            };
            self.terminal.process(&buffer[..read]);
            self.fresh.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    /// Waits until the screen shows `text`, or no longer shows it.
    pub async fn until(&mut self, text: &str, shown: bool) {
        let what = format!("{text:?}, {shown}");
        self.becomes(&what, |screen| screen.contents().contains(text) == shown).await;
    }

    /// Waits until something is drawn on this row, the first of which is 0.
    pub async fn reaches(&mut self, row: u16) {
        let drawn = |screen: &vt100::Screen| screen.rows(0, 80).nth(row.into());
        let what = format!("row {row}");
        self.becomes(&what, |screen| drawn(screen).is_some_and(|row| !row.trim().is_empty())).await;
    }

    async fn becomes(&mut self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) {
        let mut buffer = [0; 4096];
        while !is_so(self.terminal.screen()) {
            let read = tokio::time::timeout(PATIENCE, self.output.read(&mut buffer)).await;
            let read = match read {
                Ok(Ok(read)) if read > 0 => read,
                other => panic!("{what}: not so ({other:?}); the screen:\n{}", self.text()),
            };
            self.terminal.process(&buffer[..read]);
        }
        self.fresh.clear();
    }

    /// Waits until the screen shows `text`.
    pub async fn shows(&mut self, text: &str) {
        self.until(text, true).await;
    }

    /// Presses keys, as what a terminal sends for them.
    pub async fn press(&mut self, keys: &str) {
        self.input.write_all(keys.as_bytes()).await.unwrap();
    }

    /// Whether the program has the screen to itself, beside the one with what came before.
    pub fn alternate(&self) -> bool {
        self.terminal.screen().alternate_screen()
    }

    /// Waits until nothing more comes for a moment: the picture is whole.
    pub async fn settle(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(Ok(read)) =
            tokio::time::timeout(Duration::from_millis(300), self.output.read(&mut buffer)).await
        {
            if read == 0 {
                return;
            }
            self.terminal.process(&buffer[..read]);
            self.fresh.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    pub async fn type_line(&mut self, text: &str) {
        self.input.write_all(format!("{text}\r").as_bytes()).await.unwrap();
    }

    pub fn text(&self) -> String {
        self.terminal.screen().contents()
    }

    /// Waits for the program's end.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let code = self.ended().await;
        (code, self.text())
    }

    /// Waits for the program's end; the screen stays.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.output.read_to_end(&mut rest)).await;
        read.expect("the program did not end").unwrap();
        self.terminal.process(&rest);
        super::ended(&mut self.child).await.code()
    }

    /// Decodes the QR code on the screen, in either polarity.
    pub fn qr(&self) -> Option<String> {
        let screen = self.terminal.screen();
        let cell = |row: u16, col: u16| {
            screen.cell(row, col).map(|c| c.contents().to_owned()).unwrap_or_default()
        };
        [false, true].into_iter().find_map(|inverted| {
            let mut picture = GrayImage::new(80 * 4, 24 * 8);
            for (x, y, pixel) in picture.enumerate_pixels_mut() {
                let (row, col) = (u16::try_from(y / 8).unwrap(), u16::try_from(x / 4).unwrap());
                let lit = match cell(row, col).as_str() {
                    "█" => true,
                    "▀" => y % 8 < 4,
                    "▄" => y % 8 >= 4,
                    _ => false,
                };
                *pixel = Luma([if lit == inverted { 0 } else { 255 }]);
            }
            let mut prepared = rqrr::PreparedImage::prepare(picture);
            let grids = prepared.detect_grids();
            grids.first().and_then(|grid| grid.decode().ok()).map(|(_, text)| text)
        })
    }
}
