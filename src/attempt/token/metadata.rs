//! Tokens from the metadata server of a machine on Google Cloud. Source: google-auth 2.62.2 for Python, read 2026-11-22.

use std::time::Duration;

use super::Minted;
use super::exchange::{Exchange, judge};
use crate::balance::back_off;
use crate::chat::{Failure, FailureClass, Phase};

/// By name first; where names do not resolve, by address.
const HOSTS: [&str; 2] = ["metadata.google.internal", "169.254.169.254"];
const PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const TRIES: u32 = 3;
/// Time for one try.
const LIMIT: Duration = Duration::from_secs(3);
const ISSUER: &str = "the metadata server";

/// A token of the machine's service account; `host` stands in for the usual ones.
pub(super) async fn token(exchange: &Exchange, host: Option<&str>) -> Result<Minted, Failure> {
    let mut tries = 0;
    loop {
        let host = host.unwrap_or_else(|| HOSTS[usize::from(tries > 0)]);
        tries += 1;
        let failure = match one_try(exchange, host).await {
            Ok(minted) => return Ok(minted),
            Err(failure) => failure,
        };
        if tries == TRIES || !is_passing(failure.class) {
            return Err(failure);
        }
        tokio::time::sleep(back_off(tries, fastrand::f64())).await;
    }
}

async fn one_try(exchange: &Exchange, host: &str) -> Result<Minted, Failure> {
    let uri = format!("http://{host}{PATH}");
    let answer = match tokio::time::timeout(LIMIT, exchange.get_metadata(&uri, ISSUER)).await {
        Ok(answer) => answer.map_err(hint)?,
        Err(_) => {
            let message = format!("{ISSUER} did not answer within {LIMIT:?}");
            return Err(hint(Failure::new(FailureClass::Timeout(Phase::Head), message)));
        }
    };
    // Other things may answer at that address, such as another cloud's metadata server.
    if answer.headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
        return Err(hint(Failure::new(FailureClass::Malformed, format!("what answers for {ISSUER} is not Google's"))));
    }
    judge(&answer, ISSUER, &[])
}

fn is_passing(class: FailureClass) -> bool {
    matches!(class, FailureClass::Socket | FailureClass::Timeout(_) | FailureClass::Server | FailureClass::Overloaded)
}

/// The likeliest reason is that there is none.
fn hint(mut failure: Failure) -> Failure {
    failure.message.push_str("; outside Google Cloud set credentialsFile or GOOGLE_APPLICATION_CREDENTIALS");
    failure
}
