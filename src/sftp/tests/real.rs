//! OpenSSH's own client and server with the filter in between.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use bytes::Bytes;

use super::script::*;
use crate::sftp::{Action, Filter, Rights};

const SERVER: &str = "/usr/lib/openssh/sftp-server";

/// Where actions go, in the order in which the filter says them.
struct Between {
    filter: Filter,
    to_server: Option<mpsc::Sender<Bytes>>,
    to_client: Option<mpsc::Sender<Bytes>>,
    done: Vec<Action>,
}

impl Between {
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            // An end that is gone takes nothing, and the other one is about to notice.
            match action {
                Action::ToServer(bytes) => drop(self.to_server.as_ref().map(|to| to.send(bytes))),
                Action::ToClient(bytes) => drop(self.to_client.as_ref().map(|to| to.send(bytes))),
                event @ Action::Event(_) => self.done.push(event),
            }
        }
    }
}

/// Writes what is sent, until nobody sends any more.
fn writer(mut to: impl Write + Send + 'static) -> (mpsc::Sender<Bytes>, thread::JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel::<Bytes>();
    let thread = thread::spawn(move || {
        for bytes in receiver {
            if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    });
    (sender, thread)
}

fn each_chunk(mut from: impl Read, mut take: impl FnMut(Bytes)) {
    let mut chunk = vec![0; 32 * 1024];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        take(Bytes::copy_from_slice(&chunk[..len]));
    }
}

/// Runs `sftp -D` in `folder` with a batch, through a filter to the real server: what sftp said,
/// and the events.
fn sftp(folder: &Path, rights: Rights, batch: &str) -> (Output, String) {
    let (up, down) = (folder.join(".up"), folder.join(".down"));
    for fifo in [&up, &down] {
        assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
    }
    let bridge = folder.join(".bridge");
    let script = format!("#!/bin/sh\ncat {} &\nexec cat > {}\n", down.display(), up.display());
    fs::write(&bridge, script).unwrap();
    fs::set_permissions(&bridge, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join(".batch"), batch).unwrap();
    let client = Command::new("sftp")
        .args(["-b", ".batch", "-D", bridge.to_str().unwrap()])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = between(folder, rights, &up, &down);
    let output = client.wait_with_output().unwrap();
    for left in [&up, &down, &bridge, &folder.join(".batch")] {
        fs::remove_file(left).unwrap();
    }
    (output, told)
}

/// Runs the server in `folder`, with a filter between it and the two FIFOs.
fn between(folder: &Path, rights: Rights, up: &Path, down: &Path) -> String {
    let mut server = Command::new(SERVER)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (to_server, server_writer) = writer(server.stdin.take().unwrap());
    let (to_client, client_writer) = writer(File::options().write(true).open(down).unwrap());
    let state = Arc::new(Mutex::new(Between {
        filter: Filter::new(rights),
        to_server: Some(to_server),
        to_client: Some(to_client),
        done: Vec::new(),
    }));
    let (shared, from_server) = (state.clone(), server.stdout.take().unwrap());
    let replies = thread::spawn(move || {
        each_chunk(from_server, |chunk| {
            let (mut state, mut out) = (shared.lock().unwrap(), Vec::new());
            state.filter.from_server(chunk, &mut out).unwrap();
            state.act(out);
        });
        shared.lock().unwrap().to_client = None;
    });
    each_chunk(File::open(up).unwrap(), |chunk| {
        let (mut state, mut out) = (state.lock().unwrap(), Vec::new());
        state.filter.from_client(chunk, &mut out).unwrap();
        state.act(out);
    });
    state.lock().unwrap().to_server = None;
    server_writer.join().unwrap();
    server.wait().unwrap();
    replies.join().unwrap();
    client_writer.join().unwrap();
    let mut state = state.lock().unwrap();
    let mut out = Vec::new();
    state.filter.finish(&mut out);
    state.act(out);
    Done::of(&state.done).told()
}

/// A folder with one file in it, and the file's name as the target knows it.
fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("local"), "12345").unwrap();
    let name = folder.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    (folder, name)
}

fn ok(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn everything_works_with_all_rights_and_is_told() {
    let (folder, at) = folder();
    let batch = "mkdir d\nput local d/f\nget d/f back\nls d\nrename d/f d/g\nchmod 600 d/g\n\
                 symlink g d/s\nln d/g d/h\ncp d/g d/c\n-chmod -h 777 d/s\ndf .\n\
                 rm d/c\nrm d/g\nrm d/s\nrm d/h\nrmdir d\n";
    let (output, told) = sftp(folder.path(), ALL, batch);
    ok(&output);
    assert_eq!(fs::read(folder.path().join("back")).unwrap(), b"12345");
    assert!(!folder.path().join("d").exists());
    let expected = [
        "mkdir @/d 0 0 Ok",
        "upload @/d/f 0 5 Ok",
        "download @/d/f 5 0 Ok",
        "list @/d/ 0 0 Ok",
        "rename @/d/f @/d/g 0 0 Ok",
        "setstat @/d/g 0 0 Ok",
        "symlink @/d/s g 0 0 Ok",
        "link @/d/h @/d/g 0 0 Ok",
        "copy @/d/g @/d/c 0 0 Ok",
        // Linux has no permissions on symbolic links.
        "setstat @/d/s 0 0 Failed { code: 4, message: \"Failure\" }",
        "remove @/d/g 0 0 Ok",
        "remove @/d/s 0 0 Ok",
        "remove @/d/h 0 0 Ok",
        "rmdir @/d 0 0 Ok",
    ];
    for line in expected {
        let line = line.replace('@', &at);
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
}

#[test]
fn with_the_right_to_read_nothing_changes() {
    let (folder, at) = folder();
    let batch = "get local back\nls .\n-put local up\n-rm local\n-rename local x\n-mkdir d\n\
                 -chmod 600 local\n-symlink local s\n-ln local h\n-rmdir .\nget local again\n";
    let (output, told) = sftp(folder.path(), READ, batch);
    ok(&output);
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert_eq!(said.matches("permission denied").count(), 8, "{said}");
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["again", "back", "local"]);
    for line in [
        "download @/local 5 0 Ok",
        "upload @/up 0 0 Refused",
        "remove @/local 0 0 Refused",
        "rename @/local @/x 0 0 Refused",
        "mkdir @/d 0 0 Refused",
        "setstat @/local 0 0 Refused",
        "symlink @/s local 0 0 Refused",
        "link @/h @/local 0 0 Refused",
        "rmdir @/. 0 0 Refused",
    ] {
        let line = line.replace('@', &at);
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
}

#[test]
fn with_the_right_to_write_nothing_is_read() {
    let (folder, at) = folder();
    let (output, told) =
        sftp(folder.path(), WRITE, "put local up\n-get local back\nls .\nput -fp local up2\n");
    ok(&output);
    assert_eq!(fs::read(folder.path().join("up")).unwrap(), b"12345");
    assert_eq!(fs::read(folder.path().join("up2")).unwrap(), b"12345");
    assert!(!folder.path().join("back").exists());
    for line in ["upload @/up 0 5 Ok", "download @/local 0 0 Refused", "upload @/up2 0 5 Ok"] {
        let line = line.replace('@', &at);
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
}

#[test]
fn much_data_goes_both_ways_unchanged() {
    const SIZE: usize = 64 * 1024 * 1024;
    let (folder, at) = folder();
    let mut state = 1_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()
    })
    .take(SIZE / 4)
    .flatten()
    .collect();
    fs::write(folder.path().join("big"), &content).unwrap();
    let (output, told) = sftp(folder.path(), ALL, "put big up\nget up back\n");
    ok(&output);
    for name in ["up", "back"] {
        assert!(fs::read(folder.path().join(name)).unwrap() == content, "{name} differs");
    }
    for line in [format!("upload {at}/up 0 {SIZE} Ok"), format!("download {at}/up {SIZE} 0 Ok")] {
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
}
