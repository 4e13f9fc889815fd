//! Builds container images from Dockerfiles.
