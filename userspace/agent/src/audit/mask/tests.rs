//! Tests of what is masked, and what must not be.

use std::borrow::Cow;

use proptest::prelude::*;

use super::{
    MASK, Mask, is_secret,
    tokens::{TOKENS, Tail},
};

fn mask() -> Mask {
    let environment = [
        ("DEPLOY_TOKEN", "correct-horse"),
        ("db_password", "battery-staple"),
        ("PASSWORD", "short"),
        ("HOME", "/home/runner"),
    ];
    Mask::new(
        environment
            .map(|(name, value)| (name.into(), value.into()))
            .into_iter(),
    )
}

fn arguments(mask: &Mask, given: &[&str]) -> Vec<String> {
    let given: Vec<_> = given.iter().map(|&text| text.to_owned()).collect();
    mask.arguments(&given).map(Cow::into_owned).collect()
}

/// What becomes of a line without quotes.
fn line(text: &str) -> String {
    let words: Vec<_> = text.split(' ').collect();
    arguments(&Mask::default(), &words).join(" ")
}

/// What becomes of the last of some arguments.
fn last(given: &[&str]) -> String {
    arguments(&Mask::default(), given).pop().unwrap()
}

fn token(prefix: &str) -> String {
    format!("{prefix}{}", "A2b3C4d5".repeat(10))
}

#[test]
fn secret_variables_are_masked_and_others_are_not() {
    let masked = arguments(
        &mask(),
        &[
            "curl",
            "-H",
            "X: correct-horse",
            "x battery-staple",
            "/home/runner",
            "short",
        ],
    );
    assert_eq!(
        masked,
        ["curl", "-H", "X: ***", "x ***", "/home/runner", "short"]
    );
    assert_eq!(mask().text("a correct-horse"), "a ***");
}

#[test]
fn a_variable_is_secret_by_what_its_name_says() {
    for name in [
        "NPM_TOKEN",
        "SSHPASS",
        "TOKEN_PROD",
        "API_TOKENS",
        "MyPassword1",
        "DB_PASS",
        "AWS_SECRET_ACCESS_KEY",
        "SIGNING_KEY",
        "GH_PAT",
        "REGISTRY_AUTH",
        "npm_config__authToken",
        "CI_JOB_JWT_V2",
    ] {
        assert!(is_secret(name, "correct-horse"), "{name}");
    }
    for name in [
        "GIT_AUTHOR_NAME",
        "XAUTHORITY",
        "SSH_AUTH_SOCK",
        "TOKEN_URL",
        "AUTH_SERVER",
        "COMPASS",
        "PATH",
        "CACHE_KEY",
        "PUBLIC_KEY",
        "KEYBOARD",
        "TOKENIZER",
        "DB_PASSWORD_FILE",
    ] {
        assert!(!is_secret(name, "correct-horse"), "{name}");
    }
    assert!(!is_secret(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "/run/key.json"
    ));
    assert!(!is_secret("PWD", "/home/runner"));
}

#[test]
fn a_secret_in_a_name_is_masked_in_lower_case() {
    let mask = Mask::new([("DB_PASS".to_owned(), "AbCdEfGh1234".to_owned())].into_iter());
    assert_eq!(mask.name("abcdefgh1234.x.test"), "***.x.test");
    let token = token("ghp_").to_lowercase();
    assert_eq!(mask.name(&format!("a.{token}.b.test")), "a.ghp_***.b.test");
    let word = Mask::new([("DB_PASS".to_owned(), "postgres".to_owned())].into_iter());
    assert_eq!(word.name("postgres.x.test"), "postgres.x.test");
}

#[test]
fn a_destination_is_not_hidden_by_how_it_looks() {
    let mask = Mask::default();
    for name in [
        "sk-learn-models-production-europe-1.example.test",
        "asianortheastproduction1.cdn.test",
        "npm_config.x.test",
        "pypi-mirror-internal-cache.eu.test",
        "glpat.x.test",
        "a.eyjabcdefghijklmnopqrstuvwxyz0123456789.test",
        "localhost",
        "",
        "..",
    ] {
        assert_eq!(mask.name(name), name);
    }
    for line_ in [
        "curl https://token:8443/auth:80 auth:8080 --resolve auth:443:192.0.2.1",
        "wget --auth-no-challenge https://a.test/x",
        "ssh -p 5432 git@a.test:/x/y",
        "docker run -u 1000:1000 a.test/secret:1.2 --user 0:0",
        "rsync -au a.test:/x /y -u git@a.test:x",
        "tool -u https://a.test/ --token-file /run/x --password-stdin --no-password x",
        "--disable-auth https://a.test",
        "psql -p 5432 -U me -h db.test",
        "--type=secret https://a.test/",
        "PWD=/home/x OLDPWD=/y --private-key /x/y --pass ../key",
        "max_tokens=100 tokenizer=x author=me --author you keyboard=us",
        "git clone ssh://git@a.test/x https://me@a.test",
        "make -p -j4 COMPASS=x bypass=y",
    ] {
        assert_eq!(line(line_), line_);
    }
}

#[test]
fn tokens_are_masked_by_their_shape() {
    let tokens = TOKENS
        .iter()
        .flat_map(|(prefixes, _, tail)| prefixes.iter().map(move |prefix| (prefix, tail)));
    for (prefix, tail) in tokens {
        let token = match tail {
            Tail::Id => format!("{prefix}ABCDEFGHIJKLMNO2"),
            _ => token(prefix),
        };
        let shown = format!("x={prefix}***,y");
        assert_eq!(last(&[&format!("x={token},y")]), shown);
        assert_eq!(Mask::default().text(&token), format!("{prefix}***"));
        assert_eq!(
            last(&[&format!("x{token}")]),
            format!("x{token}"),
            "within a word"
        );
    }
    for innocent in [
        "npm_config_cache=/tmp",
        "pypi-server",
        "eyJ",
        "AKIA",
        "sk-learn",
    ] {
        assert_eq!(last(&[innocent]), innocent);
    }
}

#[test]
fn what_a_key_says_to_be_secret_is_masked() {
    for (given, shown) in [
        ("curl --data token=npm_zzzz", "curl --data token=***"),
        (
            "curl -u user:hunter22 https://a.test",
            "curl -u user:*** https://a.test",
        ),
        (
            "curl -suser -fsSLu me:1234 x",
            "curl -suser -fsSLu me:*** x",
        ),
        (
            "curl -ume:pw --proxy-user=a:b",
            "curl -ume:*** --proxy-user=a:***",
        ),
        (
            "http https://a.test/?a=b&password=x&c=d#e",
            "http https://a.test/?a=b&password=***&c=d#e",
        ),
        (
            "git clone https://me:p@ss@a.test/x",
            "git clone https://me:***@a.test/x",
        ),
        (
            "git clone https://0123456789abcdef0123@a.test",
            "git clone https://***@a.test",
        ),
        (
            "x --token abc --api-key=a&b -- y",
            "x --token *** --api-key=*** -- y",
        ),
        (
            "x --registry-token -abc -password p",
            "x --registry-token *** -password ***",
        ),
        (
            "mysql -phunter -P 3306 -h db.test",
            "mysql -p*** -P 3306 -h db.test",
        ),
        (
            "docker login -u me -p pw a.test",
            "docker login -u me -p *** a.test",
        ),
        (
            "sshpass -p pw ssh -p 22 a.test",
            "sshpass -p *** ssh -p 22 a.test",
        ),
        (
            "env DB_PASSWORD=a&b GITHUB_TOKEN=x",
            "env DB_PASSWORD=*** GITHUB_TOKEN=***",
        ),
        ("-d client_secret=a&grant=b", "-d client_secret=***&grant=b"),
        (
            "-H Authorization: Bearer abc x",
            "-H Authorization: Bearer *** x",
        ),
        (
            "java -Ddb.password=x -DapiKey=y",
            "java -Ddb.password=*** -DapiKey=***",
        ),
        (
            "npm --//a.test/:_authToken=x",
            "npm --//a.test/:_authToken=***",
        ),
        (
            "--set auth.password=x,host=db.test",
            "--set auth.password=***,host=db.test",
        ),
        (
            "aws configure set aws_secret_access_key x/y",
            "aws configure set aws_secret_access_key ***",
        ),
        (
            "npm config set -g //a.test/:_authToken x",
            "npm config set -g //a.test/:_authToken ***",
        ),
        (
            "mount -o user=a,password=b,vers=3",
            "mount -o user=a,password=***,vers=3",
        ),
        (
            "AccountName=a;AccountKey=b==;x=y",
            "AccountName=a;AccountKey=***;x=y",
        ),
    ] {
        assert_eq!(line(given), shown);
    }
    for (given, shown) in [
        ("Authorization: Bearer abc def", "Authorization: Bearer ***"),
        ("authorization:basic abc", "authorization:basic ***"),
        ("PRIVATE-TOKEN: abc", "PRIVATE-TOKEN: ***"),
        ("Cookie: a=b; c=d&e=f", "Cookie: ***"),
        ("--password=a b\"c", "--password=***"),
        ("PASSWORD=a b", "PASSWORD=***"),
        (r#"{"token":"a\"b","x":"y"}"#, r#"{"token":"***","x":"y"}"#),
        (r#"{"token": "a", "x": "y"}"#, r#"{"token": *** "x": "y"}"#),
        (
            r#"{\"token\":\"ab\",\"x\":1}"#,
            r#"{\"token\":\"***\",\"x\":1}"#,
        ),
        ("{'secret' => 'ab'}", "{'secret' => ***"),
        (
            "http.extraHeader=AUTHORIZATION: basic YTpi",
            "http.extraHeader=AUTHORIZATION: basic ***",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\n",
        ),
        (
            "--config eyJhdXRocyI6eyJhLnRlc3QiOnsiYXV0aCI6/Ym+6Yg== x",
            "--config eyJ*** x",
        ),
        (
            "x -----BEGIN PRIVATE KEY-----MII",
            "x -----BEGIN PRIVATE KEY-----***",
        ),
        (
            "-----BEGIN CERTIFICATE-----MII",
            "-----BEGIN CERTIFICATE-----MII",
        ),
    ] {
        assert_eq!(last(&[given]), shown);
    }
    assert_eq!(last(&["--password", "a b"]), MASK);
    assert_eq!(last(&["--password", "--verbose"]), "--verbose");
}

#[test]
fn a_script_is_read_as_its_shell_reads_it() {
    for (given, shown) in [
        (
            "set -e; curl -H \"Authorization: Bearer abc\" -u 'me:a b' https://a.test | sh",
            "set -e; curl -H \"Authorization: Bearer ***\" -u 'me:***' https://a.test | sh",
        ),
        (
            "TOKEN=x curl --token 'a b' c",
            "TOKEN=*** curl --token '***' c",
        ),
        (
            "curl -H \"Authorization: Bearer $TOKEN\" --token \"${TOKEN}\" -d token=$TOKEN",
            "curl -H \"Authorization: Bearer ***\" --token \"${TOKEN}\" -d token=$TOKEN",
        ),
        (
            r#"bash -c "curl -H \"Authorization: Bearer abc\" --token x""#,
            r#"bash -c "curl -H \"Authorization: Bearer *** --token ***""#,
        ),
        (
            "x=$(curl -u me:pw https://a.test)",
            "x=$(curl -u me:*** https://a.test)",
        ),
    ] {
        assert_eq!(last(&["sh", "-c", given]), shown);
        if !given.starts_with("TOKEN") {
            assert_eq!(last(&["ssh", "a.test", given]), shown);
        }
    }
}

/// Pieces of which hostile texts are made.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "token",
            "=",
            ":",
            " ",
            "\"",
            "'",
            "\\",
            "--password",
            "-u",
            "-c",
            "curl",
            "mysql",
            "-p",
            "a",
            "Authorization",
            "Bearer",
            "://",
            "@",
            "/",
            "&",
            "?",
            "x",
            "ghp_",
            "eyJ",
            "AKIA",
            "A2b3C4d5E6f7G2h3I4j5K6l7M2n3O4p5",
            "ABCDEFGHIJKLMNO2",
            "correct-horse",
            "battery-staple",
            "-----BEGIN ",
            "PRIVATE KEY-----",
            "-----END ",
            "set",
            "***",
            "*",
            "$",
            "{",
            "}",
            ",",
            "\n",
            "auth",
            ".",
            "é",
            "\u{202e}",
            "login",
            "123",
            "--user",
            "=>",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_masked_stays_as_it_is(given in prop::collection::vec(text(), 0..6)) {
        let mask = mask();
        let once: Vec<_> = mask.arguments(&given).map(Cow::into_owned).collect();
        prop_assert_eq!(once.len(), given.len());
        let twice: Vec<_> = mask.arguments(&once).map(Cow::into_owned).collect();
        prop_assert_eq!(&once, &twice);
        for text in given {
            let once = mask.text(&text).into_owned();
            prop_assert_eq!(mask.text(&once), once.as_str());
            let once = mask.name(&text).into_owned();
            prop_assert_eq!(mask.name(&once), once.as_str());
        }
    }

    #[test]
    fn a_secret_after_a_key_is_nowhere(
        secret in "[a-zA-Z0-9_+/.!%^(){}@~]{1,40}",
        key in prop::sample::select(vec!["password", "access_token", "client-secret", "X-Api-Key"]),
        form in 0..8usize,
    ) {
        let secret = format!("Qz{secret}Zq");
        let given = match form {
            0 => vec![format!("--{key}"), secret.clone()],
            1 => vec![format!("--{key}={secret}")],
            2 => vec![format!("{key}={secret}")],
            3 => vec![format!("{key}: {secret}")],
            4 => vec![format!("{{\"a\":1,\"{key}\":\"{secret}\"}}")],
            5 => vec![format!("https://a.test/x?y=z&{key}={secret}&b=c")],
            6 => vec!["sh".into(), "-c".into(), format!("a --{key} '{secret}' b; {key}=\"{secret}\" c")],
            _ => vec!["curl".into(), "-u".into(), format!("me:{secret}")],
        };
        let mask = mask();
        let masked: Vec<_> = mask.arguments(&given).collect();
        prop_assert!(!masked.concat().contains(&secret), "{masked:?}");
    }
}

#[test]
fn a_hostile_text_takes_no_longer_than_its_length() {
    // With a time that grows with the square of the length, these take minutes.
    for piece in [
        "token=",
        "token:",
        "pwd=/",
        "token=$a",
        "://",
        "://a:b@",
        "'",
        "\"",
        "\\\"",
        "\\",
        " = ",
        "&a=",
        "token=\"\\",
        "-----BEGIN ",
        "AKIA",
        "-AKIA",
        "eyJ.",
        "ghp_ ",
        "-c '",
        "--token ",
        "auth:1:",
        "token=a&",
        "a:",
        "$(curl -u ",
        "\\\"a ",
    ] {
        let given = [
            "sh".to_owned(),
            "-c".to_owned(),
            piece.repeat(200_000 / piece.len()),
        ];
        let masked: usize = mask().arguments(&given).map(|text| text.len()).sum();
        assert!(masked > 0, "{piece}");
    }
}
