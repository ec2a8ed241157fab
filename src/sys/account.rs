//! The host's users and groups (nsswitch.conf(5)). A lookup may block for as long as a directory
//! server takes.

use nix::unistd::{Group, Uid, User};

use crate::value::Operator;

/// Returns the number of a user or a group; `None` if the host does not know the name or the lookup
/// fails.
pub fn id(account: &Operator) -> Option<u32> {
    match account {
        Operator::Uid(id) | Operator::Gid(id) => Some(*id),
        Operator::User(name) => Some(User::from_name(name).ok()??.uid.as_raw()),
        Operator::Group(name) => Some(Group::from_name(name).ok()??.gid.as_raw()),
    }
}

/// Returns the name of a user.
pub fn name(uid: u32) -> Option<String> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_and_number() {
        for text in ["root", "@root", "0", "@0"] {
            assert_eq!(id(&text.parse().unwrap()), Some(0), "{text}");
        }
        assert_eq!(name(0).as_deref(), Some("root"));
        assert_eq!(id(&"no-such-user-here".parse().unwrap()), None);
        assert_eq!(id(&"@no-such-group-here".parse().unwrap()), None);
    }
}
