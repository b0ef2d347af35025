//! What to write in place of a value of the wrong type.
//!
//! Always holds: what is said is one line, names the key, and shows a value that would be taken.

use super::Config;
use super::names::{dotted, lookup};

/// What serde's words for types and texts mean to people.
const WORDS: [(&str, &str); 9] = [
    ("expected usize", "expected a whole number from 0 on"),
    ("expected u8", "expected a whole number from 0 to 255"),
    ("expected u16", "expected a whole number from 0 to 65535"),
    ("expected u32", "expected a whole number from 0 on"),
    ("expected u64", "expected a whole number from 0 on"),
    ("expected a sequence", "expected a list"),
    ("expected a boolean", "expected true or false"),
    ("invalid socket address syntax", "not an address of this host with a port"),
    ("invalid IP address syntax", "not a network"),
];

/// The fault `message` of the value of a key, with what would be right. `variable` is the environment
/// variable that it comes from, if not from a file.
pub(super) fn advise(section: &str, key: &str, message: &str, variable: Option<&str>) -> String {
    // A type of ours says so itself.
    if ["write it like", "use one of"].iter().any(|advice| message.contains(advice)) {
        return message.to_owned();
    }
    let name = dotted(section, key);
    let plain =
        WORDS.iter().fold(message.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours));
    let known = Config::default().table();
    let example = match (name.as_str(), lookup(&known, section, key)) {
        ("server.proxy_from" | "server.penalty_exempt", _) => r#"["10.0.0.0/8"]"#.to_owned(),
        (_, Some(toml::Value::Table(_)) | None) => {
            return format!("{name} is a section: its keys come below a line [{name}]");
        }
        (_, Some(toml::Value::String(text))) if text.is_empty() => r#""text""#.to_owned(),
        (_, Some(default)) => default.to_string(),
    };
    match variable {
        Some(variable) => format!("{plain}; write it like {variable}='{example}'"),
        None => format!("{name}: {plain}; write it like {key} = {example}"),
    }
}
