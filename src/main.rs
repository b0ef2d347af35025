//! The `sallyport` command: parse, run, print the error once, exit code.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use secrecy::SecretString;
use tokio::io::AsyncWrite;

use sallyport::admin::output::{Format, reader_is_gone};
use sallyport::admin::replay::{self, Keys};
use sallyport::admin::{self, NewPassword, Out, TargetInput, Verbs};
use sallyport::audit::chain::{Anchor, GENESIS};
use sallyport::audit::{Actor, Context};
use sallyport::cli::{
    self, AccountCommand, Cli, Command, SessionCommand, TargetCommand, UserCommand, UserKeyCommand,
};
use sallyport::clock::Clock;
use sallyport::config::{self, Config, KeyFile, Loaded};
use sallyport::keys::{self, AuditPublicKey};
use sallyport::recording::player::Key;
use sallyport::server::relay;
use sallyport::store::Store;
use sallyport::{doctor, harden, logging, serve, setup};

/// What the process exits with for a wrong command line: EX_USAGE of sysexits(3). A wrong
/// configuration has its own code, and the rest is 1.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    match start(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sallyport: {}", sallyport::domain::printable(&logging::whole(&error)));
            let configuration = error.chain().any(|cause| cause.is::<config::Error>());
            ExitCode::from(if configuration { config::Error::EXIT_CODE } else { 1 })
        }
    }
}

/// Shows help, or says in one line what is wrong with the command line.
fn unparsed(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
    match cli::said_in_one_line(error) {
        Some(line) => eprintln!("sallyport: {line} (see --help)"),
        None if error.print().is_err() => return ExitCode::FAILURE,
        None => {}
    }
    code
}

/// Runs a command; whether the answer to what it asked is yes.
fn start(cli: Cli) -> anyhow::Result<bool> {
    harden::process().context("failed to give up core dumps")?;
    if let Command::Completions { shell } = cli.command {
        cli::completions(shell, &mut std::io::stdout());
        return Ok(true);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(cli));
    // Threads that wait for a name to resolve must not hold the exit up.
    runtime.shutdown_background();
    result
}

async fn run(cli: Cli) -> anyhow::Result<bool> {
    let explicit = cli.config.clone();
    let load = move || {
        Ok::<Loaded, anyhow::Error>(Config::load(explicit.as_deref(), config::environment())?)
    };
    let mut loaded = load()?;
    let log = &loaded.config.log;
    // Only a server logs what goes well: a command shows its result, and doctor also what does not.
    let level = match cli.command {
        Command::Serve => log.level.as_str(),
        Command::Doctor => "error",
        _ => "warn",
    };
    let filter = logging::init(log.format, level)?;
    match cli.command {
        Command::Serve => serve::serve(loaded, load, filter).await.map(|()| true),
        Command::Init { data_dir } => {
            loaded.config.data_dir = data_dir.unwrap_or(loaded.config.data_dir);
            init(&loaded.config, cli.json).await.map(|()| true)
        }
        Command::Check => check(&loaded, cli.json).await.map(|()| true),
        Command::Doctor => doctor(&loaded.config, cli.json).await,
        Command::Key(cli::KeyCommand::Add { file: Some(file) }) => {
            add_sealing_key(&file, cli.json).await.map(|()| true)
        }
        Command::Ca(cli::CaCommand::Show { which }) => {
            show_ca(&loaded.config, which, cli.json).map(|()| true)
        }
        Command::Audit(cli::AuditCommand::Verify { file: Some(file), key_file, anchors }) => {
            verify_file(&file, key_file.as_deref(), anchors, cli.json).map(|()| true)
        }
        Command::Audit(cli::AuditCommand::Key) => {
            show_audit_key(&loaded.config, cli.json).map(|()| true)
        }
        command => verb(&loaded, cli.json, command).await,
    }
}

/// Makes what `serve` makes on its first start, and says so.
async fn init(config: &Config, json: bool) -> anyhow::Result<()> {
    let (_store, one_time) = setup::init(config, &Clock::System).await?;
    match one_time {
        one_time if json => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", setup::made(config, one_time.as_ref())?)?;
            out.flush()?;
            if one_time.is_some() {
                setup::first_password::discard(config)?;
            }
        }
        Some(one_time) => setup::welcome(config, &config.server.listen, &one_time)?,
        None => {
            println!("{} is in order; nothing was made", config.data_dir.display());
            println!("host key: {}", setup::host_key(config)?);
        }
    }
    Ok(())
}

/// Adds a sealing key to a file, which takes no store.
async fn add_sealing_key(file: &std::path::Path, json: bool) -> anyhow::Result<()> {
    let format = if json { Format::Json } else { Format::Table { width: None } };
    let mut stdout = tokio::io::stdout();
    let mut out = Out::new(&mut stdout);
    admin::add_sealing_key(file, format, &mut out)?;
    Ok(out.send().await?)
}

/// Prints the public key of one of the authorities.
fn show_ca(config: &Config, which: cli::Authority, json: bool) -> anyhow::Result<()> {
    let key = match which {
        cli::Authority::Host => KeyFile::HostCa,
        cli::Authority::User => KeyFile::UserCa,
    };
    let key = keys::load(&config.key_path(key))?.public_key().to_openssh()?;
    if json {
        println!("{}", serde_json::json!({ "public_key": key }));
    } else {
        println!("{key}");
    }
    Ok(())
}

/// Prints the public half of the key that signs the audit log.
fn show_audit_key(config: &Config, json: bool) -> anyhow::Result<()> {
    let key = keys::load(&config.key_path(KeyFile::AuditKey))?;
    let public = keys::AuditKey::new(key).public();
    let (line, fingerprint) = (public.to_line(), public.fingerprint());
    if json {
        println!("{}", serde_json::json!({ "public_key": line, "fingerprint": fingerprint }));
    } else {
        println!("{line}");
    }
    Ok(())
}

/// Makes every check; whether nothing is broken.
async fn doctor(config: &Config, json: bool) -> anyhow::Result<bool> {
    let format = if json { Format::Json } else { Format::Table { width: None } };
    let findings = doctor::examine(config, Clock::System.now()).await;
    let mut stdout = tokio::io::stdout();
    let mut out = Out::new(&mut stdout);
    admin::output::list(&mut out, format, &findings)?;
    out.send().await?;
    Ok(findings.iter().all(|finding| finding.grade != doctor::Grade::Fail))
}

/// Opens everything that `serve` opens, and says so.
async fn check(loaded: &Loaded, json: bool) -> anyhow::Result<()> {
    let config = &loaded.config;
    let source = match &loaded.path {
        Some(path) => path.display().to_string(),
        None => "built-in defaults".to_owned(),
    };
    let store = setup::open(config).await?;
    drop(serve::bastion(config, store, Clock::System)?);
    let url = config.store_url();
    let store = if url.starts_with("sqlite:") { url } else { "PostgreSQL".to_owned() };
    let host_key = setup::host_key(config)?;
    if json {
        let shown = serde_json::json!({
            "configuration": source, "store": store, "keys": "in order", "host_key": host_key,
            "radius": { "servers": config.radius.server.len(), "mode": config.radius.mode.to_string() },
        });
        println!("{shown}");
        return Ok(());
    }
    println!("configuration  {source}");
    println!("store          {store}");
    println!("keys           in order");
    println!("host key       {host_key}");
    match config.radius.server.len() {
        0 => println!("RADIUS         no server"),
        count => println!("RADIUS         servers: {count}; mode {}", config.radius.mode),
    }
    Ok(())
}

fn verify_file(
    file: &std::path::Path,
    key_file: Option<&std::path::Path>,
    anchors: Vec<Anchor>,
    json: bool,
) -> anyhow::Result<()> {
    let read = |path: &std::path::Path| {
        std::fs::File::open(path).with_context(|| format!("failed to read {}", path.display()))
    };
    let key = match key_file {
        Some(path) => {
            let mut text = String::new();
            read(path)?.take(4096).read_to_string(&mut text)?;
            Some(AuditPublicKey::parse(text.trim()).map_err(anyhow::Error::msg)?)
        }
        None => None,
    };
    let text = std::io::BufReader::new(read(file)?);
    let (used, end) = admin::verify_file(text, key.as_ref(), anchors)?;
    if json {
        let end = end.unwrap_or(Anchor { seq: 0, hash: GENESIS.to_owned() });
        println!("{}", serde_json::to_string(&end)?);
        return Ok(());
    }
    let trust = if key.is_some() { "as given" } else { "as the export says: compare it" };
    println!(
        "the export is whole: {} events; signed by {} ({trust})",
        end.map_or(0, |end| end.seq),
        used.fingerprint()
    );
    Ok(())
}

/// Runs a verb of an administrator at the host's shell.
async fn verb(loaded: &Loaded, json: bool, command: Command) -> anyhow::Result<bool> {
    let config = &loaded.config;
    let store = setup::open(config).await?;
    let context = Context { actor: Some(Actor::Host(who())), ..Context::default() };
    let rules = setup::password_rules(config);
    let recordings = config.recordings();
    let verbs = Verbs {
        store: &store,
        context: &context,
        now: Clock::System.now(),
        format: if json { Format::Json } else { Format::Table { width: terminal_width() } },
        cost: setup::cost(config),
        rules: &rules,
        binding_window: config.login.binding_window.0,
        radius: config.radius_mode(),
        recordings: &recordings,
    };
    let mut sink = sink(&command).await?;
    let mut out = Out::new(&mut sink).on_terminal(std::io::stdout().is_terminal());
    let answer = dispatch(&verbs, command, &mut out).await?;
    out.send().await?;
    Ok(answer)
}

/// Where a verb's result goes.
async fn sink(command: &Command) -> anyhow::Result<Box<dyn AsyncWrite + Unpin + Send>> {
    let Command::Audit(cli::AuditCommand::Export { output: Some(path) }) = command else {
        return Ok(Box::new(tokio::io::stdout()));
    };
    let file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await;
    Ok(Box::new(file.with_context(|| format!("failed to make {}", path.display()))?))
}

/// Runs a verb; whether the answer to what it asked is yes.
async fn dispatch(verbs: &Verbs<'_>, command: Command, out: &mut Out<'_>) -> anyhow::Result<bool> {
    match command {
        Command::User(command) => {
            let (password, keys) = inputs(&command)?;
            admin::users(verbs, command, password, keys, out).await?;
        }
        Command::Otp(command) => admin::otp(verbs, command, out).await?,
        Command::Group(command) => admin::groups(verbs, command, out).await?,
        Command::Target(command) => {
            let input = target_input(verbs.store, &command).await?;
            admin::targets(verbs, command, input, out).await?;
        }
        Command::Grant(command) => admin::grants(verbs, command, out).await?,
        Command::Explain(asked) => return admin::explain(verbs, asked, out).await,
        Command::Certificate(command) => admin::certificates(verbs, command, out).await?,
        Command::Session(command) => {
            let keys = terminal_keys(&command)?;
            let _restored = keys.1;
            admin::sessions(verbs, command, keys.0, out).await?;
        }
        Command::Audit(command) => audit(verbs, command, out).await?,
        Command::Key(command) => admin::sealing(verbs, command, out).await?,
        Command::Serve
        | Command::Init { .. }
        | Command::Check
        | Command::Doctor
        | Command::Ca(_)
        | Command::Completions { .. } => {
            bail!("this command is run elsewhere");
        }
    }
    Ok(true)
}

async fn audit(
    verbs: &Verbs<'_>,
    command: cli::AuditCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        cli::AuditCommand::List(asked) => admin::list_events(verbs, asked, out).await,
        cli::AuditCommand::Key => bail!("this command is run elsewhere"),
        cli::AuditCommand::Verify { anchors, .. } => admin::verify_store(verbs, anchors, out).await,
        cli::AuditCommand::Export { .. } => admin::export(verbs, out).await,
    }
}

/// Reads what a `user` command takes from standard input and files.
fn inputs(command: &UserCommand) -> anyhow::Result<(NewPassword, Vec<(String, String)>)> {
    let password = match command {
        UserCommand::Add { password_stdin: true, .. }
        | UserCommand::Passwd { password_stdin: true, .. } => {
            let mut text = zeroize::Zeroizing::new(String::new());
            std::io::stdin()
                .take(4096)
                .read_to_string(&mut text)
                .context("failed to read the password from standard input")?;
            NewPassword::Permanent(SecretString::from(text.trim_end_matches(['\r', '\n'])))
        }
        _ => NewPassword::OneTime,
    };
    let path = match command {
        UserCommand::Add { key: Some(path), .. } => Some(Some(path)),
        UserCommand::Key(UserKeyCommand::Add { file, .. }) => Some(file.as_ref()),
        _ => None,
    };
    let keys = match path {
        Some(Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            admin::read_keys(&text).with_context(|| path.display().to_string())?
        }
        Some(None) => {
            let mut text = String::new();
            std::io::stdin()
                .take(1 << 20)
                .read_to_string(&mut text)
                .context("failed to read keys from standard input")?;
            admin::read_keys(&text).context("standard input")?
        }
        None => Vec::new(),
    };
    Ok((password, keys))
}

/// Reads what a `target` command takes from standard input, files and the target itself.
async fn target_input(store: &Store, command: &TargetCommand) -> anyhow::Result<TargetInput> {
    let mut input = TargetInput::default();
    match command {
        TargetCommand::Account(AccountCommand::Add { secret_stdin: true, .. }) => {
            let mut secret = zeroize::Zeroizing::new(Vec::new());
            std::io::stdin()
                .take(64 * 1024)
                .read_to_end(&mut secret)
                .context("failed to read the secret from standard input")?;
            input.secret = Some(secret);
        }
        TargetCommand::Pin { key_file: Some(path), .. } => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            let key = sallyport::keys::host_key_line(&text);
            input.key = Some(key.with_context(|| path.display().to_string())?);
        }
        TargetCommand::Pin { name, key_file: None, .. } => {
            let address = admin::address_of(store, name).await?;
            input.key = Some(relay::probe::host_key(&address).await?);
        }
        _ => {}
    }
    Ok(input)
}

/// The keys typed at this terminal, for a command that plays something: the terminal is in raw mode
/// until the guard is dropped.
fn terminal_keys(command: &SessionCommand) -> anyhow::Result<(Keys, Option<RawTerminal>)> {
    let plays = matches!(command, SessionCommand::Play(_) | SessionCommand::Watch { .. });
    let both = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !plays || !both {
        return Ok((replay::no_keys(), None));
    }
    let raw = RawTerminal::enter()?;
    let (typed, keys) = tokio::sync::mpsc::channel(16);
    // Ends with the process: reading a terminal cannot be called off.
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(read @ 1..) = std::io::stdin().read(&mut buffer) {
            for key in Key::parse(buffer.get(..read).unwrap_or_default()) {
                if typed.blocking_send(key).is_err() {
                    return;
                }
            }
        }
    });
    let keys = futures_util::stream::unfold(keys, async |mut keys| {
        keys.recv().await.map(|key| (key, keys))
    });
    Ok((Box::pin(keys), Some(raw)))
}

/// A terminal in raw mode; as it was again when dropped.
struct RawTerminal(rustix::termios::Termios);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let before = rustix::termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(
            std::io::stdin(),
            rustix::termios::OptionalActions::Flush,
            &raw,
        )?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let flush = rustix::termios::OptionalActions::Flush;
        if rustix::termios::tcsetattr(std::io::stdin(), flush, &self.0).is_err() {
            eprintln!("sallyport: run 'stty sane': the terminal could not be put back\r");
        }
    }
}

/// Who sits at the host's shell, for the audit log.
fn who() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|v| std::env::var(v).ok());
    let uid = rustix::process::getuid().as_raw();
    let name = name.map(|name| sallyport::domain::printable(&name));
    name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(stdout)
        .ok()
        .map(|size| size.ws_col)
        .filter(|columns| *columns > 0)
}
