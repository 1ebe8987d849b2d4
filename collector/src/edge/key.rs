use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::State;
use super::problem::{Cause, Refusal};
use crate::project::{Grant, KeyKind};

/// Finds out what the key of a request may do, whatever its kind: every key may send.
pub(super) async fn sender(edge: &State, headers: &HeaderMap) -> Result<Grant, Refusal> {
    Ok(edge.ingest.authenticate(bearer(headers)?).await?)
}

/// Asks for a secret key: reading and managing is not for keys that applications ship.
pub(super) async fn reader(edge: &State, headers: &HeaderMap) -> Result<Grant, Refusal> {
    let grant = sender(edge, headers).await?;
    match grant.kind {
        KeyKind::Secret => Ok(grant),
        KeyKind::Write => Err(Refusal::new(
            Cause::WrongKeyKind,
            "this is a write key, which may only send events; use the project's secret key (eb_secret_…)",
        )),
    }
}

/// Takes the key out of `Authorization: Bearer KEY`; the scheme's case doesn't matter.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let missing = |detail: &'static str| Refusal::new(Cause::MissingKey, detail);
    let value =
        headers.get(AUTHORIZATION).ok_or_else(|| missing("add the header Authorization: Bearer YOUR_KEY"))?;
    let value = value.to_str().map_err(|_| missing("the Authorization header holds more than plain text"))?;
    match value.trim().split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty() => {
            Ok(key.trim())
        }
        _ => Err(missing("the Authorization header must read: Bearer YOUR_KEY")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<String, String> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        bearer(&headers).map(str::to_owned).map_err(|refusal| refusal.problem().code)
    }

    #[test]
    fn the_scheme_may_be_written_in_any_case() {
        for value in ["Bearer k", "bearer k", "BEARER  k "] {
            assert_eq!(read(value).unwrap(), "k");
        }
        for value in ["k", "Bearer", "Bearer ", "Basic k", ""] {
            assert_eq!(read(value).unwrap_err(), "missing_key", "{value:?}");
        }
    }
}
