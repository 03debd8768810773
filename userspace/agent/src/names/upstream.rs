//! The host's own resolvers, asked for names that the policy allows.
//!
//! hickory-resolver builds each question afresh, checks who answers, falls back to TCP, and keeps
//! answers for their TTL. Every job has its own cache: what one job asked for, another can neither
//! see nor change.

use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name as WireName, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::message;

/// How long a client waits for one answer at most. The C library gives up on a resolver after
/// five seconds and asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one try takes at most, whatever `options timeout:` says, so that a second server has
/// its turn within [`ANSWER_TIMEOUT`].
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers that are kept. A job asks for few names; under a wildcard it could ask for any number.
const CACHED_ANSWERS: u64 = 1024;

/// How long an answer is kept at least, whatever its TTL, so that a job cannot ask for one name over
/// and over. Failures are not kept.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Answers of the upstream resolvers.
#[derive(Debug)]
pub(super) enum Found {
    /// An answer section that holds something.
    Records(Vec<Record>),
    /// The name does not exist, or has no address of that type.
    Nothing(ResponseCode),
}

/// A lookup that can be polled once and moved.
pub(super) type Lookup<'a> = Pin<Box<dyn Future<Output = Option<Found>> + Send + 'a>>;

/// The resolvers of one job.
pub(super) struct Upstream {
    config: ResolverConfig,
    options: ResolverOpts,
    /// Made when the job first asks for something: its cache takes most of the memory of a job, and
    /// many a job asks for nothing.
    resolver: OnceLock<TokioResolver>,
    search: Vec<String>,
}

impl Upstream {
    /// The resolvers that `resolv_conf`, the text of a resolv.conf(5), names. Without a
    /// `nameserver` it is the one on `127.0.0.1`, as that page says.
    pub(super) fn new(resolv_conf: &str) -> Result<Self, NetError> {
        Self::with_port(resolv_conf, jobfence_abi::DNS_PORT)
    }

    /// The same at another port.
    pub(super) fn with_port(resolv_conf: &str, port: u16) -> Result<Self, NetError> {
        let (config, mut options) = parse_resolv_conf(resolv_conf)
            .or_else(|_| parse_resolv_conf(format!("{resolv_conf}\nnameserver 127.0.0.1\n")))?;
        let (_, search, mut servers) = config.into_parts();
        for connection in servers
            .iter_mut()
            .flat_map(|server| &mut server.connections)
        {
            connection.port = port;
        }
        options.timeout = options.timeout.min(TRY_TIMEOUT);
        // With two at once, the second truncated answer over UDP ends the lookup before the first
        // has been asked for again over TCP.
        options.num_concurrent_reqs = 1;
        options.cache_size = CACHED_ANSWERS;
        options.positive_min_ttl = Some(MIN_TTL);
        options.negative_min_ttl = Some(MIN_TTL);
        options.preserve_intermediates = true;
        options.use_hosts_file = ResolveHosts::Never;
        // The job's own client appends search domains; names arrive here fully qualified.
        Ok(Self {
            config: ResolverConfig::from_parts(None, Vec::new(), servers),
            options,
            resolver: OnceLock::new(),
            search: search.iter().map(message::text).collect(),
        })
    }

    /// The host's search domains, in lower case and without a dot at the end.
    pub(super) fn search(&self) -> &[String] {
        &self.search
    }

    fn resolver(&self) -> Result<&TokioResolver, NetError> {
        if let Some(resolver) = self.resolver.get() {
            return Ok(resolver);
        }
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(self.config.clone(), provider)
            .with_options(self.options.clone())
            .build()?;
        Ok(self.resolver.get_or_init(|| resolver))
    }

    /// Asks for the records of `name`, fully qualified. `None` when nobody gave an answer.
    ///
    /// An answer from the cache is there when the future is polled for the first time.
    pub(super) fn lookup(&self, name: WireName, kind: RecordType) -> Lookup<'_> {
        Box::pin(async move {
            let resolver = match self.resolver() {
                Ok(resolver) => resolver,
                Err(error) => {
                    tracing::warn!(%error, "no resolver could be made");
                    return None;
                }
            };
            let lookup = tokio::time::timeout(ANSWER_TIMEOUT, resolver.lookup(name, kind));
            match lookup.await.ok()? {
                Ok(found) => Some(Found::Records(found.answers().to_vec())),
                Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords {
                    response_code: code @ (ResponseCode::NXDomain | ResponseCode::NoError),
                    ..
                }))) => Some(Found::Nothing(code)),
                Err(error) => {
                    tracing::debug!(%error, "no upstream resolver answered");
                    None
                }
            }
        })
    }
}
