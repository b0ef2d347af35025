//! Host certificates as the real client judges them, with nothing configured about names.

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::ssh::Client;

#[tokio::test(flavor = "multi_thread")]
async fn the_line_for_known_hosts_holds_for_what_people_type() {
    let nothing = "[server]\npublic_host = \"\"\npublic_port = 0\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, nothing).await;
    let anna = bastion.person("anna").await;
    let client = Client::new(&bastion, "anna");
    client.answers(&[PASSWORD, &bastion.code(&anna)]);
    let line = client.ssh(&["bastion", "known-hosts"]).await.ok().out;
    let ca = bastion.bastion.relay.host_ca.public_key().to_openssh().unwrap();
    let known = client.path("known_by_authority");
    let option = format!("UserKnownHostsFile={}", known.display());
    let port = bastion.port.to_string();
    let mut code = 0;
    for name in ["localhost", "127.0.0.1"] {
        // Ours, and the README's with what 'ca show host' prints.
        for line in [line.clone(), format!("@cert-authority {name} {ca}\n")] {
            std::fs::write(&known, &line).unwrap();
            client.answers(&[PASSWORD, &anna.recovery_code(code)]);
            code += 1;
            let strict = ["-o", option.as_str(), "-o", "StrictHostKeyChecking=yes"];
            let to = ["-p", port.as_str(), "-l", "anna", name, "otp"];
            let ran = client.ssh(&[&strict[..], &to].concat()).await.ok();
            assert!(ran.out.contains("anna"), "{line}: {ran:?}");
        }
    }
}
