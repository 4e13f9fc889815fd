//! Users and groups of an image, looked up in its own `/etc/passwd` and `/etc/group`.
//!
//! Only text that was read from the image comes in; the host's accounts play no part. The rules
//! are those of Docker's `USER` and of BuildKit's `--chown`, which differ from each other.

use crate::changeset::Owner;

/// The accounts that an image knows.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Account {
    pub(crate) owner: Owner,
    /// Supplementary groups, ascending.
    pub(crate) groups: Vec<u32>,
    /// The home directory, where the user is known.
    pub(crate) home: Option<String>,
}

/// A name that neither is a number nor stands in the image's files.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UnknownAccount {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
}

impl Accounts {
    /// Reads the two files; lines that are no accounts are skipped, as libc does.
    pub(crate) fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let users = String::from_utf8_lossy(passwd)
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.trim().split(':').collect();
                Some(User {
                    name: fields.first().filter(|name| !name.is_empty())?.to_string(),
                    uid: fields.get(2)?.parse().ok()?,
                    gid: fields.get(3)?.parse().ok()?,
                    home: fields.get(5).copied().unwrap_or_default().to_owned(),
                })
            })
            .collect();
        let groups = String::from_utf8_lossy(group)
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.trim().split(':').collect();
                Some(Group {
                    name: fields.first().filter(|name| !name.is_empty())?.to_string(),
                    gid: fields.get(2)?.parse().ok()?,
                    members: fields.get(3).unwrap_or(&"").split(',').map(str::to_owned).collect(),
                })
            })
            .collect();
        Self { users, groups }
    }

    /// Whom `USER text` means: `user`, `uid`, `user:group`, and so on; empty is root.
    /// What follows a second colon counts for nothing, as in runc.
    pub(crate) fn identity(&self, text: &str) -> Result<Account, UnknownAccount> {
        let mut parts = text.split(':');
        let (user_text, group_text) =
            (parts.next().unwrap_or_default(), parts.next().filter(|group| !group.is_empty()));
        let user_text = if user_text.is_empty() { "0" } else { user_text };
        let known = self.user(user_text);
        let uid = match (known, user_text.parse::<u32>()) {
            (Some(user), _) => user.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(UnknownAccount::User(user_text.to_owned())),
        };
        let home = known.map(|user| user.home.clone());
        if let Some(group_text) = group_text {
            let gid = self.gid(group_text).ok_or_else(|| UnknownAccount::Group(group_text.to_owned()))?;
            return Ok(Account { owner: Owner { uid, gid }, groups: vec![gid], home });
        }
        let gid = known.map_or(0, |user| user.gid);
        let mut groups = vec![gid];
        if let Some(user) = known {
            groups.extend(self.groups.iter().filter(|g| g.members.contains(&user.name)).map(|g| g.gid));
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(Account { owner: Owner { uid, gid }, groups, home })
    }

    /// Whom `--chown=text` means, and whose a WORKDIR is. As in BuildKit a number is the group, too, whatever the files
    /// say, an unknown user is root, and an unknown group the user's, but an empty one (`1000:`) root's; with `--link`,
    /// which has no files to look in, every name but root is unknown and an error.
    pub(crate) fn owner(&self, text: &str, is_link: bool) -> Result<Owner, UnknownAccount> {
        let (user_text, group_text) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let number = |text: &str| match text {
            "root" => Some(0),
            text => text.parse::<i32>().ok().map(i32::cast_unsigned),
        };
        let (uid, own_gid) = match (self.user(user_text), number(user_text)) {
            (_, Some(uid)) => (uid, uid),
            (Some(user), _) => (user.uid, user.gid),
            (None, _) if is_link && !user_text.is_empty() => return Err(UnknownAccount::User(user_text.to_owned())),
            (None, _) => (0, 0),
        };
        let gid = match group_text {
            None => own_gid,
            Some("") => 0,
            Some(group) => match number(group).or_else(|| self.gid(group)) {
                Some(gid) => gid,
                None if is_link => return Err(UnknownAccount::Group(group.to_owned())),
                None => own_gid,
            },
        };
        Ok(Owner { uid, gid })
    }

    /// A number is never a name, even if there is a user or a group of that name.
    fn user(&self, text: &str) -> Option<&User> {
        match text.parse::<u32>() {
            Ok(uid) => self.users.iter().find(|user| user.uid == uid),
            Err(_) => self.users.iter().find(|user| user.name == text),
        }
    }

    fn gid(&self, text: &str) -> Option<u32> {
        let by_name = || self.groups.iter().find(|group| group.name == text).map(|group| group.gid);
        text.parse().ok().or_else(by_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            b"root:x:0:0:root:/root:/bin/sh\nbroken\ndaemon:x:1:1::/:\napp:x:1000:1000:app:/home/app:/bin/sh\n",
            b"root:x:0:\ndaemon:x:1:\napp:x:1000:\nextra:x:2000:app\n",
        )
    }

    #[test]
    fn a_user_name_brings_its_group_and_its_supplementary_groups() {
        let identity = accounts().identity("app").expect("app is known");
        assert_eq!(identity.owner, Owner { uid: 1000, gid: 1000 });
        assert_eq!(identity.groups, [1000, 2000]);
        assert_eq!(identity.home.as_deref(), Some("/home/app"));
    }

    #[test]
    fn an_unknown_number_is_a_user_of_group_root() {
        let identity = accounts().identity("4242").expect("a number is always a user");
        assert_eq!(identity.owner, Owner { uid: 4242, gid: 0 });
    }

    #[test]
    fn a_number_is_no_name_and_blanks_around_a_line_count_for_nothing() {
        let accounts = Accounts::parse(b"7:x:9:8::/:\n \tapp:x:5:6::/home:\r\n", b"7:x:9:\n  crew:x:4: \n");
        assert_eq!(accounts.identity("7").expect("a number").owner, Owner { uid: 7, gid: 0 });
        assert_eq!(accounts.identity("app:7").expect("a number").owner, Owner { uid: 5, gid: 7 });
        assert_eq!(accounts.identity("app:crew").expect("known").owner, Owner { uid: 5, gid: 4 });
    }

    #[test]
    fn an_unknown_name_cannot_run_anything() {
        assert_eq!(accounts().identity("nobody"), Err(UnknownAccount::User("nobody".to_owned())));
    }

    #[test]
    fn chown_takes_a_bare_number_for_the_group_as_well() {
        assert_eq!(accounts().owner("1234", false), Ok(Owner { uid: 1234, gid: 1234 }));
        assert_eq!(accounts().owner("daemon:2345", false), Ok(Owner { uid: 1, gid: 2345 }));
    }

    #[test]
    fn chown_to_an_empty_user_or_group_is_to_root() {
        for is_link in [false, true] {
            assert_eq!(accounts().owner("1000:", is_link), Ok(Owner { uid: 1000, gid: 0 }));
            assert_eq!(accounts().owner("app:", is_link), Ok(Owner { uid: 1000, gid: 0 }));
            assert_eq!(accounts().owner(":7", is_link), Ok(Owner { uid: 0, gid: 7 }));
            assert_eq!(accounts().owner(":", is_link), Ok(Owner { uid: 0, gid: 0 }));
        }
    }

    #[test]
    fn chown_of_an_unknown_name_is_root_but_an_error_with_link() {
        assert_eq!(accounts().owner("nobody", false), Ok(Owner { uid: 0, gid: 0 }));
        assert_eq!(accounts().owner("app:nothere", false), Ok(Owner { uid: 1000, gid: 1000 }));
        assert!(Accounts::default().owner("nobody", true).is_err());
    }
}
