//! Users and groups of an image: who a container runs as, from its security context, its image and the passwd and
//! group files of its root, by the rules of containerd's CRI plugin.
//!
//! Everything but [`UserFiles::read`] is pure over text.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Files larger than this are no passwd files but an attempt to fill memory.
const FILE_LIMIT: u64 = 8 << 20;

/// runc and containerd allow ids up to this.
const MAX_ID: i64 = i32::MAX as i64;

/// The account files of a container root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserFiles {
    /// Text of `/etc/passwd`; empty where there is none.
    pub passwd: String,
    /// Text of `/etc/group`; empty where there is none.
    pub group: String,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, ascending, as containerd lists them: the primary one among them.
    pub additional_gids: Vec<u32>,
}

/// Why an account cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// An account file is there but unreadable.
    #[error("read {} of the container's root", path.display())]
    Read {
        /// The file, as the container sees it.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than `user:group`.
    #[error("invalid USER value {0:?}")]
    Invalid(String),
    /// A number outside of what runtimes allow.
    #[error("invalid USER value {0:?}: id out of range")]
    OutOfRange(String),
    /// The user's name is not in the image.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The group's name is not in the image.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// `run_as_group` without a user.
    #[error("user group {0} is specified without user")]
    GroupWithoutUser(i64),
    /// A policy of a newer CRI.
    #[error("supplemental groups policy {0} is not known")]
    UnknownPolicy(i32),
}

impl UserFiles {
    /// Reads `etc/passwd` and `etc/group` below `root`, following links only inside of it.
    pub fn read(root: &Path) -> Result<Self, UserError> {
        Ok(Self { passwd: read_inside(root, "etc/passwd")?, group: read_inside(root, "etc/group")? })
    }
}

fn read_inside(root: &Path, name: &str) -> Result<String, UserError> {
    let fault = |source| UserError::Read { path: Path::new("/").join(name), source };
    let file = match open_inside(root, name) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(error) => return Err(fault(error)),
    };
    // A fifo or device under this name would block or never end.
    if !file.metadata().map_err(fault)?.is_file() {
        return Err(fault(io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(fault)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens `name` below `root` so that no link leads out: by openat2 where the kernel has it (5.6), else by resolving
/// component by component.
fn open_inside(root: &Path, name: &str) -> io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::openat2(&dir, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => open_by_component(root, name, flags),
        Err(error) => Err(error.into()),
    }
}

fn open_by_component(root: &Path, name: &str, flags: OFlags) -> io::Result<std::fs::File> {
    let mut pending: Vec<String> = name.split('/').rev().map(str::to_owned).collect();
    let mut at = root.to_owned();
    let mut depth = 0;
    let mut links = 0;
    while let Some(part) = pending.pop() {
        match part.as_str() {
            "" | "." => continue,
            // The parent of the root is the root.
            ".." => {
                if depth > 0 {
                    at.pop();
                    depth -= 1;
                }
                continue;
            }
            _ => {}
        }
        let next = at.join(&part);
        if std::fs::symlink_metadata(&next)?.is_symlink() {
            links += 1;
            if links > 40 {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = std::fs::read_link(&next)?;
            let target = target.to_string_lossy();
            if target.starts_with('/') {
                at = root.to_owned();
                depth = 0;
            }
            pending.extend(target.split('/').rev().map(str::to_owned));
        } else {
            at = next;
            depth += 1;
        }
    }
    Ok(rustix::fs::open(&at, flags | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// One line of a passwd file.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        let home = rest.get(1).copied().unwrap_or("");
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// One line of a group file.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: gid.parse().ok()?, members: fields.next().unwrap_or("") })
    })
}

/// The home directory of a user id in a passwd text.
pub fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    accounts(passwd).find(|account| account.uid == uid).map(|account| account.home).filter(|h| !h.is_empty())
}

/// The user that the image or the pod names, and the groups that come with it.
pub fn resolve(
    sc: &v1::LinuxContainerSecurityContext,
    image_user: &str,
    files: &UserFiles,
) -> Result<ResolvedUser, UserError> {
    let (uid, gid) = match user_string(sc)? {
        Some(user) => lookup(&user, files)?,
        None if !image_user.is_empty() => lookup(image_user, files)?,
        None => (0, 0),
    };
    let policy = v1::SupplementalGroupsPolicy::try_from(sc.supplemental_groups_policy)
        .map_err(|_| UserError::UnknownPolicy(sc.supplemental_groups_policy))?;
    let mut gids: Vec<u32> = sc.supplemental_groups.iter().map(|gid| *gid as u32).collect();
    // containerd counts the primary group among the additional ones, so that dropping it needs a policy.
    gids.push(gid);
    if policy == v1::SupplementalGroupsPolicy::Merge {
        gids.extend(member_of(&group_subject(sc, image_user), files));
    }
    gids.sort_unstable();
    gids.dedup();
    Ok(ResolvedUser { uid, gid, additional_gids: gids })
}

/// `user[:group]` of the security context, `None` when it names nobody.
fn user_string(sc: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, UserError> {
    let group = sc.run_as_group.as_ref().map(|group| group.value);
    let user = match (sc.run_as_username.as_str(), &sc.run_as_user) {
        ("", Some(uid)) => uid.value.to_string(),
        ("", None) => return group.map_or(Ok(None), |gid| Err(UserError::GroupWithoutUser(gid))),
        (name, _) => name.to_owned(),
    };
    Ok(Some(match group {
        Some(gid) => format!("{user}:{gid}"),
        None => user,
    }))
}

/// Whose memberships in the group file count: the user, without the group that the image's USER may carry.
fn group_subject(sc: &v1::LinuxContainerSecurityContext, image_user: &str) -> String {
    if !sc.run_as_username.is_empty() {
        return sc.run_as_username.clone();
    }
    if let Some(uid) = &sc.run_as_user {
        return uid.value.to_string();
    }
    match image_user.split(':').next() {
        Some(user) if !user.is_empty() => user.to_owned(),
        _ => "0".to_owned(),
    }
}

fn member_of(subject: &str, files: &UserFiles) -> Vec<u32> {
    let name = match subject.parse::<u32>() {
        Ok(uid) => match accounts(&files.passwd).find(|account| account.uid == uid) {
            Some(account) => account.name,
            None => return Vec::new(),
        },
        Err(_) => subject,
    };
    groups(&files.group)
        .filter(|group| group.name != name && group.members.split(',').any(|member| member.trim() == name))
        .map(|group| group.gid)
        .collect()
}

/// A number, a name, or neither of both in `field` of a USER value.
fn number(field: &str, whole: &str) -> Result<Option<u32>, UserError> {
    let digits = field.strip_prefix(['+', '-']).unwrap_or(field);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match field.parse::<i64>() {
        Ok(id) if (0..=MAX_ID).contains(&id) => Ok(Some(id as u32)),
        _ => Err(UserError::OutOfRange(whole.to_owned())),
    }
}

fn lookup(user: &str, files: &UserFiles) -> Result<(u32, u32), UserError> {
    let (name, group) = match user.split(':').collect::<Vec<_>>().as_slice() {
        [name] => (*name, None),
        [name, group] => (*name, Some(*group)),
        _ => return Err(UserError::Invalid(user.to_owned())),
    };
    let uid = number(name, user)?;
    let account = accounts(&files.passwd).find(|account| match uid {
        Some(uid) => account.uid == uid,
        None => account.name == name,
    });
    if uid.is_none() && account.is_none() {
        return Err(UserError::NoUser(name.to_owned()));
    }
    let gid = match group {
        // A user id without an account has group 0, as everywhere.
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(group) => match number(group, user)? {
            Some(gid) => gid,
            None => groups(&files.group)
                .find(|entry| entry.name == group)
                .map(|entry| entry.gid)
                .ok_or_else(|| UserError::NoGroup(group.to_owned()))?,
        },
    };
    let uid = uid.or(account.map(|account| account.uid)).expect("invariant: a name has an account by now");
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> UserFiles {
        UserFiles {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/sbin/nologin\n\
                     app:x:1000:1001:App:/home/app:/bin/sh\nbroken line\n"
                .into(),
            group:
                "root:x:0:\nwheel:x:10:root,app\nwww-data:x:33:\nmedia:x:44:app,www-data\napp:x:1001:app\n"
                    .into(),
        }
    }

    fn sc() -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext::default()
    }

    fn user(uid: u32, gid: u32, more: &[u32]) -> ResolvedUser {
        ResolvedUser { uid, gid, additional_gids: more.to_vec() }
    }

    #[test]
    fn image_users_resolve_as_containerd_does_it() {
        for (image, want) in [
            ("", user(0, 0, &[0, 10])),
            ("app", user(1000, 1001, &[10, 44, 1001])),
            ("1000", user(1000, 1001, &[10, 44, 1001])),
            ("1000:33", user(1000, 33, &[10, 33, 44])),
            ("app:media", user(1000, 44, &[10, 44])),
            ("5000", user(5000, 0, &[0])),
            ("5000:6000", user(5000, 6000, &[6000])),
            ("www-data", user(33, 33, &[33, 44])),
        ] {
            assert_eq!(resolve(&sc(), image, &files()).unwrap(), want, "USER {image:?}");
        }
    }

    #[test]
    fn the_pod_overrides_the_image() {
        let run_as = |uid, gid: Option<i64>| v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: uid }),
            run_as_group: gid.map(|value| v1::Int64Value { value }),
            ..sc()
        };
        assert_eq!(
            resolve(&run_as(1000, None), "root", &files()).unwrap(),
            user(1000, 1001, &[10, 44, 1001])
        );
        assert_eq!(resolve(&run_as(7, Some(8)), "app", &files()).unwrap(), user(7, 8, &[8]));
        let strict = v1::LinuxContainerSecurityContext {
            supplemental_groups: vec![99, 7],
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
            ..run_as(1000, None)
        };
        assert_eq!(resolve(&strict, "", &files()).unwrap(), user(1000, 1001, &[7, 99, 1001]));
        let merge = v1::LinuxContainerSecurityContext { supplemental_groups_policy: 0, ..strict };
        assert_eq!(resolve(&merge, "", &files()).unwrap(), user(1000, 1001, &[7, 10, 44, 99, 1001]));
    }

    #[test]
    fn bad_users_are_named() {
        let error = |image: &str| resolve(&sc(), image, &files()).unwrap_err().to_string();
        assert_eq!(error("nobody"), "unable to find user nobody: no matching entries in passwd file");
        assert_eq!(error("app:nogroup"), "unable to find group nogroup: no matching entries in group file");
        assert_eq!(error("4294967295"), "invalid USER value \"4294967295\": id out of range");
        assert_eq!(error("-1"), "invalid USER value \"-1\": id out of range");
        assert_eq!(error("a:b:c"), "invalid USER value \"a:b:c\"");
        let group_only =
            v1::LinuxContainerSecurityContext { run_as_group: Some(v1::Int64Value { value: 5 }), ..sc() };
        assert_eq!(
            resolve(&group_only, "", &files()).unwrap_err().to_string(),
            "user group 5 is specified without user"
        );
    }

    #[test]
    fn account_files_are_read_inside_of_the_root_only() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::create_dir_all(root.path().join("usr/etc")).unwrap();
        std::fs::write(root.path().join("usr/etc/group"), "g:x:5:\n").unwrap();
        std::os::unix::fs::symlink("../../../../usr/etc/group", root.path().join("etc/group")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), root.path().join("etc/passwd")).unwrap();
        let files = UserFiles::read(root.path()).unwrap();
        assert_eq!((files.passwd.as_str(), files.group.as_str()), ("", "g:x:5:\n"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        assert!(open_by_component(root.path(), "etc/passwd", flags).is_err());
        assert!(open_by_component(root.path(), "etc/group", flags).is_ok());
    }

    #[test]
    fn home_comes_from_the_account() {
        assert_eq!(home_of(&files().passwd, 1000), Some("/home/app"));
        assert_eq!(home_of(&files().passwd, 4242), None);
    }
}
