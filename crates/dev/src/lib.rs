//! Checks and generators of the Diptych workspace.
