//! Shorter names for what the module imports. wasm-bindgen ends each with a hash, so that crates of any version can be linked
//! together; when they are, the hashes are two kilobytes of noise, once in the module and once in the glue.

use std::collections::HashSet;

use walrus::Module;

/// Renames imports; the old names with the new ones.
pub fn shorten(module: &mut Module) -> Vec<(String, String)> {
    let mut taken: HashSet<String> = module.imports.iter().map(|import| import.name.clone()).collect();
    let mut renamed = Vec::new();
    for import in module.imports.iter_mut() {
        let Some(short) = without_hash(&import.name) else { continue };
        let mut candidates = std::iter::once(short.to_owned()).chain((2..).map(|number| format!("{short}{number}")));
        let name = candidates.find(|name| taken.insert(name.clone())).expect("numbers do not end");
        renamed.push((std::mem::replace(&mut import.name, name.clone()), name));
    }
    renamed
}

/// `name` of `__wbg_name_0123456789abcdef`.
fn without_hash(import: &str) -> Option<&str> {
    let (name, hash) = import.strip_prefix("__wbg_")?.rsplit_once('_')?;
    (hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(name)
}
