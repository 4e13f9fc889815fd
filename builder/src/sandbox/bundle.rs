//! A step as a bundle for an OCI runtime: `config.json`, and the files that it mounts.
//!
//! Invariant: a runtime is asked for exactly what our own sandbox does.
//! <https://github.com/opencontainers/runtime-spec>

use std::path::Path;

use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::cgroup_files::{PERIOD_US, Version, settings};
use super::devices::INSECURE_NODES;
use super::{During as _, EtcFiles, Failure, MountSource, Network, Process, Security, mounts, privileges, seccomp};
use crate::rootless::is_first_namespace;

/// Writes the bundle of `process` into a directory that is empty.
pub(super) fn write(process: &Process, directory: &Path) -> Result<(), Failure> {
    let write = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).during(|| format!("write {}", path.display()))
    };
    let mut files = Vec::new();
    for (number, (target, content)) in mounts::generated_files(process).into_iter().enumerate() {
        let name = number.to_string();
        write(&name, &content)?;
        files.push((target, directory.join(name)));
    }
    let mut mounts = kernel_mounts(process)?;
    mounts.extend(files.iter().map(|(target, path)| bind(target, path, process.etc_files == EtcFiles::Step)));
    mounts.extend(process.mounts.iter().map(|mount| match &mount.source {
        MountSource::Bind { path, read_only } => bind(&mount.target, path, *read_only),
        MountSource::Tmpfs { size_bytes, mode, read_only } => {
            let mut options = vec!["nosuid".to_owned(), "nodev".into()];
            // Without one a runtime takes that of the directory.
            options.extend(mode.map(|mode| format!("mode={mode:o}")));
            options.extend(size_bytes.map(|size| format!("size={size}")));
            options.extend(read_only.then(|| "ro".to_owned()));
            json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
    }));
    write("config.json", &config(process, &mounts)?.to_string())
}

fn bind(target: impl AsRef<Path>, path: &Path, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({"destination": target.as_ref(), "type": "bind", "source": path, "options": ["rbind", "rprivate", access]})
}

fn kernel_mounts(process: &Process) -> Result<Vec<Value>, Failure> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let shm_size = format!("size={}", process.shm_size_bytes);
    let access = if process.security == Security::Sandbox { "ro" } else { "rw" };
    let map = std::fs::read_to_string("/proc/self/uid_map").during(|| "read /proc/self/uid_map".into())?;
    let is_in_user_namespace = !is_first_namespace(&map);
    // A network namespace that is not ours lets nobody mount a new one.
    let sys = match is_in_user_namespace && process.network != Network::None {
        true => json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", access]}),
        false => mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
    };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !is_in_user_namespace {
        terminals.push("gid=5");
    }
    Ok(vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &terminals),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
    ])
}

fn config(process: &Process, mounts: &[Value]) -> Result<Value, Failure> {
    let is_sandbox = process.security == Security::Sandbox;
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if process.network == Network::None {
        namespaces.push("network");
    }
    let mut linux = json!({
        "namespaces": namespaces.into_iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
        "resources": resources(process)?,
    });
    if let Some(parent) = &process.limits.parent {
        linux["cgroupsPath"] = format!("{}/nacre-{}", parent.trim_end_matches('/'), std::process::id()).into();
    }
    if is_sandbox {
        // A runtime permits those that every container has.
        linux["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
        linux["seccomp"] = seccomp::as_oci();
        linux["maskedPaths"] = json!(mounts::masked().collect::<Vec<_>>());
        linux["readonlyPaths"] = json!(mounts::READ_ONLY);
    } else if std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_first_namespace(&map)) {
        linux["devices"] = INSECURE_NODES
            .into_iter()
            .map(|(name, is_block, major, minor)| {
                let kind = if is_block { "b" } else { "c" };
                json!({"path": format!("/dev/{name}"), "type": kind, "major": major, "minor": minor, "fileMode": 0o666})
            })
            .collect();
        linux["resources"]["devices"] =
            json!([{"allow": true, "type": "c", "access": "rwm"}, {"allow": true, "type": "b", "access": "rwm"}]);
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": process.root, "readonly": process.read_only_root},
        "hostname": process.hostname,
        "mounts": mounts,
        "process": {
            "terminal": process.terminal,
            "user": {
                "uid": process.user.uid, "gid": process.user.gid, "umask": 0o022,
                "additionalGids": process.user.groups,
            },
            "args": process.argv,
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": capabilities(process)?,
            "rlimits": process.ulimits.iter().map(|limit| json!({
                "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
                "soft": limit.soft.unwrap_or(u64::MAX),
                "hard": limit.hard.unwrap_or(u64::MAX),
            })).collect::<Vec<_>>(),
            "noNewPrivileges": false,
        },
        "linux": linux,
    }))
}

fn capabilities(process: &Process) -> Result<Value, Failure> {
    let held = rustix::thread::capabilities(None).during(|| "read the capabilities".into())?.permitted;
    let bounding = match process.security {
        Security::Sandbox => held & privileges::DOCKER_DEFAULT,
        Security::Insecure => held,
    };
    let bounding = names(bounding);
    let of_process = if process.user.uid == 0 { bounding.clone() } else { Vec::new() };
    Ok(
        json!({"bounding": bounding, "effective": of_process, "permitted": of_process, "inheritable": [], "ambient": []}),
    )
}

fn names(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

/// The limits as the files of version 2 where the specification has no other word, else in its own.
fn resources(process: &Process) -> Result<Value, Failure> {
    let limits = &process.limits;
    // The words below say the same; this finds what makes no sense.
    let swap = settings(limits)?;
    let mut resources = json!({});
    if let Some(memory) = limits.memory_bytes {
        let files = swap.iter().flat_map(|setting| setting.files(Version::One));
        let both = files.filter(|write| write.name == "memory.memsw.limit_in_bytes" && !write.is_optional);
        let both = both.map(|write| write.value.parse::<i64>().expect("it is written from a number")).next();
        resources["memory"] = json!({"limit": memory});
        if let Some(both) = both {
            resources["memory"]["swap"] = both.into();
        }
    }
    let mut cpu = json!({});
    if let Some(millis) = limits.cpu_millis {
        cpu["period"] = PERIOD_US.into();
        cpu["quota"] = millis.saturating_mul(PERIOD_US / 1000).into();
    }
    if let Some(shares) = limits.cpu_shares {
        cpu["shares"] = shares.into();
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu["cpus"] = cpus.as_str().into();
    }
    if cpu != json!({}) {
        resources["cpu"] = cpu;
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({"limit": pids});
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Limits, Mount, SwapLimit};

    #[test]
    fn bundle_asks_for_what_the_sandbox_does() {
        let mut process = Process::new("/r", ["sh"]);
        process.network = Network::None;
        process.mounts = vec![
            Mount { target: "/a".into(), source: MountSource::Bind { path: "/b".into(), read_only: true } },
            Mount {
                target: "/t".into(),
                source: MountSource::Tmpfs { size_bytes: Some(7), mode: Some(0o700), read_only: true },
            },
        ];
        process.limits = Limits {
            memory_bytes: Some(100),
            memory_swap: Some(SwapLimit::Bytes(150)),
            cpu_millis: Some(1500),
            pids: Some(5),
            parent: Some("/p/".into()),
            ..Limits::default()
        };
        let directory = tempfile::tempdir().expect("a directory");
        write(&process, directory.path()).expect("written");
        let text = std::fs::read_to_string(directory.path().join("config.json")).expect("there");
        let config: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            config["linux"]["resources"],
            json!({
                "memory": {"limit": 100, "swap": 150}, "cpu": {"period": 100_000, "quota": 150_000}, "pids": {"limit": 5}, "devices": [{"allow": false, "access": "rwm"}]
            })
        );
        assert!(config["linux"]["cgroupsPath"].as_str().is_some_and(|path| path.starts_with("/p/nacre-")));
        let of = |target: &str| {
            let mounts = config["mounts"].as_array().expect("a list");
            mounts.iter().find(|mount| mount["destination"] == target).expect("there")["options"].clone()
        };
        assert_eq!(
            (of("/a"), of("/t")),
            (json!(["rbind", "rprivate", "ro"]), json!(["nosuid", "nodev", "mode=700", "size=7", "ro"]))
        );
        assert!(config["linux"]["namespaces"].as_array().expect("a list").contains(&json!({"type": "network"})));
        let hosts = std::fs::read_to_string(directory.path().join("0")).expect("there");
        assert!(hosts.contains("buildkitsandbox"));
    }
}
