//! A slow or unreliable network between a client and a registry, in user space: not every kernel has `sch_netem`.
//!
//! Invariant: all connections of a link share its bandwidth, in each direction its own; a link ends with its value.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

/// What the network does to what passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Each way; a round trip takes twice as long.
    pub(crate) delay: Duration,
    /// Each way, for all connections together.
    pub(crate) bytes_per_second: Option<u64>,
    /// Of a hundred mebibytes so many see their connection reset.
    pub(crate) resets_percent: u64,
}

/// A relay on the loopback.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

/// What passes at once; small beside the bandwidth times the delay.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces on their way in one direction of one connection: a mebibyte, more than 100 Mbit/s hold in 50 ms.
const PIECES_UNDERWAY: usize = 64;

struct Relay {
    weather: Weather,
    /// When each direction is free again.
    free_at: [Mutex<Instant>; 2],
    /// Chooses the resets, the same in each run.
    random: AtomicU64,
}

impl Link {
    /// A link to a server.
    pub(crate) fn to(server: SocketAddr, weather: Weather) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let free_at = [Mutex::new(Instant::now()), Mutex::new(Instant::now())];
        let relay = Arc::new(Relay { weather, free_at, random: AtomicU64::new(0x9e37_79b9_7f4a_7c15) });
        let over = Arc::clone(&is_over);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // A connection that cannot be relayed is one that breaks.
                if let Ok(upstream) = TcpStream::connect(server) {
                    _ = relay.connect(client, upstream);
                }
            }
        });
        Ok(Self { address, is_over })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the acceptor.
        _ = TcpStream::connect(self.address);
    }
}

impl Relay {
    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
        for (direction, (from, to)) in ways.into_iter().enumerate() {
            let (sender, receiver) = sync_channel(PIECES_UNDERWAY);
            thread::spawn(move || receive(from, &sender));
            let relay = Arc::clone(self);
            thread::spawn(move || relay.deliver(direction, to, &receiver));
        }
        Ok(())
    }

    fn deliver(&self, direction: usize, mut to: TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
        let mut passed_bytes = 0;
        while let Ok((came, piece)) = pieces.recv() {
            let due = self.due(direction, came, piece.len());
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let before = passed_bytes >> 20;
            passed_bytes += piece.len();
            if passed_bytes >> 20 > before && self.is_unlucky() {
                _ = sockopt::set_socket_linger(&to, Some(Duration::ZERO));
                _ = to.shutdown(Shutdown::Both);
                return;
            }
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        _ = to.shutdown(Shutdown::Write);
    }

    /// When a piece has arrived at the other end.
    fn due(&self, direction: usize, came: Instant, bytes: usize) -> Instant {
        let Some(rate) = self.weather.bytes_per_second else { return came + self.weather.delay };
        let mut free_at = self.free_at[direction].lock().unwrap_or_else(|poison| poison.into_inner());
        *free_at = (*free_at).max(came) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *free_at + self.weather.delay
    }

    fn is_unlucky(&self) -> bool {
        let step = |state: u64| state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let state = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(step(state)));
        (state.unwrap_or(0) >> 33) % 100 < self.weather.resets_percent
    }
}

fn receive(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
            break;
        }
    }
    _ = from.shutdown(Shutdown::Read);
}
