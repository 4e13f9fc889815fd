//! Settings in YAML, as JSON has them (the only file that names the parser).
//!
//! Invariant: what JSON could not say (aliases, tags, several documents, keys that are no text) is an error, and so is
//! a key that is there twice. Text is never taken for a number.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

/// Deeper than any settings are.
const MOST_LEVELS: usize = 16;

/// The document; of an empty one null. The message names the line.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut events = Events(Parser::new_from_str(text));
    let mut document = Value::Null;
    let mut documents = 0;
    loop {
        match events.next()? {
            (Event::StreamEnd, _) => return Ok(document),
            (Event::DocumentStart(_), span) => {
                documents += 1;
                if documents > 1 {
                    return Err(at(&span, "there is a second document"));
                }
                let (event, span) = events.next()?;
                document = events.value(event, &span, 0)?;
            }
            _ => {}
        }
    }
}

fn at(span: &Span, what: &str) -> String {
    format!("line {}: {what}", span.start.line())
}

struct Events<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.0.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line(), error.info())),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn value(&mut self, event: Event<'a>, span: &Span, level: usize) -> Result<Value, String> {
        if level > MOST_LEVELS {
            return Err(at(span, "it is too deep"));
        }
        match event {
            Event::Scalar(text, style, 0, None) => Ok(scalar(&text, style)),
            Event::SequenceStart(0, None) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => return Ok(list.into()),
                        (event, span) => list.push(self.value(event, &span, level + 1)?),
                    }
                }
            }
            Event::MappingStart(0, None) => {
                let mut map = Map::new();
                loop {
                    let (event, key_span) = self.next()?;
                    let key = match event {
                        Event::MappingEnd => return Ok(map.into()),
                        Event::Scalar(key, _, 0, None) => key.into_owned(),
                        _ => return Err(at(&key_span, "a key is no plain text")),
                    };
                    let (event, span) = self.next()?;
                    let value = self.value(event, &span, level + 1)?;
                    if map.insert(key.clone(), value).is_some() {
                        return Err(at(&key_span, &format!("the key {key:?} is there twice")));
                    }
                }
            }
            _ => Err(at(span, "anchors, aliases and tags are not supported")),
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    match text {
        _ if style != ScalarStyle::Plain => text.into(),
        "" | "~" | "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_forms_of_settings_are_read() {
        for (text, expected) in [
            ("", Value::Null),
            ("# nothing\n", Value::Null),
            (
                "---\na:\n  b.example:5000:\n    c: http://x/y#z # words\n",
                json!({"a": {"b.example:5000": {"c": "http://x/y#z"}}}),
            ),
            ("{a: {b: 'c: d', e: true}}", json!({"a": {"b": "c: d", "e": true}})),
            ("{\"a\": [\"1\", 2, null]}", json!({"a": ["1", "2", null]})),
            ("a: \"true\"\nb: ~\nc:\n", json!({"a": "true", "b": null, "c": null})),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_json_could_not_say_is_refused_with_its_line() {
        for (text, why) in [
            ("a: 1\n\na: 2\n", "line 3: the key \"a\" is there twice"),
            ("a: &x 1\nb: *x\n", "line 1: anchors"),
            ("a: 1\nb: !!str 2\n", "line 2: anchors"),
            ("a: 1\n---\nb: 2\n", "line 2: there is a second document"),
            ("? [a]\n: b\n", "line 1: a key is no plain text"),
            ("a: [\n", "line "),
            (&"[".repeat(100_000), "line 1: "),
        ] {
            assert!(parse(text).expect_err(text).contains(why), "{:?}", parse(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[a-c:{}\\[\\],\"'#&*!|>?\n -]{0,60}") {
            let _ = parse(&text);
        }
    }
}
