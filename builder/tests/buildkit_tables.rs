//! BuildKit's own tables and the conformance corpus, read where the shared folder exists: syntax trees, shell words,
//! ignore patterns, and every Dockerfile of the corpus.
//!
//! Invariant: a test that finds no shared folder passes and says what it left out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use builder::context::{Directory, Patterns, ignore_file_names};
use builder::dockerfile::{Arguments, Dockerfile, Expander, Instruction, Source, Statement, Word, parse};
use fixtures::read;
use serde_json::Value;

/// A folder of the shared conformance data.
fn shared(folder: &str) -> Option<PathBuf> {
    fixtures::shared(&format!("conformance/{folder}"))
}

/// The entries of a directory, sorted.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = listing.map(|entry| entry.expect("read an entry").path()).collect();
    paths.sort();
    paths
}

/// As Go's strconv.Quote, for the characters that the tables hold.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            c if c.is_control() => write!(quoted, "\\x{:02x}", u32::from(c)).expect("a String takes all"),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn arguments(arguments: &Arguments) -> Vec<String> {
    let words = |words: &[Word]| words.iter().map(|word| quoted(&word.text)).collect();
    match arguments {
        Arguments::None => Vec::new(),
        Arguments::Words(all) | Arguments::Json(all) => words(all),
        Arguments::Text(text) => vec![quoted(&text.text)],
        Arguments::Pairs(pairs) => {
            pairs.iter().flat_map(|pair| [quoted(&pair.name.text), quoted(&pair.value.text), quoted("=")]).collect()
        }
        Arguments::OldPair(pair) => vec![quoted(&pair.name.text), quoted(&pair.value.text), quoted("")],
        Arguments::Health(kind, command) => [vec![quoted(&kind.text)], self::arguments(command)].concat(),
        Arguments::Trigger(inner, _) => vec![tree(inner)],
    }
}

/// A statement as BuildKit dumps it.
fn tree(statement: &Statement) -> String {
    let mut parts = vec![statement.keyword.text.to_lowercase()];
    let flags: Vec<String> = statement
        .flags
        .iter()
        .map(|flag| {
            let value = flag.value.as_ref().map_or(String::new(), |value| format!("={}", value.text));
            quoted(&format!("--{}{value}", flag.name.text))
        })
        .collect();
    if !flags.is_empty() {
        parts.push(format!("[{}]", flags.join(" ")));
    }
    parts.extend(arguments(&statement.arguments));
    format!("({})", parts.join(" "))
}

#[test]
fn syntax_trees_are_buildkits() {
    let Some(folder) = shared("buildkit/parser/testfiles") else { return };
    let cases = entries(&folder);
    for case in &cases {
        let text = std::fs::read(case.join("Dockerfile")).expect("read the Dockerfile");
        let (_, statements) =
            parse(&Source::new("Dockerfile", &text)).unwrap_or_else(|error| panic!("{}: {error}", case.display()));
        let trees: String = statements.iter().map(|statement| tree(statement) + "\n").collect();
        assert_eq!(trees, read(case.join("result")), "{}", case.display());
    }
    assert_eq!(cases.len(), 33);
}

#[test]
fn broken_files_are_refused() {
    let Some(folder) = shared("buildkit/parser/testfiles-negative") else { return };
    for case in entries(&folder) {
        let text = std::fs::read(case.join("Dockerfile")).expect("read the Dockerfile");
        assert!(parse(&Source::new("Dockerfile", &text)).is_err(), "{}", case.display());
    }
}

#[test]
fn instructions_know_their_first_and_last_line() {
    let Some(folder) = shared("buildkit/parser/testfile-line") else { return };
    let source = Source::new("Dockerfile", read(folder.join("Dockerfile")).as_bytes());
    let (_, statements) = parse(&source).expect("a valid file");
    let lines = statements.iter().map(|one| (source.position(one.span.start).line, source.position(one.span.end).line));
    assert_eq!(lines.collect::<Vec<_>>(), [(5, 5), (11, 12), (17, 31)]);
}

#[test]
fn words_expand_as_buildkits() {
    let Some(folder) = shared("buildkit/shell") else { return };
    let lookup = |name: &str| match name {
        "PWD" => Some("/home".to_owned()),
        "SHELL" => Some("bash".to_owned()),
        "KOREAN" => Some("한국어".to_owned()),
        "NULL" => Some(String::new()),
        _ => None,
    };
    let expander = Expander::new('\\', &lookup);
    let mut count = 0;
    for line in read(folder.join("envVarTest")).lines() {
        let mut columns = line.splitn(3, '|').map(str::trim);
        let (Some("A" | "U"), Some(input), Some(expected)) = (columns.next(), columns.next(), columns.next()) else {
            continue;
        };
        count += 1;
        let result = expander.expand(input);
        match (expected, &result) {
            ("error", Err(_)) => {}
            (_, Ok(text)) if text == expected && expected != "error" => {}
            _ => panic!("{input}: {result:?} is not {expected:?}"),
        }
    }
    assert_eq!(count, 228);
}

#[test]
fn words_split_as_buildkits() {
    let Some(folder) = shared("buildkit/shell") else { return };
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    for line in read(folder.join("wordsTest")).lines() {
        if let Some((name, value)) = line.strip_prefix("ENV ").and_then(|pair| pair.split_once('=')) {
            variables.push((name.trim_start().to_owned(), value.to_owned()));
            continue;
        }
        let Some((input, expected)) = line.split_once('|').filter(|_| !line.starts_with('#')) else { continue };
        count += 1;
        let lookup = |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        match Expander::new('\\', &lookup).expand_words(input.trim()) {
            Ok(words) => assert_eq!(words.join(","), expected.trim_start_matches(' '), "{input}"),
            Err(error) => assert_eq!(expected.trim(), "error", "{input}: {error}"),
        }
    }
    assert!(count >= 20, "only {count} rows");
}

#[test]
fn paths_are_ignored_as_mobys_matcher_does() {
    let Some(folder) = shared("buildkit") else { return };
    let table = read(folder.join("dockerignore_patterns.jsonl"));
    for line in table.lines() {
        let row: Value = serde_json::from_str(line).expect("a row is JSON");
        let lines = row["patterns"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let ignored = match Patterns::new(lines) {
            Ok(patterns) => Some(patterns.path(row["path"].as_str().unwrap_or_default().as_bytes()).is_excluded()),
            Err(_) => None,
        };
        assert_eq!(ignored, row["ignored"].as_bool(), "{line}");
        assert_eq!(ignored.is_none(), row["error"].is_string(), "{line}");
    }
    assert_eq!(table.lines().count(), 126);
}

/// One case of the Dockerfile corpus.
struct Case {
    name: String,
    directory: PathBuf,
    spec: Value,
    text: Vec<u8>,
}

fn corpus() -> Vec<Case> {
    let Some(folder) = shared("dockerfile/cases") else { return Vec::new() };
    let directories = entries(&folder).into_iter().flat_map(|area| entries(&area));
    directories
        .filter_map(|directory| {
            let spec: Value = serde_json::from_str(&read(directory.join("case.json"))).expect("case.json is JSON");
            let file = spec["file"].as_str().unwrap_or("Dockerfile");
            // A case about a missing Dockerfile has none.
            let text = std::fs::read(directory.join(file)).ok()?;
            let name = directory.strip_prefix(&folder).expect("below the corpus").display().to_string();
            Some(Case { name, directory, spec, text })
        })
        .collect()
}

#[test]
fn every_dockerfile_that_builds_parses() {
    for case in corpus().iter().filter(|case| case.spec["expect"] == "ok") {
        if let Err(error) = Dockerfile::parse("Dockerfile", &case.text) {
            panic!("{}: {error}", case.name);
        }
    }
}

/// Failing cases whose mistake does not show before variables, stages or files are known.
const FAILS_LATER: [&str; 37] = [
    "add/checksum-local-fails",
    "add/copy-http-fails",
    "add/http-404-fails",
    "add/http-checksum-wrong-fails",
    "config/expose-invalid-fails",
    "config/onbuild-missing-file-fails",
    "config/stopsignal-unknown-fails",
    "copy/dir-onto-file-fails",
    "copy/from-deleted-fails",
    "copy/from-missing-fails",
    "copy/missing-source-fails",
    "copy/outside-context-fails",
    "copy/parents-missing-fails",
    "env/bad-substitution",
    "env/missing-brace",
    "env/missing-quote",
    "env/required-modifier-unset",
    "errors/mount-from-unknown-later",
    "errors/mount-no-target",
    "errors/run-fails-in-needed-stage",
    "ignore/ignored-source-fails",
    "run/command-not-found-fails",
    "run/exec-missing-program-fails",
    "run/exec-not-executable-fails",
    "run/exit-status-fails",
    "run/mount-missing-source-fails",
    "run/mount-secret-required-fails",
    "run/mount-ssh-required-fails",
    "run/network-host-denied-fails",
    "run/no-shell-fails",
    "run/output-is-shown",
    "run/security-insecure-denied-fails",
    "run/shell-instruction",
    "run/unknown-user-fails",
    "stages/copy-from-itself-fails",
    "stages/copy-from-later-fails",
    "stages/index-out-of-range-fails",
];

/// The same, where the area's own rules (platforms, targets) decide.
const FAILS_WITH_OPTIONS: [&str; 2] = ["stages/platform-invalid-fails", "stages/target-unknown-fails"];

#[test]
fn mistakes_are_told_with_the_words_and_the_line_of_the_corpus() {
    for case in corpus().iter().filter(|case| case.spec["expect"] == "fail") {
        let is_later = FAILS_LATER.contains(&case.name.as_str()) || FAILS_WITH_OPTIONS.contains(&case.name.as_str());
        let read = Dockerfile::parse("Dockerfile", &case.text).and_then(|file| {
            let mut instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
            instructions.try_for_each(|placed| placed.check_constants(&file.source))
        });
        let error = match read {
            Ok(()) if is_later => continue,
            Ok(()) => panic!("{} parses", case.name),
            Err(error) => error,
        };
        assert!(!is_later, "{} fails early: {error}", case.name);
        let told = format!("{error}\n{}", error.place.line_text).to_lowercase();
        for words in case.spec["error_contains"].as_array().into_iter().flatten() {
            let words = words.as_str().expect("words are strings").to_lowercase();
            assert!(told.contains(&words), "{}: {told:?} lacks {words:?}", case.name);
        }
        if let Some(line) = case.spec["error_line"].as_u64() {
            assert_eq!(error.place.instruction_line as u64, line, "{}: {error}", case.name);
        }
    }
}

/// ENV and LABEL of a single stage from scratch, evaluated in order.
fn environment_and_labels(file: &Dockerfile) -> (Vec<String>, Value) {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut environment = vec![("PATH".to_owned(), path.to_owned())];
    let mut labels = serde_json::Map::new();
    for placed in &file.stages[0].instructions {
        let before = environment.clone();
        let lookup = |name: &str| before.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let expander = Expander::new(file.directives.escape, &lookup);
        let expand = |word: &Word| expander.expand(&word.text).unwrap_or_else(|error| panic!("{}: {error}", word.text));
        match &placed.value {
            Instruction::Env(pairs) => {
                for (name, value) in pairs.iter().map(|pair| (expand(&pair.name), expand(&pair.value))) {
                    match environment.iter_mut().find(|(known, _)| *known == name) {
                        Some(known) => known.1 = value,
                        None => environment.push((name, value)),
                    }
                }
            }
            Instruction::Label(pairs) => {
                labels.extend(pairs.iter().map(|pair| (expand(&pair.name), expand(&pair.value).into())));
            }
            other => panic!("{} is not expected here", other.keyword()),
        }
    }
    (environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect(), labels.into())
}

#[test]
fn env_and_label_expand_to_what_buildkit_recorded() {
    let is_plain = |case: &&Case| {
        case.spec["expect"] == "ok"
            && case.spec["bases"].as_array().is_some_and(Vec::is_empty)
            && case.name.starts_with("env/")
    };
    for case in corpus().iter().filter(is_plain) {
        let golden: Value = serde_json::from_str(&read(case.directory.join("expect.json"))).expect("JSON");
        let file = Dockerfile::parse("Dockerfile", &case.text).expect("a valid file");
        let (environment, labels) = environment_and_labels(&file);
        assert_eq!(Value::from(environment), golden["config"]["Env"], "{}", case.name);
        let recorded = golden["config"]["Labels"].as_object().cloned().unwrap_or_default();
        assert_eq!(labels, Value::from(recorded), "{}", case.name);
    }
}

#[test]
fn a_walk_leaves_what_buildkit_recorded() {
    let copies_all = |case: &&Case| case.name.starts_with("ignore/") && case.text == b"FROM scratch\nCOPY . /\n";
    for case in corpus().iter().filter(copies_all) {
        let golden: Value = serde_json::from_str(&read(case.directory.join("expect.json"))).expect("JSON");
        let context = case.directory.join("context");
        let dockerfile = case.directory.join(case.spec["file"].as_str().unwrap_or("Dockerfile"));
        let names = ignore_file_names(&dockerfile, &context);
        let file = names.iter().find(|name| name.is_file()).unwrap_or_else(|| panic!("{}: no ignore file", case.name));
        let patterns = Patterns::parse(&file.display().to_string(), read(file).as_bytes()).expect("valid patterns");
        let entries =
            Directory::open(&context, patterns).and_then(|context| context.walk(Path::new(""), 2)).expect("walk");
        let paths: Vec<String> = entries.iter().skip(1).map(|entry| entry.path.display().to_string()).collect();
        let mut recorded: Vec<&String> =
            golden["tree"].as_object().into_iter().flatten().map(|(path, _)| path).collect();
        recorded.sort();
        assert_eq!(paths.iter().collect::<Vec<_>>(), recorded, "{}", case.name);
    }
}

/// A xorshift generator: the same mutations in every run.
fn next_random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).expect("31 bits fit")
}

#[test]
fn mutated_dockerfiles_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for case in corpus().iter().filter(|case| !case.text.is_empty() && case.text.len() < 4096) {
        for _ in 0..50 {
            let mut text = case.text.clone();
            for _ in 0..=next_random(&mut state) % 4 {
                let at = next_random(&mut state) % text.len();
                let special = b"\\\n\"'`$<#{}[]=,-/ \xff\0"[next_random(&mut state) % 19];
                match next_random(&mut state) % 4 {
                    0 => text[at] = special,
                    1 => text.insert(at, special),
                    2 if text.len() > 1 => drop(text.remove(at)),
                    _ => text.extend_from_within(at..),
                }
            }
            if let Err(error) = Dockerfile::parse("Dockerfile", &text) {
                assert!(error.place.line >= 1 && !error.message.is_empty(), "{}", case.name);
            }
        }
    }
}

#[test]
fn words_stand_where_their_spans_say() {
    let mut count = 0;
    for case in corpus() {
        let source = Source::new("Dockerfile", &case.text);
        let Ok((_, statements)) = parse(&source) else { continue };
        for statement in statements {
            let words = match statement.arguments {
                Arguments::Words(words) => words,
                Arguments::Text(word) => vec![word],
                Arguments::Pairs(pairs) => pairs.into_iter().flat_map(|pair| [pair.name, pair.value]).collect(),
                _ => Vec::new(),
            };
            for word in words.iter().chain([&statement.keyword]) {
                let written = &source.bytes()[word.span.start..word.span.end];
                if !written.contains(&b'\n') {
                    assert_eq!(written, word.text.as_bytes(), "{}", case.name);
                    count += 1;
                }
            }
        }
    }
    assert!(count == 0 || count > 1000, "only {count} words");
}
