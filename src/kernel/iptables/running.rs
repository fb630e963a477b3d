//! Running the programs: reading tables, changing them, and the complaint of a program that failed.

use std::time::Duration;

use tracing::debug;

use super::save::{Saved, SavedTable, parse};
use super::{Programs, Table, extension};
use crate::kernel::program::{Call, Fault, Running, run, start};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// Seconds that a program waits for another one that holds the lock of the tables.
const LOCK_WAIT: &str = "5";
/// Time limit of a program.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Returns the contents of these tables, from known output or from one run of the program; where that fails, each
/// table is read alone.
pub(super) fn printed_all(
    programs: Programs,
    family: Family,
    tables: &[Table],
    known: Option<Saved>,
) -> Vec<(Table, Result<SavedTable, Error>)> {
    let whole = known.or_else(|| {
        let call = Call { program: programs.of(family).0, arguments: &[], input: b"", limit: LIMIT };
        if tables.len() > 1 { parse(&run(call).ok()?).ok() } else { None }
    });
    let Some(mut whole) = whole else {
        return tables.iter().map(|table| (*table, printed(programs, family, *table))).collect();
    };
    tables.iter().map(|table| (*table, Ok(whole.remove(table.name()).unwrap_or_default()))).collect()
}

/// Reads the table.
pub(super) fn printed(programs: Programs, family: Family, table: Table) -> Result<SavedTable, Error> {
    let (program, _) = programs.of(family);
    let arguments = ["-t", table.name()];
    let object = || format!("{family} {}", table.name());
    let text = run(Call { program, arguments: &arguments, input: b"", limit: LIMIT })
        .map_err(|fault| fault.of("list rules", &object(), program))?;
    let mut saved = parse(&text).map_err(|reason| Error::new("list rules", object(), Cause::Malformed(reason)))?;
    Ok(saved.remove(table.name()).unwrap_or_default())
}

pub(super) fn restore(programs: Programs, family: Family, script: &str) -> Result<(), Error> {
    end_restore(programs, family, script, begin_restore(programs, family, script))
}

/// Starts a program that changes tables; those of both families may run at the same time.
pub(super) fn begin_restore(programs: Programs, family: Family, script: &str) -> Result<Running, Fault> {
    let (_, program) = programs.of(family);
    start(Call { program, arguments: &["--noflush", "--wait", LOCK_WAIT], input: script.as_bytes(), limit: LIMIT })
}

/// Waits for its end.
pub(super) fn end_restore(
    programs: Programs,
    family: Family,
    script: &str,
    running: Result<Running, Fault>,
) -> Result<(), Error> {
    let (_, program) = programs.of(family);
    let Err(fault) = running.and_then(Running::finish) else { return Ok(()) };
    debug!(%family, script, "Rules rejected by iptables-restore");
    let mut error = fault.of("change rules", &family.to_string(), program);
    if let Cause::Program(words) = &mut error.cause {
        let lacking = extension::lacking(words, programs.flavour, family);
        *words = std::iter::once(with_line(words, script)).chain(lacking).collect::<Vec<_>>().join("; ");
    }
    Err(error)
}

/// Returns the program's message in one line, with the text of the line of the script that it complained about.
fn with_line(words: &str, script: &str) -> String {
    let said: Vec<&str> =
        words.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    let said = said.join("; ");
    let number = said.split("line").skip(1).find_map(|rest| {
        let digits = rest.trim_start_matches([' ', ':']);
        digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<usize>().ok()
    });
    let line = number.and_then(|number| script.lines().nth(number.checked_sub(1)?));
    line.map_or(said.clone(), |line| format!("{said}: {line}"))
}

/// Returns whether another program holds the lock of the tables.
pub(super) fn is_locked(error: &Error) -> bool {
    matches!(&error.cause, Cause::Program(words) if words.contains("xtables lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_program_names_the_line() {
        let script = "*filter\n:A - [0:0]\n-A A -m set --match-set nope src -j ACCEPT\nCOMMIT\n";
        let words = "iptables-nft-restore v1.8.9 (nf_tables): Set nope doesn't exist.\n\nError occurred at line: 3\n\
            Try `iptables-nft-restore -h' or 'iptables-nft-restore --help' for more information.";
        assert_eq!(
            with_line(words, script),
            "iptables-nft-restore v1.8.9 (nf_tables): Set nope doesn't exist.; Error occurred at line: 3: \
             -A A -m set --match-set nope src -j ACCEPT"
        );
        assert_eq!(with_line("iptables-restore: line 4 failed", script), "iptables-restore: line 4 failed: COMMIT");
        assert_eq!(with_line("no number on any line", script), "no number on any line");
        assert_eq!(with_line("line 0; line 99", script), "line 0; line 99");
    }
}
