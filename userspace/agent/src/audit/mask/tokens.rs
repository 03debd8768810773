//! Secrets that are known by their shape: tokens that name themselves, and private keys.

use std::borrow::Cow;

use super::MASK;

/// Tokens that name themselves: how they begin, the least number of characters that follow, and
/// which. The lengths are below those in use, which grow. Where nothing else is said, they are from
/// the rules of gitleaks (config/gitleaks.toml).
pub(super) const TOKENS: [(&[&str], usize, Tail); 22] = [
    // GitHub, "Behind GitHub's new authentication token formats" (2021).
    (
        &["ghp_", "gho_", "ghu_", "ghr_", "github_pat_"],
        20,
        Tail::Word,
    ),
    (&["ghs_"], 20, Tail::Dotted),
    // GitLab, "Token overview" of its documentation. Those that can be routed have dots.
    (
        &[
            "glpat-", "glptt-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glagent-",
        ],
        16,
        Tail::Dotted,
    ),
    (
        &["glft-", "glimt-", "glsoat-", "gloas-", "glffct-", "glwt-"],
        16,
        Tail::Dotted,
    ),
    (&["GR1348941"], 16, Tail::Dashed),
    // Buildkite, "Token security" of its documentation.
    (&["bkua_", "bkaa_", "bkaj_", "bkct_"], 20, Tail::Word),
    // Package registries. What comes first in a token of PyPI is the version of a macaroon; `cio`
    // is that of the crates registry, `oy2` that of NuGet.
    (&["npm_"], 20, Tail::Plain),
    (&["dckr_pat_", "dckr_oat_"], 20, Tail::Dashed),
    (&["pypi-AgE"], 16, Tail::Dashed),
    (&["cio", "rubygems_"], 32, Tail::Plain),
    (&["oy2"], 43, Tail::Plain),
    // AWS, "IAM identifiers" of its documentation; Google; DigitalOcean.
    (&["AKIA", "ASIA", "ABIA", "ACCA"], 16, Tail::Id),
    (&["AIza"], 35, Tail::Dashed),
    (&["ya29.", "GOCSPX-"], 20, Tail::Dashed),
    (&["dop_v1_", "doo_v1_", "dor_v1_"], 32, Tail::Plain),
    // HashiCorp Vault, "Tokens" of its documentation; Atlassian; Grafana.
    (
        &["hvs.", "hvb.", "hvr.", "ATATT3", "glsa_"],
        20,
        Tail::Dashed,
    ),
    // Slack.
    (
        &[
            "xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-",
        ],
        10,
        Tail::Dashed,
    ),
    // Stripe.
    (
        &["sk_live_", "sk_test_", "rk_live_", "rk_test_"],
        10,
        Tail::Plain,
    ),
    // Anthropic and OpenAI; Hugging Face.
    (&["sk-ant-", "sk-proj-", "sk-svcacct-"], 20, Tail::Dashed),
    (&["sk-", "hf_"], 20, Tail::Plain),
    // age(1).
    (&["AGE-SECRET-KEY-1"], 40, Tail::Plain),
    // JSON in base64, as in a JSON Web Token (RFC 7519): it begins with `{"`.
    (&["eyJ"], 30, Tail::Base64),
];

/// What follows the beginning of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Letters and digits.
    Plain,
    /// And `_`.
    Word,
    /// And `-`.
    Dashed,
    /// And `.`.
    Dotted,
    /// And what else is in base64.
    Base64,
    /// 16 of base32, and no more.
    Id,
}

impl Tail {
    /// How much of `text` can be of the token.
    fn length(self, text: &[u8], is_name: bool) -> usize {
        let belongs = |byte: u8| match byte {
            b'_' => !matches!(self, Self::Plain | Self::Id),
            b'-' => matches!(self, Self::Dashed | Self::Dotted | Self::Base64),
            b'.' => matches!(self, Self::Dotted | Self::Base64) && !is_name,
            b'+' | b'/' | b'=' => self == Self::Base64,
            _ => byte.is_ascii_alphanumeric(),
        };
        let end = text.iter().position(|&byte| !belongs(byte));
        let length = end.unwrap_or(text.len());
        let is_id = |text: &[u8]| {
            let base32 = |&byte: &u8| {
                matches!(byte, b'2'..=b'7' | b'A'..=b'Z') || is_name && byte.is_ascii_lowercase()
            };
            // In lower case it can be a word.
            text.iter().all(base32) && !(is_name && text.iter().all(u8::is_ascii_alphabetic))
        };
        match self {
            Self::Id if length != 16 || !is_id(&text[..16]) => 0,
            _ => length,
        }
    }
}

/// With which two characters tokens begin: by the low five bits of the first, which are the same for
/// both cases of a letter, a bit for those of the second.
const BEGINS: [u32; 32] = {
    let mut begins = [0; 32];
    let mut at = 0;
    while at < TOKENS.len() {
        let prefixes = TOKENS[at].0;
        let mut nth = 0;
        while nth < prefixes.len() {
            let prefix = prefixes[nth].as_bytes();
            begins[(prefix[0] & 31) as usize] |= 1 << (prefix[1] & 31);
            nth += 1;
        }
        at += 1;
    }
    begins
};

/// Whether a token can begin at a place of `bytes`, as nearly nothing does.
fn can_begin(bytes: &[u8], at: usize) -> bool {
    let is_start = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
    let next = bytes.get(at + 1).map_or(0, |byte| byte & 31);
    is_start && BEGINS[usize::from(bytes[at] & 31)] >> next & 1 == 1
}

/// Appends `text` without its tokens to `masked`, if there are some. In a name, which is in lower
/// case, each is within a label.
pub(super) fn tokens(text: &str, is_name: bool, masked: &mut String) -> bool {
    let bytes = text.as_bytes();
    let mut done = 0;
    let mut at = 0;
    while at < bytes.len() {
        let found = can_begin(bytes, at).then(|| token(&bytes[at..], is_name));
        let Some((prefix, length)) = found.flatten() else {
            at += 1;
            continue;
        };
        masked.push_str(&text[done..at + prefix]);
        masked.push_str(MASK);
        done = at + prefix + length;
        at = done;
    }
    if done > 0 {
        masked.push_str(&text[done..]);
    }
    done > 0
}

/// How long the prefix is of the token that `text` begins with, and what follows it.
fn token(text: &[u8], is_name: bool) -> Option<(usize, usize)> {
    let first = text.first()?.to_ascii_lowercase();
    TOKENS.iter().find_map(|&(prefixes, least, tail)| {
        let prefix = prefixes.iter().find(|prefix| {
            let prefix = prefix.as_bytes();
            prefix[0].to_ascii_lowercase() == first
                && match text.get(..prefix.len()) {
                    // A dot would divide labels.
                    Some(start) if is_name => {
                        !prefix.contains(&b'.') && start.eq_ignore_ascii_case(prefix)
                    }
                    start => start == Some(prefix),
                }
        })?;
        let length = tail.length(&text[prefix.len()..], is_name);
        (length >= least).then_some((prefix.len(), length))
    })
}

/// Appends `text` without its tokens to `masked`.
pub(super) fn mask_tokens(text: &str, masked: &mut String) {
    if !tokens(text, false, masked) {
        masked.push_str(text);
    }
}

/// Masks private keys in PEM (RFC 7468), of which only the labels are shown.
pub(super) fn without_keys(text: Cow<'_, str>) -> Cow<'_, str> {
    const BEGIN: &str = "-----BEGIN ";
    const KEY: &str = "PRIVATE KEY-----";
    /// The longest label, `ENCRYPTED `, is shorter.
    const LONGEST: usize = 32;
    let mut masked = String::new();
    let mut done = 0;
    for (at, _) in text.match_indices(BEGIN) {
        let label = at + BEGIN.len();
        let bytes = text.as_bytes();
        let near = &bytes[label.min(bytes.len())..bytes.len().min(label + LONGEST)];
        let found = near
            .windows(KEY.len())
            .position(|part| part == KEY.as_bytes());
        let is_label = |&end: &usize| {
            near[..end]
                .iter()
                .all(|b| b.is_ascii_uppercase() || *b == b' ')
        };
        let found = found.filter(is_label);
        let Some(start) = found.map(|found| label + found + KEY.len()) else {
            continue;
        };
        if at < done || start == text.len() {
            continue;
        }
        masked.push_str(&text[done..start]);
        masked.push_str(MASK);
        let end = text[start..].find("-----END ");
        done = end.map_or(text.len(), |end| start + end);
    }
    if done == 0 {
        return text;
    }
    masked.push_str(&text[done..]);
    masked.into()
}
