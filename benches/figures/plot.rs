//! Time and memory against backlog, as an SVG that fits light and dark pages.

use std::fmt::Write;

/// What one size of backlog took.
pub(crate) struct Point {
    pub(crate) changes: f64,
    pub(crate) seconds: f64,
    pub(crate) megabytes: f64,
}

/// The side of a panel's plane, and the edges around it.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}\
    .frame{fill:none;stroke:#8c959f}.grid{stroke:#8c959f;stroke-opacity:.3}.limit{stroke:#cf222e;stroke-dasharray:5 4}\
    .line{fill:none;stroke:#0969da;stroke-width:2}.dot{fill:#0969da}\
    @media(prefers-color-scheme:dark){text{fill:#9ea7b3}.line{stroke:#58a6ff}.dot{fill:#58a6ff}.limit{stroke:#ff7b72}}";

/// An axis: where its values lie between 0 and 1, and the values to name.
struct Axis {
    from: f64,
    to: f64,
    is_logarithmic: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Whole powers of ten around the values.
    fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        Self {
            from: 10_f64.powi(first),
            to: 10_f64.powi(last.max(first + 1)),
            is_logarithmic: true,
            ticks: (first..=last.max(first + 1))
                .map(|power| 10_f64.powi(power))
                .collect(),
        }
    }

    /// From 0 up, in steps.
    fn linear(most: f64, step: f64) -> Self {
        let steps = (most / step).ceil().max(1.0) as i32;
        Self {
            from: 0.0,
            to: step * f64::from(steps),
            is_logarithmic: false,
            ticks: (0..=steps).map(|index| step * f64::from(index)).collect(),
        }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_logarithmic {
            (value / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        }
    }
}

/// The picture: time on the left, both axes logarithmic, so that a straight line is linear; memory on the
/// right, with its limit.
pub(crate) fn svg(points: &[Point], limit: f64) -> String {
    let changes = || points.iter().map(|point| point.changes);
    let most = points.iter().map(|point| point.megabytes).fold(limit, f64::max);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\">\
         <title>Time and peak memory of the replicator against its backlog</title><style>{STYLE}</style>\n",
        2.0 * (LEFT + WIDTH + 30.0),
        TOP + HEIGHT + 50.0
    );
    let time = Panel {
        title: "seconds until the cloud has all",
        x: Axis::logarithmic(changes()),
        y: Axis::logarithmic(points.iter().map(|point| point.seconds)),
        limit: None,
        at: LEFT,
    };
    time.draw(
        &mut text,
        points.iter().map(|point| (point.changes, point.seconds)),
    );
    let memory = Panel {
        title: "peak memory of the replicator, MiB",
        x: Axis::logarithmic(changes()),
        // The limit differs from the frame.
        y: Axis::linear(most + 1.0, 24.0),
        limit: Some(limit),
        at: 2.0 * LEFT + WIDTH + 30.0,
    };
    memory.draw(
        &mut text,
        points.iter().map(|point| (point.changes, point.megabytes)),
    );
    text.push_str("</svg>\n");
    text
}

struct Panel {
    title: &'static str,
    x: Axis,
    y: Axis,
    limit: Option<f64>,
    /// Where its plane begins.
    at: f64,
}

impl Panel {
    fn draw(&self, text: &mut String, points: impl Iterator<Item = (f64, f64)>) {
        let across = |value: f64| self.at + WIDTH * self.x.place(value);
        let down = |value: f64| TOP + HEIGHT * (1.0 - self.y.place(value));
        let (right, bottom) = (self.at + WIDTH, TOP + HEIGHT);
        let _ = writeln!(
            text,
            "<text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\
             <rect class=\"frame\" x=\"{}\" y=\"{TOP}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>",
            self.at,
            TOP - 14.0,
            self.title,
            self.at
        );
        for &tick in &self.x.ticks {
            let x = across(tick);
            let _ = writeln!(
                text,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                named(tick)
            );
        }
        for &tick in &self.y.ticks {
            let y = down(tick);
            let _ = writeln!(
                text,
                "<line class=\"grid\" x1=\"{}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                self.at,
                self.at - 6.0,
                y + 4.0,
                named(tick)
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">changes of backlog</text>",
            self.at + WIDTH / 2.0,
            bottom + 34.0
        );
        if let Some(limit) = self.limit {
            let y = down(limit);
            let _ = writeln!(
                text,
                "<line class=\"limit\" x1=\"{}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\">target: at most {}</text>",
                self.at,
                self.at + 6.0,
                y - 5.0,
                named(limit)
            );
        }
        let places: Vec<(f64, f64)> = points.map(|(x, y)| (across(x), down(y))).collect();
        let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(text, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
        for (x, y) in places {
            let _ = writeln!(
                text,
                "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"
            );
        }
    }
}

/// A value at an axis.
fn named(value: f64) -> String {
    if value < 1.0 && value > 0.0 {
        value.to_string()
    } else {
        crate::table::grouped(value)
    }
}
