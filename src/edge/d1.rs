//! D1, in one place: registered statements, batches that begin with guards, one error type.
//!
//! Invariant: `prepare` is called here alone, and only on [`Sql`], which is made of literals; a value reaches a database
//! as a parameter or not at all.

use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

use crate::domain::name::ShardName;
use crate::wire::json;
use crate::wire::sql::Sql;

#[wasm_bindgen]
extern "C" {
    type Binding;
    #[wasm_bindgen(method, catch)]
    fn prepare(this: &Binding, sql: &str) -> Result<Statement, JsValue>;
    #[wasm_bindgen(method, catch)]
    async fn batch(this: &Binding, statements: Vec<Statement>) -> Result<js_sys::Array<Outcome>, JsValue>;

    type Statement;
    #[wasm_bindgen(method, catch, variadic)]
    fn bind(this: &Statement, params: Vec<JsValue>) -> Result<Statement, JsValue>;
    #[wasm_bindgen(method, catch)]
    async fn all(this: &Statement) -> Result<Outcome, JsValue>;

    /// What a statement gave.
    pub(crate) type Outcome;
    #[wasm_bindgen(method, getter)]
    fn results(this: &Outcome) -> JsValue;

    type Thrown;
    #[wasm_bindgen(method, getter)]
    fn message(this: &Thrown) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn cause(this: &Thrown) -> Option<Thrown>;
}

/// A parameter of a statement.
pub(crate) enum Param<'a> {
    /// Text.
    Text(&'a str),
    /// An integer within 2^53-1.
    Integer(u64),
    /// NULL.
    Null,
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Param<'_> {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl<'a, T: Into<Param<'a>>> From<Option<T>> for Param<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Why a batch left nothing behind.
#[derive(Debug)]
pub(crate) enum Abort {
    /// One of its guards: what the caller saw is no longer so.
    Guard(String),
    /// A row that must be unique is there already, or a value the schema refuses.
    Constraint(String),
    /// The database did not answer; whether the batch was committed is not known.
    Unavailable(String),
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guard(reason) => write!(f, "guard: {reason}"),
            Self::Constraint(message) => write!(f, "constraint: {message}"),
            Self::Unavailable(message) => write!(f, "unavailable: {message}"),
        }
    }
}

impl From<JsValue> for Abort {
    fn from(error: JsValue) -> Self {
        let cause: Thrown = error.unchecked_into();
        let message = cause.cause().and_then(|cause| cause.message()).or_else(|| cause.message()).unwrap_or_default();
        if let Some((_, reason)) = message.split_once("guard: ") {
            return Self::Guard(
                reason.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned(),
            );
        }
        if message.contains("SQLITE_CONSTRAINT")
            || message.contains("constraint failed")
            || message.contains("CHECK constraint")
        {
            return Self::Constraint(message);
        }
        Self::Unavailable(message)
    }
}

/// One D1 database.
pub(crate) struct Database(Binding);

impl Database {
    fn open(env: &worker::Env, binding: &str) -> Result<Self, Abort> {
        match js_sys::Reflect::get(env, &binding.into()) {
            Ok(database) if !database.is_undefined() => Ok(Self(database.unchecked_into())),
            _ => Err(Abort::Unavailable(format!("no binding {binding}"))),
        }
    }

    /// The control database.
    ///
    /// # Errors
    /// When it is not bound.
    pub(crate) fn control(env: &worker::Env) -> Result<Self, Abort> {
        Self::open(env, "CONTROL")
    }

    /// A shard: `eu-1` is bound as `SHARD_EU_1`.
    ///
    /// # Errors
    /// When nothing is bound under that name.
    pub(crate) fn shard(env: &worker::Env, shard: &ShardName) -> Result<Self, Abort> {
        Self::open(env, &format!("SHARD_{}", shard.as_str().to_ascii_uppercase().replace(['-', '.'], "_")))
    }

    /// The rows of one query.
    ///
    /// # Errors
    /// When the database does not answer, or a row is not a `T`.
    pub(crate) async fn rows<T: DeserializeOwned>(&self, sql: Sql, params: &[Param<'_>]) -> Result<Vec<T>, Abort> {
        self.statement(sql, params)?.all().await?.rows()
    }

    /// The first row of one query.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub(crate) async fn row<T: DeserializeOwned>(&self, sql: Sql, params: &[Param<'_>]) -> Result<Option<T>, Abort> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// An empty batch.
    pub(crate) const fn batch(&self) -> Batch<'_> {
        Batch { database: self, statements: Vec::new() }
    }

    fn statement(&self, sql: Sql, params: &[Param<'_>]) -> Result<Statement, Abort> {
        Ok(self.0.prepare(sql.text())?.bind(params.iter().map(Param::to_js).collect())?)
    }
}

impl Outcome {
    /// The rows that the statement gave.
    ///
    /// # Errors
    /// When a row is not a `T`.
    pub(crate) fn rows<T: DeserializeOwned>(&self) -> Result<Vec<T>, Abort> {
        let text = String::from(js_sys::JSON::stringify(&self.results())?);
        json::parse(&text).map_err(|error| Abort::Unavailable(error.to_string()))
    }
}

impl Param<'_> {
    fn to_js(&self) -> JsValue {
        match self {
            Self::Text(text) => JsValue::from_str(text),
            #[expect(clippy::cast_precision_loss, reason = "every integer that is stored is below 2^53")]
            Self::Integer(value) => JsValue::from_f64(*value as f64),
            Self::Null => JsValue::NULL,
        }
    }
}

/// Statements that are all committed or none: one transaction.
pub(crate) struct Batch<'a> {
    database: &'a Database,
    statements: Vec<Statement>,
}

impl Batch<'_> {
    /// Adds a statement.
    ///
    /// # Errors
    /// When a parameter cannot be bound.
    pub(crate) fn add(&mut self, sql: Sql, params: &[Param<'_>]) -> Result<&mut Self, Abort> {
        self.statements.push(self.database.statement(sql, params)?);
        Ok(self)
    }

    /// Runs them; the results in their order.
    ///
    /// # Errors
    /// Why nothing was written, as far as that is known.
    pub(crate) async fn run(self) -> Result<Vec<Outcome>, Abort> {
        if self.statements.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.database.0.batch(self.statements).await?.iter().collect())
    }
}
