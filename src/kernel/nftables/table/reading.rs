//! Reading what is in the table: all of it, some objects, or what others touched.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Contents, OwnTable, TRIES};
use crate::kernel::netlink::Fault;
use crate::kernel::nftables::object::{Chain, Content, Key, Name, Object, SetSpec};
use crate::kernel::nftables::read::{Reader, Sets};
use crate::reconcile::Sorted;

/// So many elements are asked for one by one; for more, their set is listed.
const FEW: usize = 256;

impl OwnTable {
    /// Reads everything, and again where somebody changed something meanwhile. Returns also the generation in which it is so,
    /// where others can change it.
    pub(super) fn read_all(&mut self) -> Result<(Contents, Sets, Option<u32>), Fault> {
        for _ in 0..TRIES {
            let before = self.generation()?;
            let (contents, sets) = self.read_once()?;
            if before == self.generation()? {
                return Ok((contents, sets, before));
            }
        }
        Err(Fault::Unsteady)
    }

    /// The state of all tables; nothing where nobody else can change this one.
    pub(super) fn generation(&mut self) -> Result<Option<u32>, Fault> {
        if self.is_owned() { Ok(None) } else { self.reader().generation().map(Some) }
    }

    fn read_once(&mut self) -> Result<(Contents, Sets), Fault> {
        let mut reader = self.reader();
        let sets = reader.sets()?;
        let mut contents: Contents =
            reader.counters()?.into_keys().map(|name| (Object::Counter(name), Content::Counter)).collect();
        let mut rules = reader.rules(None, &sets)?;
        for (name, base) in reader.chains()? {
            let content = match base {
                Some(base) => {
                    let rules = rules.remove(&name).unwrap_or_default();
                    Content::Chain(Chain { base, rules }.into())
                }
                None => Content::Foreign,
            };
            contents.insert(Object::Chain(name), content);
        }
        let mut elements = Vec::new();
        for (name, spec) in &sets.named {
            contents.insert(Object::Set(name.clone()), spec.map_or(Content::Foreign, Content::Set));
            if let Some(spec) = spec {
                let found = reader.elements(name, *spec)?.into_iter();
                elements.extend(found.map(|(key, content)| (Object::Element(name.clone(), key), content)));
            }
        }
        // Building a map at once costs a fraction of filling it.
        if contents.len() < elements.len() {
            elements.extend(contents);
            return Ok((elements.into_iter().collect(), sets));
        }
        contents.extend(elements);
        Ok((contents, sets))
    }

    pub(super) fn read_keys(&mut self, keys: &[Object]) -> Result<Contents, Fault> {
        if self.reader().header()?.is_none() {
            return Ok(Contents::new());
        }
        let mut reader = Reader { socket: &mut self.socket, table: self.id };
        let sets = reader.sets()?;
        let mut found = Contents::new();
        let is_chain = |key: &&Object| matches!(key, Object::Chain(_));
        let all_rules = keys.iter().filter(is_chain).count() > FEW;
        let mut rules = if all_rules { reader.rules(None, &sets)? } else { BTreeMap::new() };
        let bases = if keys.iter().any(|key| is_chain(&key)) { reader.chains()? } else { BTreeMap::new() };
        let counters =
            if keys.iter().any(|key| matches!(key, Object::Counter(_))) { reader.counters()? } else { BTreeMap::new() };
        let mut elements: BTreeMap<&Name, BTreeSet<&Key>> = BTreeMap::new();
        for object in keys {
            let content = match object {
                Object::Counter(name) => counters.get(name).map(|_| Content::Counter),
                Object::Set(name) => {
                    self.sets.remove(name);
                    sets.named.get(name).map(|spec| {
                        self.sets.insert(name.clone(), *spec);
                        spec.map_or(Content::Foreign, Content::Set)
                    })
                }
                Object::Chain(name) => match bases.get(name) {
                    Some(Some(base)) => {
                        if !all_rules {
                            rules.extend(reader.rules(Some(name), &sets)?);
                        }
                        let rules = rules.remove(name).unwrap_or_default();
                        Some(Content::Chain(Chain { base: *base, rules }.into()))
                    }
                    Some(None) => Some(Content::Foreign),
                    None => None,
                },
                Object::Element(set, key) => {
                    elements.entry(set).or_default().insert(key);
                    continue;
                }
            };
            if matches!(object, Object::Chain(_) | Object::Counter(_)) {
                if content.is_some() {
                    self.others.insert(object.clone());
                } else {
                    self.others.remove(object);
                }
            }
            found.extend(content.map(|content| (object.clone(), content)));
        }
        for (set, keys) in elements {
            if let Some(Some(spec)) = sets.named.get(set) {
                let read = read_elements(&mut reader, set, *spec, &keys)?;
                found.extend(read.into_iter().map(|(key, content)| (Object::Element(set.clone(), key), content)));
            }
        }
        Ok(found)
    }

    /// The objects that may differ after others did something to these.
    pub(super) fn suspects(&mut self, seen: &impl Sorted<Object, Content>) -> Result<Option<Vec<Object>>, Fault> {
        let Some(notified) = &mut self.notified else { return Ok(Some(Vec::new())) };
        let Some(touched) = notified.take() else { return Ok(None) };
        let mut suspects: Vec<Object> = touched.iter().cloned().collect();
        let mut reader = Reader { socket: &mut self.socket, table: self.id };
        for set in touched.iter().filter_map(|object| if let Object::Set(name) = object { Some(name) } else { None }) {
            let from = Object::Element(set.clone(), Key::first());
            let known = seen.between((Bound::Included(from), Bound::Unbounded));
            let known = known.take_while(|(object, _)| matches!(object, Object::Element(of, _) if of == set));
            let known: BTreeMap<&Object, &Content> = known.collect();
            let spec = self.sets.get(set).copied().flatten();
            let there = match spec {
                Some(spec) => reader.elements(set, spec)?,
                None => Vec::new(),
            };
            let there: Contents =
                there.into_iter().map(|(key, content)| (Object::Element(set.clone(), key), content)).collect();
            let differs = |object: &&Object| known.get(object).copied() != there.get(object);
            suspects.extend(known.keys().copied().filter(differs).cloned());
            suspects.extend(there.keys().filter(|object| !known.contains_key(object)).cloned());
        }
        Ok(Some(suspects))
    }
}

fn read_elements(
    reader: &mut Reader<'_>,
    set: &Name,
    spec: SetSpec,
    keys: &BTreeSet<&Key>,
) -> Result<Vec<(Key, Content)>, Fault> {
    if spec.intervals || keys.len() > FEW {
        let mut elements = reader.elements(set, spec)?;
        elements.retain(|(key, _)| keys.contains(key));
        return Ok(elements);
    }
    let mut elements = Vec::with_capacity(keys.len());
    for key in keys {
        elements.extend(reader.element(set, spec, key)?.map(|content| ((*key).clone(), content)));
    }
    Ok(elements)
}
