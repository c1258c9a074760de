//! Why bytes are not let through: a closed set, and a label for each.

/// Where the framing of a connection can no longer be read in one way alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Fault {
    /// How many bytes of the piece come before it.
    pub good: usize,
    pub what: Ambiguous,
}

/// The ways in which the variants are written: a sentence and a label for each.
macro_rules! ambiguous {
    ($($(#[$doc:meta])* $variant:ident = $label:literal, $sentence:literal;)+) => {
        /// What two readers of HTTP/1.1 might take for different things, and what is none of HTTP/2's, which the one
        /// server behind it might read all the same. The peer is at fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Ambiguous {
            $($(#[$doc])* #[error($sentence)] $variant,)+
        }

        impl Ambiguous {
            /// Each of them, in the order of this list.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label, as it is recorded.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

ambiguous! {
    BareLf = "bare_lf", "a line that ends in LF without CR";
    BareCr = "bare_cr", "a CR without LF";
    ObsFold = "obs_fold", "a line that begins with a space";
    NulOrControl = "nul_or_control", "a control character in the head";
    SpaceBeforeColon = "space_before_colon", "a space between a field's name and its colon";
    /// Also one that some servers take for a field of the framing (`Content_Length`).
    BadHeaderName = "bad_header_name", "a field's name that is none, or looks like another's";
    LengthAndChunked = "length_and_chunked", "both Content-Length and Transfer-Encoding";
    /// Also of equal values: which of two lines is changed on the way depends on who changes it.
    LengthRepeated = "length_repeated", "more than one Content-Length";
    /// A sign, a space, a list, a leading zero, another base, or more than a signed number holds.
    LengthMalformed = "length_malformed", "a Content-Length that is no plain number";
    /// `chunked` alone, in letters of either case, is understood by all.
    NotPlainlyChunked = "transfer_encoding_other_than_chunked", "a Transfer-Encoding other than one `chunked`";
    ChunkedInHttp10 = "chunked_in_http10", "a Transfer-Encoding in HTTP/1.0";
    BadChunkSize = "bad_chunk_size", "a chunk's size that is no plain hexadecimal number";
    /// No client or server in use sends them, they go no further than one hop, and where their line ends is
    /// what readers disagree on.
    ChunkExtension = "chunk_extension", "a chunk with an extension";
    BadChunkEnd = "bad_chunk_end", "a chunk that does not end where its size says";
    BadTrailer = "bad_trailer", "a trailer that belongs into the head";
    BadRequestLine = "bad_request_line", "a request line other than METHOD TARGET VERSION";
    BadStatusLine = "bad_status_line", "a status line other than VERSION CODE REASON";
    BadVersion = "bad_version", "a version other than HTTP/1.1 and HTTP/1.0";
    HeadTooLarge = "head_too_large", "a head, or trailers, of too many bytes or fields";
    TwoHosts = "two_hosts", "more than one Host";
    /// Servers that expect none take it for the next message.
    BodyWhereNone = "body_where_none", "a body where none is expected";
    BytesAfterClose = "bytes_after_close", "bytes after the message that was to be the last";
    BytesAfterConnect = "bytes_after_connect", "bytes after CONNECT, before its answer";
    Unasked = "unasked", "a response that no request asked for";
    /// The stream is reset (RFC 9113, 8.1.1).
    Http2Malformed = "http2_malformed", "a message that HTTP/2 calls malformed: a field that is one connection's alone, a \
        pseudo-field that is missing, doubled or out of place, or a length that is not its body's";
    /// The connection ends.
    Http2Unreadable = "http2_unreadable", "frames that are none of HTTP/2's, or in them a field with a capital letter in its \
        name, or CR, LF or NUL in it";
}
