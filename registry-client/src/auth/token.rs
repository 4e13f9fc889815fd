//! Bearer tokens: fetched once for all who need the same, kept until they expire.
//!
//! Invariant: a token is used for the origin, service and scopes that it was fetched for, and no other.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use serde::Deserialize;

use super::credentials::Credential;
use crate::error::{Answer, Cause};
use crate::hosts::Host;
use crate::retry::parse_retry_after;
use crate::secret::Secret;
use crate::transport::{Body, Method, Response, Transport};
use crate::url::{Origin, Url, percent_encode};

/// What a request needs to be allowed to do, such as `repository:library/app:pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(BTreeSet<String>);

impl Scopes {
    pub(crate) fn pull(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull")]))
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull,push")]))
    }

    pub(crate) fn delete(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:delete,pull")]))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These, and those of the blank-separated list of a challenge that they do not include yet.
    pub(crate) fn with(&self, others: &str) -> Self {
        let mut all = self.0.clone();
        all.extend(others.split_whitespace().filter(|other| !self.covers(other)).map(str::to_owned));
        Self(all)
    }

    /// Whether one scope for the same thing allows each action of `other`.
    fn covers(&self, other: &str) -> bool {
        let Some((thing, actions)) = other.rsplit_once(':') else { return false };
        self.0.iter().filter_map(|own| own.rsplit_once(':')).any(|(own_thing, own_actions)| {
            own_thing == thing && actions.split(',').all(|action| own_actions.split(',').any(|own| own == action))
        })
    }

    /// Push scopes first: some registries read only the first.
    fn in_order(&self) -> Vec<&str> {
        let mut scopes: Vec<&str> = self.0.iter().map(String::as_str).collect();
        scopes.sort_by_key(|scope| !scope.contains("push"));
        scopes
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_order().join(" "))
    }
}

/// Where a token comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    pub(crate) origin: Origin,
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Scopes,
}

struct Token {
    text: Secret,
    expires: Instant,
}

type Slot = Arc<Mutex<Option<Token>>>;

/// The tokens of a client.
#[derive(Default)]
pub(crate) struct Tokens {
    slots: Mutex<HashMap<TokenKey, Slot>>,
}

impl Tokens {
    /// A token for `key`: the kept one, unless it expired or is the `refused` one, else a new one. Whoever asks
    /// for the same token meanwhile waits for it instead of asking the registry too.
    pub(crate) fn obtain(
        &self,
        key: &TokenKey,
        refused: Option<&Secret>,
        fetch: impl FnOnce() -> Result<(Secret, Duration), Cause>,
    ) -> Result<Secret, Cause> {
        let slot =
            Arc::clone(self.slots.lock().unwrap_or_else(|poison| poison.into_inner()).entry(key.clone()).or_default());
        let mut slot = slot.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(token) = &*slot
            && Instant::now() < token.expires
            && Some(&token.text) != refused
        {
            return Ok(token.text.clone());
        }
        let (text, lifetime) = fetch()?;
        *slot = Some(Token { text: text.clone(), expires: Instant::now() + lifetime });
        Ok(text)
    }

    /// The tokens that are kept now.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let slots =
            self.slots.lock().unwrap_or_else(|poison| poison.into_inner()).values().cloned().collect::<Vec<_>>();
        let lock =
            |slot: &Slot| slot.lock().unwrap_or_else(|poison| poison.into_inner()).as_ref().map(|t| t.text.clone());
        slots.iter().filter_map(lock).collect()
    }
}

/// The token server's answer (<https://distribution.github.io/distribution/spec/auth/token/#token-response-fields>).
#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Tokens are small; a megabyte leaves room for the ones that list hundreds of scopes.
const TOKEN_LIMIT_BYTES: u64 = 1 << 20;
/// What the specification says where `expires_in` is missing.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

/// Asks the realm of `key` for a token, and for how long it is good.
pub(crate) fn fetch(
    transport: &Transport,
    host: &Host,
    key: &TokenKey,
    credential: Option<&Credential>,
) -> Result<(Secret, Duration), Cause> {
    let realm = Url::parse(&key.realm).map_err(Cause::Malformed)?;
    check_realm(host, realm.origin())?;
    if let Some(credential) = credential
        && let Some(granted) = fetch_by_post(transport, host, &realm, key, credential)?
    {
        return read_token(granted, host, &realm, true);
    }
    let mut url = realm.clone();
    if let Some(service) = &key.service {
        url = url.with_parameter("service", service);
    }
    for scope in key.scopes.in_order() {
        url = url.with_parameter("scope", scope);
    }
    let basic = credential.and_then(basic_authorization);
    let mut headers = vec![("Accept", "application/json")];
    headers.extend(basic.as_ref().map(|basic| ("Authorization", basic.reveal())));
    let response = transport.send(Method::Get, &url, &host.peer_at(realm.origin()), &headers, Body::Empty)?;
    read_token(response, host, &realm, credential.is_some())
}

/// Credentials must not go where they can be read on the way, nor into the machine or network that we run in.
fn check_realm(host: &Host, realm: &Origin) -> Result<(), Cause> {
    let registry = host.endpoint.origin();
    if registry.is_https && !realm.is_https {
        return Err(Cause::Unsafe(format!("{} wants credentials sent over plain http to {realm}", host.name)));
    }
    if realm.is_internal_address() && !registry.is_internal_address() {
        return Err(Cause::Unsafe(format!("{} wants credentials sent to the internal address {realm}", host.name)));
    }
    Ok(())
}

/// The OAuth2 form (<https://distribution.github.io/distribution/spec/auth/oauth/>); `None` where the server wants GET.
fn fetch_by_post(
    transport: &Transport,
    host: &Host,
    realm: &Url,
    key: &TokenKey,
    credential: &Credential,
) -> Result<Option<Response>, Cause> {
    let scopes = key.scopes.to_string();
    let mut form = vec![("client_id", "nacre"), ("scope", &scopes)];
    form.extend(key.service.as_deref().map(|service| ("service", service)));
    match credential {
        Credential::Password { user, password } => {
            form.extend([("grant_type", "password"), ("username", user), ("password", password.reveal())]);
        }
        Credential::IdentityToken(token) => {
            form.extend([("grant_type", "refresh_token"), ("refresh_token", token.reveal())]);
        }
        Credential::RegistryToken(_) => unreachable!("it is sent as it is, and no other is asked for"),
    }
    let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
    let headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/json")];
    let response = transport.send(
        Method::Post,
        realm,
        &host.peer_at(realm.origin()),
        &headers,
        Body::Bytes(form.join("&").as_bytes()),
    )?;
    // The statuses by which servers without POST say so; containerd keeps the same list.
    let wants_get = matches!(response.status, 400 | 401 | 403 | 404 | 405);
    // An identity token has no form in GET.
    let may_get = matches!(credential, Credential::Password { .. });
    Ok((!(wants_get && may_get)).then_some(response))
}

/// `Basic ...` for a user and password.
pub(crate) fn basic_authorization(credential: &Credential) -> Option<Secret> {
    let Credential::Password { user, password } = credential else { return None };
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
    Some(Secret::new(format!("Basic {encoded}")))
}

fn read_token(
    response: Response,
    host: &Host,
    realm: &Url,
    had_credentials: bool,
) -> Result<(Secret, Duration), Cause> {
    let status = response.status;
    if matches!(status, 400 | 401 | 403) {
        let message = format!("its token server {realm} answered {status}");
        return Err(Cause::Unauthorized { registry: host.name.clone(), message, had_credentials });
    }
    if status != 200 {
        let request = format!("the token server {realm}");
        let retry_after = response.header("retry-after").and_then(|text| parse_retry_after(text, SystemTime::now()));
        return Err(Cause::Answer(Answer { status, request, code: None, message: None, retry_after }));
    }
    let mut bytes = Vec::new();
    let malformed = |what: String| Cause::Malformed(format!("the token server {realm} sent {what}"));
    let read = response.body.take(TOKEN_LIMIT_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| Cause::Broken { host: realm.origin().authority(), source })?;
    // The parser's own message could quote the token: it is left out.
    let granted: Granted = serde_json::from_slice(&bytes).map_err(|_| malformed("no JSON object".to_owned()))?;
    let text = granted.token.or(granted.access_token).filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| malformed("no token".to_owned()))?;
    if text.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return Err(malformed("a token with characters that no header can carry".to_owned()));
    }
    Ok((Secret::new(text), usable_for(granted.expires_in)))
}

/// How long a token is used: its life less a margin for clocks and the way there, and never longer than a day.
fn usable_for(expires_in_seconds: Option<u64>) -> Duration {
    let lifetime = match expires_in_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
        _ => DEFAULT_LIFETIME,
    };
    lifetime - (lifetime / 3).min(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn key(scope: &str) -> TokenKey {
        let origin = Url::parse("https://r.example").expect("valid").origin().clone();
        TokenKey { origin, realm: "https://t.example/".into(), service: None, scopes: Scopes::pull(scope) }
    }

    #[test]
    fn many_threads_share_one_fetch() {
        let tokens = Tokens::default();
        let fetches = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let fetch = || {
                        fetches.fetch_add(1, Ordering::SeqCst);
                        Ok((Secret::new("t"), Duration::from_secs(60)))
                    };
                    assert_eq!(tokens.obtain(&key("a"), None, fetch).expect("fetched").reveal(), "t");
                });
            }
        });
        assert_eq!(fetches.into_inner(), 1);
    }

    #[test]
    fn a_refused_or_expired_token_is_fetched_again() {
        let tokens = Tokens::default();
        let get = |refused: Option<&Secret>, new: &str, life: u64| {
            let fetch = || Ok((Secret::new(new), Duration::from_secs(life)));
            tokens.obtain(&key("a"), refused, fetch).expect("fetched").reveal().to_owned()
        };
        assert_eq!(get(None, "1", 60), "1");
        assert_eq!(get(Some(&Secret::new("0")), "2", 60), "1", "another thread has replaced token 0 already");
        assert_eq!(get(Some(&Secret::new("1")), "2", 0), "2");
        assert_eq!(get(None, "3", 60), "3");
    }

    #[test]
    fn push_scopes_come_first() {
        let scopes = Scopes::pull("a/source").with("repository:z/target:pull,push  repository:z/target:pull,push");
        assert_eq!(scopes.to_string(), "repository:z/target:pull,push repository:a/source:pull");
    }

    #[test]
    fn a_scope_that_is_covered_makes_no_new_token() {
        let scopes = Scopes::push("a");
        assert_eq!(scopes.with("repository:a:pull"), scopes);
        assert_ne!(scopes.with("repository:a:delete"), scopes);
        assert_ne!(scopes.with("repository:b:pull"), scopes);
    }

    #[test]
    fn realms_that_would_leak_credentials_are_refused() {
        let refused = |registry: &str, realm: &str| {
            let host = Host::new(registry, &crate::hosts::Schemes::default()).expect("valid");
            check_realm(&host, Url::parse(realm).expect("valid").origin()).is_err()
        };
        assert!(refused("ghcr.io", "http://ghcr.io/token"));
        assert!(refused("ghcr.io", "https://169.254.169.254/token"));
        assert!(!refused("docker.io", "https://auth.docker.io/token"));
        assert!(!refused("127.0.0.1:5000", "http://127.0.0.1:5001/token"));
    }

    #[test]
    fn tokens_are_dropped_before_they_expire() {
        assert_eq!(usable_for(None), Duration::from_secs(50));
        assert_eq!(usable_for(Some(300)), Duration::from_secs(290));
        assert_eq!(usable_for(Some(3)), Duration::from_secs(2));
        assert_eq!(usable_for(Some(u64::MAX)), Duration::from_secs(24 * 3600 - 10));
    }
}
