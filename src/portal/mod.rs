//! Views: from data to escaped HTML.
//!
//! Invariant: what is not a literal of this room is escaped on its way into a page.

use crate::domain::decision::Code;

/// The page of a code: what it means, and what to do.
#[must_use]
pub fn problem_page(code: Code) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:10vh auto;padding:0 1rem;\
         color-scheme:light dark}}code{{font-size:.9em}}</style>\
         <main><p><code>{status} {name}</code></p><h1>{title}</h1><p>{meaning}</p><h2>What to do</h2><p>{remedy}</p></main>",
        title = escaped(code.title()),
        status = code.status(),
        name = escaped(code.name()),
        meaning = escaped(code.meaning()),
        remedy = escaped(code.remedy()),
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_escaped() {
        assert_eq!(escaped("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
        for code in Code::ALL {
            assert!(problem_page(code).contains(code.name()));
        }
    }
}
