use std::collections::HashSet;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Names the folder that a process started by a test opens.
const CHILD_FOLDER: &str = "WEIR_TEST_CA_FOLDER";

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("ca");
    (place, folder)
}

/// The one error that opening must give.
fn refusal(folder: &Path) -> String {
    let error = Authority::open_or_create(folder, "other").unwrap_err().to_string();
    assert!(!error.contains('\n') && !error.contains("PRIVATE"), "{error}");
    error
}

#[test]
fn a_new_ca_is_named_for_its_host_and_may_sign_leaves_only() {
    let (_place, folder) = folder();
    let authority = Authority::open_or_create(&folder, "runner-7").unwrap();
    assert_eq!(authority.issuer(), "O=Weir, CN=Weir runner-7 CA");
    let (_, parsed) = x509_parser::parse_x509_certificate(authority.certificate()).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = parsed.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign());
    assert_eq!(usage.value.flags.count_ones(), 1);
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, i64::try_from((CA_LIFETIME + CA_BACKDATED).as_secs()).unwrap());
    assert!(parsed.validity().is_valid());
}

#[test]
fn a_long_host_name_still_makes_a_lawful_common_name() {
    let (_place, folder) = folder();
    let authority = Authority::open_or_create(&folder, &"long\n\u{e9}".repeat(40)).unwrap();
    let name = authority.issuer().strip_prefix("O=Weir, CN=").unwrap();
    assert_eq!(name.len(), 64);
    assert!(name.starts_with("Weir longlong") && name.ends_with(" CA"), "{name}");
}

#[test]
fn opening_again_gives_the_same_ca() {
    let (_place, folder) = folder();
    let first = Authority::open_or_create(&folder, "one").unwrap();
    let key = std::fs::read(folder.join("ca.key")).unwrap();
    let second = Authority::open_or_create(&folder, "two").unwrap();
    assert_eq!(first.certificate(), second.certificate());
    assert_eq!(first.issuer(), second.issuer());
    assert_eq!(first.expires(), second.expires());
    assert_eq!(key, std::fs::read(folder.join("ca.key")).unwrap());
}

#[test]
fn the_key_is_for_its_owner_alone_and_the_rest_for_everybody() {
    let (_place, folder) = folder();
    let authority = Authority::open_or_create(&folder, "h").unwrap();
    let bundle = authority.write_bundle(&[]).unwrap();
    assert_eq!(mode(&folder), 0o755);
    assert_eq!(mode(&folder.join("ca.key")), 0o600);
    assert_eq!(mode(&authority.certificate_path()), 0o644);
    assert_eq!(mode(&bundle), 0o644);
    let names: HashSet<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ca.key", "ca.pem", "bundle.pem"].map(Into::into).into(), "nothing else is left");
}

#[test]
fn debug_does_not_show_the_key() {
    let (_place, folder) = folder();
    let authority = Authority::open_or_create(&folder, "h").unwrap();
    let text = format!("{authority:?}");
    assert!(text.contains("<redacted>") && text.len() < 300, "{text}");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let (_place, folder) = folder();
    Authority::open_or_create(&folder, "h").unwrap();
    for exposed in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(folder.join("ca.key"), Permissions::from_mode(exposed)).unwrap();
        let error = refusal(&folder);
        assert!(error.contains("ca.key is open to others") && error.contains("set mode 0600"), "{error}");
    }
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let (_place, folder) = folder();
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&folder).contains("lets others write"));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (_place, folder) = folder();
    let other = folder.with_file_name("other");
    Authority::open_or_create(&folder, "h").unwrap();
    Authority::open_or_create(&other, "h").unwrap();
    std::fs::copy(other.join("ca.key"), folder.join("ca.key")).unwrap();
    let error = refusal(&folder);
    assert!(error.contains("ca.key is not the key of") && error.contains("remove both"), "{error}");
}

#[test]
fn a_ca_out_of_date_is_refused_on_either_side() {
    let now = SystemTime::now();
    let (_place, folder) = folder();
    Authority::open_or_create_at(&folder, "h", now - CA_LIFETIME - DAY).unwrap();
    let error = refusal(&folder);
    assert!(error.contains("expired on") && error.contains("remove ca.pem and ca.key"), "{error}");
    assert!(Authority::open_or_create_at(&folder, "h", now - 2 * DAY).is_ok());
    let error = Authority::open_or_create_at(&folder, "h", now - CA_LIFETIME - 3 * DAY).unwrap_err();
    assert!(error.to_string().contains("set this host's clock"), "{error}");
}

#[test]
fn damaged_files_are_refused_and_named() {
    let (_place, folder) = folder();
    Authority::open_or_create(&folder, "h").unwrap();
    let (key, certificate) = (folder.join("ca.key"), folder.join("ca.pem"));
    let whole = std::fs::read(&key).unwrap();
    std::fs::write(&key, "nothing of the kind").unwrap();
    assert!(refusal(&folder).contains("ca.key cannot be used"));
    std::fs::write(&key, vec![b' '; 70_000]).unwrap();
    assert!(refusal(&folder).contains("larger than 65536"));
    std::fs::write(&key, whole).unwrap();
    std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(refusal(&folder).contains("ca.pem cannot be used"));
    std::fs::write(&certificate, "").unwrap();
    assert!(refusal(&folder).contains("ca.pem cannot be used"));
}

#[test]
fn a_certificate_that_may_not_sign_is_refused() {
    let (_place, folder) = folder();
    Authority::open_or_create(&folder, "h").unwrap();
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(folder.join("ca.key")).unwrap()).unwrap();
    let leaf = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("ca.pem"), leaf.pem()).unwrap();
    assert!(refusal(&folder).contains("may not sign certificates"));
}

#[test]
fn an_interrupted_creation_is_finished_and_a_lost_key_is_not_replaced() {
    let (_place, folder) = folder();
    let first = Authority::open_or_create(&folder, "h").unwrap();
    std::fs::write(folder.join(".ca.pem.new"), "half").unwrap();
    std::fs::remove_file(folder.join("ca.pem")).unwrap();
    let again = Authority::open_or_create(&folder, "h").unwrap();
    assert_ne!(first.certificate(), again.certificate());
    assert!(!folder.join(".ca.pem.new").exists());

    std::fs::remove_file(folder.join("ca.key")).unwrap();
    assert!(refusal(&folder).contains("its key ca.key is missing"));
    assert!(!folder.join("ca.key").exists());
}

#[test]
fn the_bundle_holds_weirs_ca_then_the_systems_roots_and_the_configured_ones_once() {
    let (_place, folder) = folder();
    let other = Authority::open_or_create(&folder.with_file_name("other"), "other").unwrap();
    let authority = Authority::open_or_create(&folder, "h").unwrap();
    let extra = other.certificate_path();
    let bundle = authority.write_bundle(&[extra.clone(), extra, authority.certificate_path()]).unwrap();
    let bundled = certificates(&bundle);
    assert_eq!(bundled.first(), Some(authority.certificate()));
    let unique: HashSet<_> = bundled.iter().collect();
    assert_eq!(unique.len(), bundled.len());
    assert!(unique.contains(other.certificate()));
    let system = Roots::load(&[other.certificate_path()]).unwrap();
    assert!(system.certificates().iter().all(|root| unique.contains(root)));
    assert_eq!(bundled.len(), system.certificates().len() + 1);
}

#[test]
fn each_variable_names_the_bundle_by_an_absolute_path() {
    let (_place, folder) = folder();
    let authority = Authority::open_or_create(&folder, "h").unwrap();
    let environment = authority.environment();
    assert_eq!(environment.len(), CA_VARIABLES.len());
    for (name, value) in environment {
        assert!(CA_VARIABLES.contains(&name));
        assert_eq!(Path::new(&value), folder.join("bundle.pem"));
        assert!(value.starts_with('/'));
    }
}

#[test]
fn a_bad_file_of_roots_is_named_with_its_fault() {
    let (place, folder) = folder();
    let authority = Authority::open_or_create(&folder, "h").unwrap();
    let path = place.path().join("roots.pem");
    let fault = |path: &Path| {
        let error = authority.write_bundle(&[path.to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} cannot serve as a file of roots", path.display())), "{error}");
        assert_eq!(error, Roots::load(&[path.to_owned()]).unwrap_err().to_string());
        error
    };
    assert!(fault(&path).contains("No such file"));
    std::fs::write(&path, "garbage").unwrap();
    assert!(fault(&path).contains("holds no certificate"));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n").unwrap();
    fault(&path);
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    fault(&path);
    std::fs::write(&path, vec![b'\n'; usize::try_from(MAX_ROOTS_FILE).unwrap() + 1]).unwrap();
    assert!(fault(&path).contains("larger than 8388608"));
    assert!(fault(&folder).contains("Is a directory"));
}

#[test]
fn threads_that_open_at_once_get_one_ca() {
    let (_place, folder) = folder();
    let barrier = std::sync::Barrier::new(8);
    let certificates: HashSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let authority = Authority::open_or_create(&folder, "h").unwrap();
                    authority.write_bundle(&[]).unwrap();
                    authority.certificate().clone()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(certificates.len(), 1);
}

#[test]
fn processes_that_open_at_once_get_one_ca() {
    let (_place, folder) = folder();
    let children: Vec<_> = (0..6)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "trust::tests::opens_the_named_folder", "--ignored", "--nocapture"])
                .env(CHILD_FOLDER, &folder)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut seen = HashSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let line = text.lines().find_map(|line| line.split_once("certificate ")).expect("a certificate");
        seen.insert(line.1.to_owned());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let left = format!("{:?}", Authority::open_or_create(&folder, "h").unwrap().certificate());
    assert!(seen.contains(&left));
}

#[test]
#[ignore = "is run as a process by processes_that_open_at_once_get_one_ca"]
fn opens_the_named_folder() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let authority = Authority::open_or_create(Path::new(&folder), "h").unwrap();
    println!("certificate {:?}", authority.certificate());
}
