//! `decrypt`: decrypts rows that were read from the cloud.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::value::RawValue;

use super::{Context, SiteFlags};
use crate::encryption::column_cipher::{Undecryptable, decrypt};
use crate::encryption::key_file::KeyFile;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  psql cloud -Atc 'select to_json(f) from cloud.faculties f' | cloud-sync decrypt faculties
  cloud-sync decrypt faculties rows.ndjson > readable.ndjson

A row is a JSON object on a line of its own, as the cloud has it. Its encrypted values are replaced by what they were;
all else stays as it is. The exit code is 1 if a value could not be decrypted.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DecryptArgs {
    /// The entity that the rows belong to
    entity: String,
    /// The file with the rows, one JSON object a line [default: standard input]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) fn execute(context: &Context, args: &DecryptArgs) -> Result<ExitCode> {
    let path = &context.settings().encryption.key_file;
    let keys = KeyFile::read(path)?.ok_or_else(|| {
        Error::config("decrypt rows", format!("there is no {}", path.display()))
            .remedy("correct encryption.key_file, or run `cloud-sync key recover` with the recovery code")
    })?;
    let input: Box<dyn BufRead> = match &args.file {
        Some(file) => {
            let opened = File::open(file);
            let failed = |error| Error::local(format!("open {}", file.display()), error);
            Box::new(BufReader::new(opened.map_err(failed)?))
        }
        None => Box::new(stdin().lock()),
    };
    let mut output = BufWriter::new(stdout().lock());
    let mut failures = 0;
    for (line, number) in input.lines().zip(1_u64..) {
        let line = line.map_err(|error| Error::local("read the rows", error))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).map_err(|error| {
            Error::config(format!("read line {number}"), error.to_string())
                .remedy("give each row as a JSON object on a line of its own")
        })?;
        let (row, undecryptable) = decrypt_row(&keys, &args.entity, row);
        for (column, why) in undecryptable {
            failures += 1;
            eprintln!("line {number}: {column} stays encrypted: {why}");
        }
        let written = serde_json::to_writer(&mut output, &row)
            .map_err(std::io::Error::from)
            .and_then(|()| output.write_all(b"\n"));
        written.map_err(|error| Error::local("write the rows", error))?;
    }
    output
        .flush()
        .map_err(|error| Error::local("write the rows", error))?;
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A row: its values as JSON, each digit as it was.
type Row = BTreeMap<String, Box<RawValue>>;

/// The row with its values decrypted, and the columns whose values stay as they are, each with the reason.
fn decrypt_row(keys: &KeyFile, entity: &str, mut row: Row) -> (Row, Vec<(String, String)>) {
    let mut undecryptable = Vec::new();
    for (column, value) in &mut row {
        let text: Option<String> = serde_json::from_str(value.get()).ok();
        let found = text.and_then(|text| decrypt(keys, entity, column, &text));
        let why = match found {
            None => continue,
            Some(Ok(json)) => match RawValue::from_string(json) {
                Ok(decrypted) => {
                    *value = decrypted;
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Some(Err(Undecryptable::NoKey(id))) => {
                format!("its key {id} is not in the file; `cloud-sync key recover` puts it back")
            }
            Some(Err(Undecryptable::Damaged)) => {
                format!("it was changed, or belongs to another column or entity than {entity}")
            }
        };
        undecryptable.push((column.clone(), why));
    }
    (row, undecryptable)
}
