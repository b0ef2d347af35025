//! Writes what is shown, and of that only what has changed, as the sequences every terminal knows.
//!
//! Always holds: every sequence is one of the few written out here (ECMA-48: CUP, ED, SGR with the
//! eight colours; DEC private modes 25 and 1049); a character that a terminal could act on is
//! shown as `?`; a cell's place never depends on how wide the terminal thinks the one before is.

use std::convert::Infallible;
use std::io::Write as _;

use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use ratatui_core::terminal::{Frame, Terminal};

use crate::domain::is_unsafe;

/// To the alternate screen, without a cursor, and empties it.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[0m\x1b[2J";
/// Back. Emptied before, for those that have only one screen.
const LEAVE: &[u8] = b"\x1b[0m\x1b[2J\x1b[H\x1b[?25h\x1b[?1049l";
const CLEAR: &[u8] = b"\x1b[0m\x1b[2J";

/// A terminal on which something is shown.
#[derive(Debug, Clone)]
pub(super) struct Screen(Terminal<Ansi>);

impl Screen {
    /// The terminal, on which nothing is shown yet.
    pub(super) fn new(size: Size) -> Self {
        let backend = Ansi {
            out: ENTER.to_vec(),
            size,
            pen: Pen::default(),
            at: None,
            cursor: None,
            wanted: None,
        };
        let Ok(terminal) = Terminal::new(backend);
        Self(terminal)
    }

    /// What brings the terminal from what was painted last to what `paint` paints.
    pub(super) fn draw(&mut self, size: Size, paint: impl FnOnce(&mut Frame<'_>)) -> Vec<u8> {
        self.0.backend_mut().size = size;
        let Ok(_) = self.0.draw(paint);
        std::mem::take(&mut self.0.backend_mut().out)
    }

    /// Makes the next drawing a whole one.
    pub(super) fn forget(&mut self) {
        let Ok(()) = self.0.clear();
    }

    /// What brings back the screen from before.
    pub(super) fn leave(self) -> Vec<u8> {
        LEAVE.to_vec()
    }
}

/// How characters are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pen {
    colour: Color,
    modifier: Modifier,
}

/// The sequences, and what the terminal is like after them.
#[derive(Debug, Clone)]
struct Ansi {
    out: Vec<u8>,
    size: Size,
    pen: Pen,
    /// Where the next character is drawn, if that is sure.
    at: Option<Position>,
    /// Where the cursor is shown, if it is.
    cursor: Option<Position>,
    /// Where it is to be shown.
    wanted: Option<Position>,
}

impl Ansi {
    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a Vec cannot fail.
        self.out.write_fmt(arguments).unwrap_or_default();
    }

    fn go(&mut self, to: Position) {
        if self.at != Some(to) {
            self.write(format_args!("\x1b[{};{}H", to.y.saturating_add(1), to.x.saturating_add(1)));
            self.at = Some(to);
        }
    }

    fn take(&mut self, pen: Pen) {
        if self.pen == pen {
            return;
        }
        self.out.extend_from_slice(b"\x1b[0");
        for (modifier, code) in [
            (Modifier::BOLD, &b";1"[..]),
            (Modifier::UNDERLINED, b";4"),
            (Modifier::REVERSED, b";7"),
        ] {
            if pen.modifier.contains(modifier) {
                self.out.extend_from_slice(code);
            }
        }
        let colour = match pen.colour {
            Color::Black => Some(30),
            Color::Red => Some(31),
            Color::Green => Some(32),
            Color::Yellow => Some(33),
            Color::Blue => Some(34),
            Color::Magenta => Some(35),
            Color::Cyan => Some(36),
            Color::Gray => Some(37),
            _ => None,
        };
        if let Some(colour) = colour {
            self.write(format_args!(";{colour}"));
        }
        self.out.push(b'm');
        self.pen = pen;
    }

    fn hide(&mut self) {
        if self.cursor.take().is_some() {
            self.out.extend_from_slice(b"\x1b[?25l");
        }
    }
}

impl Backend for Ansi {
    type Error = Infallible;

    fn draw<'a, I>(&mut self, content: I) -> Result<(), Infallible>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        for (x, y, cell) in content {
            self.hide(); // It would be seen jumping about.
            self.go(Position { x, y });
            self.take(Pen { colour: cell.fg, modifier: cell.modifier });
            let symbol = match cell.symbol() {
                symbol if symbol.is_empty() || symbol.chars().any(is_unsafe) => "?",
                symbol => symbol,
            };
            self.out.extend_from_slice(symbol.as_bytes());
            // Terminals do not agree on widths, nor on where they are after the last column.
            let sure = symbol.len() == 1 && x.saturating_add(1) < self.size.width;
            self.at = sure.then(|| Position { x: x.saturating_add(1), y });
        }
        self.take(Pen::default());
        Ok(())
    }

    fn hide_cursor(&mut self) -> Result<(), Infallible> {
        self.wanted = None;
        Ok(())
    }

    fn show_cursor(&mut self) -> Result<(), Infallible> {
        Ok(()) // Its position follows.
    }

    fn get_cursor_position(&mut self) -> Result<Position, Infallible> {
        Ok(self.wanted.unwrap_or_default())
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> Result<(), Infallible> {
        self.wanted = Some(position.into());
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Infallible> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, _: ClearType) -> Result<(), Infallible> {
        // Only ever asked for all of it: nothing else is shown.
        if !self.out.ends_with(CLEAR) {
            self.hide();
            self.out.extend_from_slice(CLEAR);
        }
        self.pen = Pen::default();
        self.at = None;
        Ok(())
    }

    fn size(&self) -> Result<Size, Infallible> {
        Ok(self.size)
    }

    fn window_size(&mut self) -> Result<WindowSize, Infallible> {
        Ok(WindowSize { columns_rows: self.size, pixels: Size::ZERO })
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        if self.cursor == self.wanted {
            return Ok(());
        }
        match self.wanted {
            None => self.hide(),
            Some(position) => {
                self.go(position);
                if self.cursor.is_none() {
                    self.out.extend_from_slice(b"\x1b[?25h");
                }
                self.cursor = self.wanted;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui_core::style::Style;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_what_changed_is_written() {
        let size = Size::new(10, 3);
        let mut screen = Screen::new(size);
        let paint = |line: &'static str| {
            move |frame: &mut Frame<'_>| {
                frame.buffer_mut().set_string(0, 1, line, Style::new().fg(Color::Yellow).bold());
                frame.set_cursor_position((2, 0));
            }
        };
        assert_eq!(
            text(screen.draw(size, paint("abc"))),
            "\x1b[?1049h\x1b[?25l\x1b[0m\x1b[2J\x1b[2;1H\x1b[0;1;33mabc\x1b[0m\x1b[1;3H\x1b[?25h"
        );
        assert_eq!(text(screen.draw(size, paint("abc"))), "");
        assert_eq!(
            text(screen.draw(size, paint("axc"))),
            "\x1b[?25l\x1b[2;2H\x1b[0;1;33mx\x1b[0m\x1b[1;3H\x1b[?25h"
        );
        screen.forget();
        assert_eq!(
            text(screen.draw(size, paint("axc"))),
            "\x1b[?25l\x1b[0m\x1b[2J\x1b[2;1H\x1b[0;1;33maxc\x1b[0m\x1b[1;3H\x1b[?25h"
        );
        // A smaller terminal is painted anew; without a place for the cursor it is hidden.
        let written = text(screen.draw(Size::new(3, 1), |_| {}));
        assert_eq!(written, "\x1b[?25l\x1b[0m\x1b[2J");
        assert_eq!(text(screen.leave()), "\x1b[0m\x1b[2J\x1b[H\x1b[?25h\x1b[?1049l");
    }

    #[test]
    fn no_cell_is_a_control_character_or_a_colour_of_many() {
        let size = Size::new(4, 1);
        let mut screen = Screen::new(size);
        screen.draw(size, |_| {});
        let written = text(screen.draw(size, |frame| {
            let buffer = frame.buffer_mut();
            buffer[(0, 0)].set_symbol("\x1b\u{301}").set_fg(Color::Rgb(1, 2, 3));
            buffer[(1, 0)].set_char('\u{9b}').set_fg(Color::Indexed(200));
            buffer[(2, 0)].set_char('\u{202e}');
            buffer[(3, 0)].set_char('\u{e9}');
        }));
        assert_eq!(written, "\x1b[1;1H\x1b[0m?\x1b[0m?\x1b[0m?\u{e9}");
    }
}
