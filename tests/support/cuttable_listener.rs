//! An HTTP server on a port of its own whose requests can cut their connection, and a count of its
//! connections.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// A running server; it ends when it is dropped.
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl HttpServer {
    /// Serves bodies of any length. A handler gets the [`CutHandle`] of its connection as `ConnectInfo`;
    /// `connections` counts the connections.
    pub(crate) async fn start(app: Router, connections: Arc<AtomicUsize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = CuttableListener {
            listener,
            connections,
        };
        let service = app
            .layer(DefaultBodyLimit::disable())
            .into_make_service_with_connect_info::<CutHandle>();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

/// A listener whose connections can be cut by the request that came over them.
struct CuttableListener {
    listener: TcpListener,
    /// How many connections were opened.
    connections: Arc<AtomicUsize>,
}

impl Listener for CuttableListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let _ = stream.set_nodelay(true);
        self.connections.fetch_add(1, Ordering::SeqCst);
        let cut_handle = CutHandle {
            cut: Arc::new(AtomicBool::new(false)),
        };
        (Connection { stream, cut_handle }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Cuts one connection.
#[derive(Clone)]
pub(crate) struct CutHandle {
    cut: Arc<AtomicBool>,
}

impl CutHandle {
    /// Whatever is written to the connection from now on, its end is what the client sees.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for CutHandle {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.io().cut_handle.clone()
    }
}

/// One connection.
struct Connection {
    stream: TcpStream,
    cut_handle: CutHandle,
}

impl Connection {
    fn check(&self) -> io::Result<()> {
        if self.cut_handle.cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
