//! Proves to a registry who we are: which `Authorization` a request to it carries.
//!
//! Invariant: what this yields is for the origin of the [`Host`] alone; callers never add it to another.

pub(crate) mod challenge;
pub(crate) mod credentials;
mod token;

use std::collections::HashMap;
use std::sync::Mutex;

use self::challenge::Challenge;
use self::credentials::{Credential, Credentials};
use self::token::{TokenKey, Tokens};
use crate::error::Cause;
use crate::hosts::Host;
use crate::secret::Secret;
use crate::transport::Transport;
use crate::url::Origin;

pub(crate) use self::token::Scopes;

/// The value of an `Authorization` header, and the token in it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Authorization {
    header: Secret,
    token: Option<Secret>,
    has_credentials: bool,
}

impl Authorization {
    pub(crate) fn header(&self) -> &str {
        self.header.reveal()
    }

    /// Whether a user stands behind it; an anonymous token has none.
    pub(crate) fn has_credentials(&self) -> bool {
        self.has_credentials
    }
}

/// For what a request wants to be authorized.
pub(crate) struct Purpose<'a> {
    pub(crate) host: &'a Host,
    pub(crate) repository: &'a str,
    pub(crate) scopes: &'a Scopes,
}

/// What a client knows about its registries' wishes, and the answers.
pub(crate) struct Authenticator {
    credentials: Credentials,
    challenges: Mutex<HashMap<Origin, Challenge>>,
    /// Looked up once: a helper is a process.
    found: Mutex<HashMap<(String, String), Option<Credential>>>,
    tokens: Tokens,
}

impl Authenticator {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, challenges: Mutex::default(), found: Mutex::default(), tokens: Tokens::default() }
    }

    /// The authorization to send at once, where the registry is known to want one. Who has no password that it asked
    /// for once asks without: other repositories there may be public.
    pub(crate) fn known(&self, transport: &Transport, purpose: &Purpose<'_>) -> Result<Option<Authorization>, Cause> {
        let challenge = lock(&self.challenges).get(purpose.host.endpoint.origin()).cloned();
        let Some(challenge) = challenge else { return Ok(None) };
        if challenge == Challenge::Basic && self.basic(purpose)?.is_none() {
            return Ok(None);
        }
        self.answer(transport, purpose, &challenge, None).map(Some)
    }

    /// The authorization to try after a refusal, or the reason why there is none.
    pub(crate) fn after_refusal<'a>(
        &self,
        transport: &Transport,
        purpose: &Purpose<'_>,
        challenges: impl Iterator<Item = &'a str>,
        refused: Option<&Authorization>,
    ) -> Result<Authorization, Cause> {
        let registry = purpose.host.name.clone();
        let Some(challenge) = challenge::best(challenges) else {
            let message = "it asks for no kind of login that is known (Basic or Bearer)".to_owned();
            return Err(Cause::Unauthorized { registry, message, had_credentials: refused.is_some() });
        };
        lock(&self.challenges).insert(purpose.host.endpoint.origin().clone(), challenge.clone());
        if refused.is_some() {
            // The stored credential may have changed since: Amazon's helper gives a new one every 12 hours.
            lock(&self.found).remove(&(registry.clone(), purpose.repository.to_owned()));
        }
        let answer = self.answer(transport, purpose, &challenge, refused)?;
        if Some(&answer) == refused {
            let message = "the credentials are not accepted".to_owned();
            return Err(Cause::Unauthorized { registry, message, had_credentials: true });
        }
        Ok(answer)
    }

    /// Another password than the one that was refused, where a helper or file has one by now.
    pub(crate) fn renewed(
        &self,
        purpose: &Purpose<'_>,
        refused: &Authorization,
    ) -> Result<Option<Authorization>, Cause> {
        if refused.token.is_some() {
            return Ok(None);
        }
        lock(&self.found).remove(&(purpose.host.name.clone(), purpose.repository.to_owned()));
        let header = self.basic(purpose)?;
        Ok(header.filter(|header| *header != refused.header).map(|header| Authorization {
            header,
            token: None,
            has_credentials: true,
        }))
    }

    fn basic(&self, purpose: &Purpose<'_>) -> Result<Option<Secret>, Cause> {
        Ok(self.credential(purpose)?.as_ref().and_then(token::basic_authorization))
    }

    /// Whether a refusal tells of rights that a request of this purpose did not have (insufficient_scope).
    pub(crate) fn wants_more<'a>(&self, purpose: &Purpose<'_>, challenges: impl Iterator<Item = &'a str>) -> bool {
        match challenge::best(challenges) {
            Some(Challenge::Bearer { scope: Some(scope), .. }) => purpose.scopes.with(&scope) != *purpose.scopes,
            _ => false,
        }
    }

    /// All that was sent or may be: passwords, tokens, and the forms in which they travel.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let mut secrets = self.tokens.secrets();
        for credential in lock(&self.found).values().flatten() {
            match credential {
                Credential::Password { password, .. } => secrets.push(password.clone()),
                Credential::IdentityToken(token) | Credential::RegistryToken(token) => secrets.push(token.clone()),
            }
            let basic = token::basic_authorization(credential);
            secrets.extend(basic.iter().filter_map(|basic| basic.reveal().strip_prefix("Basic ")).map(Secret::new));
        }
        secrets
    }

    fn answer(
        &self,
        transport: &Transport,
        purpose: &Purpose<'_>,
        challenge: &Challenge,
        refused: Option<&Authorization>,
    ) -> Result<Authorization, Cause> {
        let credential = self.credential(purpose)?;
        let Challenge::Bearer { realm, service, scope } = challenge else {
            let basic = credential.as_ref().and_then(token::basic_authorization);
            return basic.map(|header| Authorization { header, token: None, has_credentials: true }).ok_or_else(|| {
                Cause::Unauthorized {
                    registry: purpose.host.name.clone(),
                    message: "it wants a user name and password".to_owned(),
                    had_credentials: credential.is_some(),
                }
            });
        };
        if let Some(Credential::RegistryToken(token)) = &credential {
            let header = Secret::new(format!("Bearer {}", token.reveal()));
            return Ok(Authorization { header, token: None, has_credentials: true });
        }
        // We know what we want to do; a registry that refused a token for it may want more (insufficient_scope).
        let wanted = scope.as_deref().filter(|_| refused.is_some() || purpose.scopes.is_empty()).unwrap_or_default();
        let scopes = purpose.scopes.with(wanted);
        let key = TokenKey {
            origin: purpose.host.endpoint.origin().clone(),
            realm: realm.clone(),
            service: service.clone(),
            scopes,
        };
        let refused = refused.and_then(|authorization| authorization.token.as_ref());
        let fetch = || token::fetch(transport, purpose.host, &key, credential.as_ref());
        let token = self.tokens.obtain(&key, refused, fetch)?;
        let header = Secret::new(format!("Bearer {}", token.reveal()));
        Ok(Authorization { header, token: Some(token), has_credentials: credential.is_some() })
    }

    fn credential(&self, purpose: &Purpose<'_>) -> Result<Option<Credential>, Cause> {
        let key = (purpose.host.name.clone(), purpose.repository.to_owned());
        let mut found = lock(&self.found);
        if let Some(known) = found.get(&key) {
            return Ok(known.clone());
        }
        let credential = self.credentials.find(&key.0, &key.1).map_err(crate::error::Error::into_cause)?;
        found.insert(key, credential.clone());
        Ok(credential)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panicked while it held a map of answers leaves whole answers.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
