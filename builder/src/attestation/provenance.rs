//! How an image was built, as SLSA describes it (<https://slsa.dev/spec/v1.1/provenance>) with the parameters that
//! BuildKit defines (<https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md>).
//!
//! Invariant: no secret's value, no path of this machine and no clock. A build that is told to be brief tells what it
//! took and from where, but no value of an argument or label.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::materials::Material;
use crate::request::Provenance;
use crate::request::{BuildRequest, MainContext};

pub(super) const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";

/// Of a build that took these materials.
pub(super) fn predicate(request: &BuildRequest, asked: &Provenance, materials: &[Material]) -> Value {
    let definition = json!({
        "buildType": BUILD_TYPE,
        "externalParameters": {"configSource": config_source(request), "request": parameters(request, asked.is_whole)},
        "internalParameters": {"builderPlatform": request.build_platform.to_string()},
        "resolvedDependencies": materials,
    });
    let mut metadata = json!({
        // The same for every build of the same: nothing else is known of the one that it was.
        "invocationID": layerfs::digest_of(definition.to_string().as_bytes()).digest(),
        // The context's files and what steps fetch are no materials, and not every flag is a parameter.
        "buildkit_completeness": {"request": false, "resolvedDependencies": false},
    });
    if asked.is_whole {
        let data = BASE64.encode(request.dockerfile.bytes());
        let source = json!({"filename": dockerfile_name(request), "language": "Dockerfile", "data": data});
        metadata["buildkit_metadata"] = json!({"source": {"infos": [source]}});
    }
    json!({
        "buildDefinition": definition,
        "runDetails": {"builder": {"id": asked.builder}, "metadata": metadata},
    })
}

/// The name of the Dockerfile without the directories that it lies in here.
fn dockerfile_name(request: &BuildRequest) -> String {
    let given = request.dockerfile_path.as_deref().and_then(|path| path.file_name());
    given.map_or_else(|| "Dockerfile".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn config_source(request: &BuildRequest) -> Value {
    let mut source = json!({"path": dockerfile_name(request)});
    if let MainContext::Fetched(fetched) = &request.context
        && let Some(material) = &fetched.material
    {
        source["uri"] = json!(material.uri);
        source["digest"] = json!(material.digest);
    }
    source
}

fn parameters(request: &BuildRequest, is_whole: bool) -> Value {
    let mut args = BTreeMap::new();
    if is_whole {
        args.extend(request.build_args.iter().map(|(name, value)| (format!("build-arg:{name}"), value.clone())));
        args.extend(request.labels.iter().map(|(name, value)| (format!("label:{name}"), value.clone())));
    }
    if let Some(target) = &request.target {
        args.insert("target".to_owned(), target.clone());
    }
    let mut parameters = json!({"frontend": "dockerfile.v0", "args": args});
    if matches!(request.context, MainContext::Directory(_)) {
        parameters["locals"] = json!([{"name": "context"}, {"name": "dockerfile"}]);
    }
    if is_whole {
        let ids = |ids: Vec<&String>| ids.into_iter().map(|id| json!({"id": id})).collect::<Vec<_>>();
        parameters["secrets"] = json!(ids(request.secrets.keys().collect()));
        parameters["ssh"] = json!(ids(request.ssh.keys().collect()));
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::Source;
    use crate::secret::Secret;

    fn request() -> BuildRequest {
        let dockerfile = Source::new("Dockerfile", b"FROM scratch\n");
        let mut request = BuildRequest::new(dockerfile, "/home/me/context");
        request.dockerfile_path = Some("/home/me/context/app.Dockerfile".into());
        request.build_args.insert("TOKEN".to_owned(), "argument".to_owned());
        request.secrets.insert("key".to_owned(), Secret(b"value".as_slice().into()));
        request
    }

    #[test]
    fn a_brief_statement_has_no_values_and_a_whole_one_no_secrets() {
        let materials = [Material::commit("git".to_owned(), "12")];
        let said = |is_whole| predicate(&request(), &Provenance { is_whole, builder: String::new() }, &materials);
        let (brief, whole) = (said(false), said(true));
        assert_eq!(brief["buildDefinition"]["resolvedDependencies"], json!([{"uri": "git", "digest": {"sha1": "12"}}]));
        assert_eq!(brief["buildDefinition"]["externalParameters"]["configSource"], json!({"path": "app.Dockerfile"}));
        for unsaid in ["argument", "TOKEN", "key", "value", "/home"] {
            assert!(!brief.to_string().contains(unsaid), "{unsaid} in {brief}");
        }
        let asked = &whole["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(asked["args"], json!({"build-arg:TOKEN": "argument"}));
        assert_eq!(asked["secrets"], json!([{"id": "key"}]));
        assert_eq!(
            whole["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0]["data"],
            "RlJPTSBzY3JhdGNoCg=="
        );
        for unsaid in ["\"value\"", "/home"] {
            assert!(!whole.to_string().contains(unsaid), "{unsaid} in {whole}");
        }
        assert_eq!(said(true), whole);
    }
}
