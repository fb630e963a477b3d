//! Writes of the API server for tests: objects of namespaces that are created and replaced, each with the resource version that it is for, and merge
//! patches of Nodes (RFC 7396).

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::State;

/// The collection of all namespaces that an object's own path, or that of its namespace's collection, belongs to, and the object's namespace
/// and name.
pub fn place(path: &str) -> Option<(String, String)> {
    let (group, rest) = path.split_once("/namespaces/")?;
    let mut parts = rest.split('/');
    let (namespace, plural, name) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    Some((format!("{group}/{plural}"), format!("{namespace}/{name}")))
}

/// Does what a write asks for; `None` for what is no write.
pub fn written(state: &mut State, method: &Method, path: &str, body: &[u8]) -> Option<(StatusCode, Value)> {
    if *method == Method::PATCH {
        return patched(state, path, body);
    }
    if *method != Method::POST && *method != Method::PUT {
        return None;
    }
    let refused = |code: u16, text: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": text});
        Some((StatusCode::from_u16(code).expect("a status"), status))
    };
    let (collection, mut name) = place(path)?;
    let mut object: Value = serde_json::from_slice(body).ok()?;
    if *method == Method::POST {
        let of_object = object["metadata"]["name"].as_str().unwrap_or_default();
        name = format!("{name}{of_object}");
        object["metadata"]["namespace"] = json!(name.split('/').next().unwrap_or_default());
    }
    let known = state.objects.get(&collection).and_then(|all| all.get(&name));
    let version = known.and_then(|known| known["metadata"]["resourceVersion"].as_str());
    let what = match (*method == Method::POST, version) {
        (true, Some(_)) => return refused(409, "it exists already"),
        (true, None) => "ADDED",
        (false, None) => {
            let (mut status, details) = (refused(404, "there is no such object")?, json!({"name": name}));
            (status.1["reason"], status.1["details"]) = (json!("NotFound"), details);
            return Some(status);
        }
        (false, Some(version)) if object["metadata"]["resourceVersion"] != json!(version) => {
            return refused(409, "the object has been modified");
        }
        (false, Some(_)) => "MODIFIED",
    };
    state.change(&collection, name.clone(), object, what);
    let stored = state.objects.get(&collection)?.get(&name)?.clone();
    Some((StatusCode::OK, stored))
}

/// Changes a Node as a merge patch says; `None` for another patch.
fn patched(state: &mut State, path: &str, body: &[u8]) -> Option<(StatusCode, Value)> {
    let (collection, name) = path.rsplit_once('/').filter(|(collection, _)| *collection == super::NODES)?;
    let name = format!("/{name}");
    let mut node = state.objects.get(collection)?.get(&name)?.clone();
    merge(&mut node, &serde_json::from_slice(body).ok()?);
    state.change(collection, name.clone(), node, "MODIFIED");
    Some((StatusCode::OK, state.objects.get(collection)?.get(&name)?.clone()))
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return into.clone_from(patch) };
    if !into.is_object() {
        *into = json!({});
    }
    let Value::Object(fields) = into else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(fields.remove(key)),
            value => merge(fields.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}
