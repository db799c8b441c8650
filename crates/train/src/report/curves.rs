//! Metrics over steps, as pictures made of text.

use std::collections::BTreeMap;

use plotters::prelude::*;
use serde::Serialize;

use crate::directory::MetricsRow;
use crate::{Error, Result};

const SIZE: (u32, u32) = (460, 240);
/// Weight of the past in the smoothed line of a noisy curve.
const SMOOTHING: f64 = 0.9;
/// Shorter curves are drawn as they are.
const MIN_LEN_TO_SMOOTH: usize = 30;
/// One color a run, apart enough to be told from each other, also by most of those who see few colors.
const COLORS: [RGBColor; 8] = [
    RGBColor(31, 90, 160),
    RGBColor(213, 94, 0),
    RGBColor(0, 140, 105),
    RGBColor(180, 60, 140),
    RGBColor(140, 110, 0),
    RGBColor(80, 80, 80),
    RGBColor(86, 160, 220),
    RGBColor(230, 150, 20),
];

/// One picture.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    /// The metric.
    pub(super) name: String,
    /// An `<svg>` element.
    pub(super) svg: String,
}

/// One line of a picture.
pub(super) struct Series {
    /// Steps and values, at least one.
    pub(super) points: Vec<(f64, f64)>,
    pub(super) color: RGBColor,
}

/// The color of the run at this place, also as HTML writes it; they repeat after eight.
pub(super) fn color_of(place: usize) -> (RGBColor, String) {
    let color = COLORS[place % COLORS.len()];
    let RGBColor(red, green, blue) = color;
    (color, format!("#{red:02x}{green:02x}{blue:02x}"))
}

/// One picture of one metric.
pub(super) fn chart(name: &str, series: &[Series]) -> Result<Curve> {
    let svg = draw(series).map_err(|reason| Error::Report {
        reason: format!("curve `{name}`: {reason}"),
    })?;
    Ok(Curve {
        name: name.to_owned(),
        svg,
    })
}

/// One curve a metric, `epoch` apart.
pub(super) fn curves(rows: &[MetricsRow]) -> Result<Vec<Curve>> {
    let mut names: Vec<String> = Vec::new();
    let mut points: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        for (name, value) in row.numbers().filter(|(name, _)| *name != "epoch") {
            if !points.contains_key(name) {
                names.push(name.to_owned());
            }
            points
                .entry(name.to_owned())
                .or_default()
                .push((row.step as f64, value));
        }
    }
    names
        .into_iter()
        .map(|name| {
            let points = points.remove(&name).unwrap_or_default();
            let (color, _) = color_of(0);
            chart(&name, &[Series { points, color }])
        })
        .collect()
}

fn draw(series: &[Series]) -> std::result::Result<String, String> {
    let mut svg = String::new();
    let all = || series.iter().flat_map(|series| &series.points);
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let (x_range, y_range) = (range(all().map(|point| point.0)), range(all().map(|point| point.1)));
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(64)
            .build_cartesian_2d(x_range, y_range)
            .map_err(|error| error.to_string())?;
        chart
            .configure_mesh()
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|value| label(*value))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(|error| error.to_string())?;
        let mut line = |points: Vec<(f64, f64)>, style: ShapeStyle| {
            chart
                .draw_series(LineSeries::new(points, style))
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        for Series { points, color } in series {
            if points.len() < MIN_LEN_TO_SMOOTH {
                line(points.clone(), color.stroke_width(2))?;
            } else {
                // Behind several lines the unsmoothed ones would hide each other.
                if series.len() == 1 {
                    line(points.clone(), color.mix(0.25).stroke_width(1))?;
                }
                line(smooth(points), color.stroke_width(2))?;
            }
        }
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// An exponential moving average with the bias of its start removed.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(step, value)| {
            sum = SMOOTHING * sum + (1.0 - SMOOTHING) * value;
            weight = SMOOTHING * weight + (1.0 - SMOOTHING);
            (step, sum / weight)
        })
        .collect()
}

/// From the smallest to the largest value, with some air, and never empty.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let magnitude = low.abs().max(high.abs());
    // A constant gets room around it, so that its labels differ.
    let air = if high - low > magnitude * 1e-9 {
        (high - low) * 0.05
    } else {
        (magnitude * 0.1).max(1e-12)
    };
    low - air..high + air
}

/// A number of a few characters.
fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        format!("{value:.2e}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_curve_with_as_many_points_as_rows() {
        let rows: Vec<MetricsRow> = (1..=5)
            .map(|step| MetricsRow {
                step,
                epoch: 0.1,
                loss: 1.0 / step as f64,
                grad_norm: 2.0,
                learning_rate: 0.0,
                metrics: BTreeMap::from([("rewards/margins".into(), step as f64)]),
            })
            .collect();
        let curves = curves(&rows).unwrap();
        let names: Vec<_> = curves.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(names, ["loss", "grad_norm", "learning_rate", "rewards/margins"]);
        for curve in &curves {
            assert!(
                curve.svg.starts_with("<svg") && curve.svg.trim_end().ends_with("</svg>"),
                "{}",
                curve.svg
            );
            let line = curve
                .svg
                .lines()
                .find(|line| line.contains("#1F5AA0") && line.contains("polyline"))
                .unwrap();
            let points = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            assert_eq!(points.split_whitespace().count(), 5, "{}: {line}", curve.name);
        }
        // A falling loss is drawn falling: SVG counts y from the top.
        let points = curves[0]
            .svg
            .split("points=\"")
            .filter_map(|part| part.split('"').next());
        let loss = points
            .filter(|points| points.split_whitespace().count() == 5)
            .last()
            .unwrap();
        let ys: Vec<i32> = loss
            .split_whitespace()
            .map(|point| point.split(',').nth(1).unwrap().parse().unwrap())
            .collect();
        assert!(ys.is_sorted(), "{ys:?}");
    }

    fn one(points: &[(f64, f64)]) -> Series {
        Series {
            points: points.to_vec(),
            color: COLORS[0],
        }
    }

    #[test]
    fn a_constant_and_an_empty_log_can_be_drawn() {
        assert!(draw(&[one(&[(1.0, 0.0), (2.0, 0.0)])]).is_ok());
        assert!(draw(&[one(&[(1.0, 1e30)])]).is_ok());
        assert!(curves(&[]).unwrap().is_empty());
    }

    #[test]
    fn smoothing_starts_at_the_first_value() {
        let smoothed = smooth(&[(1.0, 4.0), (2.0, 4.0), (3.0, 4.0)]);
        assert!(smoothed.iter().all(|point| (point.1 - 4.0).abs() < 1e-12));
    }
}
