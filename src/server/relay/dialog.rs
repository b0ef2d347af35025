//! Questions in the terminal of a session channel: a target's, before it lets the user in, and the
//! bastion's for a fresh code.
//!
//! Always holds: it is said who asks, so that nobody gives a target what is for the bastion; what is
//! typed ahead of a question's answer stays for what comes after it.

use tokio::time::timeout;
use zeroize::Zeroizing;

use super::bridge::Piece;
use super::session::Carried;
use super::target_auth::Questions;
use crate::console::dialog::{Line, Next};

/// The longest answer to a target's question.
const MAX_LINE: usize = 1024;

impl Carried<'_> {
    /// Asks the user in the terminal of this channel.
    pub(super) async fn ask(
        &self,
        questions: &Questions,
    ) -> Result<Vec<Zeroizing<String>>, String> {
        let gone = |_| "you left".to_owned();
        let out = &self.user.out;
        if self.setup.terminal.is_none() {
            let name = self.relay.name();
            return Err(format!("{name} asks for something: connect with a terminal (ssh -t)"));
        }
        // Not the bastion: nobody shall give it the password of the bastion.
        let who = format!("{} asks:\r\n", self.relay.name());
        out.data_bytes(who).await.map_err(gone)?;
        if !questions.instruction.is_empty() {
            let text = questions.instruction.replace('\n', "\r\n");
            out.data_bytes(format!("{text}\r\n")).await.map_err(gone)?;
        }
        let mut answers = Vec::new();
        for (prompt, echo) in &questions.prompts {
            out.data_bytes(prompt.replace('\n', "\r\n")).await.map_err(gone)?;
            let typed = timeout(super::target::ANSWER, self.read_line(*echo)).await;
            answers.push(typed.map_err(|_| "nobody answered".to_owned())??);
            out.data_bytes("\r\n").await.map_err(gone)?;
        }
        Ok(answers)
    }

    /// What the user types up to Enter, shown only if `echo`.
    pub(super) async fn read_line(&self, echo: bool) -> Result<Zeroizing<String>, String> {
        let left = || "you left".to_owned();
        let mut line = Line::new(MAX_LINE, echo);
        loop {
            let Piece::Data(data) = self.uplink.next().await else { return Err(left()) };
            let (mut shown, mut used, mut next) = (Vec::new(), 0, Next::More);
            for byte in data.iter().copied() {
                used += 1;
                next = line.push(byte, &mut shown);
                if next != Next::More {
                    break;
                }
            }
            self.uplink.done(used);
            self.uplink.give_back(data.slice(used..));
            if !shown.is_empty() {
                self.user.out.data_bytes(shown).await.map_err(|_| left())?;
            }
            match next {
                Next::More => {}
                Next::Whole => return Ok(line.text()),
                Next::GivenUp => return Err(left()),
            }
        }
    }
}
