// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Columns of text.

use std::io::{self, Write};

/// Writes rows in columns as wide as their widest cell, two spaces apart, without spaces at the
/// ends of lines. Control characters are shown as `?`: what a card calls itself must not steer a
/// terminal.
pub(crate) fn write<const COLUMNS: usize>(
    output: &mut impl Write,
    rows: &[[String; COLUMNS]],
) -> io::Result<()> {
    let rows: Vec<[String; COLUMNS]> = rows
        .iter()
        .map(|row| row.clone().map(|cell| printable(&cell)))
        .collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        writeln!(output, "{}", line.trim_end())?;
    }
    Ok(())
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["A", "B", "C"],
            ["long cell", "", "x"],
            ["\u{e9}\x1b[2J", "y", ""],
        ]
        .map(|row| row.map(String::from));
        let mut output = Vec::new();
        write(&mut output, &rows).unwrap();
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "A          B  C\nlong cell     x\n\u{e9}?[2J      y\n"
        );
    }
}
