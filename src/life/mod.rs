//! Floor 2: the state machine of one VM.
