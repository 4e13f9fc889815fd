//! One HTTP/1.1 request at a time over pooled connections: the only file that names the HTTP library.
//!
//! Invariant: it sends what it is given, once: no redirect, retry, credential or environment variable of its own.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::http;
use ureq::tls::{Certificate, ClientCert, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy, SendBody};

use crate::error::{Cause, is_transient_status};
use crate::no_proxy;
use crate::peer::{Identity, Peer};
use crate::secret::Secret;
use crate::url::{Origin, Url};

/// How connections are made.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// What the client calls itself.
    pub user_agent: String,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence of a peer while bytes are due.
    pub stall_timeout: Duration,
    /// Certificate authorities in PEM, trusted beside the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Proxy URL for https registries; a secret, because it may hold a password.
    pub https_proxy: Option<Secret>,
    /// Proxy URL for http registries; loopback is never proxied.
    pub http_proxy: Option<Secret>,
    /// Hosts reached directly, as `NO_PROXY` lists them.
    pub no_proxy: Option<String>,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("nacre/", env!("CARGO_PKG_VERSION")).to_owned(),
            // A TCP handshake that takes longer meets a dead address; the next try may meet a live one.
            connect_timeout: Duration::from_secs(10),
            // Registries that fetch from slow storage pause for tens of seconds before the first byte.
            stall_timeout: Duration::from_secs(60),
            extra_roots_pem: Vec::new(),
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
        }
    }
}

/// A registry may move and digest a whole blob between the last byte of a PUT and its answer.
const UPLOAD_ANSWER_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How often as long as its first byte may take, the head of an answer may take: one that drips has an end so.
const HEAD_STALLS: u32 = 2;

/// Slower than this is as good as silent: a day and a half for 128 MiB.
const LEAST_BYTES_PER_SECOND: u64 = 1 << 10;

/// What is still asked for after everything was stopped, a session to be ended, is worth no longer wait.
const TIDYING_TIMEOUT: Duration = Duration::from_secs(2);

/// A larger body waits for the peer's word that it wants it (RFC 9110 section 10.1.1): a proxy that limits bodies, or a
/// registry that wants another token, answers at once and would break the connection in the middle of the body. A
/// peer that says nothing costs a second, which is little for so much.
const EXPECT_CONTINUE_BYTES: u64 = 1 << 20;

/// The methods that registries know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        })
    }
}

/// What a request carries.
pub(crate) enum Body<'a> {
    Empty,
    Bytes(&'a [u8]),
    /// Of a length that nobody knows yet, it goes out in the chunks of HTTP (RFC 9112 section 7.1).
    Stream {
        content: Box<dyn Read + Send + 'a>,
        size_bytes: Option<u64>,
    },
}

/// An answer whose body has not been read yet.
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: http::HeaderMap,
    pub(crate) body: Box<dyn Read + Send>,
}

impl Response {
    /// The first value of a header, where it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// All values of a header.
    pub(crate) fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.get_all(name).iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// At most `limit_bytes` of the body; `None` if there is more.
    pub(crate) fn read_up_to(self, limit_bytes: u64, host: &str) -> Result<Option<Vec<u8>>, Cause> {
        let mut bytes = Vec::new();
        self.body.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(|error| read_cause(error, host))?;
        Ok((bytes.len() as u64 <= limit_bytes).then_some(bytes))
    }
}

/// A body that does not come slower than it may, however regularly.
struct Paced<R> {
    inner: R,
    pace: Pace,
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begin = Instant::now();
        let count = self.inner.read(buffer)?;
        self.pace.note(begin.elapsed(), count)?;
        Ok(count)
    }
}

/// How fast bytes come while somebody waits for them; how long these are made use of says nothing of the peer.
#[derive(Debug)]
struct Pace {
    measured_over: Duration,
    waited: Duration,
    came_bytes: u64,
}

impl Pace {
    fn new(measured_over: Duration) -> Self {
        Self { measured_over, waited: Duration::ZERO, came_bytes: 0 }
    }

    fn note(&mut self, waited: Duration, count: usize) -> io::Result<()> {
        self.waited += waited;
        self.came_bytes += count as u64;
        if count == 0 || self.waited < self.measured_over {
            return Ok(());
        }
        let (came_bytes, waited) = (self.came_bytes, self.waited);
        *self = Self::new(self.measured_over);
        if came_bytes as f64 >= waited.as_secs_f64() * LEAST_BYTES_PER_SECOND as f64 {
            return Ok(());
        }
        let what = format!("{came_bytes} bytes in {} s", waited.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }
}

/// The connection pools, made when first needed: loading the system's roots takes milliseconds.
#[derive(Debug)]
pub(crate) struct Transport {
    options: TransportOptions,
    /// By whether they speak TLS, whether through a proxy, and what is special about their peers.
    agents: Mutex<HashMap<(bool, bool, Peer), Agent>>,
    /// Some peer refused `Expect`: from then on large bodies are sent without asking.
    expect_refused: AtomicBool,
    /// Nobody needs answers any more.
    stopped: Mutex<bool>,
    woken: Condvar,
}

impl Transport {
    pub(crate) fn new(options: TransportOptions) -> Self {
        Self {
            options,
            agents: Mutex::default(),
            expect_refused: AtomicBool::new(false),
            stopped: Mutex::default(),
            woken: Condvar::new(),
        }
    }

    /// Breaks all connections and makes no more, but to take away what was begun.
    pub(crate) fn stop(&self) {
        *lock(&self.stopped) = true;
        self.woken.notify_all();
        for (_, agent) in lock(&self.agents).drain() {
            agent.shutdown();
        }
    }

    /// An error once it was stopped.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        if *lock(&self.stopped) { Err(Cause::Stopped) } else { Ok(()) }
    }

    /// Waits, but no longer than until it is stopped.
    pub(crate) fn pause(&self, wait: Duration) -> Result<(), Cause> {
        let stopped = lock(&self.stopped);
        let waited = self.woken.wait_timeout_while(stopped, wait, |stopped| !*stopped);
        drop(waited);
        self.check()
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) fn send(
        &self,
        method: Method,
        url: &Url,
        peer: &Peer,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> Result<Response, Cause> {
        let origin = url.origin();
        let agent = &self.agent(origin, peer, method)?;
        let mut builder = http::Request::builder().method(method.to_string().as_str()).uri(url.to_wire());
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let is_upload = matches!(body, Body::Stream { .. });
        let has_body = matches!(method, Method::Post | Method::Put | Method::Patch);
        let answer = match body {
            Body::Empty if !has_body => self.run(agent, builder, (), is_upload),
            Body::Empty => self.run(agent, builder, &b""[..], is_upload),
            Body::Bytes(bytes) => self.run(agent, builder, bytes, is_upload),
            Body::Stream { mut content, size_bytes } => {
                let mut builder = match size_bytes {
                    Some(size_bytes) => builder.header("Content-Length", size_bytes),
                    None => builder.header("Transfer-Encoding", "chunked"),
                };
                let is_large = size_bytes.is_none_or(|size_bytes| size_bytes >= EXPECT_CONTINUE_BYTES);
                if is_large && !self.expect_refused.load(Ordering::Relaxed) {
                    builder = builder.header("Expect", "100-continue");
                }
                self.run(agent, builder, SendBody::from_reader(&mut content), is_upload)
            }
        };
        let failed = |error| self.check().err().unwrap_or_else(|| cause_of(error, &origin.authority()));
        let (parts, body) = answer.map_err(failed)?.into_parts();
        if parts.status.as_u16() == 417 && is_upload {
            self.expect_refused.store(true, Ordering::Relaxed);
            let source = io::Error::other("it refused to be asked before a large body");
            return Err(Cause::Broken { host: origin.authority(), source });
        }
        let body = body.into_with_config().limit(u64::MAX).reader();
        let body = Paced { inner: body, pace: Pace::new(self.options.stall_timeout) };
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: Box::new(body) })
    }

    fn run(
        &self,
        agent: &Agent,
        builder: http::request::Builder,
        body: impl ureq::AsSendBody,
        is_upload: bool,
    ) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let request = builder.body(body).map_err(ureq::Error::Http)?;
        if self.check().is_err() {
            return agent.run(agent.configure_request(request).timeout_global(Some(TIDYING_TIMEOUT)).build());
        }
        let request = agent.configure_request(request);
        let request = match is_upload {
            false => request.timeout_recv_response(Some(self.options.stall_timeout * HEAD_STALLS)),
            true => request.timeout_per_read(Some(UPLOAD_ANSWER_TIMEOUT)),
        };
        agent.run(request.build())
    }

    fn agent(&self, origin: &Origin, peer: &Peer, method: Method) -> Result<Agent, Cause> {
        let mut agents = lock(&self.agents);
        // Under the lock under which the agents are shut down: none is made after that, but to tidy up.
        if method != Method::Delete {
            self.check()?;
        }
        let is_direct = no_proxy::is_direct(self.options.no_proxy.as_deref().unwrap_or_default(), origin);
        let key = (origin.is_https, is_direct, peer.clone());
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let (tls, proxy) = match origin.is_https {
            true => (self.tls(peer).map_err(Cause::Input)?, &self.options.https_proxy),
            false => (TlsConfig::default(), &self.options.http_proxy),
        };
        let connect_timeout = peer.connect_timeout.unwrap_or(self.options.connect_timeout);
        let proxy = if is_direct { None } else { proxy_at(proxy).map_err(Cause::Input)? };
        let agent = self.new_agent(tls, proxy, connect_timeout);
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn tls(&self, peer: &Peer) -> Result<TlsConfig, String> {
        let identity = peer.identity.as_ref().map(client_certificate).transpose()?;
        let roots = self.root_certificates(peer)?;
        let tls = TlsConfig::builder().root_certs(roots).client_cert(identity);
        Ok(tls.disable_verification(peer.skips_verification).build())
    }

    fn new_agent(&self, tls: TlsConfig, proxy: Option<Proxy>, connect_timeout: Duration) -> Agent {
        Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(tls)
            .user_agent(self.options.user_agent.as_str())
            .accept_encoding("identity")
            .timeout_connect(Some(connect_timeout))
            .timeout_per_read(Some(self.options.stall_timeout))
            .timeout_per_write(Some(self.options.stall_timeout))
            // As many as a copy of four blobs in ranges has at once.
            .max_idle_connections(32)
            .max_idle_connections_per_host(12)
            .build()
            .new_agent()
    }

    fn root_certificates(&self, peer: &Peer) -> Result<RootCerts, String> {
        let system = rustls_native_certs::load_native_certs();
        let mut certificates: Vec<Certificate<'static>> =
            system.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
        let of_peer = peer.authorities_pem.iter().map(String::as_bytes);
        for pem in self.options.extra_roots_pem.iter().map(Vec::as_slice).chain(of_peer) {
            for item in parse_pem(pem) {
                match item {
                    Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                    Ok(_) => {}
                    Err(error) => return Err(format!("a certificate authority file is not PEM: {error}")),
                }
            }
        }
        if certificates.is_empty() && !peer.skips_verification {
            return Err("no certificate authorities found on this system (package ca-certificates)".to_owned());
        }
        Ok(RootCerts::from(certificates))
    }
}

/// A proxy by its URL; which hosts are reached without it is decided before.
fn proxy_at(url: &Option<Secret>) -> Result<Option<Proxy>, String> {
    let Some(url) = url.as_ref().map(Secret::reveal).filter(|url| !url.is_empty()) else { return Ok(None) };
    // The URL may hold a password: it is not shown.
    let wrong = || "the proxy's URL is not understood".to_owned();
    let parsed = Proxy::new(url).map_err(|_| wrong())?;
    if !matches!(parsed.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https) {
        return Err(format!("the proxy at {} is neither http nor https", parsed.host()));
    }
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    builder.build().map(Some).map_err(|_| wrong())
}

/// The library panics where certificate and key do not fit: an [`Identity`] was checked for that when it was made.
fn client_certificate(identity: &Identity) -> Result<ClientCert, String> {
    let items = |pem: &str| parse_pem(pem.as_bytes()).filter_map(Result::ok).collect::<Vec<_>>();
    let chain = items(&identity.certificates_pem).into_iter().filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    let key = items(identity.key_pem.reveal()).into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let key = key.ok_or_else(|| "the client certificate's key is no PEM key".to_owned())?;
    Ok(ClientCert::new_with_certs(&chain.collect::<Vec<_>>(), key))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is whole between any two statements that change it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a failed read of a response body means.
pub(crate) fn read_cause(error: io::Error, host: &str) -> Cause {
    cause_of(ureq::Error::from(error), host)
}

fn cause_of(error: ureq::Error, host: &str) -> Cause {
    let host = host.to_owned();
    match error {
        ureq::Error::Io(error) => io_cause(error, host),
        ureq::Error::HostNotFound => Cause::HostNotFound { host },
        ureq::Error::Timeout(which) => Cause::Stalled { host, detail: which.to_string() },
        ureq::Error::Rustls(error) => Cause::Tls { host, detail: error.to_string() },
        ureq::Error::Tls(detail) => Cause::Tls { host, detail: detail.to_owned() },
        ureq::Error::ConnectionFailed => {
            Cause::Broken { host, source: io::Error::new(io::ErrorKind::NotConnected, "no connection could be made") }
        }
        ureq::Error::ConnectProxyFailed(words) => match proxy_status(&words) {
            Some(status) if !is_transient_status(status) => Cause::ProxyRefused { host, status },
            _ => Cause::Broken { host, source: io::Error::other(format!("by its proxy: {words}")) },
        },
        // Its words quote the URL, and with it signatures.
        ureq::Error::BadUri(_) => Cause::Malformed(format!("a URL at {host} is not understood")),
        // A half-answer of a dying peer breaks the protocol too: it is worth another try.
        other => Cause::Broken { host, source: io::Error::other(other.to_string()) },
    }
}

/// The library tells the status in words only: "proxy server responded 407/407".
fn proxy_status(words: &str) -> Option<u16> {
    words.rsplit(' ').next()?.split('/').next()?.parse().ok()
}

fn io_cause(error: io::Error, host: String) -> Cause {
    // The sender of a request body may have failed in a way of its own.
    let error = match error.downcast::<crate::error::Error>() {
        Ok(ours) => return ours.into_cause(),
        Err(error) => error,
    };
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Cause::Tls { host, detail: format!("{tls}; {tls:?}") };
    }
    if is_unknown_host(&error.to_string()) {
        return Cause::HostNotFound { host };
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused { host },
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Cause::Stalled { host, detail: error.to_string() },
        _ => Cause::Broken { host, source: error },
    }
}

/// The standard library has no kind for a failed lookup, only this text before the system's own, which says in glibc's
/// or musl's words whether the name server failed for now or knows no such name.
fn is_unknown_host(error: &str) -> bool {
    let lookup = error.strip_prefix("failed to lookup address information: ");
    lookup.is_some_and(|why| !why.contains("Temporary failure") && !why.contains("Try again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_drip_are_as_good_as_none_however_long_others_take_with_them() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(60 * second);
        assert!((0..19).all(|_| pace.note(3 * second, 1).is_ok()));
        assert_eq!(pace.note(3 * second, 1).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut slow = Pace::new(60 * second);
        assert!((0..1000).all(|_| slow.note(3 * second, 4 << 10).is_ok()));
        assert!(slow.note(59 * second, 1).is_ok() && slow.note(second, 60 << 10).is_ok());
        // The end of a small answer is no matter of speed.
        assert!(Pace::new(60 * second).note(61 * second, 0).is_ok());
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_from_a_name_server_that_fails() {
        let fails = |why: &str| is_unknown_host(&format!("failed to lookup address information: {why}"));
        assert!(fails("Name or service not known") && fails("Name does not resolve"));
        assert!(!fails("Temporary failure in name resolution") && !fails("Try again"));
    }
}
