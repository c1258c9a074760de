//! Between the collector and its store: passes HTTP on, request by request, and does wrong at the one that it was told.
//!
//! In: the collector's connections. Out: the same to the store, and what it answered, or what the fault makes of that. It knows
//! where messages end and, but for the user who may only read, nothing of what they say.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

/// The longest that the store may take for an answer; longer than anything a test waits for.
const ANSWER: Duration = Duration::from_secs(90);
/// The largest message: a segment's rows are far below.
const MAX_MESSAGE: usize = 64 << 20;
const READ: usize = 64 << 10;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The store never hears of it, and 500 is answered.
    ErrorBefore,
    /// The store has done it, and 500 is answered.
    ErrorAfter,
    /// The store gets so many hundredths of it and a reset, and so does the collector.
    ResetWithin(u8),
    /// The store has done it, and the collector gets a reset.
    ResetAfter,
    /// The store has done it, and of its answer so many hundredths arrive before the connection ends.
    Truncated(u8),
    /// The store has done it, and nothing is answered until [`Between::let_go`].
    Unanswered,
    /// Nothing is answered, and the store gets it after [`Between::let_go`]: when others have been before it.
    Late,
}

/// The running proxy; it ends with the process.
#[derive(Debug, Clone)]
pub struct Between {
    address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether all that comes is asked as a user whose profile says `readonly = 1`.
    only_reads: bool,
    /// Requests that have come.
    requests: u64,
    wrong: Option<(u64, Wrong)>,
    /// Faults that have happened.
    happened: u64,
    held: bool,
    waiting: u64,
}

impl Between {
    pub fn to(store: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for the proxy")?;
        let between = Self { address: listener.local_addr()?, shared: Arc::default() };
        let served = between.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream, store));
            }
        });
        Ok(between)
    }

    /// What the collector takes for its store.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// How many faults have happened.
    pub fn happened(&self) -> u64 {
        self.state().happened
    }

    /// The request after so many others goes wrong.
    pub fn wrong_after(&self, others: u64, wrong: Wrong) {
        let mut state = self.state();
        state.wrong = Some((state.requests + others, wrong));
        state.held = matches!(wrong, Wrong::Unanswered | Wrong::Late);
    }

    /// From now on all that comes is of a user who may only read.
    pub fn only_read(&self) {
        self.state().only_reads = true;
    }

    /// Takes back a fault that has not happened.
    pub fn mend(&self) {
        self.state().wrong = None;
    }

    /// Waits until a request is held.
    pub fn until_held(&self) {
        let mut state = self.state();
        while state.waiting == 0 {
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets what is held go on, and waits until it has.
    pub fn let_go(&self) {
        let mut state = self.state();
        state.held = false;
        self.shared.1.notify_all();
        while state.waiting > 0 {
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut near: TcpStream, store: SocketAddr) {
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        let mut far = None;
        while let Ok(Some(request)) = message(&mut near, &mut asked) {
            let mut request = request;
            let wrong = {
                let mut state = self.state();
                if state.only_reads {
                    request = reading(&request);
                }
                let number = state.requests;
                state.requests += 1;
                let due = state.wrong.take_if(|(at, _)| *at <= number);
                state.happened += u64::from(due.is_some());
                due.map(|(_, wrong)| wrong)
            };
            if far.is_none() {
                answered.clear();
                far = TcpStream::connect(store)
                    .and_then(|far| {
                        far.set_read_timeout(Some(ANSWER))?;
                        far.set_nodelay(true)?;
                        Ok(far)
                    })
                    .ok();
            }
            let Some(store) = &mut far else {
                // As a port at which nobody listens, as far as one can tell from behind an accepted connection.
                reset(&near);
                return;
            };
            let mut ask = || -> std::io::Result<Option<Vec<u8>>> {
                store.write_all(&request)?;
                message(store, &mut answered)
            };
            let done = match wrong {
                None => match ask() {
                    Ok(Some(answer)) => near.write_all(&answer).is_ok(),
                    _ => {
                        reset(&near);
                        false
                    }
                },
                Some(Wrong::ResetWithin(part)) => {
                    let _ = store.write_all(part_of(&request, part));
                    reset(store);
                    reset(&near);
                    false
                }
                Some(wrong) => {
                    self.go_wrong(wrong, &mut near, &mut ask);
                    false
                }
            };
            if !done {
                return;
            }
        }
    }

    /// The connection is given up afterwards.
    fn go_wrong(
        &self,
        wrong: Wrong,
        near: &mut TcpStream,
        ask: &mut dyn FnMut() -> std::io::Result<Option<Vec<u8>>>,
    ) {
        let error = b"HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 999\r\nContent-Length: 23\r\n\
                      Connection: close\r\n\r\nCode: 999. injected (X)";
        match wrong {
            Wrong::ErrorBefore => drop(near.write_all(error)),
            Wrong::ErrorAfter => {
                let _ = ask();
                let _ = near.write_all(error);
            }
            // Of the first, the store heard already.
            Wrong::ResetWithin(_) => reset(near),
            Wrong::ResetAfter => {
                let _ = ask();
                reset(near);
            }
            Wrong::Truncated(part) => {
                if let Ok(Some(answer)) = ask() {
                    let _ = near.write_all(part_of(&answer, part));
                }
                let _ = near.shutdown(Shutdown::Both);
            }
            Wrong::Unanswered => {
                let _ = ask();
                self.hold(|| {});
            }
            Wrong::Late => self.hold(|| drop(ask())),
        }
    }

    /// Waits until it is let go, and then does what is left.
    fn hold(&self, then: impl FnOnce()) {
        let mut state = self.state();
        state.waiting += 1;
        self.shared.1.notify_all();
        while state.held {
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        then();
        self.state().waiting -= 1;
        self.shared.1.notify_all();
    }
}

/// The same request of a user whose settings say `readonly = 1`: the store's URL takes settings.
fn reading(request: &[u8]) -> Vec<u8> {
    let line = request.iter().position(|byte| *byte == b'\r').unwrap_or(0);
    let path = request.get(..line).unwrap_or_default().iter().position(|byte| *byte == b'/');
    let Some((before, behind)) = path.and_then(|at| request.split_at_checked(at + 1)) else {
        return request.to_vec();
    };
    let behind = behind.strip_prefix(b"?").unwrap_or(behind);
    let and: &[u8] = if behind.starts_with(b" ") { b"" } else { b"&" };
    [before, b"?readonly=1", and, behind].concat()
}

/// So many hundredths from the beginning, and never all of it.
fn part_of(bytes: &[u8], hundredths: u8) -> &[u8] {
    let end = (bytes.len() * usize::from(hundredths) / 100).min(bytes.len().saturating_sub(1));
    bytes.get(..end).unwrap_or_default()
}

/// Ends a connection with RST instead of FIN, when it is dropped.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&stream.as_fd(), sockopt::Linger, &linger);
}

/// The next whole HTTP/1.1 message; what came behind it stays in `read`. None at the connection's end.
fn message(stream: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let mut block = vec![0; READ];
    loop {
        if let Some(end) = end_of_message(read) {
            let rest = read.split_off(end);
            return Ok(Some(std::mem::replace(read, rest)));
        }
        if read.len() > MAX_MESSAGE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let got = stream.read(&mut block)?;
        if got == 0 {
            // Without a length a message ends with its connection.
            let whole = std::mem::take(read);
            return Ok((!whole.is_empty()).then_some(whole));
        }
        read.extend_from_slice(block.get(..got).unwrap_or_default());
    }
}

/// Where the first message ends, as soon as it is whole: by its length, or by its last chunk.
fn end_of_message(bytes: &[u8]) -> Option<usize> {
    let body = bytes.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(bytes.get(..body)?).to_ascii_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(length) = header("content-length:") {
        let end = body + length.parse::<usize>().ok()?;
        return (bytes.len() >= end).then_some(end);
    }
    if header("transfer-encoding:").is_some_and(|coding| coding.ends_with("chunked")) {
        let mut at = body;
        loop {
            let rest = bytes.get(at..)?;
            let line = rest.windows(2).position(|part| part == b"\r\n")?;
            let size = String::from_utf8_lossy(rest.get(..line)?).into_owned();
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            at += line + 2 + size + 2;
            if size == 0 {
                return (bytes.len() >= at).then_some(at);
            }
        }
    }
    // A request without either has no body; an answer without either ends with its connection.
    (!head.starts_with("http/")).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_where_its_head_says() {
        let get = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(end_of_message(get), Some(get.len()));
        let with_length = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcNEXT";
        assert_eq!(end_of_message(with_length), Some(with_length.len() - 4));
        assert_eq!(end_of_message(&with_length[..with_length.len() - 5]), None);
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(end_of_message(chunked), Some(chunked.len()));
        for end in 0..chunked.len() {
            assert_eq!(end_of_message(&chunked[..end]), None, "{end}");
        }
        assert_eq!(end_of_message(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), None);
    }

    #[test]
    fn a_reading_users_request_says_so_before_all_else() {
        for (asked, read) in [
            ("POST /?database=weir HTTP/1.1\r\n\r\n", "POST /?readonly=1&database=weir HTTP/1.1\r\n\r\n"),
            ("POST / HTTP/1.1\r\n\r\n", "POST /?readonly=1 HTTP/1.1\r\n\r\n"),
        ] {
            assert_eq!(String::from_utf8_lossy(&reading(asked.as_bytes())), read);
        }
    }

    #[test]
    fn a_part_is_never_the_whole() {
        assert_eq!(
            (part_of(b"abcd", 50), part_of(b"abcd", 100), part_of(b"", 10)),
            (&b"ab"[..], &b"abc"[..], &b""[..])
        );
    }
}
