//! A client: sends a request the way registries need it, with authorization, redirects and retries.
//!
//! Invariant: an `Authorization` header goes to the origin of the registry that it was made for, and nowhere else.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::auth::credentials::{Credential, Credentials};
use crate::auth::{Authenticator, Authorization, Purpose, Scopes};
use crate::error::{Answer, Cause, Error, is_transient_status};
use crate::hosts::{Host, Hosts, Schemes};
use crate::known::KnownBlobs;
use crate::limits::Limits;
use crate::pages;
use crate::progress::{Progress, Silent};
use crate::ranges::{LaneBudget, RangePolicy};
use crate::reference::Reference;
use crate::repository::Repository;
use crate::retry::{Patience, RetryPolicy, parse_retry_after};
use crate::secret::{self, Secret, without_credentials};
use crate::signature::SignatureStores;
use crate::stream::OpenStreams;
use crate::transport::{Body, Method, Response, Transport, TransportOptions};
use crate::url::{Origin, Url};
use crate::ways::Deliveries;

/// What a client is made from; the defaults are anonymous, silent and patient.
#[derive(Clone)]
pub struct ClientOptions {
    /// Where credentials are looked up.
    pub credentials: Credentials,
    /// Which registries are spoken to in another scheme than usual.
    pub schemes: Schemes,
    /// The registries' settings in files: mirrors, certificates, headers.
    pub hosts: Hosts,
    /// How connections are made.
    pub transport: TransportOptions,
    /// How often and how patiently requests are repeated.
    pub retry: RetryPolicy,
    /// Hears of retries and warnings.
    pub progress: Arc<dyn Progress>,
    /// A directory for partial blobs: with it large blobs come in parallel ranges, and a pull that was killed goes on
    /// where it was. It is made when needed; what is left in it may be deleted at any time.
    pub spool: Option<PathBuf>,
    /// A directory in which it is kept which repositories have which blobs, so that a registry can take a blob from
    /// another repository in place of being sent it. What is in it may be deleted at any time.
    pub known_blobs: Option<PathBuf>,
    /// How large blobs are cut.
    pub ranges: RangePolicy,
    /// Where GPG signatures lie.
    pub signature_stores: SignatureStores,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            schemes: Schemes::default(),
            hosts: Hosts::default(),
            transport: TransportOptions::default(),
            retry: RetryPolicy::default(),
            progress: Arc::new(Silent),
            spool: None,
            known_blobs: None,
            ranges: RangePolicy::default(),
            signature_stores: SignatureStores::default(),
        }
    }
}

/// A client of any number of registries: cheap to clone, its connections and tokens are shared.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Transport,
    authenticator: Authenticator,
    options: ClientOptions,
    warned: Mutex<HashSet<String>>,
    lane_budget: LaneBudget,
    known_blobs: KnownBlobs,
    /// Which of the registries that may speak plain http do.
    plain: Mutex<HashMap<Origin, bool>>,
    /// Mirrors that nobody answers at: one try each is enough.
    down: Mutex<HashSet<Origin>>,
    deliveries: Deliveries,
    referrers: Mutex<()>,
    /// Registries that did not take a blob while it was made: one try each is enough.
    whole_only: Mutex<HashSet<Origin>>,
    open_streams: OpenStreams,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client; it connects to nothing yet.
    pub fn new(options: ClientOptions) -> Self {
        let transport = Transport::new(options.transport.clone());
        let authenticator = Authenticator::new(options.credentials.clone());
        let known_blobs = KnownBlobs::new(options.known_blobs.clone());
        Self {
            shared: Arc::new(Shared {
                transport,
                authenticator,
                options,
                warned: Mutex::default(),
                lane_budget: LaneBudget::default(),
                known_blobs,
                plain: Mutex::default(),
                down: Mutex::default(),
                deliveries: Deliveries::default(),
                referrers: Mutex::default(),
                whole_only: Mutex::default(),
                open_streams: OpenStreams::default(),
            }),
        }
    }

    pub(crate) fn signature_stores(&self) -> &SignatureStores {
        &self.shared.options.signature_stores
    }

    /// The repository of a reference, with its mirrors. Only a registry that is marked insecure is connected to, to see
    /// whether it speaks TLS.
    ///
    /// # Errors
    /// If the registry's name is no host, it is blocked, or its settings are not understood.
    pub fn repository(&self, reference: &Reference) -> Result<Repository, Error> {
        let options = &self.shared.options;
        let route = options.hosts.route(reference.registry(), reference.repository(), &options.schemes)?;
        Ok(Repository::new(self, route))
    }

    /// Checks that a registry accepts a credential, without storing it.
    ///
    /// # Errors
    /// If the registry cannot be reached or refuses it.
    pub fn verify_login(&self, registry: &str, credential: &Credential) -> Result<(), Error> {
        let mut options = self.shared.options.clone();
        let given = [(registry.to_owned(), credential.clone())].into();
        options.credentials = Credentials { given, ..Credentials::default() };
        let client = Self::new(options);
        client.ask_registry(&format!("log in to {registry}"), registry).map(drop)
    }

    /// What a registry still lets us pull, if it says so where one asks for nothing in particular.
    /// [`Repository::limits`] asks with an image, as Docker Hub wants it.
    ///
    /// # Errors
    /// If the registry cannot be reached or refuses access.
    pub fn limits(&self, registry: &str) -> Result<Option<Limits>, Error> {
        let response = self.ask_registry(&format!("ask {registry} for its limits"), registry)?;
        Ok(Limits::of(&response))
    }

    /// The repositories that a registry lists; many, such as Docker Hub, list none.
    ///
    /// # Errors
    /// If the registry refuses, or its list is none.
    pub fn repositories(&self, registry: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let doing = format!("list the repositories of {registry}");
        let route = self.shared.options.hosts.route(registry, ANY_REPOSITORY, &self.shared.options.schemes)?;
        let asked = Repository::new(self, route).for_catalog();
        let names =
            |page: &[u8]| serde_json::from_slice::<Page>(page).ok().map(|page| page.repositories.unwrap_or_default());
        let host = asked.host();
        let url = host.endpoint.at(&format!("{}/_catalog", host.api_path)).with_parameter("n", "1000");
        pages::names(&asked, &doing, url, usize::MAX, names).map_err(|cause| Error::new(doing, cause))
    }

    /// Asks a registry for nothing but a sign that it lets us in.
    fn ask_registry(&self, doing: &str, registry: &str) -> Result<Response, Error> {
        let route = self.shared.options.hosts.route(registry, ANY_REPOSITORY, &self.shared.options.schemes)?;
        let host = self.settled(route.push.host);
        let scopes = Scopes::default();
        let call = Call {
            method: Method::Get,
            url: host.endpoint.at(&format!("{}/", host.api_path)),
            headers: Vec::new(),
            body: &|| Ok(Body::Empty),
            purpose: Purpose { host: &host, repository: "", scopes: &scopes },
            patience: Patience::new(*self.retry(), false),
            may_repeat: true,
        };
        let response = self.call(doing, &call).map_err(|cause| Error::new(doing, cause))?;
        match response.status {
            200..=299 => Ok(response),
            _ => Err(Error::new(doing, self.refusal(&call, response))),
        }
    }

    /// Verifies a credential and stores it in a file of Docker's or containers' format (mode 0600), or in the
    /// helper that this file names.
    ///
    /// # Errors
    /// If the registry refuses it, or the file cannot be replaced.
    pub fn log_in(&self, registry: &str, credential: &Credential, file: &std::path::Path) -> Result<(), Error> {
        self.verify_login(registry, credential)?;
        self.shared.options.credentials.store(file, registry, credential)
    }

    pub(crate) fn retry(&self) -> &RetryPolicy {
        &self.shared.options.retry
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.shared.options
    }

    /// Held while a list of referrers is changed.
    pub(crate) fn referrers_lock(&self) -> MutexGuard<'_, ()> {
        self.shared.referrers.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(crate) fn lane_budget(&self) -> &LaneBudget {
        &self.shared.lane_budget
    }

    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.shared.deliveries
    }

    pub(crate) fn known_blobs(&self) -> &KnownBlobs {
        &self.shared.known_blobs
    }

    /// Ends every request that is on its way, those of clones too, and refuses later ones but for DELETE, which tidies up
    /// and is not waited for. A connection that is being made is waited for as long as its timeout.
    pub fn stop(&self) {
        self.shared.transport.stop();
    }

    /// Gives up the uploads of blobs that are still being made, those of clones too, and ends their sessions, which
    /// nobody could go on with; waits for that no longer than `wait`. For a program that ends at once.
    pub fn end_streams(&self, wait: Duration) {
        self.shared.open_streams.end(wait);
    }

    pub(crate) fn open_streams(&self) -> &OpenStreams {
        &self.shared.open_streams
    }

    /// Runs `attempt` until it succeeds, fails for good or the tries are used up.
    pub(crate) fn retrying<T>(
        &self,
        patience: &Patience,
        doing: &str,
        mut attempt: impl FnMut() -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let mut tries = 1;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(cause) => drop(self.wait_to_retry(patience, doing, tries, cause)?),
            }
            tries += 1;
        }
    }

    /// Waits before the next try after `tries`, and gives the cause back: as an error where there is none.
    pub(crate) fn wait_to_retry(
        &self,
        patience: &Patience,
        doing: &str,
        tries: u32,
        cause: Cause,
    ) -> Result<Cause, Cause> {
        let Some(wait) = patience.wait_after(tries, &cause) else { return Err(cause) };
        self.shared.transport.check()?;
        self.progress().retrying(doing, &cause.to_string(), wait);
        self.shared.transport.pause(wait)?;
        Ok(cause)
    }

    pub(crate) fn progress(&self) -> &dyn Progress {
        &*self.shared.options.progress
    }

    /// The host with the scheme that it speaks, where either will do: https if anybody answers to it.
    pub(crate) fn settled(&self, host: Host) -> Host {
        let Some(plain) = host.in_plain_http().ok().filter(|_| host.may_be_plain) else { return host };
        let known = |plain: &HashMap<Origin, bool>| plain.get(host.endpoint.origin()).copied();
        let mut found = self.shared.plain.lock().unwrap_or_else(|poison| poison.into_inner());
        let is_plain = known(&found).unwrap_or_else(|| {
            let ask = |host: &Host| {
                let url = host.endpoint.at(&format!("{}/", host.api_path));
                self.shared.transport.send(Method::Get, &url, &host.peer, &[], Body::Empty)
            };
            ask(&host).is_err() && ask(&plain).is_ok()
        });
        found.insert(host.endpoint.origin().clone(), is_plain);
        if is_plain { plain } else { host }
    }

    /// Carries out a call: any answer that is neither a redirect, nor a demand for authorization, nor transient.
    pub(crate) fn call(&self, doing: &str, call: &Call<'_>) -> Result<Response, Cause> {
        let attempt = || {
            let response = self.authorized(call)?;
            if is_transient_status(response.status) { Err(self.refusal(call, response)) } else { Ok(response) }
        };
        if !call.may_repeat {
            return attempt();
        }
        self.retrying(&call.patience, doing, attempt)
    }

    /// Sends with the authorization we have, and once more if it is refused; a third time where the first answer could
    /// not tell that more rights are wanted than we thought.
    fn authorized(&self, call: &Call<'_>) -> Result<Response, Cause> {
        let (transport, authenticator) = (&self.shared.transport, &self.shared.authenticator);
        let authorization = authenticator.known(transport, &call.purpose)?;
        let (response, asked) = self.redirected(call, authorization.as_ref())?;
        if !matches!(response.status, 401 | 403) || asked.origin() != call.purpose.host.endpoint.origin() {
            return Ok(response);
        }
        let challenges: Vec<String> = response.headers("www-authenticate").map(str::to_owned).collect();
        let is_first = authorization.is_none();
        let mut fresh = if response.status == 401 || !challenges.is_empty() {
            // Read to its end, the connection can serve the next request; a failure only costs the connection.
            let _ = response.read_up_to(ERROR_BODY_LIMIT_BYTES, &call.purpose.host.name);
            let challenges = challenges.iter().map(String::as_str);
            authenticator.after_refusal(transport, &call.purpose, challenges, authorization.as_ref())?
        } else {
            // Amazon's registry says 403, and no more, when a password has expired.
            match authorization.map(|used| authenticator.renewed(&call.purpose, &used)).transpose()?.flatten() {
                Some(fresh) => fresh,
                None => return Ok(response),
            }
        };
        let (mut response, asked) = self.redirected(call, Some(&fresh))?;
        if response.status == 401
            && is_first
            && asked.origin() == call.purpose.host.endpoint.origin()
            && authenticator.wants_more(&call.purpose, response.headers("www-authenticate"))
        {
            let challenges: Vec<String> = response.headers("www-authenticate").map(str::to_owned).collect();
            let _ = response.read_up_to(ERROR_BODY_LIMIT_BYTES, &call.purpose.host.name);
            let challenges = challenges.iter().map(String::as_str);
            fresh = authenticator.after_refusal(transport, &call.purpose, challenges, Some(&fresh))?;
            response = self.redirected(call, Some(&fresh))?.0;
        }
        if response.status != 401 {
            return Ok(response);
        }
        let message = match self.refusal(call, response) {
            Cause::Answer(answer) => answer.to_string(),
            other => other.to_string(),
        };
        let had_credentials = fresh.has_credentials();
        Err(Cause::Unauthorized { registry: call.purpose.host.name.clone(), message, had_credentials })
    }

    /// Sends and follows redirects; yields the answer and the URL that gave it.
    fn redirected(&self, call: &Call<'_>, authorization: Option<&Authorization>) -> Result<(Response, Url), Cause> {
        let home = call.purpose.host.endpoint.origin();
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers: Vec<(&str, &str)> =
                call.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let host = call.purpose.host;
            if url.origin() == home {
                let own = host.headers.iter().map(|(name, value)| (name.as_str(), value.reveal()));
                headers.extend(
                    own.filter(|(name, _)| authorization.is_none() || !name.eq_ignore_ascii_case("authorization")),
                );
                headers.extend(authorization.map(|authorization| ("Authorization", authorization.header())));
            }
            let peer = host.peer_at(url.origin());
            let response = self.shared.transport.send(call.method, &url, &peer, &headers, (call.body)()?)?;
            tracing::debug!(method = %call.method, %url, status = response.status, "answered");
            self.note_warnings(host, &response);
            let keeps_method = matches!(call.method, Method::Get | Method::Head);
            let is_redirect =
                matches!(response.status, 307 | 308) || (keeps_method && matches!(response.status, 301..=303));
            let Some(location) = response.header("location").filter(|_| is_redirect) else {
                return Ok((response, url));
            };
            let next = url.join(location).map_err(Cause::Malformed)?;
            check_move(home, &next)?;
            url = next;
        }
        Err(Cause::Malformed(format!("{} redirects more than {MAX_REDIRECTS} times", call.url)))
    }

    /// Fetches from a place that is not a registry: no authorization, redirects as usual, no retry.
    pub(crate) fn fetch_foreign(
        &self,
        url: &Url,
        host: &Host,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Response, Cause> {
        let scopes = Scopes::default();
        let purpose = Purpose { host, repository: "", scopes: &scopes };
        let call = Call {
            method: Method::Get,
            url: url.clone(),
            headers,
            body: &|| Ok(Body::Empty),
            purpose,
            patience: Patience::new(*self.retry(), false),
            may_repeat: false,
        };
        check_move(host.endpoint.origin(), url)?;
        Ok(self.redirected(&call, None)?.0)
    }

    /// What an error answer says, from its body and headers.
    pub(crate) fn refusal(&self, call: &Call<'_>, response: Response) -> Cause {
        let status = response.status;
        let now = SystemTime::now();
        let retry_after = response.header("retry-after").and_then(|text| parse_retry_after(text, now));
        let limits = Limits::of(&response).map(|limits| limits.to_string());
        let is_used_up =
            response.header("ratelimit-remaining").is_some_and(|left| left.starts_with("0;") || left == "0");
        let host = call.url.origin().authority();
        let body = response.read_up_to(ERROR_BODY_LIMIT_BYTES, &host).ok().flatten().unwrap_or_default();
        let first = serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.errors.into_iter().next());
        let (code, message) = first.map_or((None, None), |first| (first.code, first.message));
        let is_long_wait = retry_after.is_some_and(|wait| wait > call.patience.longest_wait());
        if status == 429 && (is_used_up || is_long_wait) {
            return Cause::Quota { host, limits, retry_after };
        }
        let clean = |text: String| {
            let text = self.without_secrets(call.purpose.host, &text);
            text.chars().filter(|c| !c.is_control()).take(500).collect::<String>()
        };
        let request = format!("{} {}", call.method, call.url);
        let (code, message) = (code.map(clean), message.map(clean));
        Cause::Answer(Answer { status, request, code, message, retry_after })
    }

    /// Shows each `Warning: 299` once
    /// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#warnings>).
    fn note_warnings(&self, host: &Host, response: &Response) {
        for text in response.headers("warning").filter_map(|value| value.strip_prefix("299 - ")) {
            self.warn_once(&host.name, &self.without_secrets(host, text.trim_matches('"')));
        }
    }

    /// What a host said, without what it was told in confidence: some quote the request.
    fn without_secrets(&self, host: &Host, text: &str) -> String {
        let secrets = self.shared.authenticator.secrets();
        let of_host = host.headers.iter().map(|(_, value)| value.reveal());
        without_credentials(&secret::without(text, secrets.iter().map(Secret::reveal).chain(of_host)))
    }

    fn warn_once(&self, registry: &str, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).take(1000).collect();
        let mut warned = self.shared.warned.lock().unwrap_or_else(|poison| poison.into_inner());
        if warned.len() < 100 && warned.insert(format!("{registry} {text}")) {
            self.progress().warning(registry, &text);
        }
    }

    /// Whether a blob may be sent to a registry while it is made.
    pub(crate) fn takes_streams(&self, host: &Host) -> bool {
        !self.shared.whole_only.lock().unwrap_or_else(|poison| poison.into_inner()).contains(host.endpoint.origin())
    }

    /// A stream to this registry failed: what is made from here on is sent when it is whole.
    pub(crate) fn note_no_streams(&self, host: &Host) {
        let mut whole_only = self.shared.whole_only.lock().unwrap_or_else(|poison| poison.into_inner());
        whole_only.insert(host.endpoint.origin().clone());
    }

    /// Whether a mirror is worth asking.
    pub(crate) fn is_up(&self, host: &Host) -> bool {
        !self.shared.down.lock().unwrap_or_else(|poison| poison.into_inner()).contains(host.endpoint.origin())
    }

    /// A mirror could not serve what another host is asked for now, though it may have told others. That it does not
    /// have something is no news; one that is sick is asked no more.
    pub(crate) fn note_mirror_failure(&self, host: &Host, error: &Error) {
        tracing::debug!(mirror = %host.endpoint, %error, "the next host is asked");
        let is_sick = match error.cause() {
            Cause::Missing(_) | Cause::Answer(Answer { status: 404, .. }) => return,
            Cause::Answer(answer) => answer.status >= 500,
            Cause::Refused { .. }
            | Cause::HostNotFound { .. }
            | Cause::Stalled { .. }
            | Cause::Tls { .. }
            | Cause::ProxyRefused { .. }
            | Cause::Broken { .. } => true,
            _ => false,
        };
        if is_sick {
            let mut down = self.shared.down.lock().unwrap_or_else(|poison| poison.into_inner());
            if !down.insert(host.endpoint.origin().clone()) {
                return;
            }
        }
        self.warn_once(&host.name, &format!("the mirror failed, so others are asked: {error}"));
    }

    /// A mirror that served something broke off in the middle, which a sound one does now and then.
    pub(crate) fn note_mirror_break(&self, host: &Host, error: &Error) {
        match error.cause() {
            Cause::Broken { .. } => {
                self.warn_once(&host.name, &format!("the mirror failed, so others are asked: {error}"));
            }
            _ => self.note_mirror_failure(host, error),
        }
    }
}

/// Makes the body of a request, anew for each try.
pub(crate) type MakeBody<'a> = dyn Fn() -> Result<Body<'a>, Cause> + 'a;

/// One request as its caller means it.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: &'a MakeBody<'a>,
    pub(crate) purpose: Purpose<'a>,
    pub(crate) patience: Patience,
    /// Whether it can be sent again after it may have reached the registry.
    pub(crate) may_repeat: bool,
}

/// Stands for a repository where the registry itself is meant, whose ways and settings may depend on one.
const ANY_REPOSITORY: &str = "any";
const MAX_REDIRECTS: usize = 10;
/// An error list is short; what is longer is a web page.
const ERROR_BODY_LIMIT_BYTES: u64 = 64 << 10;

/// A registry may send us to other public hosts, but not into the machine or network that we run in, and not
/// from https to http.
pub(crate) fn check_move(home: &Origin, next: &Url) -> Result<(), Cause> {
    let target = next.origin();
    if target.is_internal_address() && target != home && !home.is_internal_address() {
        return Err(Cause::Unsafe(format!("{home} sends us to the internal address {target}")));
    }
    if home.is_https && !target.is_https {
        return Err(Cause::Unsafe(format!("{home} sends us to plain http at {target}")));
    }
    Ok(())
}

/// The error format of the distribution specification
/// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes>).
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    code: Option<String>,
    message: Option<String>,
}
