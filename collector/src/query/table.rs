//! Rows as a table of text. Cells are made visible, so none can forge a row or a line.

use crate::visible::line;

/// Columns as wide as their widest cell, or at most `cell_width` characters.
pub fn render(columns: &[String], rows: &[Vec<String>], cell_width: Option<usize>) -> String {
    let cut = |text: &str| {
        let text = line(text);
        match cell_width {
            Some(width) if text.chars().count() > width => {
                let kept: String = text.chars().take(width.saturating_sub(1)).collect();
                format!("{kept}…")
            }
            _ => text,
        }
    };
    let head: Vec<String> = columns.iter().map(|name| line(name)).collect();
    let body: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| cut(cell)).collect()).collect();
    let width = |at: usize| {
        let cells = body.iter().filter_map(|row| row.get(at)).chain(head.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut out = String::new();
    for row in [&head, &rule].into_iter().chain(&body) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// What a spreadsheet takes for the beginning of a formula, and the wide forms that some take for the same.
const FORMULAS: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];

/// One line of CSV (RFC 4180). A cell that a spreadsheet would take for a formula has a `'` before it; numbers stay numbers.
/// (One that begins with a tab or a carriage return begins with its escape.)
pub fn csv_line(row: &[String]) -> String {
    let cell = |text: &String| {
        let text = line(text);
        let is_formula = text.starts_with(FORMULAS) && text.parse::<f64>().is_err();
        let text = if is_formula { format!("'{text}") } else { text };
        // A semicolon divides cells too, where a spreadsheet's language has the comma in numbers.
        if text.contains(['"', ',', ';']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let cells: Vec<String> = row.iter().map(cell).collect();
    cells.join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_of_csv_is_a_formula_and_numbers_stay() {
        let cells = [
            "=1+1",
            "+cmd|' /C calc'!A0",
            "-2+3",
            "@SUM(A1)",
            "＝1",
            "\t=1",
            "\r=1",
            "-5",
            "+0.25",
            "a=1",
            "a;=1",
            "",
        ];
        let row: Vec<String> = cells.iter().map(ToString::to_string).collect();
        let neutral =
            "'=1+1,'+cmd|' /C calc'!A0,'-2+3,'@SUM(A1),'＝1,\\u{9}=1,\\u{d}=1,-5,+0.25,a=1,\"a;=1\",\r\n";
        assert_eq!(csv_line(&row), neutral);
    }

    #[test]
    fn cells_line_up_are_cut_and_forge_no_rows() {
        let rows = [vec!["é".into(), "1\n2  forged".into()], vec!["long".into(), "0123456789abcdef".into()]];
        let shown = render(&["a".into(), "b".into()], &rows, Some(12));
        assert_eq!(shown, "a     b\n----  ------------\né     1\\u{a}2  fo…\nlong  0123456789a…\n");
    }
}
