//! The names of sections and keys: finding them, and guessing which one was meant.

use crate::domain::printable;

/// The name of a key as rules and errors write it, such as `server.listen`.
pub(super) fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The value of a key; `section` is empty for keys above the first section.
pub(super) fn lookup<'a>(
    table: &'a toml::Table,
    section: &str,
    key: &str,
) -> Option<&'a toml::Value> {
    if section.is_empty() { table.get(key) } else { table.get(section)?.as_table()?.get(key) }
}

/// Every key of `table`, after the name of its section.
pub(super) fn names(table: &toml::Table) -> Vec<(&str, &str)> {
    let of = |(name, value)| match toml::Value::as_table(value) {
        Some(section) => section.keys().map(|key| (String::as_str(name), key.as_str())).collect(),
        None => vec![("", String::as_str(name))],
    };
    table.iter().flat_map(of).collect()
}

/// Says that `known` has no such section or key, and which one was probably meant.
pub(super) fn unknown(known: &toml::Table, section: &str, key: &str) -> String {
    let sections = || known.iter().filter(|(_, value)| value.is_table());
    let here = match sections().find(|(name, _)| *name == section) {
        Some((_, keys)) => keys.as_table(),
        None if section.is_empty() => Some(known),
        None => None,
    };
    let Some(here) = here else {
        let near = nearest(section, sections().map(|(name, _)| name));
        return format!("there is no section [{}]{near}", printable(section));
    };
    // A key in the wrong section is the commonest mistake after a slip of the finger.
    let home = sections().find(|(_, keys)| keys.get(key).is_some());
    let hint = match home {
        Some((home, _)) => format!(": {key} belongs into [{home}]"),
        None if known.get(key).is_some() => format!(": {key} belongs above the first section"),
        None => nearest(key, here.keys()),
    };
    format!("there is no key {}{hint}", printable(&dotted(section, key)))
}

/// The name that is the fewest edits away, as a question; nothing if none is near.
fn nearest<'a>(given: &str, names: impl Iterator<Item = &'a String>) -> String {
    match names.map(|name| (edits(given, name), name)).min() {
        Some((edits, name)) if edits <= name.len().div_ceil(3) => {
            format!(": did you mean {name}?")
        }
        _ => String::new(),
    }
}

/// The Levenshtein distance: insertions, deletions and replacements that make `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        // `row` has the distances of a[..i] to each b[..j]; `next`, those of a[..=i].
        let mut left = i + 1;
        let mut next = vec![left];
        for ((diagonal, above), to) in row.iter().zip(row.iter().skip(1)).zip(&b) {
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in [
            ("", "", 0),
            ("", "ab", 2),
            ("listen", "lisen", 1),
            ("kitten", "sitting", 3),
            ("ä", "a", 1),
        ] {
            assert_eq!((edits(a, b), edits(b, a)), (count, count), "{a} {b}");
        }
    }

    #[test]
    fn what_was_meant_is_named_if_it_is_near() {
        let known: toml::Table =
            toml::from_str("data_dir = 1\n[server]\nlisten = 1\n[log]\nlevel = 1").unwrap();
        for (section, key, says) in [
            ("server", "lisen", "there is no key server.lisen: did you mean listen?"),
            ("server", "level", "there is no key server.level: level belongs into [log]"),
            (
                "log",
                "data_dir",
                "there is no key log.data_dir: data_dir belongs above the first section",
            ),
            ("", "level", "there is no key level: level belongs into [log]"),
            ("", "datadir", "there is no key datadir: did you mean data_dir?"),
            ("sever", "", "there is no section [sever]: did you mean server?"),
            ("data_dir", "x", "there is no section [data_dir]"),
            ("server", "colour\x1b", "there is no key server.colour\\u{1b}"),
        ] {
            assert_eq!(unknown(&known, section, key), says);
        }
    }
}
