//! Tables as text: aligned columns, and a rule below the head.

/// The side of its column that a cell is aligned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CellSide {
    Left,
    Right,
}

/// Returns the lines of a table, of which the first of `rows` is the head.
pub(super) fn lines<const COLUMNS: usize>(
    rows: &[[String; COLUMNS]],
    side: impl Fn(usize) -> CellSide,
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
                CellSide::Left => format!("{cell:<width$}"),
                CellSide::Right => format!("{cell:>width$}"),
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
