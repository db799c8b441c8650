//! `diptych data inspect`.

use crate::arguments::InspectArguments;
use crate::output::print;

pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let inspection = diptych_data::inspect(&arguments.paths, arguments.layout)?;
    if arguments.json {
        print(serde_json::to_string_pretty(&inspection)?)
    } else {
        print(inspection)
    }
}
