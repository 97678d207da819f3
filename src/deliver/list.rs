//! `GET /{path}`: what the cloud holds of an entity, row by row, page by page.
//!
//! The body is never held: rows are cut out of it as the chunks arrive ([`super::page`]). So a list of
//! millions of rows needs the memory of one row. A list that is interrupted, repeats itself, or is shorter
//! than it says, is an error: what it does not list would be taken for missing.

use std::collections::HashSet;

use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Response};
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;

use super::failure::{CloudResult, Failure};
use super::http::HttpClient;
use super::page::{ListPage, NextPage};
use super::refusal_words::messages;
use super::reply::says_failure;
use super::transport_error::transport_failure;
use crate::catalogue::Entity;
use crate::error::{self, Kind};

/// Pages of one list, at most.
const MAX_PAGES: usize = 100_000;

const REMEDY: &str = "look at how the cloud's server makes pages; or set trust_list = false for this entity, \
                      so that its list is not used";

/// Calls `row` for each element. The time limit is for the start of each page and then for each chunk of it.
/// Returns how many pages the list had.
pub(super) async fn list(
    http: &HttpClient,
    operation: &str,
    entity: &Entity,
    days: Option<u32>,
    mut row: impl FnMut(&RawValue) -> error::Result<()>,
) -> CloudResult<usize> {
    let names = [
        entity.name.clone(),
        entity.path.clone(),
        entity.path.replace('-', "_"),
    ];
    let first = match days {
        Some(days) => format!("{}?days={days}", entity.path),
        None => entity.path.clone(),
    };
    let mut request = http.request(Method::GET, &first);
    let (mut addresses, mut digests) = (HashSet::new(), HashSet::new());
    let mut listed = 0;
    for pages in 1..=MAX_PAGES {
        let late = |_| http.timed_out(operation, http.timeout());
        let start = tokio::time::timeout(http.timeout(), http.send(operation, request));
        let mut response = start.await.map_err(late)??;
        if !response.status().is_success() {
            return Err(refused(http, operation, response).await?);
        }
        let address = response.url().clone();
        let linked = next_link(response.headers());
        let mut page = ListPage::new(&names);
        loop {
            let chunk = tokio::time::timeout(http.timeout(), response.chunk());
            let chunk = chunk
                .await
                .map_err(late)?
                .map_err(|error| transport_failure(operation, error))?;
            let Some(chunk) = chunk else { break };
            page.feed(&chunk, &mut row)
                .map_err(|stop| stop.failure(operation))?;
        }
        let (members, rows, digest) = page.finish().map_err(|stop| stop.failure(operation))?;
        let outer = Value::Object(members.outer.clone());
        if says_failure(&outer, None) {
            let words = messages(&outer).unwrap_or_default();
            return Err(Failure::failed(
                operation,
                response.status().as_u16(),
                http.clean(&words),
            ));
        }
        listed += rows;
        let next = linked.map_or_else(|| members.next(), NextPage::Address);
        let next = match next {
            NextPage::None => {
                return match members.total() {
                    Some(total) if total > listed => Err(wrong(
                        operation,
                        format!("the cloud's list says that it has {total} rows, and ends after {listed}"),
                    )),
                    _ => Ok(pages),
                };
            }
            NextPage::Unknown => {
                return Err(wrong(
                    operation,
                    "the cloud's list goes on at a page whose address it does not give",
                ));
            }
            NextPage::Address(next) => address
                .join(&next)
                .map_err(|_| wrong(operation, "the address of the list's next page is no URL"))?,
            NextPage::Number(number) => with_parameter(address.clone(), "page", &number.to_string()),
        };
        let next = match days {
            Some(days) if next.query_pairs().all(|(name, _)| name != "days") => {
                with_parameter(next, "days", &days.to_string())
            }
            _ => next,
        };
        if !addresses.insert(next.clone()) || (rows > 0 && !digests.insert(digest)) {
            return Err(wrong(
                operation,
                format!("the cloud's list repeats itself after {listed} rows"),
            ));
        }
        request = http.request_to(operation, &next)?;
    }
    Err(wrong(
        operation,
        format!("the cloud's list has more than {MAX_PAGES} pages"),
    ))
}

async fn refused(http: &HttpClient, operation: &str, response: Response) -> CloudResult<Failure> {
    let refused = tokio::time::timeout(http.timeout(), http.refused(operation, response));
    let late = |_| http.timed_out(operation, http.timeout());
    let (status, words, _) = refused.await.map_err(late)??;
    let cause = format!("the cloud answered {status}: {words}");
    Ok(Failure::new(Kind::CloudRefused, operation, cause).with_status(status))
}

fn wrong(operation: &str, cause: impl Into<String>) -> Failure {
    Failure::protocol(operation, cause, REMEDY)
}

/// The address with this value of a parameter.
fn with_parameter(mut address: Url, name: &str, value: &str) -> Url {
    let others: Vec<(String, String)> = address
        .query_pairs()
        .filter(|(other, _)| other != name)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    address
        .query_pairs_mut()
        .clear()
        .extend_pairs(others)
        .append_pair(name, value);
    address
}

/// The address with `rel="next"` in the `Link` headers.
///
/// Source: RFC 8288, section 3.
fn next_link(headers: &HeaderMap) -> Option<String> {
    let values = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for value in values {
        let mut rest = value;
        while let Some((_, after)) = rest.split_once('<') {
            let (address, parameters) = after.split_once('>')?;
            let (own, others) = match parameters.split_once('<') {
                Some((own, _)) => (own, &parameters[own.len()..]),
                None => (parameters, ""),
            };
            let is_next = own.split(';').any(|parameter| {
                let Some((name, value)) = parameter.split_once('=') else {
                    return false;
                };
                let value = value.trim().trim_end_matches(',').trim().trim_matches('"');
                name.trim().eq_ignore_ascii_case("rel")
                    && value
                        .split_whitespace()
                        .any(|kind| kind.eq_ignore_ascii_case("next"))
            });
            if is_next {
                return Some(address.to_owned());
            }
            rest = others;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_the_link_header() {
        let next = |text: &str| next_link(&HeaderMap::from_iter([(LINK, text.parse().unwrap())]));
        assert_eq!(
            next("<https://c/rooms?page=2>; rel=\"next\"").as_deref(),
            Some("https://c/rooms?page=2")
        );
        let several = "<https://c/a,b>; rel=prev, <https://c/rooms?page=3>; title=\"x\"; rel=\"next last\"";
        assert_eq!(next(several).as_deref(), Some("https://c/rooms?page=3"));
        assert_eq!(next("<https://c/rooms>; rel=\"first\""), None);
        assert_eq!(next("nothing"), None);
    }

    #[test]
    fn a_parameter_is_set_once() {
        let address: Url = "http://c/rooms?page=2&days=7".parse().unwrap();
        assert_eq!(
            with_parameter(address, "page", "3").as_str(),
            "http://c/rooms?days=7&page=3"
        );
    }
}
