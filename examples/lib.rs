//! Programs that use Event Bucket as an application would; see the files beside this one.
