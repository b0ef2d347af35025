//! QR codes as plain text: half blocks or ASCII, without a single escape sequence, because that is
//! all that OpenSSH lets through in a keyboard-interactive prompt.
//!
//! Always holds: every line has the same width, and the quiet zone is part of the picture.

use qr2term::matrix::Matrix;
use qr2term::render::{Color, QrDark, QrLight};
use qrcode::{EcLevel, QrCode};

/// Modules of margin. The standard asks for four; two are enough for every app tried, and four
/// rows of a terminal with 24 are better used for the text around the picture.
const QUIET_ZONE: usize = 2;

/// How a picture is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Light modules are drawn: right on a dark terminal.
    HalfBlocks,
    /// Dark modules are drawn: right on a light terminal.
    Inverted,
    /// `##` for a light module: for terminals and fonts without block characters. It takes more rows
    /// than a terminal of 24 has, and less margin, for the sake of 80 columns.
    Ascii,
}

/// Draws `text`. The project's QR crate makes the matrix; its error correction level M would take
/// the picture past 24 rows, so the code comes from the crate under it, at level L. On a screen
/// nothing is smudged.
///
/// # Errors
/// When `text` is longer than a QR code can hold.
pub fn render(text: &str, style: Style) -> Result<String, qr2term::QrError> {
    let code = QrCode::with_error_correction_level(text.as_bytes(), EcLevel::L)?;
    let mut matrix = Matrix::new(code.to_colors());
    let margin = if style == Style::Ascii { 1 } else { QUIET_ZONE };
    matrix.surround(margin, QrLight);
    let rows: Vec<&[Color]> = matrix.pixels().chunks(matrix.size()).collect();
    Ok(match style {
        Style::Ascii => rows.iter().map(|row| ascii(row)).collect::<Vec<_>>().join("\n"),
        Style::HalfBlocks => half_blocks(&rows, QrLight),
        Style::Inverted => half_blocks(&rows, QrDark),
    })
}

fn ascii(row: &[Color]) -> String {
    row.iter().map(|module| if *module == QrLight { "##" } else { "  " }).collect()
}

/// Two rows of modules a line; modules of colour `drawn` are filled.
fn half_blocks(rows: &[&[Color]], drawn: Color) -> String {
    let line = |pair: &[&[Color]]| -> String {
        let (Some(upper), lower) = (pair.first(), pair.get(1)) else { return String::new() };
        let block = |(i, up): (usize, &Color)| {
            // Below the last row of an odd number there is only more margin.
            let down = lower.and_then(|row| row.get(i)).copied().unwrap_or(QrLight);
            match (*up == drawn, down == drawn) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            }
        };
        upper.iter().enumerate().map(block).collect()
    };
    rows.chunks(2).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    /// Puts `text` on a terminal's screen, takes the picture off it again and decodes it.
    pub(in crate::auth) fn decode_from_screen(text: &str, rows: u16, cols: u16) -> Option<String> {
        let mut terminal = vt100::Parser::new(rows, cols, 0);
        terminal.process(text.replace('\n', "\r\n").as_bytes());
        let screen = terminal.screen();
        let cell =
            |row, col| screen.cell(row, col).map(|c| c.contents().to_owned()).unwrap_or_default();
        // Both polarities are tried, as apps do.
        [false, true].into_iter().find_map(|inverted| {
            let mut picture =
                GrayImage::from_pixel(u32::from(cols) * 4, u32::from(rows) * 8, Luma([0]));
            for row in 0..rows {
                for col in 0..cols {
                    let (up, down) = match cell(row, col).as_str() {
                        "█" | "#" => (true, true),
                        "▀" => (true, false),
                        "▄" => (false, true),
                        _ => (false, false),
                    };
                    for (half, lit) in [(0, up), (1, down)] {
                        let shade = if lit == inverted { 0 } else { 255 };
                        for (x, y) in (0..16).map(|i| (i % 4, i / 4)) {
                            let (px, py) =
                                (u32::from(col) * 4 + x, u32::from(row) * 8 + half * 4 + y);
                            picture.put_pixel(px, py, Luma([shade]));
                        }
                    }
                }
            }
            let mut prepared = rqrr::PreparedImage::prepare(picture);
            prepared
                .detect_grids()
                .first()
                .and_then(|grid| grid.decode().ok())
                .map(|(_, text)| text)
        })
    }

    #[test]
    fn every_style_decodes_from_a_screen() {
        let uri = "otpauth://totp/Sallyport:alice?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Sallyport";
        for style in [Style::HalfBlocks, Style::Inverted, Style::Ascii] {
            let picture = render(uri, style).unwrap();
            assert!(!picture.chars().any(|c| c.is_control() && c != '\n'));
            assert_eq!(decode_from_screen(&picture, 60, 80).as_deref(), Some(uri), "{style:?}");
        }
        let long = format!("{uri}{}", "x".repeat(120));
        assert_eq!(
            decode_from_screen(&render(&long, Style::HalfBlocks).unwrap(), 60, 132),
            Some(long)
        );
    }
}
