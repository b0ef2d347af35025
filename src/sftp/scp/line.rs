//! The lines of the scp protocol, as OpenSSH's scp.c reads and writes them.

/// The longest line that is read.
const MAX_LINE: usize = 4096 + 64;

/// A line from the source.
pub(super) enum Control<'a> {
    Complaint { text: &'a [u8], fatal: bool },
    Times,
    File { size: u64, name: &'a [u8] },
    Enter { name: &'a [u8] },
    Leave,
}

impl<'a> Control<'a> {
    /// Reads a line, without its line break; none if it is no such line.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let (kind, rest) = line.split_first()?;
        match kind {
            1 | 2 => Some(Self::Complaint { text: rest, fatal: *kind == 2 }),
            b'T' => is_times(rest).then_some(Self::Times),
            b'C' => size_and_name(rest).map(|(size, name)| Self::File { size, name }),
            b'D' => size_and_name(rest).map(|(_, name)| Self::Enter { name }),
            b'E' => rest.is_empty().then_some(Self::Leave),
            _ => None,
        }
    }
}

/// What came of a line so far.
pub(super) enum Line {
    Begun,
    Complete(Vec<u8>),
    TooLong,
}

/// Moves bytes up to the next line break to `line`.
pub(super) fn take_line(line: &mut Vec<u8>, bytes: &mut &[u8]) -> Line {
    let end = bytes.iter().position(|b| *b == b'\n');
    let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
    *bytes = rest.get(1..).unwrap_or_default();
    if line.len() + part.len() > MAX_LINE {
        return Line::TooLong;
    }
    line.extend_from_slice(part);
    if end.is_some() { Line::Complete(std::mem::take(line)) } else { Line::Begun }
}

/// `1700000000 0 1700000000 0`: modification and access, each in seconds and microseconds.
fn is_times(times: &[u8]) -> bool {
    let number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    times.split(|b| *b == b' ').filter(|word| number(word)).count() == 4
        && times.iter().filter(|b| **b == b' ').count() == 3
}

/// `0644 1234 name`, after `C` or `D`.
fn size_and_name(rest: &[u8]) -> Option<(u64, &[u8])> {
    let mut parts = rest.splitn(3, |b| *b == b' ');
    let (mode, size, name) = (parts.next()?, parts.next()?, parts.next()?);
    let octal = mode.len() == 4 && mode.iter().all(|b| (b'0'..=b'7').contains(b));
    let digits = !size.is_empty() && size.iter().all(u8::is_ascii_digit);
    let size: i64 = std::str::from_utf8(size).ok()?.parse().ok()?;
    let size = u64::try_from(size).ok()?;
    (octal && digits && !name.is_empty() && !name.contains(&0)).then_some((size, name))
}
