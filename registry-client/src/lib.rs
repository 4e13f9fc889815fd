//! Moves container images between registries, OCI layouts and archives.
