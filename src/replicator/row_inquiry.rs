//! Why a row is not in the cloud: the one reason, and the next thing to do.

use jiff::Timestamp;

use super::source_status::{connect, reached};
use crate::catalogue::{Catalogue, Deletes, Entity};
use crate::checkpoint::Identity;
use crate::config::Settings;
use crate::control::status::{ReplicatorState, StatusReport};
use crate::control::{InquiryState, RowInquiry};
use crate::error::{Error, Result};
use crate::source::connect::Session;
use crate::source::drift::{self, EntityDrift};
use crate::source::identity;
use crate::source::parked_touches;
use crate::source::row_facts::{self, Accepted, RowAtSite, RowFile, WaitingTouch};

/// What was found, before a reason is chosen.
struct InquiryFacts<'a> {
    entity: &'a Entity,
    watched: &'a EntityDrift,
    at_site: RowAtSite,
    waiting: Option<WaitingTouch>,
    unanswered: Option<Timestamp>,
    files: Vec<RowFile>,
    backfill_is_unfinished: bool,
    /// Whether a touch of it is kept since the entity is parked.
    is_kept: bool,
}

type ChosenReason = (InquiryState, String, Option<String>);

/// Looks at a row of an entity. `key` is the value of a key of one column, or a JSON object; `status` is what
/// the replicator says of itself.
///
/// # Errors
/// The source's; a configuration error if there is no such entity, or the key is none of it.
pub(crate) async fn inquire(
    settings: &Settings,
    status: &StatusReport,
    entity: &str,
    key: &str,
) -> Result<RowInquiry> {
    let entity_index = settings.catalogue.select(&[entity.to_owned()])?[0];
    let entity = &settings.catalogue[entity_index];
    let session = connect(settings, "why").await?;
    let client = session.client();
    let only = Catalogue::of_checked(vec![entity.clone()]);
    let (described, watched) = drift::watch(client, &only)
        .await?
        .pop()
        .ok_or_else(|| Error::config(format!("look at {}", entity.name), "it is not captured"))?;
    if let Some(unfit) = described.unfit.filter(|_| !described.table.fits(entity)) {
        return Err(unfit);
    }
    let table = described.table;
    let key = row_facts::row_key(entity, &table, key)?;
    let at_site = row_facts::at_site(client, entity, &table, &key).await?;
    let identity = identity::stored_identity_of(client, settings.source.source_id.as_deref()).await?;
    let accepted = accepted(&session, &identity, status).await?;
    let waiting = row_facts::waiting(client, entity, watched.id, &key, &accepted).await?;
    let refusal = row_facts::refusal(client, &entity.name, &key).await?;
    let found = InquiryFacts {
        entity,
        watched: &watched,
        at_site,
        waiting,
        unanswered: row_facts::unanswered(client, &entity.name, &key).await?,
        files: row_facts::files(client, &entity.name, &key).await?,
        is_kept: row_facts::is_kept(client, entity, watched.id, &key).await?,
        backfill_is_unfinished: row_facts::backfill_is_unfinished(client, &entity.name).await?,
    };
    let (state, reason, next) = match &refusal {
        Some(entry) if entry.code == 1 || entry.code == 2 => (
            InquiryState::Refused,
            "it was set aside by hand".to_owned(),
            Some(format!("cloud-sync quarantine retry {}", entry.position)),
        ),
        Some(entry) => (
            InquiryState::Refused,
            match entry.code {
                0 => format!("it cannot be read at the site: {}", entry.error),
                code => format!(
                    "the cloud refused it {} times, last at {}: {code} {}",
                    entry.attempts, entry.refused_at, entry.error
                ),
            },
            Some(format!("cloud-sync quarantine show {}", entry.position)),
        ),
        None => verdict(&found, status),
    };
    Ok(RowInquiry {
        entity: entity.name.clone(),
        key,
        state,
        reason,
        next,
        facts: facts(&found, status),
    })
}

/// How far the cloud has accepted: as the running replicator says, since the copy in the database may be a
/// moment behind.
async fn accepted(session: &Session, identity: &Identity, status: &StatusReport) -> Result<Accepted> {
    let checkpoint = reached(session, identity, None).await?;
    let mut accepted = Accepted::from(&checkpoint);
    if let Some(now) = &status.checkpoint {
        accepted.lo.clone_from(&now.lo);
        accepted.hi.clone_from(&now.hi);
        accepted.position = now.position;
    }
    Ok(accepted)
}

fn verdict(found: &InquiryFacts<'_>, status: &StatusReport) -> ChosenReason {
    let entity = found.entity;
    let name = &entity.name;
    if let Some(wrong) = &found.watched.wrong
        && !wrong.mends_itself()
    {
        let why = wrong.error(entity);
        return (
            InquiryState::Missed,
            format!("its entity is not captured as it should be: {}", why.cause()),
            Some("cloud-sync init".to_owned()),
        );
    }
    if let Some(pause) = status.paused.of_entity(name)
        && (found.is_kept || found.waiting.is_some())
    {
        let (what, next) = match status.paused.all {
            Some(_) => ("replication", "cloud-sync resume".to_owned()),
            None => ("its entity", format!("cloud-sync resume --entity {name}")),
        };
        return (
            InquiryState::Waiting,
            format!("{what} is {pause}: its change is kept, and is sent when somebody resumes it"),
            Some(next),
        );
    }
    let parked = found.watched.parked.as_ref();
    if let Some(why) = parked.filter(|why| *why != parked_touches::PAUSED) {
        return (
            InquiryState::Waiting,
            format!("no row of {name} can be read or sent now: {why}"),
            Some("cloud-sync check".to_owned()),
        );
    }
    if let RowAtSite::Unreadable(words) = &found.at_site {
        return (
            InquiryState::Refused,
            format!("the site's database cannot read it: {words}"),
            Some("cloud-sync quarantine list".to_owned()),
        );
    }
    let held = found.files.iter().find(|file| file.state != "uploaded");
    if let Some(touch) = &found.waiting {
        return while_waiting(found, touch, held, status);
    }
    if let Some(due) = &found.unanswered {
        return (
            InquiryState::Waiting,
            format!("its last request got no answer: it is sent again at {due}"),
            None,
        );
    }
    match found.at_site {
        RowAtSite::Absent => return absent(entity),
        RowAtSite::Unmet => {
            return (
                InquiryState::LeftOut,
                format!(
                    "it does not meet the entity's condition ({}), so it does not exist for the cloud",
                    entity.filter.as_deref().unwrap_or_default()
                ),
                None,
            );
        }
        RowAtSite::Present | RowAtSite::Unreadable(_) => {}
    }
    if let Some((gap, _)) = &found.watched.gap {
        return (
            InquiryState::Missed,
            format!("changes of {name} may have been missed: {gap}"),
            Some(format!("cloud-sync sync --entity {name}")),
        );
    }
    if found.backfill_is_unfinished {
        return (
            InquiryState::Waiting,
            format!("the backfill of {name} has not ended, and may not have reached it"),
            Some(format!("cloud-sync backfill --entity {name}")),
        );
    }
    if let Some(file) = held {
        return (
            InquiryState::Waiting,
            format!(
                "the row is in the cloud, and its file {} is not: {}",
                file.path,
                why_of(file)
            ),
            Some(format!("cloud-sync files why '{}'", file.path)),
        );
    }
    (
        InquiryState::Delivered,
        "nothing of it waits: the cloud has accepted its last change".to_owned(),
        Some(format!("cloud-sync sync --entity {name}")),
    )
}

/// It has a touch that waits.
fn while_waiting(
    found: &InquiryFacts<'_>,
    touch: &WaitingTouch,
    held: Option<&RowFile>,
    status: &StatusReport,
) -> ChosenReason {
    let waiting = |reason: String, next: Option<&str>| {
        let next = next.map(str::to_owned);
        (InquiryState::Waiting, reason, next)
    };
    let last = |error: &Option<String>| error.clone().or(status.reason.clone()).unwrap_or_default();
    match status.state {
        ReplicatorState::Stopped => waiting(
            format!("no replicator runs: its change of {} waits", touch.captured_at),
            Some("cloud-sync run"),
        ),
        ReplicatorState::KeyRefused => waiting(
            format!("the cloud refuses the key: {}", last(&status.cloud.last_error)),
            Some("cloud-sync check"),
        ),
        ReplicatorState::Standby => waiting(
            "another replicator drains this outbox: ask where that one runs".to_owned(),
            Some("cloud-sync status"),
        ),
        ReplicatorState::BackingOff | ReplicatorState::Starting if status.source.reachable == Some(false) => {
            waiting(
                format!(
                    "the replicator cannot reach the site's database: {}",
                    last(&status.source.last_error)
                ),
                Some("cloud-sync check"),
            )
        }
        ReplicatorState::BackingOff | ReplicatorState::Starting if status.cloud.reachable != Some(true) => {
            waiting(
                format!("the cloud cannot be reached: {}", last(&status.cloud.last_error)),
                Some("cloud-sync check"),
            )
        }
        ReplicatorState::BackingOff => waiting(
            format!("the replicator waits before it tries again: {}", last(&None)),
            Some("cloud-sync status"),
        ),
        // Its change comes as soon as what was kept is read.
        ReplicatorState::Starting | ReplicatorState::Replicating | ReplicatorState::Paused => match held {
            Some(file) if holds(found.entity) => waiting(
                format!(
                    "it is held back until the cloud has its file {}: {}",
                    file.path,
                    why_of(file)
                ),
                Some("cloud-sync files list"),
            ),
            _ => waiting(
                format!("it is on its way: {} changes wait before it", touch.before),
                Some("cloud-sync status"),
            ),
        },
    }
}

/// Whether rows of the entity wait for their files.
fn holds(entity: &Entity) -> bool {
    use crate::catalogue::server::Unconfirmed;
    let mut files = entity.files.iter();
    files.any(|file| file.until_uploaded == Some(Unconfirmed::Hold))
}

fn why_of(file: &RowFile) -> String {
    file.reason.clone().unwrap_or_else(|| file.state.clone())
}

fn absent(entity: &Entity) -> ChosenReason {
    let name = &entity.name;
    match entity.deletes() {
        Deletes::Propagate => (
            InquiryState::Absent,
            format!("the site has no row of {name} with this key, and nothing of it waits"),
            None,
        ),
        Deletes::Keep => (
            InquiryState::Absent,
            format!(
                "the site has no row of {name} with this key; if the cloud has one, it keeps it: deletes of {name} \
                 are not sent"
            ),
            None,
        ),
    }
}

fn facts(found: &InquiryFacts<'_>, status: &StatusReport) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut add = |what: &str, is: String| facts.push((what.to_owned(), is));
    add(
        "at the site",
        match &found.at_site {
            RowAtSite::Present => "it is there".to_owned(),
            RowAtSite::Unmet => "it is there, and does not meet the entity's condition".to_owned(),
            RowAtSite::Unreadable(words) => format!("it cannot be read: {words}"),
            RowAtSite::Absent => "there is no such row".to_owned(),
        },
    );
    add(
        "outbox",
        match &found.waiting {
            None if found.is_kept => "its changes are kept apart from the outbox".to_owned(),
            Some(touch) => format!(
                "its last change was captured at {}, position {}; {} changes wait before it",
                touch.captured_at, touch.position, touch.before
            ),
            None => "no change of it waits".to_owned(),
        },
    );
    add("replicator", status.state.word().to_owned());
    for file in &found.files {
        let why = file
            .reason
            .as_ref()
            .map_or(String::new(), |why| format!(": {why}"));
        add("file", format!("{} {}{why}", file.path, file.state));
    }
    facts
}
