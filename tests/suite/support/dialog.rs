//! A program that tells each question as a line of JSON and takes each answer as a line.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{PATIENCE, ended};

pub struct Dialog {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Dialog {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    /// What it says next.
    async fn next(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.output.read_line(&mut line)).await;
        if read.expect("the program says nothing").unwrap() > 0 {
            return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        }
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        panic!("the program ended: {said}");
    }

    /// Waits for a question that ends like this.
    pub async fn asks(&mut self, end: &str) -> String {
        let said = self.next().await;
        let asked = said["asked"].as_str().unwrap_or_else(|| panic!("no question: {said}"));
        assert!(asked.ends_with(end), "{asked:?} does not end with {end:?}");
        asked.to_owned()
    }

    pub async fn answer(&mut self, text: &str) {
        self.input.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }

    /// Answers a question that ends like this.
    pub async fn answers(&mut self, end: &str, text: &str) {
        self.asks(end).await;
        self.answer(text).await;
    }

    /// Answers all questions alike until there are none, and what it says of the refusal then.
    pub async fn answers_until_refused(mut self, text: &str) -> String {
        loop {
            let said = self.next().await;
            match said["refused"].as_str() {
                Some(told) => return told.to_owned(),
                None => self.answer(text).await,
            }
        }
    }

    /// What the field of this name in its last line says.
    pub async fn ends_with(mut self, field: &str) -> String {
        let said = self.next().await;
        let text = said[field].as_str().unwrap_or_else(|| panic!("no {field}: {said}"));
        ended(&mut self.child).await;
        text.to_owned()
    }
}
