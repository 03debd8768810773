//! A certificate authority of its own for each private internet.

use std::{io::Write, net::TcpStream, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::Acceptor,
};

/// The certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate in PEM form, for clients to trust.
    pub(crate) pem: String,
    /// The key of all servers.
    server_key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate().context("cannot make the authority's key")?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "jobfence tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params
            .self_signed(&key)
            .context("cannot make the authority's certificate")?;
        Ok(Self {
            pem: pem.pem(),
            issuer: Issuer::new(params, key),
            server_key: KeyPair::generate().context("cannot make the servers' key")?,
        })
    }

    /// Shakes hands with a client, as the server that it names or, if it names none, as the
    /// address that it reached.
    pub(crate) fn accept(
        &self,
        mut stream: TcpStream,
    ) -> Result<StreamOwned<ServerConnection, TcpStream>> {
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            anyhow::ensure!(
                acceptor.read_tls(&mut stream)? > 0,
                "closed before its ClientHello"
            );
            match acceptor.accept() {
                Ok(Some(accepted)) => break accepted,
                Ok(None) => {}
                Err((error, mut alert)) => {
                    alert.write_all(&mut stream)?;
                    return Err(error.into());
                }
            }
        };
        let name = match accepted.client_hello().server_name() {
            Some(name) => name.to_owned(),
            None => stream.local_addr()?.ip().to_canonical().to_string(),
        };
        let config = Arc::new(self.config(name)?);
        let connection = accepted
            .into_connection(config)
            .map_err(|(error, _alert)| error)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.flush()?;
        Ok(stream)
    }

    /// A server's configuration with a certificate for `name`.
    fn config(&self, name: String) -> Result<ServerConfig> {
        let mut params = CertificateParams::new([name.clone()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        // Python 3.13 asks for it.
        params.use_authority_key_identifier_extension = true;
        let certificate: CertificateDer<'static> =
            params.signed_by(&self.server_key, &self.issuer)?.into();
        let key = PrivateKeyDer::Pkcs8(self.server_key.serialize_der().into());
        let provider = Arc::new(ring::default_provider());
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?)
    }
}
