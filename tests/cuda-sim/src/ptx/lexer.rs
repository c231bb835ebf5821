//! PTX text to tokens (PTX ISA 9.0, sections 4.1 to 4.5).

use super::ast::Line;
use super::{Error, Result};

/// A token; names and numbers are slices of the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// An identifier or keyword without a dot: `ld`, `%r1`, `$L__BB0_1`, `_`.
    Word(&'a str),
    /// `.name`, without the dot: a directive, a modifier, a component. `::` joins: `shared::cta`.
    Dotted(&'a str),
    /// A literal as written.
    Number(&'a str),
    /// What stands between two quotes.
    Text(&'a str),
    /// A punctuation mark or operator; `<<`, `>>`, `&&`, `||`, `==`, `!=`, `<=` and `>=` are one.
    Mark(&'static str),
    /// The end of the text.
    End,
}

/// Tokens with the lines on which they begin; the last is [`Token::End`].
pub fn tokens(text: &str) -> Result<Vec<(Token<'_>, Line)>> {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut out = Vec::with_capacity(text.len() / 4);
    loop {
        lexer.blank()?;
        let line = lexer.line;
        let token = lexer.next()?;
        out.push((token, line));
        if token == Token::End {
            return Ok(out);
        }
    }
}

/// Longest first, so that `<<` is not two `<`.
const MARKS: &[&str] = &[
    "<<", ">>", "&&", "||", "==", "!=", "<=", ">=", "{", "}", "[", "]", "(", ")", ",", ";", ":", "@", "!", "|", "+",
    "-", "*", "/", "%", "~", "^", "&", "<", ">", "=", "?",
];

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: Line,
}

impl<'a> Lexer<'a> {
    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error { line: self.line, message: message.into() })
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn starts(&self, prefix: &str) -> bool {
        self.bytes[self.at..].starts_with(prefix.as_bytes())
    }

    /// Skips white space, comments and preprocessor line marks.
    fn blank(&mut self) -> Result<()> {
        while self.at < self.bytes.len() {
            match self.bytes[self.at] {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                // Texts handed over as C strings keep their terminator.
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c | 0 => self.at += 1,
                b'/' if self.peek(1) == b'/' => self.skip_line(),
                b'#' => self.skip_line(),
                b'/' if self.peek(1) == b'*' => self.skip_comment()?,
                _ => break,
            }
        }
        Ok(())
    }

    fn skip_line(&mut self) {
        while self.at < self.bytes.len() && self.bytes[self.at] != b'\n' {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) -> Result<()> {
        let Some(length) = self.text.get(self.at + 2..).and_then(|rest| rest.find("*/")) else {
            return self.error("a comment is not closed");
        };
        let end = self.at + 2 + length + 2;
        self.line += self.bytes[self.at..end].iter().filter(|&&b| b == b'\n').count() as Line;
        self.at = end;
        Ok(())
    }

    fn next(&mut self) -> Result<Token<'a>> {
        if self.at >= self.bytes.len() {
            return Ok(Token::End);
        }
        let first = self.bytes[self.at];
        let second = self.peek(1);
        match first {
            b'%' if !follows(second) => Ok(self.mark()),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'%' => Ok(Token::Word(self.word())),
            b'.' if second.is_ascii_digit() && !self.modifier_with_digit() => Ok(Token::Number(self.number())),
            b'.' if follows(second) => Ok(self.dotted()),
            b'0'..=b'9' => Ok(Token::Number(self.number())),
            b'"' => self.string(),
            _ if MARKS.iter().any(|m| self.starts(m)) => Ok(self.mark()),
            _ => {
                let found = self.text[self.at..].chars().next().unwrap_or('\u{fffd}');
                self.error(format!("unexpected character {found:?}"))
            }
        }
    }

    fn mark(&mut self) -> Token<'a> {
        let mark = MARKS.iter().find(|m| self.starts(m)).expect("the caller has seen a mark");
        self.at += mark.len();
        Token::Mark(mark)
    }

    fn word(&mut self) -> &'a str {
        let start = self.at;
        self.at += 1;
        while follows(self.peek(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    /// `.2d` and `.16x256b` are modifiers, `.5` is a number.
    fn modifier_with_digit(&self) -> bool {
        let attached = self.at > 0 && follows(self.bytes[self.at - 1]);
        let digits = self.bytes[self.at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        let after = self.peek(1 + digits);
        attached || follows(after) && !matches!(after, b'e' | b'E')
    }

    fn dotted(&mut self) -> Token<'a> {
        self.at += 1;
        let start = self.at;
        loop {
            while follows(self.peek(0)) {
                self.at += 1;
            }
            if !(self.starts("::") && follows(self.peek(2))) {
                return Token::Dotted(&self.text[start..self.at]);
            }
            self.at += 2;
        }
    }

    /// Takes everything that may belong to a literal; its value is read by whoever needs it.
    fn number(&mut self) -> &'a str {
        let start = self.at;
        let coded = self.bytes[start] == b'0' && self.peek(1).is_ascii_alphabetic();
        loop {
            let b = self.peek(0);
            let previous = self.bytes[self.at.saturating_sub(1).max(start)];
            let exponent_sign = !coded && matches!(b, b'+' | b'-') && matches!(previous, b'e' | b'E');
            if b.is_ascii_alphanumeric() || (b == b'.' && !coded) || exponent_sign {
                self.at += 1;
            } else {
                return &self.text[start..self.at];
            }
        }
    }

    fn string(&mut self) -> Result<Token<'a>> {
        let start = self.at + 1;
        let mut end = start;
        loop {
            match self.bytes.get(end) {
                None | Some(b'\n') => return self.error("a string is not closed"),
                Some(b'"') => break,
                Some(b'\\') if self.bytes.get(end + 1).is_some_and(|&b| b != b'\n') => end += 2,
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        Ok(Token::Text(&self.text[start..end]))
    }
}

/// Whether a byte may continue an identifier.
fn follows(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'$'
}

/// A literal's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    /// An integer.
    Int(u64),
    /// `0f...`: the bits of a single-precision value.
    F32(u32),
    /// `0d...` or decimal: the bits of a double-precision value.
    F64(u64),
}

/// Reads a literal (section 4.5); none if it is malformed or too large.
pub fn literal(text: &str) -> Option<Literal> {
    let code = text.get(..2).unwrap_or("");
    let hex = text.bytes().skip(2).all(|b| b.is_ascii_hexdigit());
    let integer = |digits: &str, radix: u32| {
        let digits = digits.strip_suffix(['U', 'u']).unwrap_or(digits);
        let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
        u64::from_str_radix(digits, radix).ok().filter(|_| plain).map(Literal::Int)
    };
    match code {
        "0f" | "0F" if text.len() == 10 && hex => u32::from_str_radix(&text[2..], 16).ok().map(Literal::F32),
        "0d" | "0D" if text.len() == 18 && hex => u64::from_str_radix(&text[2..], 16).ok().map(Literal::F64),
        "0f" | "0F" | "0d" | "0D" => None,
        "0x" | "0X" => integer(&text[2..], 16),
        "0b" | "0B" => integer(&text[2..], 2),
        _ if text.contains(['.', 'e', 'E']) => text.parse::<f64>().ok().map(|v| Literal::F64(v.to_bits())),
        _ if text.len() > 1 && text.starts_with('0') => integer(&text[1..], 8).or_else(|| integer(text, 8)),
        _ => integer(text, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Token<'_>> {
        tokens(text).unwrap().into_iter().map(|t| t.0).collect()
    }

    #[test]
    fn an_instruction_is_split_at_its_dots() {
        use Token::*;
        assert_eq!(
            kinds("@!%p1 cp.async.cg.shared::cta.global.L2::128B [%r1+-16], [%rd2], 16;"),
            [
                Mark("@"),
                Mark("!"),
                Word("%p1"),
                Word("cp"),
                Dotted("async"),
                Dotted("cg"),
                Dotted("shared::cta"),
                Dotted("global"),
                Dotted("L2::128B"),
                Mark("["),
                Word("%r1"),
                Mark("+"),
                Mark("-"),
                Number("16"),
                Mark("]"),
                Mark(","),
                Mark("["),
                Word("%rd2"),
                Mark("]"),
                Mark(","),
                Number("16"),
                Mark(";"),
                End
            ]
        );
        assert_eq!(kinds("tensor.2d.tile"), [Word("tensor"), Dotted("2d"), Dotted("tile"), End]);
        assert_eq!(kinds("a .16x256b"), [Word("a"), Dotted("16x256b"), End]);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let found = tokens("a // b\n/* c\n\n */ d\n\te").unwrap();
        let lines: Vec<_> = found.iter().map(|t| t.1).collect();
        assert_eq!(lines, [1, 4, 5, 5]);
    }

    #[test]
    fn literals_have_their_values() {
        use Literal::*;
        for (text, value) in [
            ("0", Int(0)),
            ("017", Int(15)),
            ("18446744073709551615U", Int(u64::MAX)),
            ("0xFFu", Int(255)),
            ("0b101", Int(5)),
            ("0f3F800000", F32(0x3f80_0000)),
            ("0dbff0000000000000", F64((-1.0f64).to_bits())),
            ("1.5", F64(1.5f64.to_bits())),
            (".5e-1", F64(0.05f64.to_bits())),
        ] {
            assert_eq!(literal(text), Some(value), "{text}");
        }
        for text in ["18446744073709551616", "08", "0x", "0b2", "0f3F80000", "0f+F800000", "1z", "0x+1", "1.2.3"] {
            assert_eq!(literal(text), None, "{text}");
        }
    }

    #[test]
    fn a_number_does_not_swallow_a_sum() {
        use Token::*;
        assert_eq!(kinds("0xe+1"), [Number("0xe"), Mark("+"), Number("1"), End]);
        assert_eq!(kinds("1e+1"), [Number("1e+1"), End]);
    }

    #[test]
    fn bad_text_is_refused_with_its_line() {
        for (text, line) in [("a\n\"b", 2), ("/* a", 1), ("\n\nä", 3), ("`", 1), ("\"a\\", 1)] {
            assert_eq!(tokens(text).unwrap_err().line, line, "{text}");
        }
    }
}
