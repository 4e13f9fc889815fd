//! `RUN --mount=type=ssh`: the caller's agent behind a socket of the step's own.
//!
//! Invariant: the agent's own socket never changes owner or mode; what the step is given ends with the step.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

/// Passes connections to a socket of the step on to the caller's agent, so that the step's user can
/// be given the socket without touching the agent's own.
pub(crate) struct Agent {
    listener: Arc<UnixListener>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    /// Listens at `place` for an agent at `socket`.
    pub(crate) fn serve(socket: &Path, place: &Path) -> io::Result<Self> {
        let listener = Arc::new(UnixListener::bind(place)?);
        let (accepting, socket) = (Arc::clone(&listener), socket.to_owned());
        let thread = std::thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                let socket = socket.clone();
                std::thread::spawn(move || {
                    if let Err(error) = join_streams(&client, &socket) {
                        tracing::debug!("an agent's connection ended: {error}");
                    }
                });
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A listening socket that is shut down makes its accept fail.
        if rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both).is_ok()
            && let Some(thread) = self.thread.take()
        {
            _ = thread.join();
        }
    }
}

fn join_streams(client: &UnixStream, socket: &Path) -> io::Result<()> {
    let agent = UnixStream::connect(socket)?;
    let (mut from_client, mut to_agent) = (client.try_clone()?, agent.try_clone()?);
    let forward = std::thread::spawn(move || {
        _ = io::copy(&mut from_client, &mut to_agent);
        _ = to_agent.shutdown(std::net::Shutdown::Write);
    });
    io::copy(&mut &agent, &mut &*client)?;
    _ = client.shutdown(std::net::Shutdown::Both);
    forward.join().map_err(|_| io::Error::other("a copying thread panicked"))
}
