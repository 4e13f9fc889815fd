//! Files from the web, for `ADD https://...`: redirects followed, tried again when the network fails.
//!
//! Invariant: no credential is sent but the one that the caller or the URL gives, and that to the URL's own host only; a
//! file is told only when all of it came. What the bytes ought to be is the
//! caller's to know: nothing here trusts a server's word for it, neither an ETag nor a digest in a header.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::client::Client;
use crate::error::{Answer, Cause, Error};
use crate::hosts::Host;
use crate::retry::{Patience, parse_retry_after};
use crate::secret::Secret;
use crate::transport::{Response, read_cause};
use crate::url::{Url, percent_decode};

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// How many bytes came.
    pub size_bytes: u64,
    /// `Last-Modified`, in seconds since 1970, where the server says it in a form that HTTP permits.
    pub modified_seconds: Option<i64>,
}

/// Where a file is fetched to.
pub trait Sink: Write {
    /// Drops what was written, before another try.
    ///
    /// # Errors
    /// What the system gives.
    fn restart(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn restart(&mut self) -> io::Result<()> {
        self.set_len(0)?;
        self.seek(SeekFrom::Start(0)).map(drop)
    }
}

impl Client {
    /// Fetches what an http or https URL leads to into `file`, from its begin; what was in the file is gone.
    /// `authorization` is the value of that header, before the user and password that the URL may name.
    ///
    /// # Errors
    /// If the URL is none, the server refuses, more than `limit_bytes` come, or the file cannot be written. An
    /// unknown part of the file is written then.
    pub fn fetch(
        &self,
        url: &str,
        authorization: Option<&Secret>,
        limit_bytes: u64,
        file: &mut dyn Sink,
    ) -> Result<Fetched, Error> {
        let (url, of_url) = as_typed(url).map_err(|what| Error::new("fetch a file", Cause::Input(what)))?;
        let doing = format!("fetch {url}");
        let mut host = Host::of_url(&url);
        let authorization = authorization.cloned().or(of_url);
        Arc::make_mut(&mut host.headers).extend(authorization.map(|value| ("Authorization".to_owned(), value)));
        let attempt = || self.fetch_once(&url, &host, limit_bytes, file);
        self.retrying(&Patience::new(*self.retry(), false), &doing, attempt).map_err(|cause| Error::new(&doing, cause))
    }

    fn fetch_once(&self, url: &Url, host: &Host, limit_bytes: u64, file: &mut dyn Sink) -> Result<Fetched, Cause> {
        let name = url.origin().authority();
        let response = self.fetch_foreign(url, host, Vec::new())?;
        if response.status != 200 {
            return Err(refusal(url, &response));
        }
        let modified_seconds = response.header("last-modified").and_then(seconds_of_date);
        // We ask for no encoding; a server that has the file only so is understood, as by every browser. What is packed
        // says by itself where it ends.
        let is_packed = response.header("content-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("gzip"));
        let announced = response.header("content-length").filter(|_| !is_packed);
        let announced: Option<u64> = announced.and_then(|text| text.parse().ok());
        let too_large = || Cause::Input(format!("it is larger than the limit of {limit_bytes} bytes"));
        if announced.is_some_and(|size| size > limit_bytes) {
            return Err(too_large());
        }
        let body: Box<dyn Read> = match is_packed {
            true => Box::new(flate2::read::MultiGzDecoder::new(response.body)),
            false => response.body,
        };
        file.restart().map_err(Cause::from_file)?;
        let size_bytes = copy_body(body.take(limit_bytes.saturating_add(1)), file, &name)?;
        if size_bytes > limit_bytes {
            return Err(too_large());
        }
        if let Some(announced) = announced.filter(|announced| *announced != size_bytes) {
            let source = io::Error::other(format!("{size_bytes} of {announced} bytes came"));
            return Err(Cause::Broken { host: name, source });
        }
        Ok(Fetched { size_bytes, modified_seconds })
    }
}

/// A URL as people type it: with a user and a password, which become a header's value, and with characters that have
/// to be encoded on the wire.
fn as_typed(text: &str) -> Result<(Url, Option<Secret>), String> {
    let after_scheme = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(after_scheme);
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user_info, host) = match authority.rsplit_once('@') {
        Some((user_info, host)) => (Some(user_info), host),
        None => (None, authority),
    };
    let mut wire = format!("{scheme}{host}");
    for byte in path.bytes() {
        match byte {
            b' ' | 0x80.. => wire.push_str(&format!("%{byte:02X}")),
            _ => wire.push(char::from(byte)),
        }
    }
    let authorization = user_info.map(|user_info| {
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let decoded = [&percent_decode(user), b":".as_slice(), &percent_decode(password)].concat();
        Secret::new(format!("Basic {}", STANDARD.encode(decoded)))
    });
    Ok((Url::parse(&wire)?, authorization))
}

fn copy_body(mut body: impl Read, file: &mut dyn Sink, host: &str) -> Result<u64, Cause> {
    let mut buffer = vec![0; 1 << 16];
    let mut size_bytes = 0;
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(size_bytes),
            Ok(count) => {
                file.write_all(&buffer[..count]).map_err(Cause::from_file)?;
                size_bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_cause(error, host)),
        }
    }
}

impl Cause {
    /// The caller's file has no name that we know.
    fn from_file(source: io::Error) -> Self {
        Self::Disk { path: "the fetched file".into(), source }
    }
}

fn refusal(url: &Url, response: &Response) -> Cause {
    let retry_after = response.header("retry-after").and_then(|text| parse_retry_after(text, SystemTime::now()));
    let request = format!("GET {url}");
    Cause::Answer(Answer { status: response.status, request, code: None, message: None, retry_after })
}

/// The form of dates that RFC 9110 section 5.6.7 has servers send.
fn seconds_of_date(text: &str) -> Option<i64> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    parser.parse_timestamp(text.trim()).ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::client::ClientOptions;
    use crate::retry::RetryPolicy;

    /// Answers requests in turn with whole answers as given; yields the base URL.
    fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        serve_bytes(answers.into_iter().map(String::into_bytes).collect())
    }

    fn serve_bytes(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a client comes");
                let mut lines = io::BufReader::new(stream.try_clone().expect("a socket is cloned")).lines();
                let head: Vec<String> =
                    lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                seen.push(head.join("\n"));
                stream.write_all(&answer).expect("the client reads");
            }
            seen
        });
        (url, thread)
    }

    fn client() -> Client {
        let wait = Duration::from_millis(1);
        let retry = RetryPolicy { tries: 3, base_wait: wait, longest_wait: wait };
        Client::new(ClientOptions { retry, ..ClientOptions::default() })
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn fetch(url: &str, limit_bytes: u64) -> (Result<Fetched, Error>, String) {
        let mut file = tempfile::tempfile().expect("a temporary file");
        let fetched = client().fetch(url, None, limit_bytes, &mut file);
        file.seek(SeekFrom::Start(0)).expect("a file seeks");
        (fetched, io::read_to_string(file).expect("text"))
    }

    #[test]
    fn a_redirect_is_followed_and_the_time_is_told() {
        let date = "Last-Modified: Thu, 04 Mar 2021 05:06:07 GMT\r\n";
        let answers = vec![answer("302 Found", "Location: /there\r\n", "moved"), answer("200 OK", date, "hello")];
        let (url, server) = serve(answers);
        let (fetched, text) = fetch(&format!("{url}/here"), 100);
        assert_eq!(fetched.expect("it comes"), Fetched { size_bytes: 5, modified_seconds: Some(1_614_834_367) });
        assert_eq!(text, "hello");
        let seen = server.join().expect("the server ends");
        assert!(seen[1].starts_with("GET /there "), "{seen:?}");
        assert!(!seen.join("\n").to_lowercase().contains("authorization"), "{seen:?}");
    }

    #[test]
    fn an_authorization_goes_to_the_host_itself_and_not_where_it_sends_us() {
        let (other, other_server) = serve(vec![answer("200 OK", "", "hello")]);
        let moved = answer("302 Found", &format!("Location: {other}/there\r\n"), "");
        let (url, server) = serve(vec![moved]);
        let mut file = tempfile::tempfile().expect("a temporary file");
        let secret = Secret::new("Bearer x".to_owned());
        client().fetch(&url, Some(&secret), 100, &mut file).expect("it comes");
        assert!(server.join().expect("the server ends")[0].to_lowercase().contains("authorization: bearer x"));
        assert!(!other_server.join().expect("the server ends")[0].to_lowercase().contains("authorization"));
    }

    #[test]
    fn a_url_may_name_a_user_and_hold_characters_that_have_to_be_encoded() {
        let (url, server) = serve(vec![answer("200 OK", "", "hello")]);
        let (fetched, _) = fetch(&format!("{}/a b/é?q= %2f", url.replace("://", "://me:p%40ss@")), 9);
        fetched.expect("it comes");
        let seen = server.join().expect("the server ends");
        assert!(seen[0].starts_with("GET /a%20b/%C3%A9?q=%20%2f HTTP/1.1\n"), "{seen:?}");
        assert!(seen[0].to_lowercase().contains("\nauthorization: basic bwu6cebzcw=="), "{seen:?}");
        let (url, server) = serve(vec![answer("404 Not Found", "", "")]);
        let said = fetch(&url.replace("://", "://me:word@"), 9).0.expect_err("missing").to_string();
        assert!(!said.contains("word") && said.contains("404"), "{said}");
        server.join().expect("the server ends");
        assert!(fetch("http://user:pw@/", 9).0.is_err() && fetch("http://a b/", 9).0.is_err());
    }

    #[test]
    fn a_file_that_comes_packed_is_unpacked() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"hello").expect("packed");
        let body = encoder.finish().expect("packed");
        let head = "Content-Encoding: GZIP\r\n";
        let whole = [answer("200 OK", head, &"x".repeat(body.len())).trim_end_matches('x').as_bytes(), &body].concat();
        let cut = whole[..whole.len() - 9].to_vec();
        let (url, server) = serve_bytes(vec![cut, whole.clone(), whole]);
        let (fetched, text) = fetch(&url, 5);
        assert_eq!((fetched.expect("it comes in the end").size_bytes, text.as_str()), (5, "hello"));
        assert!(fetch(&url, 4).0.expect_err("too large").to_string().contains("limit of 4 bytes"));
        server.join().expect("the server ends");
    }

    #[test]
    fn what_breaks_off_is_fetched_again_from_its_begin() {
        let half = answer("200 OK", "", "hello").replace("Content-Length: 5", "Content-Length: 50");
        let (url, server) = serve(vec![half, answer("503 Busy", "", ""), answer("200 OK", "", "other")]);
        let (fetched, text) = fetch(&url, 100);
        assert_eq!((fetched.expect("it comes in the end").size_bytes, text.as_str()), (5, "other"));
        server.join().expect("the server ends");
    }

    #[test]
    fn more_than_the_limit_is_refused_announced_or_not() {
        let (url, server) = serve(vec![answer("200 OK", "", "0123456789")]);
        assert!(fetch(&url, 9).0.expect_err("too large").to_string().contains("limit of 9 bytes"));
        server.join().expect("the server ends");
        let endless = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123456789".to_owned();
        let (url, server) = serve(vec![endless]);
        assert!(fetch(&url, 9).0.expect_err("too large").to_string().contains("limit of 9 bytes"));
        server.join().expect("the server ends");
    }

    #[test]
    fn a_refusal_is_told_with_its_status_and_without_the_query() {
        let (url, server) = serve(vec![answer("404 Not Found", "", "")]);
        let error = fetch(&format!("{url}/x?token=secret"), 9).0.expect_err("missing").to_string();
        assert!(error.contains("404") && error.contains("/x") && !error.contains("secret"), "{error}");
        server.join().expect("the server ends");
        assert!(fetch("ftp://localhost/", 9).0.is_err());
    }
}
