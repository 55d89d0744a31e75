//! One call at one backend, run as a provider's task: encode, send, judge, retry, meter the body.

mod call;
mod clock;
mod dial;
mod end;
mod fetch;
mod flight;
mod flights;
mod framing;
mod guard;
mod headroom;
mod http_client;
mod large;
mod live;
mod memory;
mod replies;
#[cfg(test)]
mod scripted;
mod send_body;
mod station;
mod token;
mod transport;
mod transport_errors;
mod tries;
mod vitals;

use std::any::Any;
use std::sync::Arc;

pub use call::{
    Answer, AnswerBody, AnswerHeaders, BodyHold, BodyTooLong, Call, Ledger, Passthrough, PayloadStream, Reply, ReplySender,
    StreamedBody,
};
pub use clock::Clock;
pub use dial::Counted;
pub use end::{Cut, End, Ended, Settled};
pub use fetch::{Fetcher, Images};
pub use flight::{Flight, FlightGuard};
pub use flights::{FlightPlan, FlightView, Flights, Tower};
pub use headroom::{Headroom, Said};
pub use http_client::{HttpClient, KEEP_ALIVE, system_roots, tls_config};
pub use live::{COMMENT, LiveBody};
pub use memory::Memory;
pub use station::Station;
pub use token::{Minter, Token};
pub use transport::{Address, Incoming, Outgoing, OutgoingBody, SendFailure, Transport};
pub use tries::{Verdict, warm_up, work};
pub use vitals::Vitals;

use crate::chat::Failure;
use crate::settings::{Backend, Secret};

/// Names the backend that failed. The provider's words must not repeat the credential they refuse.
pub(crate) fn redact(backend: &Backend, minter: Option<&Minter>, mut failure: Failure) -> Failure {
    failure.backend = Some(Arc::clone(&backend.name));
    let account = backend.organization.iter().chain(&backend.project).map(String::as_str);
    let tokens = minter.map(Minter::secrets).unwrap_or_default();
    let secrets =
        backend.credential.iter().chain(backend.headers.iter().map(|(_, value)| value)).chain(&tokens).map(Secret::expose);
    for secret in secrets.chain(account).filter(|secret| !secret.is_empty()) {
        let texts = [Some(&mut failure.message), failure.kind.as_mut(), failure.param.as_mut(), failure.code.as_mut()];
        for text in texts.into_iter().flatten() {
            if text.contains(secret) {
                *text = text.replace(secret, "[redacted]");
            }
            redact_cut(text, secret);
        }
    }
    failure
}

/// Takes out what is left of a secret at the end of a text that was shortened.
fn redact_cut(text: &mut String, secret: &str) {
    let Some(kept) = text.strip_suffix("...") else { return };
    let mut begins = secret.char_indices().map(|(end, _)| &secret[..end]).rev();
    if let Some(left) = begins.find(|begin| begin.len() >= TELLING && kept.ends_with(begin)) {
        let end = kept.len() - left.len();
        text.truncate(end);
        text.push_str("[redacted]...");
    }
}

/// Bytes of a secret that tell something of it.
const TELLING: usize = 4;

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_was_cut_off_is_taken_out_too() {
        for (text, expected) in [
            ("key sk-secret-0...", "key [redacted]..."),
            ("key sk-s...", "key [redacted]..."),
            ("key sk-...", "key sk-..."),
            ("key sk-secret-0", "key sk-secret-0"),
            ("and so on...", "and so on..."),
        ] {
            let mut text = text.to_owned();
            redact_cut(&mut text, "sk-secret-01");
            assert_eq!(text, expected);
        }
    }
}
