//! The diptych command.
