//! One chart as SVG, readable on a light and on a dark page.

use std::error::Error;

use plotters::prelude::*;

use super::axis::Axis;

const SIZE: (u32, u32) = (860, 520);
/// Height of a line of the legend.
const LEGEND_LINE: u32 = 18;
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

/// A box of height `value` with its range.
pub struct Bar {
    /// Which of the names of the x axis it belongs to.
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

/// A chart with axes, grid and title on `$root`. Its type has no name, so this is no function.
macro_rules! framed {
    ($root:expr, $frame:expr, $legend:expr) => {{
        let frame: &Frame<'_> = $frame;
        let mut chart = ChartBuilder::on(&$root)
            .caption(frame.title, (FONT, 19).into_font().color(&BLACK))
            .margin(14)
            .margin_right(30)
            .x_label_area_size(52)
            .y_label_area_size(78)
            // The legend is above the plot, where it hides nothing.
            .top_x_label_area_size($legend * LEGEND_LINE + 12)
            .build_cartesian_2d(frame.x.1.clone(), frame.y.1.clone())
            .map_err(text)?;
        let font = |size: u32| (FONT, size).into_font().color(&BLACK);
        chart
            .configure_mesh()
            .bold_line_style(BLACK.mix(0.14))
            .light_line_style(TRANSPARENT)
            .axis_style(BLACK.mix(0.7))
            .label_style(font(13))
            .axis_desc_style(font(15))
            .x_desc(format!("{}{}", frame.x.0, frame.x.1.remark()))
            .y_desc(format!("{}{}", frame.y.0, frame.y.1.remark()))
            .draw()
            .map_err(text)?;
        chart
    }};
}

macro_rules! legend {
    ($chart:expr, $legend:expr) => {
        $chart
            .configure_series_labels()
            .position(SeriesLabelPosition::Coordinate(
                0,
                -($legend as i32 * LEGEND_LINE as i32 + 14),
            ))
            .background_style(TRANSPARENT)
            .border_style(TRANSPARENT)
            .label_font((FONT, 14).into_font().color(&BLACK))
            .draw()
            .map_err(text)?
    };
}

type Svg = Result<String, Box<dyn Error + Send + Sync>>;

/// Lines.
pub fn lines(frame: &Frame<'_>, lines: &[Line]) -> Svg {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = framed!(root, frame, lines.len() as u32);
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))
                .map_err(text)?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
            if line.dots {
                let dots = line.points.iter().map(|at| Circle::new(*at, 4, colour.filled()));
                chart.draw_series(dots).map_err(text)?;
            }
        }
        legend!(chart, lines.len() as u32);
        root.present().map_err(text)?;
    }
    Ok(themed(&svg))
}

/// Boxes with whiskers from the lowest to the highest.
pub fn bars(frame: &Frame<'_>, bars: &[Bar]) -> Svg {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let kinds = bars.iter().map(|bar| bar.kinds).max().unwrap_or(0) as u32;
        let mut chart = framed!(root, frame, kinds);
        let mut named = 0;
        for bar in bars {
            let colour = COLOURS[bar.kind.0 % COLOURS.len()];
            let width = 0.7 / bar.kinds as f64;
            let left = bar.place as f64 + 0.15 + width * bar.kind.0 as f64;
            let (median, low, high) = bar.value;
            let shape = [(left, 0.0), (left + 0.94 * width, median)];
            let series = chart
                .draw_series([Rectangle::new(shape, colour.mix(0.85).filled())])
                .map_err(text)?;
            if bar.kind.0 >= named {
                named = bar.kind.0 + 1;
                series.label(bar.kind.1).legend(move |(x, y)| {
                    Rectangle::new([(x, y - 6), (x + 20, y + 6)], colour.mix(0.85).filled())
                });
            }
            let middle = left + 0.47 * width;
            let whisker =
                PathElement::new(vec![(middle, low), (middle, high)], BLACK.stroke_width(2));
            chart.draw_series([whisker]).map_err(text)?;
            let value = super::axis::number(median);
            let style = (FONT, 13).into_font().color(&BLACK);
            let above = EmptyElement::at((middle, high)) + Text::new(value, (6, -16), style);
            chart.draw_series([above]).map_err(text)?;
        }
        legend!(chart, kinds);
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
