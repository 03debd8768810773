//! Secrets that are known by what a command line says of them.
//!
//! Arguments are taken as the process got them. Options are read as most programs read them, and
//! texts of several words as a shell reads them. What that gets wrong is a word too many that is
//! masked, or one that only its program knows to be secret.

use super::{MASK, tokens::mask_tokens};

/// What can stand between a key and the sign behind it.
const QUOTES: [char; 3] = ['"', '\'', '\\'];

/// From this length on, the user of a URL is taken for a token.
const LONG_USER: usize = 20;

/// How deep scripts within scripts are read as such.
const MAX_DEPTH: u8 = 4;

/// How sure it is that what belongs to a key is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// It is.
    Sure,
    /// It is, unless it is a path or a URL.
    Likely,
}

/// What the command line says that comes next.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Anything,
    Secret(Secrecy),
    /// `user:password`.
    Login,
    Script,
}

/// A command line that is read from left to right.
#[derive(Default)]
pub(super) struct Line {
    next: Next,
    /// Of programs whose short options are known, the last.
    program: Program,
    /// Whether the argument before has a setting made of the two that follow.
    sets: bool,
    depth: u8,
}

/// Programs with short options for passwords, which mean something else elsewhere.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Program {
    #[default]
    Other,
    /// `-u user:password`, whatever it looks like.
    Curl,
    /// `-pPASSWORD` (option and value are one argument).
    Mysql,
    /// `-p PASSWORD`, `-pPASSWORD`: sshpass, and `login` of docker and its like.
    Login,
    /// `-a PASSWORD`.
    Redis,
}

impl Program {
    /// Which one `word` names, if any.
    fn of(word: &str) -> Option<Self> {
        let word = word.trim_start_matches(['$', '(', '`', '{']);
        let name = word.rsplit('/').next().unwrap_or(word);
        match name {
            "curl" => Some(Self::Curl),
            "sshpass" | "login" => Some(Self::Login),
            "redis-cli" => Some(Self::Redis),
            "mysql" | "mysqladmin" | "mysqldump" | "mysqlimport" | "mariadb" | "mariadb-admin"
            | "mariadb-dump" | "mariadb-import" => Some(Self::Mysql),
            // With a port after `-p`, also below sshpass.
            "ssh" | "scp" | "sftp" => Some(Self::Other),
            _ => None,
        }
    }

    /// The option that takes a password, and whether it can be the next argument.
    fn password(self) -> Option<(&'static str, bool)> {
        match self {
            Self::Mysql => Some(("-p", false)),
            Self::Login => Some(("-p", true)),
            Self::Redis => Some(("-a", true)),
            Self::Curl | Self::Other => None,
        }
    }
}

impl Line {
    /// Appends the next argument to `masked`.
    pub(super) fn argument(&mut self, text: &str, masked: &mut String) {
        match std::mem::take(&mut self.next) {
            // `-H Authorization: Bearer …` without quotes.
            next @ Next::Secret(_) if is_scheme(text) => {
                self.next = next;
                return masked.push_str(text);
            }
            Next::Secret(secrecy) => {
                let is_other = text.is_empty()
                    || is_flag(text)
                    || self.depth > 0 && is_variable(text)
                    || secrecy == Secrecy::Likely && is_place(text);
                if !is_other {
                    return masked.push_str(MASK);
                }
            }
            Next::Login => {
                if let Some(user) = self.login(text) {
                    masked.push_str(user);
                    return masked.push_str(MASK);
                }
            }
            Next::Script => return self.script(text, masked),
            Next::Anything => {}
        }
        if let Some(option) = self.option(text) {
            masked.push_str(option);
            return masked.push_str(MASK);
        }
        if let Some(program) = Program::of(text) {
            self.program = program;
        }
        if word(text).0 < text.len() && !begins_with_key(text) {
            return self.script(text, masked);
        }
        // `Authorization:` and its value are two words, and so are `config set token` and its.
        let sets = !text.starts_with('-')
            && std::mem::replace(&mut self.sets, matches!(text, "set" | "config"));
        let key = text.strip_suffix(':');
        if let Some(key) = key.or_else(|| sets.then_some(text))
            && let Some(secrecy) = secrecy(last_key(key.trim_end_matches(QUOTES)))
        {
            self.next = Next::Secret(secrecy);
        }
        inside(text, self.depth > 0, masked);
    }

    /// Up to where an option names itself, if the rest of the argument is its password; and what
    /// comes after it, if it is an option.
    fn option<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let name = text.strip_prefix('-')?;
        if let Some((option, can_be_next)) = self.program.password()
            && let Some(value) = text.strip_prefix(option)
        {
            if !value.is_empty() {
                return Some(option);
            }
            if can_be_next {
                self.next = Next::Secret(Secrecy::Sure);
            }
            return None;
        }
        if let Some(name) = name.strip_prefix('-') {
            const LOGINS: [&str; 2] = ["user", "proxy-user"];
            if LOGINS.contains(&name) {
                self.next = Next::Login;
            } else if let Some((name, login)) = name.split_once('=')
                && LOGINS.contains(&name)
            {
                return self
                    .login(login)
                    .map(|user| &text[..text.len() - login.len() + user.len()]);
            } else if let Some(secrecy) = secrecy(name) {
                self.next = Next::Secret(secrecy);
            }
        } else if self.program == Program::Curl && name.starts_with('u') && name.len() > 1 {
            let login = &name[1..];
            return self.login(login).map(|user| &text[..2 + user.len()]);
        } else if name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            if name.len() > 2
                && let Some(secrecy) = secrecy(name)
            {
                self.next = Next::Secret(secrecy);
            } else if name.ends_with(['u', 'U']) {
                self.next = Next::Login;
            } else if name.ends_with('c') {
                self.next = Next::Script;
            }
        } else if let Some(secrecy) = secrecy(name) {
            self.next = Next::Secret(secrecy);
        }
        None
    }

    /// Up to where the password of `user:password` begins, if it is that.
    fn login<'a>(&self, text: &'a str) -> Option<&'a str> {
        let (user, password) = text.split_once(':')?;
        let is_number = password.bytes().all(|byte| byte.is_ascii_digit());
        // Else it may be a user and a group, a host and a port, a host and a path.
        let is_place = password.starts_with('/') || user.contains('@');
        let is_login = match self.program {
            Program::Curl => !password.starts_with("//"),
            _ => !is_number && !is_place,
        };
        (is_login && !password.is_empty()).then(|| &text[..=user.len()])
    }

    /// Masks what a shell would read: words, in which quotes keep spaces together.
    fn script(&self, text: &str, masked: &mut String) {
        if self.depth >= MAX_DEPTH {
            return inside(text, true, masked);
        }
        let mut line = Line {
            program: self.program,
            depth: self.depth + 1,
            ..Self::default()
        };
        let mut rest = text;
        let mut before = "";
        while !rest.is_empty() {
            let spaces = rest.len() - rest.trim_start().len();
            let (space, from) = rest.split_at(spaces);
            masked.push_str(space);
            let (end, unclosed) = word(from);
            let (given, after) = from.split_at(end);
            rest = after;
            if ["=", ":", "=>", ":="].contains(&given)
                && let Some(secrecy) = secrecy(last_key(before.trim_end_matches(QUOTES)))
            {
                line.next = Next::Secret(secrecy);
                masked.push_str(given);
                continue;
            }
            before = given;
            let quoted = ['"', '\''].into_iter().find_map(|quote| {
                let inner = given.strip_prefix(quote)?.strip_suffix(quote)?;
                Some((quote, inner))
            });
            match quoted {
                Some((quote, inner)) => {
                    masked.push(quote);
                    line.argument(inner, masked);
                    masked.push(quote);
                }
                None => {
                    let start = masked.len();
                    line.argument(given, masked);
                    // Of what is masked, one end can be that of a quote.
                    if unclosed.is_none()
                        && let (_, Some(quote)) = word(&masked[start..])
                    {
                        masked.push(quote);
                    }
                }
            }
        }
    }
}

/// Where the first word of a script ends, and the quote that is open there.
fn word(text: &str) -> (usize, Option<char>) {
    let mut open = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match (open, c) {
            _ if is_escaped => is_escaped = false,
            (None | Some('"'), '\\') => is_escaped = true,
            (None, '"' | '\'') => open = Some(c),
            (None, c) if c.is_whitespace() => return (at, None),
            (Some(quote), c) if c == quote => open = None,
            _ => {}
        }
    }
    (text.len(), open)
}

/// Whether it is a variable of a script, and so no value.
fn is_variable(word: &str) -> bool {
    let Some(name) = word.strip_prefix('$') else {
        return false;
    };
    let name = name
        .strip_prefix('{')
        .and_then(|name| name.strip_suffix('}'))
        .unwrap_or(name);
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether it is another option, and not the value of the one before.
fn is_flag(text: &str) -> bool {
    text.starts_with("--") || text.len() == 2 && text.starts_with('-')
}

/// Whether it is where something is, and not a secret.
pub(super) fn is_place(text: &str) -> bool {
    text.starts_with(['/', '~'])
        || text.starts_with("./")
        || text.starts_with("../")
        || text
            .get(..text.len().min(16))
            .is_some_and(|start| start.contains("://"))
}

/// Whether it is the name of a way to authenticate (RFC 9110, section 11.1), before the credential.
fn is_scheme(word: &str) -> bool {
    const SCHEMES: [&str; 8] = [
        "Bearer",
        "Basic",
        "Token",
        "Digest",
        "Negotiate",
        "ApiKey",
        "Bot",
        "AWS4-HMAC-SHA256",
    ];
    SCHEMES
        .iter()
        .any(|scheme| scheme.eq_ignore_ascii_case(word))
}

/// Whether what belongs to a key is secret, by the key's last words.
pub(super) fn secrecy(key: &str) -> Option<Secrecy> {
    /// Endings, without what divides words.
    const SURE: [&str; 15] = [
        "token",
        "password",
        "passwd",
        "passphrase",
        "secret",
        "apikey",
        "secretkey",
        "accesskey",
        "accountkey",
        "authkey",
        "masterkey",
        "authorization",
        "cookie",
        "signature",
        "jwt",
    ];
    const LIKELY: [&str; 6] = [
        "privatekey",
        "signingkey",
        "encryptionkey",
        "deploykey",
        "credential",
        "credentials",
    ];
    /// Whole words.
    const LIKELY_WORDS: [&str; 7] = ["pass", "pwd", "auth", "sig", "pat", "creds", "bearer"];
    /// What a flag begins with that takes no value.
    const FLAGS: [&str; 5] = ["no-", "ask-", "skip-", "without-", "disable-"];
    /// Longer than any of the endings.
    const LONGEST: usize = 16;

    let key = key
        .trim_start_matches('-')
        .trim_end_matches(|c: char| c.is_ascii_digit());
    if FLAGS.iter().any(|flag| key.starts_with(flag)) || !key.bytes().all(of_key) {
        return None;
    }
    let is_divider = |byte: u8| matches!(byte, b'-' | b'_' | b'.');
    let mut end = [0; LONGEST];
    let mut start = LONGEST;
    for byte in key
        .bytes()
        .rev()
        .filter(|&byte| !is_divider(byte))
        .take(LONGEST)
    {
        start -= 1;
        end[start] = byte.to_ascii_lowercase();
    }
    let ends_with = |words: &[&str]| {
        words
            .iter()
            .any(|word| end[start..].ends_with(word.as_bytes()))
    };
    if ends_with(&SURE) {
        Some(Secrecy::Sure)
    } else if ends_with(&LIKELY) || LIKELY_WORDS.iter().any(|word| is_last_word(key, word)) {
        Some(Secrecy::Likely)
    } else {
        None
    }
}

/// Whether `word` is the last word of a key, as in `user-pass`, `user_pass`, `user.pass`, `userPass`.
fn is_last_word(key: &str, word: &str) -> bool {
    let bytes = key.as_bytes();
    let Some(start) = bytes.len().checked_sub(word.len()) else {
        return false;
    };
    let (before, last) = bytes.split_at(start);
    last.eq_ignore_ascii_case(word.as_bytes())
        && match before.last() {
            None | Some(b'-' | b'_' | b'.') => true,
            Some(byte) => byte.is_ascii_lowercase() && last[0].is_ascii_uppercase(),
        }
}

const fn of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// The key that ends where `text` does.
fn last_key(text: &str) -> &str {
    let bytes = text.as_bytes();
    let length = bytes.iter().rev().take_while(|&&byte| of_key(byte)).count();
    &text[text.len() - length..]
}

/// Whether an argument is one key and its secret.
fn begins_with_key(text: &str) -> bool {
    let end = text
        .bytes()
        .position(|byte| !of_key(byte))
        .unwrap_or(text.len());
    text[end..].starts_with(['=', ':']) && secrecy(&text[..end]).is_some()
}

/// Appends an argument, or a word of one, without what it says to be secret.
fn inside(text: &str, is_script: bool, masked: &mut String) {
    let mut done = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find(['=', ':']) {
        let sign = at + found;
        at = sign + 1;
        let span = match text[sign..].starts_with("://") {
            true => {
                at = sign + 3;
                of_url(text, at)
            }
            false => of_key_at(text, sign, is_script).map(|(from, to)| (from, to, MASK.to_owned())),
        };
        if let Some((from, to, instead)) = span {
            mask_tokens(&text[done..from], masked);
            masked.push_str(&instead);
            done = to;
            at = to;
        }
    }
    mask_tokens(&text[done..], masked);
}

/// The user and password of the URL whose authority begins at `start`, and what to show instead.
fn of_url(text: &str, start: usize) -> Option<(usize, usize, String)> {
    let rest = &text[start..];
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`');
    let authority = &rest[..rest.find(ends).unwrap_or(rest.len())];
    let login = &authority[..authority.rfind('@')?];
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let shown = if user.len() >= LONG_USER { MASK } else { user };
    Some(match password {
        "" => (start, start + user.len(), shown.to_owned()),
        _ => (start, start + login.len(), format!("{shown}:{MASK}")),
    })
}

/// The secret that the key before `sign` says follows: where it begins and ends.
fn of_key_at(text: &str, sign: usize, is_script: bool) -> Option<(usize, usize)> {
    let before = text[..sign].trim_end_matches(' ').trim_end_matches(QUOTES);
    let key = last_key(before);
    let secrecy = secrecy(key)?;
    let start = before.len() - key.len();
    let is_colon = text.as_bytes()[sign] == b':';
    // `host/image:tag`, `host/auth:8080`.
    if is_colon && text[..start].ends_with('/') {
        return None;
    }
    let mut from = sign + 1;
    if text[from..].starts_with(['>', '=']) {
        from += 1;
    }
    let is_near = !text[from..].starts_with(' ');
    from = text.len() - text[from..].trim_start_matches(' ').len();
    let rest = &text[from..];
    if is_colon && is_near && is_port(rest)
        || secrecy == Secrecy::Likely && is_place(rest)
        || start == 0 && is_script && is_variable(rest)
    {
        return None;
    }
    // All that is left, if nothing comes before the key.
    if start == 0 {
        if is_colon || key.starts_with('-') {
            from += scheme(rest);
            return (from < text.len()).then_some((from, text.len()));
        }
        let length = end_of_form(rest);
        return (length > 0).then_some((from, from + length));
    }
    let escape = rest.len() - rest.trim_start_matches('\\').len();
    if let Some(quote) = rest[escape..]
        .chars()
        .next()
        .filter(|c| ['"', '\''].contains(c))
    {
        from += escape + 1;
        from += scheme(&text[from..]);
        let length = end_of_quoted(&text[from..], quote, escape > 0);
        return (length > 0).then_some((from, from + length));
    }
    from += scheme(rest);
    let rest = &text[from..];
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '&' | ';' | '|' | '<' | '>' | '#')
    };
    let value = &rest[..rest.find(ends).unwrap_or(rest.len())];
    // What escapes a quote belongs to the quote.
    let value = value.trim_end_matches('\\');
    let value = &value[..end_of_form(value)];
    let is_none = value.is_empty() || is_script && is_variable(value);
    (!is_none).then_some((from, from + value.len()))
}

/// How much of a value is the name of a way to authenticate, and spaces.
fn scheme(value: &str) -> usize {
    let end = value.bytes().take(20).position(|byte| byte == b' ');
    let Some(end) = end.filter(|&end| is_scheme(&value[..end])) else {
        return 0;
    };
    let spaces = value[end..].len() - value[end..].trim_start_matches(' ').len();
    match end + spaces {
        all if all == value.len() => 0,
        length => length,
    }
}

/// Whether a port comes first: with a host's name before it.
fn is_port(text: &str) -> bool {
    let digits = text.bytes().take(6).take_while(u8::is_ascii_digit).count();
    (1..=5).contains(&digits)
        && (text.len() == digits || text[digits..].starts_with(['/', ':', ',', '?']))
}

/// Where the first value of a form ends, or of a list of settings: at a `&` or `,` that has another
/// key behind it.
fn end_of_form(text: &str) -> usize {
    let is_next = |at: usize| {
        let bytes = &text.as_bytes()[at + 1..];
        let length = bytes.iter().take_while(|&&byte| of_key(byte)).count();
        length > 0 && bytes.get(length) == Some(&b'=')
    };
    let mut ends = text.match_indices(['&', ',']).map(|(at, _)| at);
    let end = ends.find(|&at| is_next(at)).unwrap_or(text.len());
    // Both ends of a quote, or none.
    if text[..end].contains(QUOTES) {
        text.len()
    } else {
        end
    }
}

/// Where a value ends that began with `quote`, which has a `\` before it at both ends or none.
fn end_of_quoted(text: &str, quote: char, is_escaped: bool) -> usize {
    let mut escapes = 0;
    for (at, c) in text.char_indices() {
        match c {
            '\\' => escapes += 1,
            c if c == quote && (escapes % 2 == 1) == is_escaped => {
                return at - if is_escaped { 1 } else { 0 };
            }
            _ => escapes = 0,
        }
    }
    text.len()
}
