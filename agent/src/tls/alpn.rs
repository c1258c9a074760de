//! Which protocol is spoken inside TLS (RFC 7301). What a client offers comes in; what its server is to be offered goes out, and
//! then what the client is told. A server is never offered what its client did not offer, with one exception: a
//! client that takes HTTP/2 alone has a server that may speak HTTP/1.1 alone, and Weir translates.

/// Whether Weir speaks HTTP/2; if not, HTTP/1.1 is all that it offers and accepts.
pub const SPEAKS_H2: bool = true;

/// A protocol that Weir speaks inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// Its registered identification sequence.
    pub fn id(self) -> &'static [u8] {
        match self {
            Protocol::Http1 => b"http/1.1",
            Protocol::Http2 => b"h2",
        }
    }

    /// What was negotiated; nothing is HTTP/1.1.
    pub(super) fn negotiated(id: Option<&[u8]>) -> Self {
        if id == Some(Protocol::Http2.id()) { Protocol::Http2 } else { Protocol::Http1 }
    }

    fn known(id: &[u8]) -> Option<Self> {
        [Protocol::Http1, Protocol::Http2].into_iter().find(|protocol| protocol.id() == id)
    }
}

/// What a client and a server of one flow speak with Weir.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    pub by_client: Protocol,
    pub by_server: Protocol,
}

/// What a client offers, in its order. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    by_client: Vec<Protocol>,
}

impl Offer {
    /// `None` where the client takes no protocol that Weir speaks. One that says nothing takes HTTP/1.1.
    pub fn of(alpn: &[Vec<u8>]) -> Option<Self> {
        Self::spoken(alpn, SPEAKS_H2)
    }

    fn spoken(alpn: &[Vec<u8>], speaks_h2: bool) -> Option<Self> {
        if alpn.is_empty() {
            return Some(Self { by_client: vec![Protocol::Http1] });
        }
        let mut by_client = Vec::new();
        for protocol in alpn.iter().filter_map(|id| Protocol::known(id)) {
            let is_spoken = protocol == Protocol::Http1 || speaks_h2;
            if is_spoken && !by_client.contains(&protocol) {
                by_client.push(protocol);
            }
        }
        (!by_client.is_empty()).then_some(Self { by_client })
    }

    /// What the server is offered.
    pub fn to_server(&self) -> &[Protocol] {
        match self.by_client.as_slice() {
            [Protocol::Http2] => &[Protocol::Http2, Protocol::Http1],
            offered => offered,
        }
    }

    /// What is spoken with a client that has no server.
    pub fn own(&self) -> Protocol {
        if self.by_client.contains(&Protocol::Http1) { Protocol::Http1 } else { Protocol::Http2 }
    }

    /// What is spoken on both sides when the server took `by_server`.
    pub fn taken(&self, by_server: Protocol) -> Spoken {
        let by_client = match self.by_client.as_slice() {
            [Protocol::Http2] => Protocol::Http2,
            _ => by_server,
        };
        Spoken { by_client, by_server }
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol::{Http1, Http2};
    use super::*;

    fn offer(alpn: &[&str], speaks_h2: bool) -> Option<Offer> {
        let alpn: Vec<_> = alpn.iter().map(|id| id.as_bytes().to_vec()).collect();
        Offer::spoken(&alpn, speaks_h2)
    }

    #[test]
    fn a_server_is_offered_what_its_client_offers_and_the_client_told_what_the_server_took() {
        for (alpn, to_server, took, by_client) in [
            (&["h2", "http/1.1"][..], &[Http2, Http1][..], Http2, Http2),
            (&["h2", "http/1.1"], &[Http2, Http1], Http1, Http1),
            (&["http/1.1", "foo", "h2", "h2"], &[Http1, Http2], Http2, Http2),
            (&["http/1.1", "http/1.0"], &[Http1], Http1, Http1),
            (&[], &[Http1], Http1, Http1),
            // What is translated.
            (&["h2"], &[Http2, Http1], Http1, Http2),
            (&["foo", "h2"], &[Http2, Http1], Http2, Http2),
        ] {
            let offer = offer(alpn, true).unwrap();
            assert_eq!(offer.to_server(), to_server, "{alpn:?}");
            let takes_http1 = alpn.is_empty() || alpn.contains(&"http/1.1");
            assert_eq!(offer.own() == Http1, takes_http1, "{alpn:?}");
            assert_eq!(offer.taken(took), Spoken { by_client, by_server: took }, "{alpn:?}");
        }
    }

    #[test]
    fn a_client_that_takes_nothing_that_weir_speaks_gets_no_offer() {
        assert_eq!(offer(&["foo"], true), None);
        assert_eq!(offer(&["h2c", "H2"], true), None);
        assert_eq!(offer(&["h2"], false), None);
        assert_eq!(offer(&["h2", "http/1.1"], false).unwrap().to_server(), [Http1]);
    }

    #[test]
    fn what_was_negotiated_is_read_back() {
        for protocol in [Http1, Http2] {
            assert_eq!(Protocol::negotiated(Some(protocol.id())), protocol);
        }
        assert_eq!(Protocol::negotiated(None), Http1);
    }
}
