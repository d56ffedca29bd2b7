//! Tables for people: columns of one width, and a rule under the first row.

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// The lines of a table; the first of `rows` is its head.
pub(super) fn lines<const COLUMNS: usize>(
    rows: &[[String; COLUMNS]],
    side: impl Fn(usize) -> Side,
) -> Vec<String> {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match side(column) {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.insert(
        1,
        "-".repeat(widths.iter().sum::<usize>() + 2 * (COLUMNS - 1)),
    );
    lines
}
