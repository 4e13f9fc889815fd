//! The verbs, one a file: each has its arguments and a `run`.

pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod mount;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod tag;
pub(crate) mod unmount;
pub(crate) mod unshare;
