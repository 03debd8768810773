//! Jobs' logs for a collector of [OpenTelemetry](https://opentelemetry.io/docs/specs/otlp/), by
//! OTLP over HTTP in JSON.
//!
//! The logs are the record, and the queue too: each is read on from where it was sent to last, so
//! that nothing waits in memory and nothing is lost while no collector listens. What was sent just
//! before the agent was killed is sent again; `job.id` and `seq` tell.
//!
//! A collector on this host, or one that a tunnel leads to, is all that can be named: without TLS,
//! what is sent to another host could be read on the way.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::system::uname;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Bytes of a log that are sent at once, at most; a line has less.
const CHUNK: u64 = 1 << 20;

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The times of files are those of the clock's last tick: of 10 ms, where it is slowest.
const GRAIN: Duration = Duration::from_millis(10);

/// Where what was sent is kept, in the agent's state folder.
const STATE: &str = "export.json";

/// Lines could not be sent. They stay where they are.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A log, or how far it was sent, cannot be read or kept.
    #[error("could not {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The collector cannot be reached, or wants the lines later.
    #[error("the collector at {url} does not take them: {source}")]
    Later {
        /// Where it is asked.
        url: String,
        /// What came instead.
        source: Box<ureq::Error>,
    },
}

/// How far each log was sent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sent {
    /// When logs were last looked for, in nanoseconds since 1970: one that was written before, and
    /// that is not in `offsets`, was sent whole.
    since: u64,
    /// Bytes that were sent, by the job's id.
    offsets: BTreeMap<String, u64>,
}

/// Sends what is new in a folder of logs.
pub struct Exporter {
    url: String,
    client: ureq::Agent,
    logs: PathBuf,
    state: PathBuf,
    sent: Sent,
    /// Jobs that were found in the folder.
    known: HashSet<String>,
    /// The folder's last change that was looked at.
    changed: Option<SystemTime>,
}

impl Exporter {
    /// Sends the logs in the folder `logs` to the collector at `endpoint`, its base URL, on from
    /// where the state folder `state` says. The first time, from now on.
    #[must_use]
    pub fn new(endpoint: &str, logs: &Path, state: &Path) -> Self {
        let state = state.join(STATE);
        let sent = fs::read(&state)
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from))
            .unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %state.display(), %error, "nobody knows which lines of logs were exported: going on with the next");
                }
                Sent {
                    since: nanoseconds(SystemTime::now()),
                    ..Sent::default()
                }
            });
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            // Nothing that the agent's environment says.
            .proxy(None);
        Self {
            url: format!("{}/v1/logs", endpoint.trim_end_matches('/')),
            client: config.build().into(),
            logs: logs.to_owned(),
            sent,
            state,
            known: HashSet::new(),
            changed: None,
        }
    }

    /// Sends what is new; `running` are the ids of the jobs whose logs can grow. Returns whether there
    /// is more.
    ///
    /// # Errors
    ///
    /// [`ExportError`]: what was sent until then is not sent again.
    pub fn pass(&mut self, running: &HashSet<String>) -> Result<bool, ExportError> {
        let before = self.sent.offsets.clone();
        let began = SystemTime::now() - GRAIN;
        self.find()?;
        for id in running {
            self.sent.offsets.entry(id.clone()).or_default();
        }
        let ids: Vec<String> = self.sent.offsets.keys().cloned().collect();
        let mut more = false;
        let mut outcome = Ok(());
        for id in &ids {
            match self.send_on(id, running) {
                Ok(left) => more |= left,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if self.sent.offsets != before {
            self.sent.since = nanoseconds(began);
            self.keep()?;
        }
        outcome.map(|()| more)
    }

    /// Finds the logs that are new since the last time.
    fn find(&mut self) -> Result<(), ExportError> {
        let failed = failed("look at the logs in", &self.logs);
        let changed = fs::metadata(&self.logs).and_then(|meta| meta.modified());
        let changed = changed.map_err(&failed)?;
        let first = self.changed.is_none();
        if self.changed.replace(changed) == Some(changed) {
            return Ok(());
        }
        for entry in fs::read_dir(&self.logs).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".jsonl")) else {
                continue;
            };
            if !self.known.insert(id.to_owned()) {
                continue;
            }
            // While this one runs, all that is not known is new.
            let is_new = !first || {
                let written = entry.metadata().and_then(|meta| meta.modified());
                nanoseconds(written.map_err(&failed)?) >= self.sent.since
            };
            if is_new {
                self.sent.offsets.entry(id.to_owned()).or_default();
            }
        }
        Ok(())
    }

    /// Sends a part of a log, and says whether there is more of it.
    fn send_on(&mut self, id: &str, running: &HashSet<String>) -> Result<bool, ExportError> {
        let path = self.logs.join(format!("{id}.jsonl"));
        let failed = failed("read the log", &path);
        let offset = self.sent.offsets.get(id).copied().unwrap_or_default();
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|mut log| {
            log.seek(SeekFrom::Start(offset))?;
            log.take(CHUNK).read_to_end(&mut text)
        });
        match read {
            // It was too old to be kept.
            Err(error) if error.kind() == io::ErrorKind::NotFound => text.clear(),
            read => drop(read.map_err(failed)?),
        }
        let whole = text.iter().rposition(|&byte| byte == b'\n');
        let Some(whole) = whole.map(|end| &text[..=end]) else {
            if !running.contains(id) {
                self.sent.offsets.remove(id);
            }
            return Ok(false);
        };
        let records: Vec<Value> = whole
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| record(&String::from_utf8_lossy(line)))
            .collect();
        self.post(records)?;
        let end = offset + whole.len() as u64;
        self.sent.offsets.insert(id.to_owned(), end);
        Ok(true)
    }

    fn post(&self, records: Vec<Value>) -> Result<(), ExportError> {
        let count = records.len();
        let body = request(records).to_string();
        let posted = self
            .client
            .post(&self.url)
            .header("Content-Type", "application/json")
            .send(body);
        let status = match posted {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => answer.status().as_u16(),
            // What it will not take now it will not take later (OTLP, "Failures").
            Err(ureq::Error::StatusCode(status)) if !matches!(status, 429 | 502 | 503 | 504) => {
                status
            }
            Err(source) => {
                return Err(ExportError::Later {
                    url: self.url.clone(),
                    source: Box::new(source),
                });
            }
        };
        let url = &self.url;
        tracing::warn!(
            url,
            status,
            lines = count,
            "a collector refused lines of logs"
        );
        Ok(())
    }

    /// Keeps how far the logs were sent.
    fn keep(&self) -> Result<(), ExportError> {
        let new = self.state.with_extension("new");
        let text = serde_json::to_vec(&self.sent).map_err(io::Error::from);
        text.and_then(|text| File::create(&new)?.write_all(&text))
            .and_then(|()| fs::rename(&new, &self.state))
            .map_err(failed("write", &self.state))
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ExportError + use<'a> {
    move |source| ExportError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Nanoseconds since 1970, until 2554.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An `ExportLogsServiceRequest`, as
/// [JSON](https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
fn request(records: Vec<Value>) -> Value {
    let host = uname().nodename().to_string_lossy().into_owned();
    json!({"resourceLogs": [{
        "resource": {"attributes": [
            attribute("service.name", &json!("jobfence")),
            attribute("service.version", &json!(env!("CARGO_PKG_VERSION"))),
            attribute("host.name", &json!(host)),
        ]},
        "scopeLogs": [{"scope": {"name": "jobfence"}, "logRecords": records}],
    }]})
}

/// A line as a `LogRecord`: the line itself, by which its chain can be verified, and its fields by
/// their names, `process.pid` for instance.
fn record(line: &str) -> Value {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    let is = |key: &str, word: &str| event[key] == word;
    // As in the specification's table: INFO is 9, WARN is 13, ERROR is 17.
    let (number, word) = match () {
        () if event["violation"] == true || is("kind", "loss") => (17, "ERROR"),
        () if is("verdict", "deny") => (13, "WARN"),
        () => (9, "INFO"),
    };
    let mut attributes = Vec::new();
    flatten("", &event, &mut attributes);
    let mut record = json!({
        "observedTimeUnixNano": nanoseconds(SystemTime::now()).to_string(),
        "severityNumber": number,
        "severityText": word,
        "body": {"stringValue": line},
        "attributes": attributes,
    });
    let time = event["ts"]
        .as_str()
        .map(|ts| OffsetDateTime::parse(ts, &Rfc3339));
    if let Some(Ok(time)) = time {
        record["timeUnixNano"] = time.unix_timestamp_nanos().to_string().into();
    }
    record
}

/// The fields of an object, and of those in it, as attributes.
fn flatten(prefix: &str, value: &Value, into: &mut Vec<Value>) {
    let Value::Object(fields) = value else {
        return;
    };
    for (key, value) in fields {
        let key = match prefix {
            "" => key.clone(),
            prefix => format!("{prefix}.{key}"),
        };
        match value {
            Value::Object(_) => flatten(&key, value, into),
            value => into.push(attribute(&key, value)),
        }
    }
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({"key": key, "value": any(value)})
}

/// An `AnyValue`. Whole numbers have 64 bits there, and are strings in JSON.
fn any(value: &Value) -> Value {
    let one = |kind: &str, value: Value| Value::Object(Map::from_iter([(kind.to_owned(), value)]));
    match value {
        Value::Bool(value) => one("boolValue", (*value).into()),
        Value::Number(number) => match number.as_i64() {
            Some(number) => one("intValue", number.to_string().into()),
            None => one("doubleValue", number.as_f64().into()),
        },
        Value::String(text) => one("stringValue", text.clone().into()),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(any).collect();
            one("arrayValue", json!({"values": values}))
        }
        // Texts, by way of ancestors, are all that there is in arrays.
        Value::Object(_) | Value::Null => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// A collector that answers each of `statuses` to one request, and the lines that it got.
    fn collector(statuses: &'static [u16]) -> (String, thread::JoinHandle<Vec<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let serve = move || {
            let answer = |status: &u16| {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
                let mut length = 0;
                let mut first = String::new();
                reader.read_line(&mut first).expect("a request");
                assert_eq!(first, "POST /v1/logs HTTP/1.1\r\n");
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).expect("a header");
                    let line = line.trim_end().to_ascii_lowercase();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.parse().expect("a number");
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                )
                .expect("answered");
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                let records = &body["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
                let records = records.as_array().expect("records").iter();
                records
                    .map(|record| {
                        record["body"]["stringValue"]
                            .as_str()
                            .expect("a line")
                            .to_owned()
                    })
                    .collect()
            };
            statuses.iter().map(answer).collect()
        };
        (url, thread::spawn(serve))
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("jobfence-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }

        fn log(&self, id: &str, text: &str) {
            let path = self.0.join(format!("{id}.jsonl"));
            let log = fs::OpenOptions::new().create(true).append(true).open(path);
            log.expect("a log")
                .write_all(text.as_bytes())
                .expect("written");
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(exporter: &mut Exporter, running: &[&str]) -> Result<(), ExportError> {
        let running = running.iter().map(|id| (*id).to_owned()).collect();
        while exporter.pass(&running)? {}
        Ok(())
    }

    #[test]
    fn each_line_is_sent_once_also_by_the_next_agent_and_after_a_collector_was_away() {
        let folder = Folder::new("export");
        folder.log("old", "{\"seq\":0}\n");
        let (url, collected) = collector(&[200, 503, 200, 400, 200]);
        let new = || Exporter::new(&url, &folder.0, &folder.0);
        // Written before anybody wanted it.
        let old = File::options()
            .append(true)
            .open(folder.0.join("old.jsonl"));
        let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
        old.and_then(|old| old.set_modified(an_hour_ago))
            .expect("an old log");
        let mut exporter = new();
        all(&mut exporter, &[]).expect("nothing to send");
        folder.log("a", "{\"seq\":0}\n{\"seq\":1}\n{\"se");
        all(&mut exporter, &["a"]).expect("sent");
        folder.log("a", "q\":2}\n");
        let away = exporter.pass(&HashSet::from(["a".to_owned()]));
        assert!(matches!(away, Err(ExportError::Later { .. })), "{away:?}");
        drop(exporter);
        let mut exporter = new();
        all(&mut exporter, &["a"]).expect("sent");
        folder.log("a", "{\"bad\":1}\n");
        all(&mut exporter, &["a"]).expect("what is refused for good is not sent again");
        folder.log("a", "{\"seq\":4}\n");
        all(&mut exporter, &[]).expect("sent");
        assert!(exporter.sent.offsets.is_empty(), "{:?}", exporter.sent);
        let lines = collected.join().expect("the collector");
        let expected: [&[&str]; 5] = [
            &["{\"seq\":0}", "{\"seq\":1}"],
            &["{\"seq\":2}"],
            &["{\"seq\":2}"],
            &["{\"bad\":1}"],
            &["{\"seq\":4}"],
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_becomes_a_record_with_its_fields() {
        let line = r#"{"ts":"2026-01-02T03:04:05.000000006Z","verdict":"deny","violation":true,"dst":{"port":443},"process":{"ancestors":["sh","make"]}}"#;
        let record = record(line);
        assert_eq!(record["timeUnixNano"], "1767323045000000006");
        assert_eq!(record["severityText"], "ERROR");
        assert_eq!(record["body"]["stringValue"], line);
        let attributes = record["attributes"].as_array().expect("attributes");
        for expected in [
            json!({"key": "verdict", "value": {"stringValue": "deny"}}),
            json!({"key": "violation", "value": {"boolValue": true}}),
            json!({"key": "dst.port", "value": {"intValue": "443"}}),
            json!({"key": "process.ancestors", "value": {"arrayValue": {"values": [
                {"stringValue": "sh"}, {"stringValue": "make"}]}}}),
        ] {
            assert!(attributes.contains(&expected), "{expected} in {record:#}");
        }
    }
}
