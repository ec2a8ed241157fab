//! Converts the subset of Markdown of the manual pages to roff: headings, paragraphs, tables,
//! lists, code, emphasis.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// One part of a page.
#[derive(Debug, PartialEq)]
enum Block {
    Heading(String),
    Paragraph(String),
    /// Items, each of one or more lines.
    List(Vec<String>),
    /// Literal lines.
    Code(Vec<String>),
    /// The head and the rows.
    Table(Vec<String>, Vec<Vec<String>>),
}

/// Appends `markdown` to `roff`.
pub(crate) fn write(roff: &mut Roff, markdown: &str) {
    // A heading begins a paragraph.
    let mut headed = true;
    for block in blocks(markdown) {
        let now = matches!(block, Block::Heading(_));
        match block {
            Block::Heading(text) => {
                let plain = text.replace('`', "").to_uppercase();
                roff.control("SH", [plain.as_str()]);
            }
            Block::Paragraph(text) => {
                if !headed {
                    roff.control("PP", []);
                }
                roff.text(inlines(&text));
            }
            Block::List(items) => {
                for item in items {
                    roff.control("IP", ["\\(bu", "2"]);
                    roff.text(inlines(&item));
                }
            }
            Block::Code(lines) => code(roff, &lines, headed),
            Block::Table(head, rows) => table(roff, &head, &rows),
        }
        headed = now;
    }
}

fn code(roff: &mut Roff, lines: &[String], headed: bool) {
    if !headed {
        roff.control("PP", []);
    }
    roff.control("RS", ["4"]);
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line.as_str())]);
    }
    roff.control("fi", []);
    roff.control("RE", []);
}

/// A row becomes a term (its first cell) with the other cells below it: a terminal is too narrow
/// for columns.
fn table(roff: &mut Roff, head: &[String], rows: &[Vec<String>]) {
    for row in rows {
        let Some((first, rest)) = row.split_first() else { continue };
        roff.control("TP", []);
        roff.text(inlines(first));
        // The second column of a two-column table has an obvious meaning.
        let named = rest.len() > 1;
        let mut text: Vec<Inline> = Vec::new();
        let mut separator = "";
        for (name, cell) in head.iter().skip(1).zip(rest).filter(|(_, cell)| !cell.is_empty()) {
            text.push(roman(separator));
            // A sentence needs no name of its column.
            let is_sentence = name == "meaning";
            separator = if is_sentence { " " } else { "; " };
            if named && !is_sentence {
                text.push(roman(format!("{name}: ")));
            }
            text.extend(inlines(cell));
        }
        roff.text(text);
    }
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        let mut more = |begins: &dyn Fn(&str) -> bool| lines.next_if(|next| begins(next));
        if line.trim().is_empty() {
        } else if let Some(text) = line.strip_prefix('#') {
            blocks.push(Block::Heading(text.trim_start_matches('#').trim().to_owned()));
        } else if line.starts_with("```") {
            let mut code = Vec::new();
            while let Some(line) = more(&|next| !next.starts_with("```")) {
                code.push(line.to_owned());
            }
            more(&|_| true);
            blocks.push(Block::Code(code));
        } else if line.starts_with('|') {
            let mut rows = Vec::new();
            while let Some(line) = more(&|next| next.starts_with('|')) {
                rows.push(cells(line));
            }
            // The separator line below the head.
            blocks.push(Block::Table(cells(line), rows.split_off(1.min(rows.len()))));
        } else if let Some(item) = line.strip_prefix("- ") {
            let mut items = vec![item.to_owned()];
            while let Some(line) = more(&|next| next.starts_with("- ") || next.starts_with("  ")) {
                match (line.strip_prefix("- "), items.last_mut()) {
                    (None, Some(last)) => *last = format!("{last} {}", line.trim()),
                    (item, _) => items.push(item.unwrap_or(line).to_owned()),
                }
            }
            blocks.push(Block::List(items));
        } else {
            let mut text = line.trim().to_owned();
            let own = |next: &str| {
                !next.trim().is_empty()
                    && !["#", "```", "|", "- "].iter().any(|s| next.starts_with(s))
            };
            while let Some(line) = more(&own) {
                text = format!("{text} {}", line.trim());
            }
            blocks.push(Block::Paragraph(text));
        }
    }
    blocks
}

/// Returns the cells of a row; `\|` is a literal `|`.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|');
    let line = line.strip_suffix('|').unwrap_or(line).replace("\\|", "\0");
    line.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// Code and `**a**` become bold, `*a*` italic, and a link its text.
fn inlines(text: &str) -> Vec<Inline> {
    let mut out = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let found = ["``", "`", "**", "*"].into_iter().find_map(|mark| {
            let (inner, after) = rest.strip_prefix(mark)?.split_once(mark)?;
            (!inner.is_empty()).then_some((mark, inner, after))
        });
        let link = || rest.strip_prefix('[')?.split_once("](");
        if let Some((mark, inner, after)) = found {
            if !plain.is_empty() {
                out.push(roman(std::mem::take(&mut plain)));
            }
            out.push(if mark == "*" { italic(inner) } else { bold(inner.trim()) });
            rest = after;
        } else if let Some((text, after)) = link()
            && let Some((_, after)) = after.split_once(')')
        {
            plain.push_str(text);
            rest = after;
        } else {
            plain.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    if !plain.is_empty() {
        out.push(roman(plain));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_recognized() {
        let text = "# A `b`\nc\nd\n\n| e | f |\n|---|---|\n| `g \\| h` | |\n- i\n  j\n- k\n\n\
                    ```toml\nl = 1\n\n- m\n```\nn\n";
        let strings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            blocks(text),
            [
                Block::Heading("A `b`".into()),
                Block::Paragraph("c d".into()),
                Block::Table(strings(&["e", "f"]), vec![strings(&["`g | h`", ""])]),
                Block::List(strings(&["i j", "k"])),
                Block::Code(strings(&["l = 1", "", "- m"])),
                Block::Paragraph("n".into()),
            ]
        );
    }

    #[test]
    fn inline_markup_is_recognized() {
        assert_eq!(
            inlines("a `b *c*` *d* **e** [f](g.md) 2 * 3 ``h `i` ``"),
            [
                roman("a "),
                bold("b *c*"),
                roman(" "),
                italic("d"),
                roman(" "),
                bold("e"),
                roman(" f 2 * 3 "),
                bold("h `i`"),
            ]
        );
    }

    #[test]
    fn row_becomes_term_and_named_cells() {
        let mut roff = Roff::new();
        write(
            &mut roff,
            "| key | type | default |\n|---|---|---|\n| `a` | string | |\n| `b` | x | y |\n",
        );
        let written = roff.to_roff();
        assert_eq!(written, ".TP\n\\fBa\\fR\ntype: string\n.TP\n\\fBb\\fR\ntype: x; default: y\n");
    }
}
