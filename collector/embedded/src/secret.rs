//! The secret that opens the store, and who may pass.
//!
//! In: a file, and what a request presents. Out: yes or no, in a time that tells nothing about the secret. The secret is
//! ClickHouse's password of the one user `default`; it is never logged or shown.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use subtle::ConstantTimeEq as _;

/// The one user that there is.
pub const USER: &str = "default";

/// A new secret's random bytes; the file holds them as hex.
const SECRET_BYTES: usize = 32;
/// A shorter secret, put there by hand, is refused.
const SHORTEST_SECRET: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make the secret file {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "the secret file {0} can be read by every user of this host: chmod 600 it, and change the secret"
    )]
    Open(PathBuf),
    #[error(
        "the secret file {0} holds fewer than {SHORTEST_SECRET} characters: remove it, and a new one is made"
    )]
    Short(PathBuf),
}

pub struct Secret(String);

impl Secret {
    /// Reads the secret of `path`, having made the file (0600, random) if it is absent.
    pub fn of_file(path: &Path) -> Result<Self, SecretError> {
        match make(path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SecretError::Make { path: path.to_owned(), source });
            }
            _ => {}
        }
        let unreadable = |source| SecretError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o007 != 0 {
            return Err(SecretError::Open(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?.trim().to_owned();
        if text.len() < SHORTEST_SECRET {
            return Err(SecretError::Short(path.to_owned()));
        }
        Ok(Self(text))
    }

    /// Whether `presented` opens the store.
    pub fn admits(&self, presented: &Presented) -> bool {
        let key_fits = presented.key.as_bytes().ct_eq(self.0.as_bytes());
        let user_fits = presented.user.as_bytes().ct_eq(USER.as_bytes());
        (key_fits & user_fits).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The user and the password of a request.
pub struct Presented {
    user: String,
    key: String,
}

impl Presented {
    /// From the `X-ClickHouse-*` headers, else from Basic authorization, else from the URL; `None` without a password
    /// in any.
    pub fn of(headers: &HeaderMap, url: &[(String, String)]) -> Option<Self> {
        Self::of_headers(headers).or_else(|| Self::of_basic(headers)).or_else(|| Self::of_url(url))
    }

    fn new(user: Option<&str>, key: &str) -> Self {
        let user = user.filter(|user| !user.is_empty()).unwrap_or(USER);
        Self { user: user.to_owned(), key: key.to_owned() }
    }

    fn of_headers(headers: &HeaderMap) -> Option<Self> {
        let key = headers.get("x-clickhouse-key")?.to_str().ok()?;
        Some(Self::new(headers.get("x-clickhouse-user").and_then(|user| user.to_str().ok()), key))
    }

    fn of_basic(headers: &HeaderMap) -> Option<Self> {
        let (scheme, coded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then_some(())?;
        let plain = base64::engine::general_purpose::STANDARD.decode(coded.trim()).ok()?;
        let plain = String::from_utf8(plain).ok()?;
        let (user, key) = plain.split_once(':')?;
        Some(Self::new(Some(user), key))
    }

    fn of_url(url: &[(String, String)]) -> Option<Self> {
        let value = |name: &str| url.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        Some(Self::new(value("user"), value("password")?))
    }
}

/// Makes the file whole or not at all: nobody ever reads half a secret from it.
fn make(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut random = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            writeln!(file, "{hex}")?;
            file.sync_all()
        })
        // A link, unlike a rename, never replaces a secret that another process has just made.
        .and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    written?;
    removed?;
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(user: &str, key: &str) -> Presented {
        Presented::new(Some(user), key)
    }

    #[test]
    fn an_absent_secret_is_made_for_its_owner_alone_and_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store.secret");
        let made = Secret::of_file(&path).expect("a new secret");
        assert_eq!(made.0.len(), 2 * SECRET_BYTES);
        assert_eq!(fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        assert_eq!(Secret::of_file(&path).expect("the same secret").0, made.0);
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
        assert_eq!(format!("{made:?}"), "Secret(..)");
    }

    #[test]
    fn a_secret_that_everyone_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store.secret");
        fs::write(&path, "0123456789abcdef0123").expect("a secret by hand");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
        assert!(matches!(Secret::of_file(&path), Err(SecretError::Open(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        assert!(Secret::of_file(&path).is_ok());
        fs::write(&path, "short").expect("a secret by hand");
        assert!(matches!(Secret::of_file(&path), Err(SecretError::Short(_))));
    }

    #[test]
    fn only_the_whole_secret_of_the_one_user_is_admitted() {
        let secret = Secret("0123456789abcdef".to_owned());
        assert!(secret.admits(&presented("default", "0123456789abcdef")));
        assert!(secret.admits(&presented("", "0123456789abcdef")));
        for (user, key) in [
            ("default", "0123456789abcde"),
            ("default", "0123456789abcdef0"),
            ("default", ""),
            ("root", "0123456789abcdef"),
        ] {
            assert!(!secret.admits(&presented(user, key)), "{user} {key}");
        }
    }

    #[test]
    fn a_password_is_found_in_headers_basic_and_url_in_this_order() {
        let url = vec![("password".to_owned(), "u".to_owned())];
        let mut headers = HeaderMap::new();
        assert!(Presented::of(&headers, &[]).is_none());
        assert_eq!(Presented::of(&headers, &url).expect("from the URL").key, "u");
        headers.insert(AUTHORIZATION, "Basic ZGVmYXVsdDpi".parse().expect("a value"));
        assert_eq!(Presented::of(&headers, &url).expect("from Basic").key, "b");
        headers.insert("x-clickhouse-key", "h".parse().expect("a value"));
        assert_eq!(Presented::of(&headers, &url).expect("from the headers").key, "h");
    }
}
