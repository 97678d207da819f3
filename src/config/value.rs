//! Parsers: from the text that a layer gives to the type that [`Settings`](super::Settings) holds.
//!
//! An error of a parser says what would be right, as the rest of a sentence about the key: "must be true or
//! false". It never repeats the text itself, which may be a secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::tz::TimeZone;
use secrecy::SecretString;
use url::Url;

use super::keys::{ValueShape, nearest};
use super::{CapabilityChoice, FileDriver, Profile};
use crate::catalogue::declared::TablePattern;
use crate::media::{BandwidthPlan, TrafficBudget};
use crate::wire::Capability;

/// A parsed value, or what the value must be.
pub(super) type ParsedValue<T> = std::result::Result<T, String>;

/// Checks a text against a shape and its bounds.
pub(super) fn check(shape: ValueShape, text: &str) -> ParsedValue<()> {
    match shape {
        ValueShape::Text | ValueShape::Path if text.trim().is_empty() => Err("must not be empty".to_owned()),
        ValueShape::Text | ValueShape::Path => Ok(()),
        ValueShape::Bool => boolean(text).map(drop),
        ValueShape::Count { min, max } => match count(text) {
            Ok(count) if (min..=max).contains(&count) => Ok(()),
            _ => Err(format!("must be a whole number from {min} to {max}")),
        },
        ValueShape::Duration { min, max } => match duration(text)?.as_millis() {
            span if (u128::from(min)..=u128::from(max)).contains(&span) => Ok(()),
            _ => Err(format!(
                "must be from {} to {}",
                milliseconds(min),
                milliseconds(max)
            )),
        },
        ValueShape::DurationOrAuto { .. } if text == "auto" => Ok(()),
        ValueShape::DurationOrAuto { min, max } => {
            check(ValueShape::Duration { min, max }, text).map_err(|why| format!("{why}, or \"auto\""))
        }
        ValueShape::Bandwidth => text.parse::<BandwidthPlan>().map(drop),
        ValueShape::Budget => text.parse::<TrafficBudget>().map(drop),
        ValueShape::Size { min, max } => match size(text)? {
            size if (min..=max).contains(&size) => Ok(()),
            _ => Err(format!("must be from {} to {}", bytes(min), bytes(max))),
        },
        ValueShape::Address => address(text).map(drop),
        ValueShape::HttpUrl => http_url(text).map(drop),
        ValueShape::DatabaseUrl => database_url(text),
        ValueShape::Word => word(text),
        ValueShape::Capabilities => capabilities(text).map(drop),
        ValueShape::Driver => driver(text).map(drop),
        ValueShape::Cron => cron(text).map(drop),
        ValueShape::TimeZone => time_zone(text).map(drop),
        ValueShape::SiteKeys => site_keys(text).map(drop),
        ValueShape::Profile => profile(text).map(drop),
        ValueShape::UrlPath => url_path(text).map(drop),
        ValueShape::FormFields => form_fields(text).map(drop),
        ValueShape::WebhookUrl => webhook_url(text),
        ValueShape::SmtpUrl => smtp_url(text),
        ValueShape::TablePatterns => table_patterns(text).map(drop),
    }
}

pub(super) fn profile(text: &str) -> ParsedValue<Profile> {
    match text {
        "contract" => Ok(Profile::Contract),
        "laravel" => Ok(Profile::Laravel),
        _ => Err("must be \"contract\" or \"laravel\"".to_owned()),
    }
}

/// A path of a URL, without a slash at its ends.
pub(super) fn url_path(text: &str) -> ParsedValue<String> {
    let path = text.trim().trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/%".contains(&byte);
    if path.is_empty()
        || !path.bytes().all(plain)
        || path.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return Err("must be a path below cloud.url, as in sync or v1/sync".to_owned());
    }
    Ok(path.to_owned())
}

/// Patterns of tables' names, separated by commas.
pub(super) fn table_patterns(text: &str) -> ParsedValue<Vec<TablePattern>> {
    let patterns: Vec<TablePattern> = listed(text)
        .filter(|pattern| !pattern.is_empty())
        .map(TablePattern::parse)
        .collect::<Result<_, _>>()?;
    if patterns.iter().all(|pattern| pattern.leaves_out) {
        return Err("must have a pattern without !, as in [\"public.*\", \"!public.audit_*\"]".to_owned());
    }
    Ok(patterns)
}

/// Fields of a form, `name=value;name=value`.
pub(super) fn form_fields(text: &str) -> ParsedValue<Vec<(String, String)>> {
    let fields = text.split(';').map(str::trim).filter(|field| !field.is_empty());
    fields
        .map(|field| match field.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err("must be fields with their values, as in visibility=public;folder=slips".to_owned()),
        })
        .collect()
}

pub(super) fn boolean(text: &str) -> ParsedValue<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

pub(super) fn count(text: &str) -> ParsedValue<u64> {
    text.parse().map_err(|_| "must be a whole number".to_owned())
}

pub(super) fn duration(text: &str) -> ParsedValue<Duration> {
    let days = text
        .trim()
        .strip_suffix('d')
        .and_then(|days| days.trim().parse::<u32>().ok());
    if let Some(days) = days {
        return Ok(Duration::from_secs(u64::from(days) * 24 * 3600));
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(|| "must be a time span with its unit, such as 50ms, 30s, 5m or 7d".to_owned())
}

/// `None` is `auto`.
pub(super) fn duration_or_auto(text: &str) -> ParsedValue<Option<Duration>> {
    match text {
        "auto" => Ok(None),
        text => duration(text).map(Some),
    }
}

/// Prefixes of paths, separated by commas.
pub(super) fn prefixes(text: &str) -> ParsedValue<Vec<String>> {
    let prefixes = text.split(',').map(|prefix| prefix.trim().to_owned());
    Ok(prefixes.filter(|prefix| !prefix.is_empty()).collect())
}

/// Host names without ports, separated by commas, in lower case.
pub(super) fn host_names(text: &str) -> ParsedValue<Vec<String>> {
    let names = text.split(',').map(|name| name.trim().to_ascii_lowercase());
    let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    let is_name = |name: &String| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    if names.iter().all(is_name) {
        Ok(names)
    } else {
        Err("must be host names without schemes, ports and paths, separated by commas".to_owned())
    }
}

fn milliseconds(count: u64) -> String {
    match count {
        _ if count > 0 && count.is_multiple_of(3_600_000) => format!("{}h", count / 3_600_000),
        _ if count > 0 && count.is_multiple_of(1000) => format!("{}s", count / 1000),
        _ => format!("{count}ms"),
    }
}

/// A number of bytes: digits, and one of the units B, kB, MB, GB, KiB, MiB, GiB.
pub(crate) fn size(text: &str) -> ParsedValue<u64> {
    let text = text.trim();
    let end = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let factor = match text[end..].trim() {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    factor
        .zip(text[..end].parse::<u64>().ok())
        .and_then(|(factor, count)| count.checked_mul(factor))
        .ok_or_else(|| "must be a size with its unit, such as 512KiB or 8MiB".to_owned())
}

fn bytes(count: u64) -> String {
    match count {
        _ if count >= 1 << 20 && count.is_multiple_of(1 << 20) => format!("{}MiB", count >> 20),
        _ if count >= 1 << 10 && count.is_multiple_of(1 << 10) => format!("{}KiB", count >> 10),
        _ => format!("{count}B"),
    }
}

pub(super) fn address(text: &str) -> ParsedValue<SocketAddr> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, as in 127.0.0.1:8787 or [::1]:8787".to_owned())
}

pub(super) fn http_url(text: &str) -> ParsedValue<Url> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| "must be a URL that starts with https:// (or http:// on loopback)".to_owned())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or a password: the key has its own setting".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must be a base URL, without ? and #".to_owned());
    }
    Ok(url)
}

fn webhook_url(text: &str) -> ParsedValue<()> {
    let url = Url::parse(text).ok();
    match url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        Some(_) => Ok(()),
        None => Err("must be a URL that starts with https:// or http://".to_owned()),
    }
}

fn smtp_url(text: &str) -> ParsedValue<()> {
    let url = Url::parse(text).ok();
    match url.filter(|url| matches!(url.scheme(), "smtp" | "smtps") && url.has_host()) {
        Some(_) => Ok(()),
        None => Err("must be a URL, smtps://user:password@host or smtp://host:port".to_owned()),
    }
}

/// E-mail addresses, separated by commas.
pub(super) fn addresses(text: &str) -> ParsedValue<Vec<String>> {
    let addresses = text.split(',').map(|address| address.trim().to_owned());
    let addresses: Vec<String> = addresses.filter(|address| !address.is_empty()).collect();
    if !addresses.is_empty() && addresses.iter().all(|address| address.contains('@')) {
        Ok(addresses)
    } else {
        Err("must be e-mail addresses, separated by commas".to_owned())
    }
}

/// Whether the URL's host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

fn database_url(text: &str) -> ParsedValue<()> {
    if text.starts_with("postgresql://") || text.starts_with("postgres://") {
        Ok(())
    } else {
        Err("must be a URL, postgresql://user:password@host/database".to_owned())
    }
}

fn word(text: &str) -> ParsedValue<()> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must be one word of visible ASCII characters, without spaces".to_owned())
    }
}

pub(super) fn capabilities(text: &str) -> ParsedValue<CapabilityChoice> {
    match text.trim() {
        "auto" => return Ok(CapabilityChoice::Auto),
        "" | "none" | "[]" => return Ok(CapabilityChoice::Only(Vec::new())),
        _ => {}
    }
    let mut chosen: Vec<String> = Vec::new();
    for name in listed(text).filter(|name| !name.is_empty()) {
        if !Capability::NAMES.contains(&name) {
            let suggestion = nearest(name, Capability::NAMES.iter().copied())
                .map_or(String::new(), |meant| format!(" (did you mean {meant}?)"));
            return Err(format!(
                "must be \"auto\" or a list of {}; {name:?} is no capability{suggestion}",
                Capability::NAMES.join(", ")
            ));
        }
        if !chosen.iter().any(|other| other == name) {
            chosen.push(name.to_owned());
        }
    }
    Ok(CapabilityChoice::Only(chosen))
}

/// The words of a list, which are separated by commas, or written as in TOML and JSON.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    inner.unwrap_or(text).split(',').map(move |word| {
        let word = word.trim();
        let bare = |quote| word.strip_prefix(quote)?.strip_suffix(quote);
        match inner {
            Some(_) => bare('"').or_else(|| bare('\'')).unwrap_or(word),
            None => word,
        }
    })
}

pub(super) fn driver(text: &str) -> ParsedValue<FileDriver> {
    match text {
        "api" => Ok(FileDriver::Api),
        "s3" => Ok(FileDriver::S3),
        "gcs" => Ok(FileDriver::Gcs),
        "azure" => Ok(FileDriver::Azure),
        "file" => Ok(FileDriver::File),
        _ => Err("must be api, s3, gcs, azure or file".to_owned()),
    }
}

/// A time zone by its name.
pub(super) fn time_zone(text: &str) -> ParsedValue<TimeZone> {
    TimeZone::get(text).map_err(|_| "must be the name of a time zone, as in Europe/Berlin or UTC".to_owned())
}

/// A schedule; `None` for `off`.
pub(super) fn cron(text: &str) -> ParsedValue<Option<String>> {
    if text == "off" {
        return Ok(None);
    }
    crate::schedule::parse(text)
        .map(|_| Some(text.to_owned()))
        .map_err(|why| format!("{why}, or \"off\""))
}

/// `site=key,key;site=key`, the text form of a table of lists.
pub(super) fn site_keys(text: &str) -> ParsedValue<BTreeMap<String, Vec<SecretString>>> {
    let shape = || "must be a list of keys for each site, as in college=new-key,old-key;annex=key".to_owned();
    let mut sites: BTreeMap<String, Vec<SecretString>> = BTreeMap::new();
    for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (site, keys) = entry.split_once('=').ok_or_else(shape)?;
        let site = site.trim();
        if site.is_empty()
            || !site
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        {
            return Err("must name each site in letters, digits, _, - and .".to_owned());
        }
        let keys: Vec<&str> = keys
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_empty() {
            return Err(format!("must give the site {site} at least one key"));
        }
        for key in keys {
            word(key).map_err(|why| format!("{why}, in each key of the site {site}"))?;
            sites
                .entry(site.to_owned())
                .or_default()
                .push(SecretString::from(key));
        }
    }
    Ok(sites)
}
