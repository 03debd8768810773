//! The clients that builds use, against two names on one address: the allowed one is reached, the
//! other is refused by its name, and the client is told so at once.
//!
//! The policy lets `shared.test` be resolved, for another port, and the address has been opened for
//! `allowed.test`. So the refusal is neither the resolver's nor one of the address.

use std::{env, fs, time::Duration};

use anyhow::{Context as _, Result};
use jobfence_tests::{Fence, Internet};

const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
        ports: [80, 443]
      - host: shared.test
        ports: [8443]
";

/// From a refusal to the end of the client. A dropped packet alone would cost minutes; what the
/// refusal itself takes is measured by `cargo xtask bench`.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Runs `script` for each of the two names, as `$1` and with what it needs of this test as `$2`.
/// For the allowed one it has to print `reached`; for the other its failure has to follow from the
/// refusal of one connection, of kind `kind`.
#[track_caller]
fn compare(user: &str, kind: &str, script: &str, reached: &str, argument: &str) {
    let internet = Internet::new().expect("a private internet");
    let site = internet.dir().join("site");
    fs::create_dir_all(site.join("index")).expect("a folder");
    fs::write(site.join("index.html"), "the front page").expect("a file");
    let config = r#"{"dl": "https://allowed.test/dl"}"#;
    fs::write(site.join("index/config.json"), config).expect("a file");
    fs::create_dir_all(site.join("leftpad")).expect("a folder");
    let links = "<a href=leftpad-1.0.tar.gz>leftpad-1.0.tar.gz</a>";
    fs::write(site.join("leftpad/index.html"), links).expect("a file");
    internet.serve_dir("allowed.test", &site);
    let run = |name: &str| {
        let fence = Fence::new(&internet, POLICY).expect("a policy file");
        let script = format!("getent ahosts allowed.test >addresses; {script}");
        let command = ["sh", "-c", &script, "sh", name, argument];
        fence.user(user).run(&command).expect("it runs to its end")
    };

    let allowed = run("allowed.test");
    let output = &allowed.output;
    let text = format!("{}{}", output.stdout, output.stderr);
    assert!(text.contains(reached), "not reached: {allowed:#?}");
    let denials = allowed
        .events
        .iter()
        .filter(|event| event["verdict"] == "deny");
    assert_eq!(denials.count(), 0, "{allowed:#?}");

    let refused = run("shared.test");
    refused.assert_code(110);
    let text = format!("{}{}", refused.output.stdout, refused.output.stderr);
    assert!(!text.contains(reached), "reached: {refused:#?}");
    let mut denials = refused
        .events
        .iter()
        .filter(|event| event["verdict"] == "deny");
    let denial = denials.next().expect("no refusal");
    assert_eq!(denial["kind"], kind, "{denial:#}");
    let reason = if kind == "tls" { "sni" } else { "host-header" };
    assert_eq!(denial["reason"], reason, "{denial:#}");
    assert_eq!(denial["dst"]["name"], "shared.test", "{denial:#}");
    assert!(denial["process"]["pid"].is_u64(), "{denial:#}");
    let waited = refused.after(denial).expect("when it was refused");
    assert!(
        waited < AT_ONCE,
        "{waited:?} after its refusal: {refused:#?}"
    );
}

#[test]
fn curl_is_refused_by_name() {
    compare(
        "nobody",
        "tls",
        "curl -sS -m 20 https://$1/",
        "the front page",
        "",
    );
    compare(
        "nobody",
        "http",
        "curl -sS -m 20 http://$1/",
        "the front page",
        "",
    );
}

#[test]
fn wget_is_refused_by_name() {
    let script = "wget -q -O - --tries 1 --ca-certificate=$SSL_CERT_FILE https://$1/";
    compare("nobody", "tls", script, "the front page", "");
}

#[test]
fn git_is_refused_by_name() {
    // No repository is there, which git finds out from the server.
    let script = "git ls-remote https://$1/none.git 2>&1";
    compare("nobody", "tls", script, "not found", "");
}

#[test]
fn python_is_refused_by_name() {
    let script = "python3 -c \"import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read())\" https://$1/";
    compare("nobody", "tls", script, "the front page", "");
}

#[test]
fn node_is_refused_by_name() {
    let script = "node -e \"require('https').get(process.argv[1], r => r.pipe(process.stdout))\" https://$1/";
    compare("nobody", "tls", script, "the front page", "");
}

#[test]
fn openssl_is_refused_by_name() {
    let script = "openssl s_client -brief -connect allowed.test:443 -servername $1 </dev/null 2>&1";
    compare("nobody", "tls", script, "CONNECTION ESTABLISHED", "");
}

#[test]
fn pip_is_refused_by_name() {
    let script = "python3 -m pip download --no-cache-dir --disable-pip-version-check --retries 0 \
                  --index-url https://$1/ leftpad 2>&1";
    // The index has it, and no file for it.
    compare("nobody", "tls", script, "404 Client Error", "");
}

#[test]
fn cargo_is_refused_by_name() -> Result<()> {
    // Where this test's own cargo is, only root can read.
    let cargo = env::var("CARGO").context("run the tests with cargo")?;
    let script = "mkdir -p home src && touch src/lib.rs && printf '%s\n' \
                  '[package]' 'name = \"a\"' 'edition = \"2021\"' '[dependencies]' \
                  'leftpad = { version = \"1\", registry = \"test\" }' >Cargo.toml && \
                  CARGO_HOME=$PWD/home CARGO_NET_RETRY=0 CARGO_HTTP_CAINFO=$SSL_CERT_FILE \
                  CARGO_REGISTRIES_TEST_INDEX=sparse+https://$1/index/ \"$2\" fetch 2>&1";
    compare("root", "tls", script, "no matching package", &cargo);
    Ok(())
}
