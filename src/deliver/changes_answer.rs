//! The answer of `POST /changes`, checked against what was sent: which changes the cloud rejected.
//!
//! An answer that does not account for each change once is not believed: nothing of the request counts as
//! accepted then.

use std::collections::HashMap;

use super::failure::{CloudResult, Failure};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::wire::{ChangesAnswer, RejectedChange};

const REMEDY: &str = "the cloud's server breaks the contract of POST /changes; nothing of this request \
                      counts as accepted";

/// One rejected change.
pub(super) struct Rejection {
    pub(super) change_index: ChangeIndex,
    pub(super) fate: Fate,
    /// The cloud does not know its entity or one of its columns.
    pub(super) needs_schema: bool,
}

/// The rejected changes, in the batch's order; `None` if something was rejected and the answer does not say
/// which.
///
/// # Errors
/// The answer does not fit what was sent.
pub(super) fn read_rejections(
    operation: &str,
    batch: &Batch,
    sent: &[ChangeIndex],
    answer: &ChangesAnswer,
    clean: impl Fn(&str) -> String,
) -> CloudResult<Option<Vec<Rejection>>> {
    let wrong = |cause: String| Failure::protocol(operation, cause, REMEDY);
    let answered = answer
        .applied
        .saturating_add(answer.skipped)
        .saturating_add(answer.rejected.len() as u64);
    if answered != sent.len() as u64 {
        return Err(wrong(format!(
            "{} changes were sent and {answered} answered",
            sent.len()
        )));
    }
    let position = |change_index: ChangeIndex| batch[change_index].position.0;
    // `None` if several changes have the position.
    let mut by_position = HashMap::new();
    if !answer.rejected.is_empty() {
        for &change_index in sent {
            by_position
                .entry(position(change_index))
                .and_modify(|only| *only = None)
                .or_insert(Some(change_index));
        }
    }
    let mut rejections = Vec::with_capacity(answer.rejected.len());
    for rejected in &answer.rejected {
        let found = match rejected.line {
            Some(line) => {
                let at_line = line.checked_sub(1).and_then(|index| sent.get(index)).copied();
                at_line.filter(|&change_index| position(change_index) == rejected.position)
            }
            None => match by_position.get(&rejected.position) {
                Some(None) => return Ok(None),
                Some(only) => *only,
                None => None,
            },
        };
        let Some(change_index) = found else {
            return Err(wrong(format!(
                "it rejected position {}, which was not sent there",
                rejected.position
            )));
        };
        rejections.push(Rejection {
            change_index,
            fate: fate_of(rejected, &clean),
            needs_schema: rejected.code.needs_schema(),
        });
    }
    rejections.sort_by_key(|rejection| rejection.change_index);
    if rejections
        .windows(2)
        .any(|pair| pair[0].change_index == pair[1].change_index)
    {
        return Err(wrong("it rejected one change twice".to_owned()));
    }
    Ok(Some(rejections))
}

/// The fate of a rejected change: an HTTP status if the code is one, else 422 with the code before the words.
fn fate_of(rejected: &RejectedChange, clean: impl Fn(&str) -> String) -> Fate {
    let (code, error) = (rejected.code.as_str(), rejected.error.as_str());
    match code.parse() {
        Ok(status @ 400..=599) => Fate::Refused {
            code: status,
            error: clean(error),
        },
        _ if code.is_empty() => Fate::Refused {
            code: 422,
            error: clean(error),
        },
        _ => Fate::Refused {
            code: 422,
            error: clean(&format!("{code}: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::EntityIndex;
    use crate::change::{Cause, Change, Op, Position};
    use crate::error::Kind;

    fn change(position: i64) -> Change {
        Change {
            position: Position(position),
            entity: EntityIndex(0),
            op: Op::Upsert,
            cause: Cause::Gone,
            captured_at: 0,
            key: "{\"room_id\":1}".into(),
            row: Some("{\"room_id\":1}".into()),
        }
    }

    /// The rejected changes by their places, with their fates.
    fn read(positions: &[i64], answer: &str) -> CloudResult<Option<Vec<(usize, Fate)>>> {
        let batch = Batch::new(positions.iter().copied().map(change).collect());
        let answer = serde_json::from_str(answer).unwrap();
        let rejections = read_rejections(
            "push rooms to the cloud",
            &batch,
            &batch.pending(),
            &answer,
            str::to_owned,
        )?;
        let pairs = |rejections: Vec<Rejection>| {
            let pairs = rejections
                .into_iter()
                .map(|rejection| (rejection.change_index.0, rejection.fate));
            pairs.collect()
        };
        Ok(rejections.map(pairs))
    }

    #[test]
    fn rejections_are_attributed_by_position_or_line() {
        let refused = |code, error: &str| Fate::Refused {
            code,
            error: error.to_owned(),
        };
        let answer = r#"{"applied":1,"skipped":0,"rejected":[{"position":8,"code":"409","error":"taken"}]}"#;
        assert_eq!(
            read(&[7, 8], answer).unwrap(),
            Some(vec![(1, refused(409, "taken"))])
        );
        let answer =
            r#"{"applied":1,"skipped":0,"rejected":[{"position":0,"line":2,"code":"23502","error":"null"}]}"#;
        assert_eq!(
            read(&[0, 0], answer).unwrap(),
            Some(vec![(1, refused(422, "23502: null"))])
        );
        let answer = r#"{"applied":1,"skipped":0,"rejected":[{"position":0,"code":"x","error":"null"}]}"#;
        assert_eq!(read(&[0, 0], answer).unwrap(), None, "to be bisected");
        assert_eq!(
            read(&[0, 9], answer).unwrap(),
            Some(vec![(0, refused(422, "x: null"))])
        );
    }

    #[test]
    fn answers_that_do_not_add_up_are_not_believed() {
        for answer in [
            r#"{"applied":1,"skipped":0,"rejected":[]}"#,
            r#"{"applied":2,"skipped":1,"rejected":[]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":5,"code":"x","error":""}]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":1,"line":2,"code":"x","error":""}]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":1,"line":0,"code":"x","error":""}]}"#,
            r#"{"applied":0,"skipped":0,"rejected":[{"position":1,"code":"x"},{"position":1,"code":"x"}]}"#,
        ] {
            let failure = read(&[1, 2], answer).expect_err(answer);
            assert_eq!(failure.error().kind(), Kind::CloudProtocol);
        }
    }
}
