//! Programs that use Event Bucket as an application would: `quickstart`, `axum_service` and `flights`, beside this file.
