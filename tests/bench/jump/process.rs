//! What a process and all that it started have used, as Linux counts it.

use std::collections::HashMap;

/// CPU time in seconds of `root`, of all its living descendants, and of those that it waited for.
pub fn cpu_seconds(root: u32) -> f64 {
    let mut ticks = 0;
    for pid in tree(root) {
        if let Some(fields) = stat(pid) {
            // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), after the name.
            ticks += fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Memory in KiB of `root` and its descendants: proportional set size, so that what they share is
/// counted once.
pub fn pss_kib(root: u32) -> u64 {
    tree(root).into_iter().filter_map(pss_of).sum()
}

fn pss_of(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = stat(pid).and_then(|fields| fields[1].parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// The fields of /proc/PID/stat behind the name, which may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Lets this process, and what it starts, have as many open files as the system allows; gives how many.
pub fn allow_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.unwrap_or(u64::MAX)
}
