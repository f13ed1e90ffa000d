//! Rows of a database, as JSON gives them: columns by name.
//!
//! Invariant: a column that is read has the type that its reader names, or the row is invalid; nothing is guessed.
//!
//! One type for all rows: a struct for each query would cost the Worker kilobytes, and is read once all the same.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{parse, written};

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(Map<String, Value>);

/// A row is not of the shape that its reader expects: the schema and this version do not belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {} is not what it should be", self.0)
    }
}

impl std::error::Error for Invalid {}

/// The rows in a JSON list of objects.
///
/// # Errors
/// When it is none.
pub fn rows(text: &str) -> Result<Vec<Row>, Invalid> {
    let rows: Vec<Map<String, Value>> = parse(text).map_err(|_| Invalid("*"))?;
    Ok(rows.into_iter().map(Row).collect())
}

impl Row {
    /// A column of text; none where it is NULL.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn optional(&self, column: &'static str) -> Result<Option<&str>, Invalid> {
        match self.0.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Invalid(column)),
        }
    }

    /// A column of text.
    ///
    /// # Errors
    /// When it holds something else, or NULL.
    pub fn text(&self, column: &'static str) -> Result<&str, Invalid> {
        self.optional(column)?.ok_or(Invalid(column))
    }

    /// A column of text that stands for a `T`.
    ///
    /// # Errors
    /// When it does not.
    pub fn parsed<T: FromStr>(&self, column: &'static str) -> Result<T, Invalid> {
        self.text(column)?.parse().map_err(|_| Invalid(column))
    }

    /// A column of JSON that holds a `T`.
    ///
    /// # Errors
    /// When it does not.
    pub fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, Invalid> {
        parse(self.text(column)?).map_err(|_| Invalid(column))
    }

    /// A column of integers; none where it is NULL.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn optional_integer(&self, column: &'static str) -> Result<Option<u64>, Invalid> {
        match self.0.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or(Invalid(column)),
        }
    }

    /// A column of integers.
    ///
    /// # Errors
    /// When it holds something else, or NULL.
    pub fn integer(&self, column: &'static str) -> Result<u64, Invalid> {
        self.optional_integer(column)?.ok_or(Invalid(column))
    }

    /// The whole row as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        written(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_of_the_type_that_its_reader_names() {
        let rows = rows(r#"[{"slug":"acme","serial":3,"parent":null}]"#).unwrap();
        let row = &rows[0];
        assert_eq!((row.text("slug"), row.integer("serial"), row.optional("parent")), (Ok("acme"), Ok(3), Ok(None)));
        assert_eq!(row.parsed::<u8>("slug"), Err(Invalid("slug")));
        assert_eq!((row.text("serial"), row.integer("slug")), (Err(Invalid("serial")), Err(Invalid("slug"))));
        assert_eq!((row.text("parent"), row.integer("absent")), (Err(Invalid("parent")), Err(Invalid("absent"))));
        assert_eq!(super::rows("{}"), Err(Invalid("*")));
    }
}
