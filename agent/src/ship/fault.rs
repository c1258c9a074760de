//! What broke a connection to a collector, in words that name the mend: errors of the libraries come in, sentences go out.

use std::error::Error;

use rustls::{AlertDescription, CertificateError};

const EXPIRED: &str = "the collector's certificate has expired, or this host's clock is fast: renew it with `weir-collector ca server`, \
                       or set the clock";
const TOO_EARLY: &str =
    "the collector's certificate is not valid yet: set this host's clock, or the collector's";
const OTHER_CA: &str = "the collector's certificate does not come from the authority that this host trusts it by: is this the right \
                        collector, and the right --ca?";
const OTHER_NAME: &str = "the collector's certificate is not for the name in its url: make one with `weir-collector ca server --name NAME`";
const REFUSED: &str = "the collector does not accept this host's certificate (another CA, or out of date by its clock): enrol the host \
                       again with `weir enrol`";

/// The alerts by which a peer says that it does not accept a certificate.
const ABOUT_CERTIFICATES: [AlertDescription; 7] = [
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::DecryptError,
];

/// The sentence for an error, by whatever lies below it.
pub(super) fn told(error: &(dyn Error + 'static)) -> String {
    let mut at = Some(error);
    let mut innermost = error.to_string();
    while let Some(error) = at {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return of_tls(tls);
        }
        innermost = error.to_string();
        at = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    // HTTP/2 keeps the words of what it met, and not the error itself.
    let is_alert = |alert: &AlertDescription| innermost.contains(&format!("{alert:?}"));
    match ABOUT_CERTIFICATES.iter().any(is_alert) {
        true => REFUSED.to_owned(),
        false => innermost,
    }
}

fn of_tls(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => EXPIRED.into(),
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            TOO_EARLY.into()
        }
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => OTHER_CA.into(),
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            OTHER_NAME.into()
        }
        rustls::Error::AlertReceived(alert) if ABOUT_CERTIFICATES.contains(alert) => REFUSED.into(),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; is this a collector's [listen] tls?".into()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_decides_and_the_mend_is_named() {
        let below = |error: rustls::Error| told(&std::io::Error::other(error));
        assert_eq!(below(CertificateError::Expired.into()), EXPIRED);
        assert_eq!(below(CertificateError::UnknownIssuer.into()), OTHER_CA);
        assert_eq!(below(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)), REFUSED);
        let words = std::io::Error::other("received fatal alert: the peer said CertificateExpired");
        assert_eq!(told(&words), REFUSED);
        assert_eq!(told(&std::io::Error::other("no route")), "no route");
    }
}
