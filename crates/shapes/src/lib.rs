//! The embedded world: scenes, captions, questions, renderer and verifier.
