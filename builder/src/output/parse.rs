//! `type=oci,dest=out.tar,...` as BuildKit writes it to an [`Output`].
//!
//! Invariant: what is not supported, or has no meaning for the type, is an error that names it.
//! <https://docs.docker.com/build/exporters/>

use std::path::PathBuf;
use std::str::FromStr;

use layerfs::Compression;

use super::{Annotation, Archive, ImageForm, Naming, Output, OutputTarget};
use crate::fields::Fields;
use crate::fields::packing;

impl FromStr for Output {
    type Err = String;

    /// `type=oci,dest=out.tar`, or a bare directory for `type=local`, or `-` for a tar on standard output.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            return Ok(match text {
                "-" => OutputTarget::Tar("-".into()).into(),
                directory => local(directory.into(), false, None).into(),
            });
        }
        let mut fields = Fields::parse(text)?;
        let kind = fields.take("type").ok_or("it has no type=")?;
        let target = target(&mut fields, &kind)?;
        let mut output = Self::from(target);
        if output.takes_annotations() {
            output.form = form(&mut fields)?;
        }
        if matches!(output.target, OutputTarget::Docker(_)) {
            docker_form(&mut fields)?;
        }
        output.rewrites_times = match fields.boolean("rewrite-timestamp")? {
            None => false,
            Some(true) => true,
            Some(false) => {
                let why = "times in layers are always those of the build; --source-date-epoch=none keeps real ones";
                return Err(format!("rewrite-timestamp=false is not supported: {why}"));
            }
        };
        fields.finish(&format!("type={kind}"))?;
        Ok(output)
    }
}

fn target(fields: &mut Fields, kind: &str) -> Result<OutputTarget, String> {
    let path = || PathBuf::from("-");
    Ok(match kind {
        "image" | "registry" => OutputTarget::Image(naming(fields, kind == "registry")?),
        "oci" => OutputTarget::Oci(archive(fields)?),
        "docker" => OutputTarget::Docker(archive(fields)?),
        "tar" => OutputTarget::Tar(fields.take("dest").map_or_else(path, PathBuf::from)),
        "local" => {
            let directory = fields.take("dest").ok_or("type=local needs dest=")?;
            let removes_others = match fields.take("mode").as_deref() {
                None | Some("copy") => false,
                Some("delete") => true,
                Some(other) => return Err(format!("mode={other} is not supported: copy or delete")),
            };
            local(directory.into(), removes_others, fields.boolean("platform-split")?)
        }
        "cacheonly" => OutputTarget::CacheOnly,
        other => {
            let supported = "oci, docker, local, tar, image, registry or cacheonly";
            return Err(format!("type={other} is not supported: {supported}"));
        }
    })
}

fn local(directory: PathBuf, removes_others: bool, is_split: Option<bool>) -> OutputTarget {
    OutputTarget::Local { directory, removes_others, is_split }
}

fn names(fields: &mut Fields) -> Vec<String> {
    let names = fields.take("name").unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn naming(fields: &mut Fields, is_pushed: bool) -> Result<Naming, String> {
    let naming = Naming {
        names: names(fields),
        is_pushed: fields.boolean("push")?.unwrap_or(is_pushed),
        by_digest: fields.boolean("push-by-digest")?.unwrap_or(false),
        is_canonical: fields.boolean("name-canonical")?.unwrap_or(false),
        dangling_prefix: fields.take("dangling-name-prefix"),
        is_not_kept: !fields.boolean("store")?.unwrap_or(true),
    };
    if naming.by_digest && !naming.is_pushed {
        return Err("push-by-digest=true needs push=true".to_owned());
    }
    if naming.is_not_kept && !naming.is_pushed {
        return Err("store=false without push=true would keep the image nowhere".to_owned());
    }
    Ok(naming)
}

/// Without a place it goes to standard output, as buildx has it.
fn archive(fields: &mut Fields) -> Result<Archive, String> {
    let is_directory = !fields.boolean("tar")?.unwrap_or(true);
    let path = fields.take("dest");
    if is_directory && path.as_deref().is_none_or(|path| path == "-") {
        return Err("tar=false needs dest= with a directory".to_owned());
    }
    Ok(Archive { names: names(fields), path: path.unwrap_or_else(|| "-".to_owned()).into(), is_directory })
}

fn form(fields: &mut Fields) -> Result<ImageForm, String> {
    let packing = packing(fields)?;
    let forces_packing = fields.boolean("force-compression")?.unwrap_or(false);
    let has_docker_types = !fields.boolean("oci-mediatypes")?.unwrap_or(true);
    if has_docker_types && packing.compression() == Compression::Zstd {
        return Err("compression=zstd needs OCI media types: Docker's have none for it".to_owned());
    }
    let annotations = fields.take_prefixed("annotation");
    let annotations = annotations.iter().map(|(rest, value)| Annotation::of_field(rest, value));
    let annotations = annotations.collect::<Result<Vec<_>, _>>()?;
    if has_docker_types && !annotations.is_empty() {
        return Err("annotation.* needs OCI media types: Docker's documents have none".to_owned());
    }
    Ok(ImageForm { packing, forces_packing, has_docker_types, annotations })
}

/// What `docker load` reads are plain tars, whatever an image is packed as.
fn docker_form(fields: &mut Fields) -> Result<(), String> {
    match fields.take("compression").as_deref() {
        None | Some("uncompressed") => {}
        Some(other) => {
            return Err(format!("compression={other} is not supported with type=docker, which holds plain tars"));
        }
    }
    match fields.boolean("oci-mediatypes")? {
        None | Some(false) => Ok(()),
        Some(true) => Err("oci-mediatypes=true is not supported with type=docker: use type=oci".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Output {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn archive(path: &str, is_directory: bool) -> Archive {
        Archive { names: Vec::new(), path: path.into(), is_directory }
    }

    #[test]
    fn outputs_are_written_as_docker_writes_them() {
        assert_eq!(parsed("type=oci,dest=a.tar").target, OutputTarget::Oci(archive("a.tar", false)));
        assert_eq!(parsed("type=oci").target, OutputTarget::Oci(archive("-", false)));
        assert_eq!(parsed("type=oci,tar=false,dest=d").target, OutputTarget::Oci(archive("d", true)));
        assert_eq!(parsed("type=docker,tar=false,dest=d").target, OutputTarget::Docker(archive("d", true)));
        assert_eq!(parsed("out").target, local("out".into(), false, None));
        assert_eq!(
            parsed("type=local,dest=out,mode=delete,platform-split=true").target,
            local("out".into(), true, Some(true))
        );
        assert_eq!(parsed("-").target, OutputTarget::Tar("-".into()));
        assert_eq!(parsed("type=image").target, OutputTarget::Image(Naming::default()));
        let names = vec!["a".to_owned(), "b:1".to_owned()];
        let naming = Naming { names, is_pushed: true, ..Naming::default() };
        assert_eq!(parsed(r#"type=registry,"name=a,b:1""#).target, OutputTarget::Image(naming));
    }

    #[test]
    fn the_form_of_an_image_is_read() {
        let form =
            parsed("type=image,compression=zstd,compression-level=19,force-compression=true,annotation-index.a=b").form;
        assert_eq!((form.packing.to_string().as_str(), form.forces_packing), ("zstd:19", true));
        assert_eq!(form.annotations.len(), 1);
        assert!(parsed("type=oci,oci-mediatypes=false,compression=uncompressed").form.has_docker_types);
    }

    #[test]
    fn what_is_not_supported_names_itself() {
        for (text, words) in [
            ("type=gha", "type=gha"),
            ("type=oci,compression=estargz", "estargz"),
            ("type=oci,compression=gzip:3", "gzip:3"),
            ("type=oci,compression-level=10", "10"),
            ("type=image,compression=uncompressed,compression-level=1", "level 1"),
            ("type=image,unpack=true", "unpack"),
            ("type=image,registry.insecure=true", "registry.insecure"),
            ("type=image,oci-mediatypes=false,compression=zstd", "zstd"),
            ("type=image,oci-mediatypes=false,annotation.a=b", "annotation"),
            ("type=image,push-by-digest=true", "push"),
            ("type=image,dest=x", "dest"),
            ("type=docker,compression=gzip", "gzip"),
            ("type=docker,annotation.a=b", "annotation.a"),
            ("type=local", "dest="),
            ("type=local,dest=x,mode=move", "move"),
            ("type=local,dest=x,compression=gzip", "compression"),
            ("type=tar,dest=x,platform-split=true", "platform-split"),
            ("type=oci,tar=false", "dest="),
            ("type=oci,dest=a,dest=b", "dest"),
            ("type=oci,rewrite-timestamp=false", "rewrite-timestamp"),
            ("type=oci,annotation-layer.a=b", "layer"),
        ] {
            let error = text.parse::<Output>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
