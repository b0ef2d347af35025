//! What the process gives up as soon as it starts: memory dumps, being traced by
//! its own user, and files that others may read. It holds secrets in memory.

use std::io;

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

/// Turns off core dumps and tracing (`PR_SET_DUMPABLE`, prctl(2)) and makes new files 0600.
///
/// # Errors
/// When the kernel refuses, which it does for no process that it lets start normally.
pub fn process() -> io::Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    // Both, since a core pattern that is a pipe ignores the limit (core(5)).
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn no_core_no_tracing_no_readable_files() {
        process().unwrap();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert!(matches!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
