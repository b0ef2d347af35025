//! Plays a recording in a plain terminal, in its own time, and obeys a few keys.
//!
//! Always holds: unless raw output was asked for, only what the [`Sanitizer`] let through is
//! written; whatever was played, and however playing ends, the terminal is left in its usual state
//! (as long as it takes output). What takes long (reading, going back) blocks no asynchronous task.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::asciicast::{self, Event, Kind, Reader};
use super::screen::Screen;
use super::terminal::Sanitizer;

/// How far the arrow keys go.
const SEEK: Duration = Duration::from_secs(5);
/// The slowest and the fastest that is played.
const SPEEDS: (f64, f64) = (0.0625, 64.0);
/// How much is read ahead.
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_EVENTS: usize = 1024;
/// Empties the screen before a picture is painted on it.
const CLEAR: &[u8] = b"\x1b[1;1H\x1b[2J";

/// How a recording is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlayOptions {
    /// How many times as fast as it happened; from 1/16 to 64.
    pub speed: f64,
    /// The longest time, of the recording's, that nothing happens for.
    pub idle_cap: Option<Duration>,
    /// Where in the recording to begin.
    pub from: Duration,
    /// Whether to write everything as it was recorded, safe or not.
    pub raw: bool,
    /// Whether it goes to a terminal, which is put back afterwards as it was.
    pub terminal: bool,
}

impl Default for PlayOptions {
    fn default() -> Self {
        Self { speed: 1.0, idle_cap: None, from: Duration::ZERO, raw: false, terminal: true }
    }
}

/// What whoever watches asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Stands still, or goes on.
    Pause,
    /// Shows one more event; only while it stands still.
    Step,
    /// Goes back five seconds.
    Back,
    /// Goes on five seconds further.
    Forward,
    /// Plays twice as fast.
    Faster,
    /// Plays half as fast.
    Slower,
    /// Ends.
    Quit,
}

impl Key {
    /// The keys in what a terminal in raw mode sent at once: space, `.`, the left and right
    /// arrows, `+`, `-`, and `q` or Ctrl-C; others are passed over.
    pub fn parse(sent: &[u8]) -> Vec<Self> {
        let (mut keys, mut rest) = (Vec::new(), sent);
        loop {
            let key = match rest {
                [] => return keys,
                [0x1B, b'[' | b'O', b'C', ..] => Some(Self::Forward),
                [0x1B, b'[' | b'O', b'D', ..] => Some(Self::Back),
                [b' ', ..] => Some(Self::Pause),
                [b'.', ..] => Some(Self::Step),
                [b'+' | b'=', ..] => Some(Self::Faster),
                [b'-' | b'_', ..] => Some(Self::Slower),
                [b'q' | b'Q' | 0x03, ..] => Some(Self::Quit),
                _ => None,
            };
            let length = match rest {
                [0x1B, b'[' | b'O', ..] => rest.len().min(3),
                _ => 1,
            };
            keys.extend(key);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// How playing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything was shown.
    Finished {
        /// Whether the recording is cut off there.
        truncated: bool,
    },
    /// Whoever watched had enough.
    Quit,
}

/// Why playing stopped early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recording cannot be read.
    #[error(transparent)]
    Recording(#[from] asciicast::Error),
    /// The terminal takes no more.
    #[error("the recording cannot be shown: {0}")]
    Output(io::Error),
}

/// Plays what `reader` reads to `out`, a terminal in raw mode, whose keys come from `keys`.
///
/// # Errors
/// When the recording is damaged, after what comes before, or `out` takes no more.
pub async fn play(
    reader: Reader,
    options: PlayOptions,
    keys: impl Stream<Item = Key> + Unpin,
    out: impl AsyncWrite + Unpin,
) -> Result<Ended, Error> {
    let mut player = Player {
        tape: Some(Box::new(Tape::new(reader)?)),
        keys: Some(keys),
        screen: Output {
            out,
            sanitizer: Sanitizer::new(),
            raw: options.raw,
            terminal: options.terminal,
        },
        speed: options.speed.clamp(SPEEDS.0, SPEEDS.1),
        idle_cap: options.idle_cap.unwrap_or(Duration::MAX),
        paused: false,
        next: None,
        at: Duration::ZERO,
        left: Duration::ZERO,
        since: Instant::now(),
    };
    let ended = player.run(options.from).await;
    let restored = player.screen.restore().await;
    let ended = ended?;
    restored.map_err(Error::Output)?;
    Ok(ended)
}

/// What a player waited for.
enum Woken {
    /// The time of the next event.
    Due,
    Key(Key),
    /// No more keys will come.
    Alone,
}

struct Player<K, W> {
    /// Away only while something that takes long is done with it.
    tape: Option<Box<Tape>>,
    keys: Option<K>,
    screen: Output<W>,
    speed: f64,
    idle_cap: Duration,
    paused: bool,
    next: Option<Event>,
    /// How far the recording is played, at `since`.
    at: Duration,
    /// How much of the recording's time is left until the next event, at `since`.
    left: Duration,
    since: Instant,
}

impl<K: Stream<Item = Key> + Unpin, W: AsyncWrite + Unpin> Player<K, W> {
    async fn run(&mut self, from: Duration) -> Result<Ended, Error> {
        if from > Duration::ZERO {
            self.seek(from).await?;
        }
        loop {
            if self.next.is_none() && !self.load().await? {
                let truncated = self.tape.as_ref().is_some_and(|tape| tape.reader.truncated());
                return Ok(Ended::Finished { truncated });
            }
            match self.wait().await {
                Woken::Due => self.show().await?,
                Woken::Key(Key::Quit) => return Ok(Ended::Quit),
                Woken::Key(key) => self.press(key).await?,
                Woken::Alone if self.paused => return Ok(Ended::Quit),
                Woken::Alone => self.keys = None,
            }
        }
    }

    /// Takes the next event from the tape; says whether there is one.
    async fn load(&mut self) -> Result<bool, Error> {
        self.next = self.tape.as_mut().and_then(|tape| tape.ready.pop_front());
        if self.next.is_none() {
            self.next = self.with_tape(|tape| tape.fill()).await?;
        }
        if let Some(event) = &self.next {
            self.left = event.time.saturating_sub(self.at).min(self.idle_cap);
        }
        Ok(self.next.is_some())
    }

    async fn wait(&mut self) -> Woken {
        let due = self.since.checked_add(scaled(self.left, 1.0 / self.speed));
        let keys = &mut self.keys;
        let key = async {
            match keys {
                Some(keys) => keys.next().await.map_or(Woken::Alone, Woken::Key),
                None => std::future::pending().await,
            }
        };
        let paused = self.paused;
        let time = async {
            match due {
                Some(due) if !paused => tokio::time::sleep_until(due).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            woken = key => woken,
            () = time => Woken::Due,
        }
    }

    /// Shows the next event. The one after it is timed from when this one was due, so that small
    /// delays do not add up.
    async fn show(&mut self) -> Result<(), Error> {
        let Some(event) = self.next.take() else { return Ok(()) };
        let due = self.since.checked_add(scaled(self.left, 1.0 / self.speed));
        self.since = if self.paused { Instant::now() } else { due.unwrap_or(self.since) };
        self.at = event.time;
        if let Kind::Output(text) = &event.kind {
            self.screen.write(text.as_bytes()).await?;
        }
        if let Some(tape) = &mut self.tape {
            tape.shown(&event);
        }
        Ok(())
    }

    async fn press(&mut self, key: Key) -> Result<(), Error> {
        self.catch_up();
        match key {
            Key::Pause => self.paused = !self.paused,
            Key::Step if self.paused => return self.show().await,
            Key::Back => return self.seek(self.at.saturating_sub(SEEK)).await,
            Key::Forward => return self.seek(self.at.saturating_add(SEEK)).await,
            Key::Faster => self.speed = (self.speed * 2.0).min(SPEEDS.1),
            Key::Slower => self.speed = (self.speed / 2.0).max(SPEEDS.0),
            Key::Step | Key::Quit => {}
        }
        Ok(())
    }

    /// Counts the time that went by since `since`.
    fn catch_up(&mut self) {
        let now = Instant::now();
        if !self.paused {
            let played = scaled(now.saturating_duration_since(self.since), self.speed);
            let played = played.min(self.left);
            self.left -= played;
            self.at = self.at.saturating_add(played);
        }
        self.since = now;
    }

    /// Goes to `target` and paints the screen of then.
    async fn seek(&mut self, target: Duration) -> Result<(), Error> {
        if let (Some(event), Some(tape)) = (self.next.take(), &mut self.tape) {
            tape.ready.push_front(event);
        }
        let frame = self.with_tape(move |tape| tape.seek(target)).await?;
        self.screen.restore().await.map_err(Error::Output)?;
        self.screen.paint(&frame).await?;
        (self.at, self.since) = (target, Instant::now());
        Ok(())
    }

    /// Does what takes long on a thread of its own.
    async fn with_tape<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Tape) -> Result<T, asciicast::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let gone = || Error::Recording(io::Error::other("reading it did not finish").into());
        let mut tape = self.tape.take().ok_or_else(gone)?;
        let working = tokio::task::spawn_blocking(move || {
            let result = work(&mut tape);
            (tape, result)
        });
        let (tape, result) = working.await.map_err(|_| gone())?;
        self.tape = Some(tape);
        Ok(result?)
    }
}

/// `time` multiplied by `factor`.
fn scaled(time: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// The recording, and the screen as it is after what was shown of it.
struct Tape {
    reader: Reader,
    screen: Screen,
    /// The time of the last event that was shown.
    shown: Duration,
    /// Events that were read and not shown.
    ready: VecDeque<Event>,
    /// What ends the recording after those.
    damage: Option<asciicast::Error>,
}

impl Tape {
    fn new(reader: Reader) -> Result<Self, asciicast::Error> {
        let screen = Screen::new(reader.header())?;
        let (shown, ready) = (Duration::ZERO, VecDeque::new());
        Ok(Self { reader, screen, shown, ready, damage: None })
    }

    /// Reads some events ahead, and gives the first.
    fn fill(&mut self) -> Result<Option<Event>, asciicast::Error> {
        if let Some(damage) = self.damage.take() {
            return Err(damage);
        }
        let mut bytes = 0;
        while bytes < BATCH_BYTES && self.ready.len() < BATCH_EVENTS {
            match self.reader.next_event() {
                Ok(Some(event)) => {
                    if let Kind::Output(text) = &event.kind {
                        bytes += text.len();
                    }
                    self.ready.push_back(event);
                }
                Ok(None) => break,
                // What was read before is shown first.
                Err(error) if self.ready.is_empty() => return Err(error),
                Err(error) => {
                    self.damage = Some(error);
                    break;
                }
            }
        }
        Ok(self.ready.pop_front())
    }

    fn shown(&mut self, event: &Event) {
        self.shown = event.time;
        match &event.kind {
            Kind::Output(text) => self.screen.feed(text),
            Kind::Resize { columns, rows } => self.screen.resize_with(*columns, *rows, ()),
            Kind::Input(_) | Kind::Marker(_) => {}
        }
    }

    /// Goes to `target`, from the beginning if it lies behind, and gives what paints its screen.
    fn seek(&mut self, target: Duration) -> Result<String, asciicast::Error> {
        if target < self.shown {
            self.reader.rewind()?;
            self.screen = Screen::new(self.reader.header())?;
            self.shown = Duration::ZERO;
            self.ready.clear();
            self.damage = None;
        }
        while let Some(event) = self.fill_one()? {
            if event.time > target {
                self.ready.push_front(event);
                break;
            }
            self.shown(&event);
        }
        Ok(self.screen.frame())
    }

    fn fill_one(&mut self) -> Result<Option<Event>, asciicast::Error> {
        match self.ready.pop_front() {
            None => self.fill(),
            event => Ok(event),
        }
    }
}

/// The terminal of whoever watches.
struct Output<W> {
    out: W,
    sanitizer: Sanitizer,
    raw: bool,
    terminal: bool,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut safe = Vec::with_capacity(bytes.len());
        // Raw output too goes through here, to know what has to be restored after it.
        self.sanitizer.push(bytes, &mut safe);
        let bytes = if self.raw { bytes } else { &safe };
        self.out.write_all(bytes).await.map_err(Error::Output)?;
        self.out.flush().await.map_err(Error::Output)
    }

    /// Paints a picture in place of what is shown.
    async fn paint(&mut self, frame: &str) -> Result<(), Error> {
        self.sanitizer = Sanitizer::new();
        self.write(&[CLEAR, frame.as_bytes()].concat()).await
    }

    async fn restore(&mut self) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.out.write_all(&self.sanitizer.restore()).await?;
        self.out.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use super::super::asciicast::tests::{header, outputs};
    use super::*;
    use bytes::Bytes;

    /// A terminal that notes when what was written to it.
    #[derive(Clone)]
    struct Watched {
        began: Instant,
        written: Arc<Mutex<Vec<(u128, String)>>>,
    }

    impl AsyncWrite for Watched {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            self.written.lock().unwrap().push((self.began.elapsed().as_millis(), text));
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Keys that come at these milliseconds; none after them, for ever.
    fn pressed(keys: &[(u64, Key)]) -> Pin<Box<dyn Stream<Item = Key>>> {
        let began = Instant::now();
        let keys: VecDeque<_> = keys.iter().copied().collect();
        let keys = futures_util::stream::unfold(keys, move |mut keys| async move {
            match keys.pop_front() {
                Some((ms, key)) => {
                    tokio::time::sleep_until(began + Duration::from_millis(ms)).await;
                    Some((key, keys))
                }
                None => std::future::pending().await,
            }
        });
        Box::pin(keys)
    }

    /// What was written when, without the restoring at the end, and how it ended.
    async fn played(
        cast: Bytes,
        options: PlayOptions,
        keys: &[(u64, Key)],
    ) -> (Vec<(u128, String)>, Ended) {
        let out = Watched { began: Instant::now(), written: Arc::default() };
        let reader = Reader::from_bytes(cast).unwrap();
        let ended = play(reader, options, pressed(keys), out.clone()).await.unwrap();
        let mut written = out.written.lock().unwrap().clone();
        let (_, restored) = written.pop().unwrap();
        assert!(restored.starts_with("\x1b[0m") && restored.contains("\x1b[?25h"), "{restored:?}");
        (written, ended)
    }

    async fn shown(options: PlayOptions, keys: &[(u64, Key)]) -> String {
        let cast = outputs(&[(1000, "a"), (2000, "b"), (12_000, "c"), (12_500, "d")]);
        let (written, ended) = played(cast, options, keys).await;
        let shown: Vec<_> = written.iter().map(|(at, text)| format!("{at}{text}")).collect();
        let end = if ended == Ended::Quit { " quit" } else { "" };
        shown.join(" ") + end
    }

    #[tokio::test(start_paused = true)]
    async fn events_come_in_their_time() {
        let at = |speed, idle_cap| PlayOptions { speed, idle_cap, ..PlayOptions::default() };
        let capped = Some(Duration::from_secs(2));
        for (options, expected) in [
            (at(1.0, None), "1000a 2000b 12000c 12500d"),
            (at(2.0, None), "500a 1000b 6000c 6250d"),
            (at(1.0, capped), "1000a 2000b 4000c 4500d"),
            (at(2.0, capped), "500a 1000b 2000c 2250d"),
        ] {
            assert_eq!(shown(options, &[]).await, expected, "{options:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_obeyed() {
        use Key::{Faster, Pause, Quit, Slower, Step};
        for (keys, expected) in [
            (&[(1500, Pause), (5000, Pause)][..], "1000a 5500b 15500c 16000d"),
            (
                &[(1500, Pause), (3000, Step), (3100, Step), (4000, Pause)],
                "1000a 3000b 3100c 4500d",
            ),
            (&[(1500, Step)], "1000a 2000b 12000c 12500d"),
            (&[(3000, Faster), (4000, Faster)], "1000a 2000b 5750c 5875d"),
            (&[(1500, Slower)], "1000a 2500b 22500c 23500d"),
            (&[(1500, Quit)], "1000a quit"),
            (&[(1500, Pause), (9000, Quit)], "1000a quit"),
        ] {
            assert_eq!(shown(PlayOptions::default(), keys).await, expected, "{keys:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_keys_it_plays_on() {
        let out = Watched { began: Instant::now(), written: Arc::default() };
        let reader = Reader::from_bytes(outputs(&[(10, "a")])).unwrap();
        let options = PlayOptions::default();
        let ended =
            play(reader, options, futures_util::stream::empty(), out.clone()).await.unwrap();
        assert_eq!(ended, Ended::Finished { truncated: false });
        assert_eq!(out.written.lock().unwrap()[0], (10, "a".to_owned()));
    }

    /// The screen after all that was written up to a time.
    fn screen_at(written: &[(u128, String)], ms: u128) -> String {
        let mut screen = Screen::new(&header()).unwrap();
        written.iter().filter(|(at, _)| *at <= ms).for_each(|(_, text)| screen.feed(text));
        screen.terminal().screen().text().join("|").trim_end_matches('|').to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn seeking_paints_the_screen_of_then_and_goes_on_from_there() {
        let cast = outputs(&[
            (0, "one\r\n"),
            (3000, "\x1b[?1049h\x1b[2;2Hvim\x1b]0;title\x07"),
            (8000, "\x1b[?1049ltwo \x1b["),
            (9000, "1mbold"),
            (20_000, "\r\nthree"),
        ]);
        // At 8.5 s back to 3.5 s; at 9 s (4 s) on to 9 s, the middle of a sequence being at 8 s;
        // at 10 s (10 s) back to 5 s, and on twice to 15 s.
        let keys = [
            (8500, Key::Back),
            (9000, Key::Forward),
            (10_000, Key::Back),
            (10_100, Key::Forward),
            (10_200, Key::Forward),
        ];
        let (written, _) = played(cast, PlayOptions::default(), &keys).await;
        for (ms, screen) in [
            (2999, "one"),
            (3000, "| vim"),
            (8400, "one|two"),
            (8500, "| vim"),
            (9000, "one|two bold"),
            (10_000, "| vim"),
            (10_200, "one|two bold"),
            (14_000, "one|two bold"),
            (15_000, "one|two bold|three"),
        ] {
            assert_eq!(screen_at(&written, ms), screen, "at {ms} ms");
        }
        assert_eq!(written.last().unwrap().0, 15_000 - 4000 + 4000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sequence_that_was_begun_before_a_seek_goes_on_after_it() {
        let cast = outputs(&[(0, "a\x1b["), (7000, "1mb"), (7001, "c")]);
        let (written, _) = played(cast, PlayOptions::default(), &[(1000, Key::Forward)]).await;
        assert_eq!(screen_at(&written, 60_000), "abc");
        assert!(written.contains(&(2000, "\x1b[1mb".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn playing_can_begin_anywhere() {
        let cast = outputs(&[(0, "one"), (5000, " two"), (6000, " three")]);
        let from = Duration::from_millis(5500);
        let options = PlayOptions { from, ..PlayOptions::default() };
        let (written, _) = played(cast.clone(), options, &[]).await;
        assert_eq!(screen_at(&written, 0), "one two");
        assert_eq!(written.last().unwrap(), &(500, " three".to_owned()));
        // Past its end there is its last picture.
        let options = PlayOptions { from: Duration::from_secs(60), ..options };
        let (written, _) = played(cast, options, &[]).await;
        assert_eq!(screen_at(&written, 0), "one two three");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_gets_what_was_recorded_and_nothing_else() {
        let cast = outputs(&[(0, "plain\r\n"), (5, "text\r\n")]);
        let options = PlayOptions { terminal: false, ..PlayOptions::default() };
        let out = Watched { began: Instant::now(), written: Arc::default() };
        let reader = Reader::from_bytes(cast).unwrap();
        play(reader, options, pressed(&[]), out.clone()).await.unwrap();
        let written = out.written.lock().unwrap().clone();
        let written: String = written.into_iter().map(|(_, text)| text).collect();
        assert_eq!(written, "plain\r\ntext\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn only_raw_output_is_not_sanitised() {
        let cast = outputs(&[(0, "a\x1b]52;c;eA==\x07\x1b[?1049hb\x1b[6n")]);
        for (raw, expected) in
            [(false, "a\x1b[?1049hb"), (true, "a\x1b]52;c;eA==\x07\x1b[?1049hb\x1b[6n")]
        {
            let out = Watched { began: Instant::now(), written: Arc::default() };
            let reader = Reader::from_bytes(cast.clone()).unwrap();
            let options = PlayOptions { raw, ..PlayOptions::default() };
            play(reader, options, pressed(&[]), out.clone()).await.unwrap();
            let written = out.written.lock().unwrap();
            assert_eq!(written[0].1, expected);
            assert!(written[1].1.ends_with("\x1b[?1049l"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn damage_is_told_after_what_comes_before_and_the_terminal_restored() {
        let bytes = [&outputs(&[(0, "a")])[..], b"bad\n[1,\"o\",\"\"]\n"].concat();
        let out = Watched { began: Instant::now(), written: Arc::default() };
        let reader = Reader::from_bytes(bytes.into()).unwrap();
        let error = play(reader, PlayOptions::default(), pressed(&[]), out.clone()).await;
        assert!(matches!(error, Err(Error::Recording(asciicast::Error::BadLine(3)))));
        let written = out.written.lock().unwrap().clone();
        assert_eq!((written.len(), written[0].1.as_str()), (2, "a"));
        let cut = [&outputs(&[(0, "a")])[..], b"[1,\"o"].concat();
        let (_, ended) = played(cut.into(), PlayOptions::default(), &[]).await;
        assert_eq!(ended, Ended::Finished { truncated: true });
    }

    #[test]
    fn playing_can_move_between_threads() {
        fn moves<T: Send>(_: T) {}
        let reader = Reader::from_bytes(outputs(&[])).unwrap();
        let keys = futures_util::stream::empty();
        moves(play(reader, PlayOptions::default(), keys, tokio::io::sink()));
    }

    #[test]
    fn keys_are_read_from_what_a_terminal_sends() {
        use Key::{Back, Faster, Forward, Pause, Quit, Slower, Step};
        for (sent, keys) in [
            (&b" .+=-q\x03"[..], &[Pause, Step, Faster, Faster, Slower, Quit, Quit][..]),
            (b"\x1b[C\x1b[D\x1bOC\x1bOD", &[Forward, Back, Forward, Back]),
            (b"\x1b[A\x1b", &[]),
            (b"\x1b[ x", &[]),
            (b"", &[]),
        ] {
            assert_eq!(Key::parse(sent), keys, "{sent:?}");
        }
    }
}
