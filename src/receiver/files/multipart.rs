//! The parts of a `multipart/form-data` body, as they arrive: a part's content is handed on in the pieces in
//! which it arrived, without a copy.
//!
//! Always holds: memory keeps only one piece as it arrived, the head of a part, or the few bytes at a piece's
//! end that may begin a delimiter. Everything but the content that is used (heads, delimiters, skipped parts,
//! what precedes the first part and follows the last one) is limited by [`OVERHEAD`], all together.
//!
//! Source: RFC 2046, section 5.1.1; RFC 7578.

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use memchr::memmem::{self, Finder};
use mime_guess::mime::{self, Mime};

use crate::receiver::http::api_error::{ApiError, ApiResult};

/// Bytes of a body besides the content that is used, at most.
pub(crate) const OVERHEAD: u64 = 1024 * 1024;

/// The reader of a body's parts.
pub(crate) struct PartReader {
    body: BodyDataStream,
    delimiter: Finder<'static>,
    /// What has arrived and was not handed on.
    held: Bytes,
    overhead: u64,
    state: PartState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PartState {
    /// Before a delimiter: within a part, or before the first one.
    Content,
    /// Right after a delimiter.
    Delimiter,
    /// After the last part.
    End,
}

/// What a part's head says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PartHead {
    /// The field's name.
    pub(crate) name: Option<String>,
    /// The name that the client gives the file.
    pub(crate) file_name: Option<String>,
}

impl PartReader {
    /// Reads the parts of a body with these headers.
    ///
    /// # Errors
    /// 400 if the headers do not announce parts.
    pub(crate) fn of(headers: &HeaderMap, body: Body) -> ApiResult<Self> {
        let boundary =
            boundary(headers).ok_or_else(|| ApiError::malformed("the body is not multipart/form-data"))?;
        Ok(Self {
            body: body.into_data_stream(),
            delimiter: Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned(),
            // The line break that belongs to the first delimiter may be missing.
            held: Bytes::from_static(b"\r\n"),
            overhead: 0,
            state: PartState::Content,
        })
    }

    /// The next part; what is left of the one before is skipped.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<PartHead>> {
        while let Some(piece) = self.piece().await? {
            self.count_overhead(piece.len())?;
        }
        if self.state == PartState::End {
            return Ok(None);
        }
        let mut head = BytesMut::new();
        loop {
            let before = head.len();
            head.extend_from_slice(&self.held);
            self.held.clear();
            if head.starts_with(b"--") {
                self.state = PartState::End;
                self.held = head.freeze();
                return Ok(None);
            }
            let from = before.saturating_sub(3);
            if let Some(end) = memmem::find(&head[from..], b"\r\n\r\n") {
                let mut head = head.freeze();
                let lines = head.split_to(from + end);
                head.advance(4);
                self.count_overhead(lines.len() + 4)?;
                self.held = head;
                self.state = PartState::Content;
                return parse_head(&lines).map(Some);
            }
            if self.overhead + head.len() as u64 > OVERHEAD {
                return Err(too_much_overhead());
            }
            if !self.read_more().await? {
                return Err(incomplete(StatusCode::BAD_REQUEST));
            }
        }
    }

    /// The next piece of the part's content; `None` at its end.
    pub(crate) async fn piece(&mut self) -> ApiResult<Option<Bytes>> {
        if self.state != PartState::Content {
            return Ok(None);
        }
        loop {
            if let Some(start) = self.delimiter.find(&self.held) {
                if start > 0 {
                    return Ok(Some(self.held.split_to(start)));
                }
                let bytes = self.delimiter.needle().len();
                self.held.advance(bytes);
                self.state = PartState::Delimiter;
                self.count_overhead(bytes)?;
                return Ok(None);
            }
            let content = self.held.len() - self.maybe_delimiter();
            if content > 0 {
                return Ok(Some(self.held.split_to(content)));
            }
            if !self.read_more().await? {
                return Err(incomplete(StatusCode::BAD_REQUEST));
            }
        }
    }

    /// Reads to the body's end, so that the connection can be kept.
    pub(crate) async fn finish(&mut self) -> ApiResult<()> {
        while self.next().await?.is_some() {}
        loop {
            self.count_overhead(self.held.len())?;
            self.held.clear();
            if !self.read_more().await? {
                return Ok(());
            }
        }
    }

    /// How many bytes at the end of what is held may begin a delimiter.
    fn maybe_delimiter(&self) -> usize {
        let needle = self.delimiter.needle();
        let most = self.held.len().min(needle.len() - 1);
        (1..=most)
            .rev()
            .find(|&bytes| self.held.ends_with(&needle[..bytes]))
            .unwrap_or(0)
    }

    /// Adds the next piece of the body to what is held. Returns false at the body's end.
    async fn read_more(&mut self) -> ApiResult<bool> {
        let Some(piece) = self.body.next().await else {
            return Ok(false);
        };
        // The connection was lost: the same request may pass later.
        let piece = piece.map_err(|_| incomplete(StatusCode::REQUEST_TIMEOUT))?;
        self.held = if self.held.is_empty() {
            piece
        } else {
            let mut both = BytesMut::with_capacity(self.held.len() + piece.len());
            both.extend_from_slice(&self.held);
            both.extend_from_slice(&piece);
            both.freeze()
        };
        Ok(true)
    }

    fn count_overhead(&mut self, bytes: usize) -> ApiResult<()> {
        self.overhead += bytes as u64;
        if self.overhead > OVERHEAD {
            return Err(too_much_overhead());
        }
        Ok(())
    }
}

fn too_much_overhead() -> ApiError {
    ApiError::too_large(format!(
        "the multipart body has more than {OVERHEAD} bytes that are not of the file"
    ))
}

fn incomplete(status: StatusCode) -> ApiError {
    ApiError::new(status, "the multipart body is broken or ended before its end")
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let kind: Mime = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.parse().ok()?;
    if kind.type_() != mime::MULTIPART || kind.subtype() != mime::FORM_DATA {
        return None;
    }
    let boundary = kind.get_param(mime::BOUNDARY)?.as_str();
    (!boundary.is_empty()).then(|| boundary.to_owned())
}

/// The head's lines, after the rest of the delimiter's line.
fn parse_head(lines: &[u8]) -> ApiResult<PartHead> {
    let mut head = PartHead::default();
    let mut rest = lines;
    let mut first = true;
    while !rest.is_empty() {
        let end = memmem::find(rest, b"\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 2..).unwrap_or_default();
        if std::mem::take(&mut first) {
            if !line.trim_ascii().is_empty() {
                return Err(incomplete(StatusCode::BAD_REQUEST));
            }
            continue;
        }
        let colon = memchr::memchr(b':', line).ok_or_else(|| incomplete(StatusCode::BAD_REQUEST))?;
        if line[..colon].eq_ignore_ascii_case(b"content-disposition") {
            head.name = parameter(&line[colon + 1..], b"name");
            head.file_name = parameter(&line[colon + 1..], b"filename");
        }
    }
    Ok(head)
}

/// A parameter of a `Content-Disposition`, quoted or plain. A quote after a backslash belongs to the value.
fn parameter(line: &[u8], name: &[u8]) -> Option<String> {
    let mut rest = line;
    loop {
        rest = &rest[memchr::memchr(b';', rest)? + 1..];
        let equals = memchr::memchr2(b'=', b';', rest)?;
        if rest[equals] == b';' {
            continue;
        }
        let is_wanted = rest[..equals].trim_ascii().eq_ignore_ascii_case(name);
        rest = rest[equals + 1..].trim_ascii_start();
        let value = if let Some(quoted) = rest.strip_prefix(b"\"") {
            let mut end = memchr::memchr(b'"', quoted)?;
            while end > 0 && quoted[end - 1] == b'\\' {
                end += 1 + memchr::memchr(b'"', &quoted[end + 1..])?;
            }
            rest = &quoted[end + 1..];
            &quoted[..end]
        } else {
            let end = memchr::memchr2(b';', b' ', rest).unwrap_or(rest.len());
            let value = &rest[..end];
            rest = &rest[end..];
            value
        };
        if is_wanted {
            return Some(std::str::from_utf8(value).ok()?.replace("\\\"", "\""));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a body that arrives in pieces of `piece` bytes: each part's names and content.
    async fn read_all_parts(text: &[u8], piece: usize) -> ApiResult<Vec<(PartHead, Vec<u8>)>> {
        let pieces: Vec<_> = text
            .chunks(piece)
            .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
            .collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let kind = "multipart/form-data; boundary=b-b".parse().unwrap();
        let mut parts = PartReader::of(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]), body)?;
        let mut found = Vec::new();
        while let Some(head) = parts.next().await? {
            let mut content = Vec::new();
            while let Some(piece) = parts.piece().await? {
                content.extend_from_slice(&piece);
            }
            found.push((head, content));
        }
        parts.finish().await?;
        Ok(found)
    }

    #[tokio::test]
    async fn contents_are_whole_wherever_the_pieces_end() {
        let content = b"\r\n--b-\r\r\n--b\r\n\r\n-\r";
        let mut text =
            b"before\r\n--b-b \r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n\r\n--b-b\r\n\
            X: y\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a;\\\"b.jpg\"\r\n\r\n"
                .to_vec();
        text.extend_from_slice(content);
        text.extend_from_slice(b"\r\n--b-b--\r\nafter");
        for piece in 1..=text.len() {
            let found = read_all_parts(&text, piece).await.unwrap();
            assert_eq!(found.len(), 2, "{piece}");
            assert_eq!(found[0].0.name.as_deref(), Some("note"));
            assert!(found[0].1.is_empty());
            assert_eq!(found[1].0.name.as_deref(), Some("file"));
            assert_eq!(found[1].0.file_name.as_deref(), Some("a;\"b.jpg"));
            assert_eq!(found[1].1, content, "{piece}");
        }
        for piece in [1, 7, 1000] {
            for end in 0..text.len() - 9 {
                assert!(read_all_parts(&text[..end], piece).await.is_err(), "{end}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_content_is_limited() {
        let long = vec![b'x'; OVERHEAD as usize + 1];
        for start in ["", "--b-b\r\nX: ", "--b-b--"] {
            let text = [start.as_bytes(), &long].concat();
            let refusal = read_all_parts(&text, 10_000).await.unwrap_err();
            assert!(refusal.to_string().contains("more than"), "{start}");
        }
    }

    #[test]
    fn names_are_found_quoted_and_plain() {
        let name = |line: &str, name: &str| parameter(line.as_bytes(), name.as_bytes());
        let some = |text: &str| Some(text.to_owned());
        let line = " form-data; filename=\"name=x; y\"; name=\"file\"";
        assert_eq!(name(line, "name"), some("file"));
        assert_eq!(name(line, "filename"), some("name=x; y"));
        assert_eq!(name(" form-data; name=a; filename=b.c", "filename"), some("b.c"));
        assert_eq!(name(" form-data; filename=\"\"", "filename"), some(""));
        assert_eq!(name(" form-data; name=\"x", "name"), None);
        assert_eq!(name(" form-data", "name"), None);
    }
}
