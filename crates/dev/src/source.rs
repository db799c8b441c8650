//! Rust source as the rules see it: comments and literals blanked, lines kept where they are.

use std::ops::Range;

use regex::Regex;

/// What [`mask`] leaves standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Neither comments nor the contents of literals.
    Code,
    /// The contents of literals too.
    CodeAndLiterals,
}

/// Blanks comments, and the contents of literals if asked; every line keeps its number and every byte its place.
pub(crate) fn mask(source: &str, keep: Keep) -> String {
    let bytes = source.as_bytes();
    let mut masked = bytes.to_vec();
    let mut position = 0;
    while position < bytes.len() {
        let (end, is_comment) = match token(bytes, position) {
            Some(Token::Comment(end)) => (end, true),
            Some(Token::Literal(end)) => (end, false),
            None => {
                position += 1;
                continue;
            }
        };
        if is_comment || keep == Keep::Code {
            for byte in &mut masked[position..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
        position = end;
    }
    String::from_utf8(masked).expect("whole comments and literals were replaced by spaces")
}

/// One bool a line: whether the line belongs to an item under `#[cfg(test)]`.
pub(crate) fn test_lines(code: &str) -> Vec<bool> {
    let attribute = Regex::new(r"#\[cfg\((all\()?test\b[^\]]*\]").expect("a valid pattern");
    let mut is_test = vec![false; code.lines().count()];
    for found in attribute.find_iter(code) {
        let end = body(code, found.end()).map_or(found.end(), |body| body.end);
        for line in line_of(code, found.start())..=line_of(code, end) {
            if let Some(flag) = is_test.get_mut(line - 1) {
                *flag = true;
            }
        }
    }
    is_test
}

/// Whether a whole file is test code.
pub(crate) fn is_test_path(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Functions of masked code, as name and the range of the body without its braces.
pub(crate) fn functions(code: &str) -> Vec<(&str, Range<usize>)> {
    let pattern = Regex::new(r"\bfn\s+([A-Za-z_]\w*)").expect("a valid pattern");
    pattern
        .captures_iter(code)
        .filter_map(|found| {
            let name = found.get(1).expect("the pattern has one group");
            Some((name.as_str(), body(code, name.end())?))
        })
        .collect()
}

/// The number of the line that a byte is in, from 1.
pub(crate) fn line_of(text: &str, position: usize) -> usize {
    1 + text[..position].matches('\n').count()
}

/// The lines of the first run of `//!` comments, without the mark.
pub(crate) fn module_doc(source: &str) -> Vec<&str> {
    source
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect()
}

enum Token {
    Comment(usize),
    Literal(usize),
}

/// The comment or literal that starts at this byte, by its end.
fn token(bytes: &[u8], start: usize) -> Option<Token> {
    let rest = &bytes[start..];
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return Some(Token::Comment(start + length));
    }
    if rest.starts_with(b"/*") {
        return Some(Token::Comment(start + block_comment_len(rest)));
    }
    match rest[0] {
        b'"' => Some(Token::Literal(start + quoted_len(rest, b'"'))),
        b'\'' => {
            // A lifetime has no closing quote right after its first character.
            let is_char = rest.get(1).is_some_and(|first| {
                let character_len = first.leading_ones().max(1) as usize;
                *first == b'\\' || rest.get(1 + character_len) == Some(&b'\'')
            });
            is_char.then(|| Token::Literal(start + quoted_len(rest, b'\'')))
        }
        b'r' if start == 0 || !is_word(bytes[start - 1]) || bytes[start - 1] == b'b' => {
            raw_string_len(rest).map(|length| Token::Literal(start + length))
        }
        _ => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut position) = (0usize, 0);
    while position < rest.len() {
        if rest[position..].starts_with(b"/*") {
            depth += 1;
            position += 2;
        } else if rest[position..].starts_with(b"*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                break;
            }
        } else {
            position += 1;
        }
    }
    position.min(rest.len())
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut position = 1;
    while position < rest.len() && rest[position] != quote {
        position += if rest[position] == b'\\' { 2 } else { 1 };
    }
    (position + 1).min(rest.len())
}

fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let num_hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    let open = 1 + num_hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(num_hashes));
    let length = rest[open + 1..]
        .windows(close.len())
        .position(|window| window == close.as_bytes());
    Some(length.map_or(rest.len(), |length| open + 1 + length + close.len()))
}

/// The inside of the first brace pair after `from`, unless the item ends with a semicolon before it.
fn body(code: &str, from: usize) -> Option<Range<usize>> {
    let bytes = code.as_bytes();
    // Semicolons inside brackets belong to array types.
    let mut brackets = 0i32;
    let mut start = from;
    loop {
        match bytes.get(start)? {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' if brackets == 0 => break,
            b';' if brackets == 0 => return None,
            _ => {}
        }
        start += 1;
    }
    let mut depth = 0i32;
    for (position, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(start + 1..position);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_comments_and_literals_in_place() {
        let source =
            "let a = \"x // {\"; // y }\nlet b = '{'; /* \n /* é */ */ fn f<'a>(c: &'a u8) {} let r = r#\"}\"#;";
        let code = mask(source, Keep::Code);
        assert_eq!(code.len(), source.len());
        assert_eq!(code.lines().count(), source.lines().count());
        assert_eq!(code.matches(['{', '}']).count(), 2);
        assert!(code.contains("fn f<'a>(c: &'a u8) {}"));
        let with_literals = mask(source, Keep::CodeAndLiterals);
        assert!(with_literals.contains("\"x // {\"") && !with_literals.contains("y }"));
    }

    #[test]
    fn masks_multibyte_characters() {
        let code = mask("let e = 'é'; let s = '\\''; fn g() {}", Keep::Code);
        assert!(code.contains("fn g() {}") && !code.contains('é') && !code.contains('\\'));
    }

    #[test]
    fn knows_which_lines_are_tests() {
        let source = "fn a() {}\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\n";
        let flags = test_lines(&mask(source, Keep::Code));
        assert_eq!(flags, [false, true, true, true, true, true, false, true, false]);
    }

    #[test]
    fn finds_function_bodies() {
        let code = "trait T { fn a(&self); }\nfn b(x: [u8; 3]) -> u8 {\n    if true { 1 } else { 2 }\n}\n";
        let found: Vec<_> = functions(code)
            .into_iter()
            .map(|(name, body)| (name, code[body].trim()))
            .collect();
        assert_eq!(found, [("b", "if true { 1 } else { 2 }")]);
    }
}
