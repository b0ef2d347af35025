//! A store on PostgreSQL over TLS: whose certificate is taken, and that nothing goes in clear text.

use std::path::Path;

use sallyport::clock::Clock;
use sallyport::setup;

use crate::support::bastion::test_config;
use crate::support::postgres::Postgres;

/// Somebody whose keys are in a folder, and a PostgreSQL for them.
struct Opener<'a> {
    dir: tempfile::TempDir,
    server: &'a Postgres,
}

impl<'a> Opener<'a> {
    fn new(server: &'a Postgres) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), server }
    }

    /// Opens the store at `host` with `sslmode` and an authority; why it could not.
    async fn open(&self, host: &str, mode: &str, authority: Option<&Path>) -> Result<(), String> {
        let Self { dir, server } = self;
        let url = format!("postgres://postgres@{host}:{}/postgres{mode}", server.port());
        let extra = authority.map_or_else(String::new, |path| {
            format!("[store]\ntls_ca_file = \"{}\"\n", path.display())
        });
        let config = test_config(dir.path(), &url, &extra);
        let opened = setup::init(&config, &Clock::System).await;
        let (store, _) = opened.map_err(|error| format!("{error:#}"))?;
        // While the store is open: whether its connections are what was asked for.
        let so = if mode.is_empty() { "bool_or(NOT ssl)" } else { "bool_and(ssl)" };
        let ours = "FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE application_name = 'sallyport'";
        let check = format!("(SELECT count(*) > 0 AND {so} {ours})");
        server
            .execute(&format!("DO $$ BEGIN IF NOT {check} THEN RAISE 'not so'; END IF; END $$"))
            .await;
        drop(store);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_certificate_for_the_right_name_is_taken() {
    let server = Postgres::with_tls().await;
    let opener = Opener::new(&server);
    let [authority, stranger] = server.authorities();
    for mode in ["?sslmode=verify-full", "?sslmode=require"] {
        opener.open("localhost", mode, Some(&authority)).await.unwrap();
        for (host, by, said) in [
            ("localhost", Some(stranger.as_path()), "invalid peer certificate: UnknownIssuer"),
            // The system's authorities know nothing of it.
            ("localhost", None, "invalid peer certificate: UnknownIssuer"),
            ("127.0.0.1", Some(authority.as_path()), "certificate not valid for name"),
        ] {
            let refused = opener.open(host, mode, by).await.unwrap_err();
            assert!(refused.contains(said), "{host} {mode}: {refused}");
        }
    }
    // A loopback name that the URL says nothing about is spoken to in clear text.
    opener.open("localhost", "", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_where_tls_is_wanted() {
    let server = Postgres::start().await;
    let opener = Opener::new(&server);
    // Written like this it is not known to be this machine: as if it were another.
    for (host, mode) in [("127.0.0.1", "?sslmode=verify-full"), ("127.1", "")] {
        let refused = opener.open(host, mode, None).await.unwrap_err();
        assert!(refused.contains("server does not support TLS"), "{host}: {refused}");
    }
    for mode in ["prefer", "allow", "always"] {
        let mode = format!("?sslmode={mode}");
        let refused = opener.open("127.0.0.1", &mode, None).await.unwrap_err();
        assert!(refused.contains("sslmode"), "{refused}");
    }
    opener.open("127.0.0.1", "", None).await.unwrap();
}
