//! Transactions on pots and leaves: one of each kind that a site of parents and children knows.

use rand::RngExt;
use rand::rngs::StdRng;

/// One transaction of a writer, of any kind. Some fail, as transactions do.
pub(super) fn transaction(rng: &mut StdRng) -> String {
    let pot = rng.random_range(2..200);
    let other = rng.random_range(2..200);
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..25 => "update pot set weight = weight + 1 where pot_id = 1".to_owned(),
        25..40 => format!(
            "insert into pot values ({pot}, 'pot {word}', 0) on conflict (pot_id) do update \
             set label = excluded.label"
        ),
        40..55 => format!(
            "insert into leaf select pot_id, n, 'leaf {word}' from pot, generate_series(1, {}) n \
             where pot_id = {pot} on conflict (pot_id, nth) do update set note = excluded.note",
            rng.random_range(1..8)
        ),
        55..65 => format!("delete from pot where pot_id = {pot}"),
        65..75 => format!("update pot set pot_id = {other} where pot_id = {pot}"),
        75..82 => format!(
            "begin; update pot set label = 'never' where pot_id = {pot}; \
             insert into leaf values ({other}, {word} % 100, 'never'); rollback"
        ),
        82..91 => format!(
            "begin; update pot set weight = weight + 1 where pot_id = 1; savepoint a; \
             update pot set label = 'undone' where pot_id = {pot}; delete from leaf where pot_id = {other}; \
             rollback to savepoint a; update pot set label = 'kept {word}' where pot_id = {other}; commit"
        ),
        91..99 => format!(
            "begin; update pot set weight = weight + 1 where pot_id between {pot} and {pot} + 5; \
             select pg_sleep(0.02); delete from leaf where pot_id = {other} and nth % 2 = 0; commit"
        ),
        _ => "truncate leaf".to_owned(),
    }
}
