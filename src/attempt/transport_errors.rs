//! Transport errors, named by what they mean for a retry.

use std::time::Duration;

use awc::error::{ConnectError, SendRequestError};
use rustls::CertificateError;

use super::call::BodyTooLong;
use super::dial::ProxyFailure;
use super::transport::SendFailure;
use crate::chat::{Failure, FailureClass, Phase};

/// Names a transport error by what it means for a retry; `whom` says who did not answer.
pub(super) fn name_error(error: &SendRequestError, whom: &str, connect: Duration) -> SendFailure {
    let socket = |message: String, sent| SendFailure { failure: Failure::new(FailureClass::Socket, message), sent };
    match error {
        SendRequestError::Connect(ConnectError::Timeout) => SendFailure {
            failure: Failure::new(FailureClass::Timeout(Phase::Connect), format!("no connection to {whom} within {connect:?}")),
            sent: false,
        },
        // awc's name for an end of file before the head, on a new connection as well as on a used one.
        SendRequestError::Connect(ConnectError::Disconnected) => {
            socket(format!("{whom} closed the connection before it answered"), true)
        }
        SendRequestError::Connect(ConnectError::Resolver(_) | ConnectError::NoRecords | ConnectError::Unresolved) => {
            socket(format!("the host name of {whom} could not be resolved"), false)
        }
        SendRequestError::Connect(error) => match proxy_failure(error) {
            Some(failure) => socket(failure.to_string(), false),
            None => socket(format!("no connection to {whom}: {}", kind_of(error)), false),
        },
        SendRequestError::Url(_) | SendRequestError::Http(_) => unsendable("the request could not be formed"),
        SendRequestError::Response(actix_http::error::ParseError::Io(_))
        | SendRequestError::Send(_)
        | SendRequestError::H2(_) => socket(format!("the connection to {whom} broke before it answered"), true),
        SendRequestError::Response(_) => SendFailure {
            failure: Failure::new(FailureClass::Malformed, format!("the answer of {whom} is not HTTP")),
            sent: true,
        },
        SendRequestError::Body(error) => SendFailure { failure: body_failure(&**error), sent: true },
        _ => socket(format!("the request to {whom} failed"), true),
    }
}

/// Why a client's body could not be sent to its end.
fn body_failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let (status, code, words) = match inner.and_then(|inner| inner.downcast_ref::<BodyTooLong>()) {
        Some(too_long) => (413, "body_too_large", too_long.to_string()),
        None => (400, "incomplete_body", "the request body broke off".to_owned()),
    };
    Failure { status: Some(status), code: Some(code.into()), ..Failure::new(FailureClass::Caller, words) }
}

/// A failure that is the proxy's, and nothing of the provider's.
fn proxy_failure(error: &ConnectError) -> Option<&ProxyFailure> {
    let ConnectError::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

/// What went wrong with a connection, without addresses or names.
fn kind_of(error: &ConnectError) -> String {
    let ConnectError::Io(error) = error else { return "the handshake failed".into() };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => format!("TLS: its certificate is refused: {}", certificate_words(why)),
        Some(_) => "TLS: the handshake failed".into(),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => "it closed the connection during the handshake".into(),
        None => error.kind().to_string(),
    }
}

fn certificate_words(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::UnknownIssuer => "its issuer is not trusted; name it in caFile",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "it is for another host",
        CertificateError::Revoked => "it was revoked",
        _ => "it is not valid",
    }
}

pub(super) fn unsendable(message: &str) -> SendFailure {
    SendFailure { failure: Failure { status: Some(400), ..Failure::new(FailureClass::Caller, message) }, sent: false }
}
