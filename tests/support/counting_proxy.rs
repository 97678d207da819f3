//! A TCP proxy that counts what a client asks of a server: no clock has a part in it, so the counts are
//! stable.

use std::net::SocketAddr;
use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::locked;

/// What went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) connections: u64,
    /// Statements that were executed; of PostgreSQL's protocol.
    pub(crate) statements: u64,
    /// Times that the client asked for answers when it had all that it had asked for before.
    pub(crate) round_trips: u64,
    /// `POST /api/changes`; of HTTP.
    pub(crate) deliveries: u64,
    /// Bytes from the client.
    pub(crate) bytes: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            statements: self.statements + other.statements,
            round_trips: self.round_trips + other.round_trips,
            deliveries: self.deliveries + other.deliveries,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            connections: self.connections - other.connections,
            statements: self.statements - other.statements,
            round_trips: self.round_trips - other.round_trips,
            deliveries: self.deliveries - other.deliveries,
            bytes: self.bytes - other.bytes,
        }
    }
}

/// The proxy; it ends when it is dropped.
pub(crate) struct CountingProxy {
    address: SocketAddr,
    streams: Arc<Mutex<Vec<Arc<Mutex<ClientStream>>>>>,
    _stop: DropGuard,
}

impl CountingProxy {
    /// Listens on a port of its own, and passes on to `target`.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::<Mutex<Vec<_>>>::default();
        let stop = CancellationToken::new();
        let (known, passing) = (streams.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream_count = Arc::<Mutex<ClientStream>>::default();
                locked(&known).push(stream_count.clone());
                let passing = passing.clone();
                tokio::spawn(passing.run_until_cancelled_owned(pass(stream, target, stream_count)));
            }
        }));
        Self {
            address,
            streams,
            _stop: stop.drop_guard(),
        }
    }

    /// A counting_proxy before the server of this URL, and the URL through it.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let mut url: Url = url.parse().unwrap();
        let host = url.host_str().unwrap().parse().unwrap();
        let counting_proxy = Self::start(SocketAddr::new(host, url.port().unwrap())).await;
        url.set_port(Some(counting_proxy.address.port())).unwrap();
        (counting_proxy, url.into())
    }

    /// What went through so far, of the clients whose `application_name` begins so.
    pub(crate) fn of(&self, application: &str) -> Count {
        let streams = locked(&self.streams);
        streams
            .iter()
            .map(|stream_count| locked(stream_count))
            .filter(|stream_count| stream_count.application.starts_with(application))
            .fold(Count::default(), |sum, stream_count| sum + stream_count.count)
    }

    /// What went through so far.
    pub(crate) fn all(&self) -> Count {
        self.of("")
    }
}

/// Passes one connection on, until either side ends it.
async fn pass(here: TcpStream, target: SocketAddr, stream_count: Arc<Mutex<ClientStream>>) {
    let Ok(there) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (here.set_nodelay(true), there.set_nodelay(true));
    let ((mut read, mut answer), (mut answers, mut write)) = (here.into_split(), there.into_split());
    let up = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(bytes @ 1..) = read.read(&mut buffer).await {
            locked(&stream_count).hear(&buffer[..bytes]);
            if write.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(bytes @ 1..) = answers.read(&mut buffer).await {
            locked(&stream_count).hear_answers(&buffer[..bytes]);
            if answer.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Understands what one client says, of either protocol.
#[derive(Default)]
struct ClientStream {
    count: Count,
    application: String,
    protocol: Protocol,
    /// The beginning of a message that is not all here.
    begun: Vec<u8>,
    /// So many bytes of a message's body are still to come.
    skip: usize,
    /// The same of the server's messages, from its answer to the startup on.
    answer_begun: Vec<u8>,
    answer_skip: usize,
    /// Requests that were not answered yet.
    unanswered: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Nothing was said, or only that it would like to encrypt.
    #[default]
    Unknown,
    Postgres,
    Http,
}

/// The codes in place of a protocol version of who would like to encrypt: SSL and GSS.
///
/// Source: PostgreSQL's manual, 55.7 "Message Formats".
const ENCRYPT: [u32; 2] = [80_877_103, 80_877_104];

const DELIVERY: &[u8] = b"POST /api/changes ";

impl ClientStream {
    fn hear(&mut self, bytes: &[u8]) {
        self.count.bytes += bytes.len() as u64;
        if self.protocol == Protocol::Unknown && self.begun.is_empty() && bytes[0] != 0 {
            self.protocol = Protocol::Http;
        }
        match self.protocol {
            Protocol::Http => self.requests(bytes),
            _ => self.messages(bytes),
        }
        if self.protocol != Protocol::Unknown {
            self.count.connections = 1;
        }
    }

    /// Counts the messages that end an answer. The answer to the wish to encrypt is one byte, before the startup.
    fn hear_answers(&mut self, mut bytes: &[u8]) {
        if self.protocol != Protocol::Postgres {
            return;
        }
        while let Some((&first, rest)) = bytes.split_first() {
            if self.answer_skip > 0 {
                let skipped = self.answer_skip.min(bytes.len());
                self.answer_skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.answer_begun.push(first);
            bytes = rest;
            if let [kind, length @ ..] = self.answer_begun.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.answer_skip = u32::from_be_bytes(length) as usize - 4;
                if *kind == b'Z' {
                    // The first one ends the startup.
                    self.unanswered = self.unanswered.saturating_sub(1);
                }
                self.answer_begun.clear();
            }
        }
    }

    fn requests(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        self.count.deliveries += memchr::memmem::find_iter(&self.begun, DELIVERY).count() as u64;
        let seen = self.begun.len().saturating_sub(DELIVERY.len() - 1);
        self.begun.drain(..seen);
    }

    fn messages(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.begun.push(first);
            bytes = rest;
            let number = |at: usize| {
                let four = self.begun.get(at..at + 4)?;
                Some(u32::from_be_bytes(four.try_into().ok()?))
            };
            if self.protocol == Protocol::Postgres {
                let Some(length) = number(1) else { continue };
                self.skip = length as usize - 4;
                self.count.statements += u64::from(matches!(self.begun[0], b'E' | b'Q'));
                if matches!(self.begun[0], b'S' | b'Q') {
                    self.count.round_trips += u64::from(self.unanswered == 0);
                    self.unanswered += 1;
                }
            } else {
                let (Some(length), Some(code)) = (number(0), number(4)) else {
                    continue;
                };
                if self.begun.len() < length as usize {
                    continue;
                }
                if !ENCRYPT.contains(&code) {
                    self.protocol = Protocol::Postgres;
                    let mut parameters = self.begun[8..].split(|&byte| byte == 0);
                    if parameters.any(|name| name == b"application_name") {
                        let name = parameters.next().unwrap_or_default();
                        self.application = String::from_utf8_lossy(name).into_owned();
                    }
                }
            }
            self.begun.clear();
        }
    }
}

#[test]
fn what_clients_say_is_understood_in_whatever_pieces_it_comes() {
    let mut sent_bytes = Vec::new();
    sent_bytes.extend_from_slice(b"\0\0\0\x08\x04\xd2\x16\x2f");
    let startup = b"\0\x03\0\0user\0me\0application_name\0cloud-sync drain\0\0";
    sent_bytes.extend_from_slice(&(startup.len() as u32 + 4).to_be_bytes());
    sent_bytes.extend_from_slice(startup);
    for (kind, body) in [
        (b'P', "\0select 'SQE'\0"),
        (b'B', "EQ"),
        (b'E', "SS"),
        (b'S', ""),
        (b'Q', "x\0"),
    ] {
        sent_bytes.push(kind);
        sent_bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        sent_bytes.extend_from_slice(body.as_bytes());
    }
    let request = b"POST /api/changes HTTP/1.1\r\n\r\n{}POST /api/changes HTTP/1.1\r\n\r\n";
    for pieces in [1, 3, 1000] {
        let mut stream_count = ClientStream::default();
        sent_bytes
            .chunks(pieces)
            .for_each(|piece| stream_count.hear(piece));
        assert_eq!(stream_count.application, "cloud-sync drain");
        assert_eq!(
            (stream_count.count.statements, stream_count.count.round_trips),
            (2, 1)
        );
        // Both are answered before the next is asked.
        let answers = b"T\0\0\0\x05ZZ\0\0\0\x05IZ\0\0\0\x05I";
        answers
            .chunks(pieces)
            .for_each(|piece| stream_count.hear_answers(piece));
        stream_count.hear(b"S\0\0\0\x04");
        assert_eq!(
            (stream_count.count.statements, stream_count.count.round_trips),
            (2, 2)
        );
        let mut stream_count = ClientStream::default();
        request.chunks(pieces).for_each(|piece| stream_count.hear(piece));
        assert_eq!(
            (stream_count.count.connections, stream_count.count.deliveries),
            (1, 2)
        );
    }
}
