//! `bindgen MODULE.wasm OUT_DIR`: writes `index.js` (glue) and `index_bg.wasm` from what cargo built.
//!
//! The options are those `worker-build` passes: a module whose state can be reset and which learns of an abort, so that a
//! crashed instance is replaced instead of answering every later request with its error.

mod names;
mod unmade;
mod unwinding;

use std::{env, fs, path::Path, process::ExitCode};

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [module, out_dir] = arguments.as_slice() else {
        eprintln!("usage: bindgen MODULE.wasm OUT_DIR");
        return ExitCode::FAILURE;
    };
    let mut bindgen = Bindgen::new();
    let result = bindgen.module(true).and_then(|bindgen| {
        bindgen
            .input_path(module)
            .out_name("index")
            .typescript(false)
            .reset_state_function(true)
            .force_enable_abort_handler(true)
            .generate_output()
    });
    let result = result.and_then(|mut output| {
        unmade::emptied(output.wasm_mut());
        unwinding::without_cleanup(output.wasm_mut());
        let renamed = names::shorten(output.wasm_mut());
        output.emit(out_dir)?;
        // With the hash at its end no name is the beginning of another.
        let glue = Path::new(out_dir).join("index.js");
        let text = renamed.iter().fold(fs::read_to_string(&glue)?, |text, (name, short)| text.replace(name, short));
        Ok(fs::write(glue, text)?)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}
