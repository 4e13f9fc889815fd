//! The documented build checks: their names, what they are about, where they are documented.
//!
//! Invariant: names, descriptions and addresses are BuildKit's, because people and programs know them by those.
//! <https://docs.docker.com/reference/build-checks/>

use std::fmt;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "`description` says what each is about")]
pub enum Rule {
    StageNameCasing,
    FromAsCasing,
    NoEmptyContinuation,
    ConsistentInstructionCasing,
    DuplicateStageName,
    ReservedStageName,
    JSONArgsRecommended,
    MaintainerDeprecated,
    UndefinedArgInFrom,
    WorkdirRelativePath,
    UndefinedVar,
    MultipleInstructionsDisallowed,
    LegacyKeyValueFormat,
    InvalidBaseImagePlatform,
    RedundantTargetPlatform,
    SecretsUsedInArgOrEnv,
    InvalidDefaultArgInFrom,
    FromPlatformFlagConstDisallowed,
    CopyIgnoredFile,
    InvalidDefinitionDescription,
    ExposeProtoCasing,
    ExposeInvalidFormat,
}

/// A rule's name, description, and the last part of its address if it has one.
const FACTS: [(Rule, &str, &str, &str); 22] = [
    (Rule::StageNameCasing, "StageNameCasing", "Stage names should be lowercase", "stage-name-casing"),
    (
        Rule::FromAsCasing,
        "FromAsCasing",
        "The 'as' keyword should match the case of the 'from' keyword",
        "from-as-casing",
    ),
    (
        Rule::NoEmptyContinuation,
        "NoEmptyContinuation",
        "Empty continuation lines will become errors in a future release",
        "no-empty-continuation",
    ),
    (
        Rule::ConsistentInstructionCasing,
        "ConsistentInstructionCasing",
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        "consistent-instruction-casing",
    ),
    (Rule::DuplicateStageName, "DuplicateStageName", "Stage names should be unique", "duplicate-stage-name"),
    (
        Rule::ReservedStageName,
        "ReservedStageName",
        "Reserved words should not be used as stage names",
        "reserved-stage-name",
    ),
    (
        Rule::JSONArgsRecommended,
        "JSONArgsRecommended",
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        "json-args-recommended",
    ),
    (
        Rule::MaintainerDeprecated,
        "MaintainerDeprecated",
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        "maintainer-deprecated",
    ),
    (Rule::UndefinedArgInFrom, "UndefinedArgInFrom", "FROM command must use declared ARGs", "undefined-arg-in-from"),
    (
        Rule::WorkdirRelativePath,
        "WorkdirRelativePath",
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
        "workdir-relative-path",
    ),
    (Rule::UndefinedVar, "UndefinedVar", "Variables should be defined before their use", "undefined-var"),
    (
        Rule::MultipleInstructionsDisallowed,
        "MultipleInstructionsDisallowed",
        "Multiple instructions of the same type should not be used in the same stage",
        "multiple-instructions-disallowed",
    ),
    (
        Rule::LegacyKeyValueFormat,
        "LegacyKeyValueFormat",
        "Legacy key/value format with whitespace separator should not be used",
        "legacy-key-value-format",
    ),
    (
        Rule::InvalidBaseImagePlatform,
        "InvalidBaseImagePlatform",
        "Base image platform does not match expected target platform",
        "",
    ),
    (
        Rule::RedundantTargetPlatform,
        "RedundantTargetPlatform",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        "redundant-target-platform",
    ),
    (
        Rule::SecretsUsedInArgOrEnv,
        "SecretsUsedInArgOrEnv",
        "Sensitive data should not be used in the ARG or ENV commands",
        "secrets-used-in-arg-or-env",
    ),
    (
        Rule::InvalidDefaultArgInFrom,
        "InvalidDefaultArgInFrom",
        "Default value for global ARG results in an empty or invalid base image name",
        "invalid-default-arg-in-from",
    ),
    (
        Rule::FromPlatformFlagConstDisallowed,
        "FromPlatformFlagConstDisallowed",
        "FROM --platform flag should not use a constant value",
        "from-platform-flag-const-disallowed",
    ),
    (
        Rule::CopyIgnoredFile,
        "CopyIgnoredFile",
        "Attempting to Copy file that is excluded by .dockerignore",
        "copy-ignored-file",
    ),
    (
        Rule::InvalidDefinitionDescription,
        "InvalidDefinitionDescription",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
        "invalid-definition-description",
    ),
    (
        Rule::ExposeProtoCasing,
        "ExposeProtoCasing",
        "Protocol in EXPOSE instruction should be lowercase",
        "expose-proto-casing",
    ),
    (
        Rule::ExposeInvalidFormat,
        "ExposeInvalidFormat",
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
        "expose-invalid-format",
    ),
];

impl Rule {
    /// The documented name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// What it is about, in one sentence.
    #[must_use]
    pub fn description(self) -> &'static str {
        self.facts().2
    }

    /// Where it is documented, if it is.
    #[must_use]
    pub fn url(self) -> Option<String> {
        let page = Some(self.facts().3).filter(|page| !page.is_empty())?;
        Some(format!("https://docs.docker.com/go/dockerfile/rule/{page}/"))
    }

    /// Whether it is checked only where `experimental=` asks for it.
    #[must_use]
    pub fn is_experimental(self) -> bool {
        self == Rule::InvalidDefinitionDescription
    }

    /// Whether it is found while the instructions are read one by one, and so also before a mistake in a later one.
    #[must_use]
    pub(crate) fn is_about_reading(self) -> bool {
        matches!(
            self,
            Rule::MaintainerDeprecated
                | Rule::StageNameCasing
                | Rule::FromAsCasing
                | Rule::InvalidDefinitionDescription
        )
    }

    /// Whether it looks at what a stage does, so that it says nothing of a stage that is not built.
    #[must_use]
    pub(crate) fn is_about_built_stages(self) -> bool {
        matches!(
            self,
            Rule::UndefinedVar
                | Rule::LegacyKeyValueFormat
                | Rule::JSONArgsRecommended
                | Rule::MultipleInstructionsDisallowed
                | Rule::SecretsUsedInArgOrEnv
                | Rule::WorkdirRelativePath
                | Rule::CopyIgnoredFile
                | Rule::ExposeProtoCasing
                | Rule::ExposeInvalidFormat
        )
    }

    /// Whether a comment above an instruction can skip it there; the others look at the whole file.
    pub(super) fn is_about_one_instruction(self) -> bool {
        !matches!(
            self,
            Rule::ConsistentInstructionCasing
                | Rule::DuplicateStageName
                | Rule::ReservedStageName
                | Rule::InvalidDefaultArgInFrom
                | Rule::NoEmptyContinuation
        )
    }

    fn facts(self) -> &'static (Rule, &'static str, &'static str, &'static str) {
        FACTS.iter().find(|facts| facts.0 == self).expect("every rule has its line")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_own_facts() {
        for (rule, name, _, page) in FACTS {
            assert_eq!((rule.name(), format!("{rule:?}").as_str()), (name, name));
            let words = page.replace('-', "");
            assert!(page.is_empty() || words == name.to_lowercase(), "{name}: {page}");
        }
        assert_eq!(Rule::InvalidBaseImagePlatform.url(), None);
    }
}
