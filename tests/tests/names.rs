//! What a job can say in the names that it asks for, and what it learns about encrypted names.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test; clippy sees only functions with #[test] as such"
)]

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::Result;
use jobfence_tests::{Fence, Fenced, Internet, Mark, run};

const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
      - host: '*.wild.test'
";

/// Bytes that may leave a job in names of its own choosing (`names/allowance.rs` of the agent).
const MAX_BYTES: usize = 4096;

/// Asks the questions in `file` one after the other, as `dig -f` reads them.
const ASK: [&str; 5] = ["dig", "+noall", "+comments", "+tries=1", "-f"];

fn fenced(internet: &Internet, command: &[&str]) -> Fenced {
    Fence::new(internet, POLICY).unwrap().run(command).unwrap()
}

/// The names below `suffix` that the net side was asked for since `mark`.
fn heard(internet: &Internet, mark: Mark, suffix: &str) -> BTreeSet<String> {
    let arrivals = internet.since(mark);
    let names = arrivals
        .0
        .into_iter()
        .filter_map(|arrival| arrival.dns_question);
    names.filter(|name| name.ends_with(suffix)).collect()
}

#[test]
fn a_tunnel_in_names_below_an_allowed_wildcard_runs_dry() -> Result<()> {
    let internet = Internet::new()?;
    let file = internet.dir().join("questions");
    // Bytes as labels, the way tunnels put them there.
    let names: String = (0..200)
        .map(|i| {
            let label = "x".repeat(50);
            format!("{label}.{label}.{i:050}.t.wild.test\n")
        })
        .collect();
    fs::write(&file, names)?;
    let file = file.to_string_lossy();
    let ask = [&ASK[..], &[&file]].concat();

    let start = internet.mark();
    run(
        internet.command("dig").args(&ask[1..]),
        Duration::from_secs(60),
    )?;
    let free = heard(&internet, start, ".wild.test");
    assert_eq!(
        free.len(),
        200,
        "proves nothing: not all left without the fence"
    );

    let start = internet.mark();
    let tunnel = fenced(&internet, &ask);
    let leaked = heard(&internet, start, ".wild.test");
    let bytes: usize = leaked
        .iter()
        .map(|name| name.len() - ".wild.test".len())
        .sum();
    assert!(
        bytes <= MAX_BYTES,
        "{bytes} bytes left in {} names",
        leaked.len()
    );
    assert!(!leaked.is_empty(), "the first ones are a build's right");
    tunnel.assert_code(110);
    let limits = tunnel.denials("limit");
    assert_eq!(limits.len(), 200 - leaked.len(), "{tunnel:#?}");
    assert!(
        limits
            .iter()
            .all(|event| event["violation"] == true && event["rule"].is_string())
    );
    let shown = &tunnel.output.stdout;
    assert!(shown.contains("EDE: 15 (Blocked)"), "{shown}");
    assert!(shown.contains("4096 bytes, the limit"), "{shown}");

    // In the same job, what is spelled out and what was asked for goes on.
    let script = format!(
        "{} >/dev/null; curl -sS https://allowed.test/ && dig +short {}",
        ask.join(" "),
        leaked.first().unwrap()
    );
    let after = fenced(&internet, &["sh", "-c", &script]);
    assert_eq!(
        after.output.stdout, "allowed.test /\n198.51.100.80\n",
        "{after:#?}"
    );
    Ok(())
}

/// HTTPS and SVCB records hold the keys with which clients encrypt server names. Clients ask for
/// them beside the addresses of every host.
#[test]
fn records_that_let_clients_encrypt_names_are_never_there() -> Result<()> {
    let internet = Internet::new()?;
    let file = internet.dir().join("questions");
    let questions = ["A", "AAAA", "HTTPS", "SVCB", "TYPE64", "TYPE65"]
        .map(|kind| format!("allowed.test {kind}\n"))
        .concat();
    fs::write(&file, questions + "_8443._https.allowed.test HTTPS\n")?;
    let file = file.to_string_lossy();
    let ask = [&ASK[..], &[&file]].concat();
    for transport in ["+notcp", "+tcp"] {
        let ask = [&ask[..4], &[transport], &ask[4..]].concat();
        let start = internet.mark();
        run(
            internet.command("dig").args(&ask[1..]),
            Duration::from_secs(60),
        )?;
        let free = internet.since(start).questions("allowed.test").0.len();
        assert!(
            free >= 6,
            "proves nothing: {free} questions left without the fence"
        );

        let start = internet.mark();
        let client = fenced(&internet, &ask);
        let asked = internet.since(start).questions("allowed.test").0.len();
        assert_eq!(asked, 2, "A and AAAA; {client:#?}");
        client.assert_code(0);
        let shown = &client.output.stdout;
        assert_eq!(shown.matches("status: NOERROR").count(), 7, "{shown}");
        assert_eq!(shown.matches("ANSWER: 1,").count(), 2, "{shown}");
        assert_eq!(shown.matches("ANSWER: 0,").count(), 5, "{shown}");
    }

    let start = internet.mark();
    let client = fenced(&internet, &["dig", "blocked.test", "HTTPS"]);
    assert!(internet.since(start).questions("blocked.test").is_empty());
    client.assert_code(110);
    let shown = &client.output.stdout;
    assert!(
        shown.contains("status: NXDOMAIN") && shown.contains("EDE: 15"),
        "{shown}"
    );
    Ok(())
}
