//! The file of a scenario: a description, and sections that begin with `-- NAME --`.

use std::fmt;

/// The sections that a kind of scenarios knows.
#[derive(Clone, Copy)]
pub struct Known {
    /// Names of the input sections.
    pub given: &'static [&'static str],
    /// Names of the expected sections, in the order in which they are written.
    pub expected: &'static [&'static str],
    /// Sections that must not be left out where they have content.
    pub never_silent: &'static [&'static str],
}

/// A scenario as it stands in its file.
pub struct File {
    known: Known,
    description: String,
    sections: Vec<(String, String)>,
}

impl File {
    pub fn parse(text: &str, known: Known) -> Result<File, String> {
        let mut file = File { known, description: String::new(), sections: Vec::new() };
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
                if !known.given.contains(&name) && !known.expected.contains(&name) {
                    return Err(format!("there is no section {name:?}"));
                }
                file.sections.push((name.to_owned(), String::new()));
                continue;
            }
            let text = file.sections.last_mut().map_or(&mut file.description, |(_, text)| text);
            text.push_str(line);
            text.push('\n');
        }
        if file.description.trim().is_empty() {
            return Err("it does not say what it is about".to_owned());
        }
        if !file.sections.iter().any(|(name, _)| known.expected.contains(&name.as_str())) {
            return Err("it expects nothing".to_owned());
        }
        Ok(file)
    }

    pub fn text(&self, name: &str) -> &str {
        self.sections.iter().find(|(its, _)| its == name).map_or("", |(_, text)| text)
    }

    pub fn lines(&self, name: &str) -> impl Iterator<Item = &str> {
        self.text(name).lines().filter(|line| !line.trim().is_empty())
    }

    /// The same file with what was found in the sections that it has. `found` gives the lines of a section.
    pub fn with(&self, found: impl Fn(&str) -> Vec<String>) -> File {
        let Known { given, expected, never_silent } = self.known;
        let mut sections: Vec<(String, String)> = Vec::new();
        for (name, text) in self.sections.iter().filter(|(name, _)| given.contains(&name.as_str())) {
            sections.push((name.clone(), text.clone()));
        }
        for name in expected {
            let has = self.sections.iter().any(|(its, _)| its == name);
            if !has && !never_silent.contains(name) {
                continue;
            }
            let lines = found(name);
            if has || !lines.is_empty() {
                sections.push((name.to_string(), lines.iter().map(|line| format!("{line}\n")).collect()));
            }
        }
        File { known: self.known, description: self.description.clone(), sections }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)?;
        for (name, text) in &self.sections {
            write!(f, "-- {name} --\n{text}")?;
        }
        Ok(())
    }
}
