//! A bill of materials in the form of SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>).
//!
//! Invariant: the document depends on the image alone: its name is the image's configuration, its time the image's.

use serde_json::{Value, json};

use super::packages::{Package, Packages};
use crate::built::BuiltImage;
use crate::materials::escaped;

pub(super) const PREDICATE_TYPE: &str = "https://spdx.dev/Document";
const UNKNOWN: &str = "NOASSERTION";
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-Image";

/// The document of an image that was made at a time, as RFC 3339.
pub(super) fn document(found: &Packages, image: &BuiltImage, created: &str) -> Value {
    let config = image.config.digest();
    let packages = found.list.iter().enumerate().map(|(number, package)| described(found, number, package));
    let whole = json!({
        "SPDXID": IMAGE,
        "name": config.to_string(),
        "versionInfo": image.platform.to_string(),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
    });
    let contains = (0..found.list.len()).map(|number| relation(IMAGE, "CONTAINS", &id(number)));
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": config.to_string(),
        "documentNamespace": format!("urn:oci:config:{config}:packages"),
        "creationInfo": {
            "created": created,
            "creators": [concat!("Tool: nacre-", env!("CARGO_PKG_VERSION"))],
            "comment": "packages of dpkg and apk",
        },
        "packages": std::iter::once(whole).chain(packages).collect::<Vec<_>>(),
        "relationships":
            std::iter::once(relation(DOCUMENT, "DESCRIBES", IMAGE)).chain(contains).collect::<Vec<_>>(),
    })
}

fn id(number: usize) -> String {
    format!("SPDXRef-Package-{}", number + 1)
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn described(found: &Packages, number: usize, package: &Package) -> Value {
    json!({
        "SPDXID": id(number),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": package.supplier.as_ref().map_or_else(|| UNKNOWN.to_owned(), |who| format!("Organization: {who}")),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        // What is no expression of SPDX's would make the document invalid.
        "licenseDeclared": UNKNOWN,
        "licenseComments": package.license,
        "copyrightText": UNKNOWN,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": uri(found, package),
        }],
    })
}

/// <https://github.com/package-url/purl-spec/blob/main/types-doc/deb-definition.md>
fn uri(found: &Packages, package: &Package) -> String {
    let vendor = found.distribution.as_deref().map(|name| format!("{}/", escaped(name))).unwrap_or_default();
    let mut qualifiers = Vec::new();
    if let Some(architecture) = &package.architecture {
        qualifiers.push(format!("arch={}", escaped(architecture)));
    }
    if let (Some(name), Some(version)) = (&found.distribution, &found.distribution_version) {
        qualifiers.push(format!("distro={}", escaped(&format!("{name}-{version}"))));
    }
    let question = if qualifiers.is_empty() { "" } else { "?" };
    let (name, version) = (escaped(&package.name), escaped(&package.version));
    format!("pkg:{}/{vendor}{name}@{version}{question}{}", package.kind, qualifiers.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_package_urls() {
        let package = Package {
            kind: "deb",
            name: "libstdc++6".to_owned(),
            version: "12.2.0-14+deb12u1".to_owned(),
            architecture: Some("amd64".to_owned()),
            license: None,
            supplier: None,
        };
        let found = Packages {
            list: Vec::new(),
            distribution: Some("debian".to_owned()),
            distribution_version: Some("12".to_owned()),
        };
        assert_eq!(
            uri(&found, &package),
            "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
        );
        assert_eq!(
            uri(&Packages::default(), &Package { architecture: None, ..package }),
            "pkg:deb/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1"
        );
    }
}
