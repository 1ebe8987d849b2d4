//! The collector's behaviour through its binary and its public API, and the rules about the source itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod bus_consume;
mod bus_dead_letters;
mod bus_faults;
mod bus_fixture;
mod bus_publish;
mod bus_share;
mod bus_spool;
mod cache_conformance;
mod cache_faults;
mod cache_fixture;
mod cache_random;
mod cli_commands;
mod cli_config;
mod cli_refusals;
mod cli_tls;
mod conformance;
mod edge_batches;
mod edge_bodies;
mod edge_browser;
mod edge_connections;
mod edge_health;
mod edge_replies;
mod harness;
mod in_process;
mod query_events;
mod query_manage;
mod query_tail;
mod rolling;
mod serve_backends;
mod serve_limits;
mod serve_server_tls;
mod serve_spool;
mod serve_start;
mod serve_stop;
mod store_announcements;
mod store_audit;
mod store_fixture;
mod store_flow;
mod store_place;
mod store_postgres;
mod store_postgres_faults;
mod store_postgres_restore;
mod store_postgres_segments;
mod store_postgres_tls;
mod store_random;
mod store_retention;
mod store_sqlite;
mod store_users;
mod torture;

mod faults;
mod power;
mod random;
mod tidy;
