//! The kubeconfig file of a user, as `kubectl` finds it.
//!
//! Kubernetes: "Organizing Cluster Access Using kubeconfig Files", section *The KUBECONFIG environment variable*. Files are not merged: the first that exists counts.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Returns the file that says to `kubectl` how the API server is reached: the first of `KUBECONFIG` that exists, or `.kube/config` of the user; `None` where there is neither.
///
/// # Errors
/// `KUBECONFIG` is set, and none of its files exists: another file could be that of another cluster. A sentence.
pub fn kubeconfig_of_user() -> Result<Option<PathBuf>, String> {
    let [named, home] = ["KUBECONFIG", "HOME"].map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    first(named.as_deref(), home)
}

/// `named`: paths with colons between them. `home`: directory of the user.
fn first(named: Option<&OsStr>, home: Option<OsString>) -> Result<Option<PathBuf>, String> {
    let Some(named) = named else {
        return Ok(home.map(|home| Path::new(&home).join(".kube/config")).filter(|path| path.is_file()));
    };
    let found = std::env::split_paths(named).find(|path| path.is_file());
    let sentence =
        || format!("KUBECONFIG names no file that exists: {named:?}; correct it, unset it or give --kubeconfig");
    found.map(Some).ok_or_else(sentence)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_kubeconfig_that_is_named_and_missing_does_not_lead_to_another_cluster() {
        let home = tempfile::tempdir().expect("a directory");
        let of_user = home.path().join(".kube/config");
        let [missing, other] = ["missing", "other"].map(|name| home.path().join(name));
        let found = |named: Option<&[&PathBuf]>| {
            let named = named.map(|paths| std::env::join_paths(paths).expect("no colons"));
            first(named.as_deref(), Some(home.path().into()))
        };
        assert_eq!(found(None), Ok(None));
        fs::create_dir(home.path().join(".kube")).expect("writable");
        fs::write(&of_user, "").expect("writable");
        fs::write(&other, "").expect("writable");
        assert_eq!(found(None), Ok(Some(of_user)));
        assert_eq!(found(Some(&[&missing, &other])), Ok(Some(other)));
        let sentence = found(Some(&[&missing])).expect_err("there is no such file");
        assert!(sentence.starts_with("KUBECONFIG names no file") && sentence.contains("/missing"), "{sentence}");
        assert_eq!(first(None, None), Ok(None));
    }
}
