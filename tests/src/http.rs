//! A web server, as small as real clients permit: one request a connection.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    path::{Component, Path, PathBuf},
    sync::Mutex,
};

/// Names whose answers come from a directory.
pub(crate) type Roots = Mutex<HashMap<String, PathBuf>>;

const CHUNK: usize = 64 << 10;

/// Answers one request: a file of the name's directory if it has one, `/bytes/N` with N zero
/// bytes, anything else with the name and the path that were asked for.
pub(crate) fn answer(mut stream: impl Read + Write, roots: &Roots) -> io::Result<()> {
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut host = String::new();
    let mut body = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match field.to_ascii_lowercase().as_str() {
            "host" => host = value.to_ascii_lowercase(),
            "content-length" => body = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    io::copy(&mut (&mut reader).take(body), &mut io::sink())?;
    drop(reader);

    let path = target.split('?').next().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => &host,
    };
    let root = roots
        .lock()
        .expect("a web server panicked")
        .get(name)
        .cloned();
    let (status, content): (&str, Box<dyn Read>) = if let Some(root) = root {
        match file(&root, path) {
            Ok(bytes) => ("200 OK", Box::new(io::Cursor::new(bytes))),
            Err(_) => ("404 Not Found", Box::new(io::empty())),
        }
    } else if let Some(count) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
        ("200 OK", Box::new(io::repeat(0).take(count)))
    } else {
        (
            "200 OK",
            Box::new(io::Cursor::new(format!("{name} {path}\n"))),
        )
    };
    // The end of the connection is the end of the body (RFC 9112 section 6.3).
    let kind = if path.ends_with('/') || path.ends_with(".html") {
        "text/html"
    } else {
        "application/octet-stream"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    )?;
    if method != "HEAD" {
        copy(content, &mut stream)?;
    }
    stream.flush()
}

/// The file below `root` that `path` names, or the index of the directory.
fn file(root: &Path, path: &str) -> io::Result<Vec<u8>> {
    let relative = Path::new(path.trim_start_matches('/'));
    if !relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Err(io::ErrorKind::NotFound.into());
    }
    let full = root.join(relative);
    if full.is_dir() {
        fs::read(full.join("index.html"))
    } else {
        fs::read(full)
    }
}

/// As [`io::copy`], in pieces large enough for a test of throughput.
fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            read => to.write_all(&chunk[..read])?,
        }
    }
}
