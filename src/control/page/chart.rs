//! The lag over time as a picture: a line of steps on a logarithmic scale.

use std::fmt::Write;

use jiff::{Timestamp, tz::TimeZone};

use crate::control::lag_history::LagRange;
use crate::control::words::span;

const WIDTH: f64 = 440.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 132.0;

/// Lines across the picture: seconds, and their label.
const SCALE: [(f64, &str); 7] = [
    (0.0, "0"),
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3_600.0, "1 h"),
    (86_400.0, "1 day"),
];

/// The picture of a range.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) range: LagRange,
    /// What is to be seen, in words.
    pub(super) summary: String,
    pub(super) lines: Vec<ScaleLine>,
    pub(super) times: Vec<TimeLabel>,
    /// The path of the line; empty where nothing is known.
    pub(super) path: String,
    /// The path of the area below it.
    pub(super) area: String,
}

#[derive(Debug, Clone)]
pub(super) struct ScaleLine {
    pub(super) y: String,
    pub(super) text_y: String,
    pub(super) label: &'static str,
}

#[derive(Debug, Clone)]
pub(super) struct TimeLabel {
    pub(super) x: String,
    pub(super) anchor: &'static str,
    pub(super) label: String,
}

impl Chart {
    /// The picture of these lags, a slot each, the last of which is the present one.
    pub(super) fn new(range: LagRange, lags: &[Option<f64>], now: Timestamp, zone: &TimeZone) -> Self {
        let highest = lags.iter().flatten().copied().fold(0.0, f64::max);
        // A minute at least, so that a calm hour looks calm.
        let top = SCALE
            .iter()
            .map(|(seconds, _)| *seconds)
            .find(|seconds| *seconds >= highest.max(60.0))
            .unwrap_or(highest);
        let y = |lag: f64| BOTTOM - (1.0 + lag).ln() / (1.0 + top).ln() * (BOTTOM - TOP);
        let step = (WIDTH - LEFT) / lags.len().max(1) as f64;
        let x = |slot: usize| LEFT + step * slot as f64;
        let (mut path, mut area) = (String::new(), String::new());
        let mut begun: Option<usize> = None;
        for (slot, lag) in lags.iter().copied().chain([None]).enumerate() {
            match (lag, begun) {
                (Some(lag), None) => {
                    let _ = write!(path, "M{:.1} {:.1}H{:.1}", x(slot), y(lag), x(slot + 1));
                    let _ = write!(area, "M{:.1} {BOTTOM}V{:.1}H{:.1}", x(slot), y(lag), x(slot + 1));
                    begun = Some(slot);
                }
                (Some(lag), Some(_)) => {
                    for line in [&mut path, &mut area] {
                        let _ = write!(line, "V{:.1}H{:.1}", y(lag), x(slot + 1));
                    }
                }
                (None, Some(first)) => {
                    let _ = write!(area, "V{BOTTOM}H{:.1}Z", x(first));
                    begun = None;
                }
                (None, None) => {}
            }
        }
        let lines = SCALE.into_iter().filter(|(seconds, _)| *seconds <= top);
        Self {
            range,
            summary: summary(range, lags, now, zone),
            lines: lines
                .map(|(seconds, label)| ScaleLine {
                    y: format!("{:.1}", y(seconds)),
                    text_y: format!("{:.1}", y(seconds) + 4.0),
                    label,
                })
                .collect(),
            times: times(range, now, zone),
            path,
            area,
        }
    }
}

/// When the range begins, its middle, and now.
fn times(range: LagRange, now: Timestamp, zone: &TimeZone) -> Vec<TimeLabel> {
    let length = (range.slots() * range.slot()) as i64;
    let at = |part: i64| {
        let at = Timestamp::from_second(now.as_second() - length + length * part / 2).unwrap_or(now);
        let form = if range == LagRange::Week {
            "%a %H:%M"
        } else {
            "%H:%M"
        };
        at.to_zoned(zone.clone()).strftime(form).to_string()
    };
    let label = |x: f64, anchor, label| TimeLabel {
        x: format!("{x:.0}"),
        anchor,
        label,
    };
    vec![
        label(LEFT, "start", at(0)),
        label((LEFT + WIDTH) / 2.0, "middle", at(1)),
        label(WIDTH, "end", "now".to_owned()),
    ]
}

fn summary(range: LagRange, lags: &[Option<f64>], now: Timestamp, zone: &TimeZone) -> String {
    let highest = lags
        .iter()
        .enumerate()
        .filter_map(|(slot, lag)| Some((slot, (*lag)?)))
        .max_by(|(_, one), (_, other)| one.total_cmp(other));
    let known = match lags.contains(&None) {
        true => ", as far as it is known",
        false => "",
    };
    let name = range.name();
    match highest {
        None => format!("Lag over the last {name}: not known yet."),
        Some((_, lag)) if lag < 1.0 => format!("Lag over the last {name}{known}: always below 1 second."),
        Some((slot, lag)) => {
            let ago = (lags.len() - 1 - slot) as u64 * range.slot();
            let at = Timestamp::from_second(now.as_second() - ago as i64).unwrap_or(now);
            let form = if range == LagRange::Week {
                "%A %H:%M"
            } else {
                "%H:%M"
            };
            format!(
                "Lag over the last {name}{known}: highest {}, at about {}.",
                span(lag),
                at.to_zoned(zone.clone()).strftime(form)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lags: &[Option<f64>]) -> Chart {
        let now = "2026-11-26T14:00:00Z".parse().unwrap();
        Chart::new(LagRange::Hour, lags, now, &TimeZone::UTC)
    }

    #[test]
    fn what_is_not_known_is_not_drawn() {
        assert_eq!(chart(&[None; 60]).path, "");
        assert_eq!(
            chart(&[None; 60]).summary,
            "Lag over the last hour: not known yet."
        );
        let gap = chart(&[Some(0.0), None, Some(0.0)]);
        assert!(gap.summary.contains("as far as it is known"), "{}", gap.summary);
        assert_eq!(gap.path.matches('M').count(), 2, "{}", gap.path);
        assert_eq!(gap.area.matches('Z').count(), 2, "{}", gap.area);
    }

    #[test]
    fn the_highest_lag_fits_the_picture_and_is_told() {
        let mut lags = vec![Some(0.2); 60];
        lags[20] = Some(2_460.0);
        let chart = chart(&lags);
        assert_eq!(
            chart.summary,
            "Lag over the last hour: highest 41 minutes, at about 13:21."
        );
        assert_eq!(chart.lines.last().unwrap().label, "1 h");
        for number in chart
            .path
            .split(['M', 'V', 'H', ' '])
            .filter(|part| !part.is_empty())
        {
            let number: f64 = number.parse().unwrap();
            assert!((0.0..=WIDTH).contains(&number), "{}", chart.path);
        }
    }
}
