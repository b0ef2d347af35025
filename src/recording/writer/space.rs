//! Where recordings are put, and whether there is room for them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::super::asciicast::Header;
use super::super::seal;
use super::Failure;
use crate::domain::{Id, UnixTime};

/// Whether at least `min` bytes are free where `folder` is, or will be once it is made.
///
/// # Errors
/// When that cannot be found out.
pub fn free_space_ok(folder: &Path, min: u64) -> io::Result<bool> {
    match enough_space(folder, min) {
        Ok(()) => Ok(true),
        Err(Failure::Io(error)) => Err(io::Error::new(error.kind(), error)),
        Err(_) => Ok(false),
    }
}

pub(super) fn enough_space(folder: &Path, min: u64) -> Result<(), Failure> {
    let there = folder.ancestors().find(|f| f.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(there).map_err(io::Error::from)?;
    compare(&stat, min)
}

pub(super) fn compare(stat: &rustix::fs::StatVfs, min: u64) -> Result<(), Failure> {
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < min { Err(Failure::LowSpace { free, min }) } else { Ok(()) }
}

/// `<folder>/<yyyy-mm-dd>/<id>.cast`.
pub(super) fn path_of(folder: &Path, id: &Id, header: &Header) -> PathBuf {
    let ms = header.timestamp.unwrap_or(0).saturating_mul(1000);
    let day = UnixTime(ms).to_string();
    let day = day.split_once('T').map_or("undated", |(day, _)| day);
    folder.join(day).join(format!("{id}.cast"))
}

/// Makes a new file, and the folders above it up to `folder`, for their owner alone.
pub(super) fn create_file(folder: &Path, path: &Path) -> io::Result<File> {
    let day = path.parent().unwrap_or(folder);
    let make = || {
        if !day.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(day)?;
            seal::sync_folder_of(day)?;
            seal::sync_folder_of(folder)?;
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    };
    match make() {
        // The day's folder was empty, and was removed as such in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(),
        made => made,
    }
}
