//! One chart as SVG, readable on a light and on a dark page.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;

const SIZE: (u32, u32) = (860, 520);
/// Height of a line of the legend, where it begins, and what is between two entries.
const LEGEND_LINE: i32 = 22;
const LEGEND_LEFT: i32 = 92;
const GAP: i32 = 26;
/// Width of an entry's mark, and about that of a letter.
const MARK: i32 = 22;
const LETTER: i32 = 7;
/// Room for the names beside lying boxes.
const NAMES_WIDTH: i32 = 170;
const FONT: &str = "sans-serif";
/// In the middle between black and white, and apart also for who does not see red or green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x3B, 0x82, 0xF6),
    RGBColor(0xE8, 0x71, 0x0A),
    RGBColor(0x22, 0xA0, 0x5A),
    RGBColor(0xA8, 0x55, 0xF7),
    RGBColor(0xE0, 0x3E, 0x52),
    RGBColor(0x0E, 0xA5, 0xA5),
];

/// Length of a dash, and of the space behind it.
const DASH: u32 = 6;

/// Text and lines follow the page, or the system where the file stands alone.
const STYLE: &str = "<style>svg{color:#1f2328}.paper{fill:#ffffff}\
@media(prefers-color-scheme:dark){svg{color:#d8dee6}.paper{fill:#14181d}}</style>\n\
<rect class=\"paper\" width=\"100%\" height=\"100%\"/>";

/// A line with its name in the legend.
pub struct Line {
    /// Name.
    pub name: String,
    /// Its points, in order.
    pub points: Vec<(f64, f64)>,
    /// Show the points themselves.
    pub dots: bool,
}

/// A box of length `value` with its range.
pub struct Bar {
    /// Which of the names of the y axis it belongs to.
    pub place: usize,
    /// Number and name of the kind it is of, for colour and legend.
    pub kind: (usize, &'static str),
    /// Kinds at each place.
    pub kinds: usize,
    /// Median, lowest and highest.
    pub value: (f64, f64, f64),
}

/// What every chart has.
pub struct Frame<'a> {
    /// Title.
    pub title: &'a str,
    /// Name with unit, and axis.
    pub x: (&'a str, Axis),
    /// The same.
    pub y: (&'a str, Axis),
}

/// A chart with axes and grid on `$area`. Its type has no name, so this is no function.
macro_rules! framed {
    ($area:expr, $frame:expr, $left:expr) => {{
        let frame: &Frame<'_> = $frame;
        let mut chart = ChartBuilder::on(&$area)
            .margin(14)
            .margin_right(34)
            .x_label_area_size(52)
            .y_label_area_size($left)
            .build_cartesian_2d(frame.x.1.clone(), frame.y.1.clone())
            .map_err(text)?;
        chart
            .configure_mesh()
            .bold_line_style(BLACK.mix(0.14))
            .light_line_style(TRANSPARENT)
            .axis_style(BLACK.mix(0.7))
            .label_style(font(14))
            .axis_desc_style(font(16))
            .x_desc(format!("{}{}", frame.x.0, frame.x.1.remark()))
            .y_desc(format!("{}{}", frame.y.0, frame.y.1.remark()))
            .draw()
            .map_err(text)?;
        chart
    }};
}

type Svg = Result<String, Box<dyn Error + Send + Sync>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn font(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&BLACK)
}

/// Colour of the line of this number, and whether it is dashed: the colours are there twice.
fn look(nth: usize) -> (RGBColor, bool) {
    (COLOURS[nth % COLOURS.len()], nth / COLOURS.len() % 2 == 1)
}

/// Title and legend, above the plot, where they hide nothing; returns the rest of the area.
fn headed<'a>(
    root: &Area<'a>,
    title: &str,
    names: &[&str],
) -> Result<Area<'a>, Box<dyn Error + Send + Sync>> {
    let middle = font(20).pos(Pos::new(HPos::Center, VPos::Top));
    root.draw(&Text::new(title.to_owned(), (SIZE.0 as i32 / 2, 14), middle)).map_err(text)?;
    let (left, right) = (LEGEND_LEFT, SIZE.0 as i32 - 14);
    let (mut x, mut y) = (left, 48);
    for (nth, name) in names.iter().enumerate() {
        let (colour, dashed) = look(nth);
        let width = MARK + 6 + name.chars().count() as i32 * LETTER;
        if x > left && x + width > right {
            (x, y) = (left, y + LEGEND_LINE);
        }
        let parts = if dashed { vec![(0, 8), (MARK - 8, MARK)] } else { vec![(0, MARK)] };
        for (from, to) in parts {
            let part = Rectangle::new([(x + from, y + 5), (x + to, y + 9)], colour.filled());
            root.draw(&part).map_err(text)?;
        }
        root.draw(&Text::new((*name).to_owned(), (x + MARK + 6, y), font(15))).map_err(text)?;
        x += width + GAP;
    }
    Ok(root.split_vertically(y + LEGEND_LINE).1)
}

/// Lines; nothing if there is no point.
pub fn lines(frame: &Frame<'_>, lines: &[Line]) -> Svg {
    if lines.iter().all(|line| line.points.is_empty()) {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        let area = headed(&root, frame.title, &names)?;
        let mut chart = framed!(area, frame, LEGEND_LEFT - 14);
        for (nth, line) in lines.iter().enumerate() {
            let (colour, dashed) = look(nth);
            let (points, style) = (line.points.iter().copied(), colour.stroke_width(2));
            if dashed {
                chart.draw_series(DashedLineSeries::new(points, DASH, DASH, style))
            } else {
                chart.draw_series(LineSeries::new(points, style))
            }
            .map_err(text)?;
            if line.dots {
                let dots = line.points.iter().map(|at| Circle::new(*at, 4, colour.filled()));
                chart.draw_series(dots).map_err(text)?;
            }
        }
        root.present().map_err(text)?;
    }
    Ok(themed(&svg))
}

/// Boxes with whiskers from the lowest to the highest, lying, so that names and values have room;
/// nothing if there is none.
pub fn bars(frame: &Frame<'_>, bars: &[Bar]) -> Svg {
    if bars.is_empty() {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut names = vec![""; bars.iter().map(|bar| bar.kind.0 + 1).max().unwrap_or(0)];
        bars.iter().for_each(|bar| names[bar.kind.0] = bar.kind.1);
        let area = headed(&root, frame.title, &names)?;
        let mut chart = framed!(area, frame, NAMES_WIDTH);
        for bar in bars {
            let (colour, _) = look(bar.kind.0);
            let width = 0.8 / bar.kinds as f64;
            let top = bar.place as f64 + 0.9 - width * bar.kind.0 as f64;
            let (median, low, high) = bar.value;
            let shape = [(frame.x.1.start(), top), (median, top - 0.94 * width)];
            chart.draw_series([Rectangle::new(shape, colour.mix(0.85).filled())]).map_err(text)?;
            let middle = top - 0.47 * width;
            let whisker =
                PathElement::new(vec![(low, middle), (high, middle)], BLACK.stroke_width(2));
            chart.draw_series([whisker]).map_err(text)?;
            let value = super::axis::number(median);
            let beside = EmptyElement::at((high, middle)) + Text::new(value, (6, -6), font(13));
            chart.draw_series([beside]).map_err(text)?;
        }
        root.present().map_err(text)?;
    }
    Ok(themed(&svg))
}

fn text(e: impl std::fmt::Display) -> Box<dyn Error + Send + Sync> {
    e.to_string().into()
}

/// Lets the page decide on the colours of text and background.
fn themed(svg: &str) -> String {
    let svg = svg.replace("#000000", "currentColor");
    match svg.find("<svg").and_then(|at| svg[at..].find('>').map(|end| at + end + 1)) {
        Some(at) => format!("{}\n{STYLE}{}", &svg[..at], &svg[at..]),
        None => svg,
    }
}
