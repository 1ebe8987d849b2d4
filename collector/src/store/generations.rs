/// The views that are kept beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Events, and different users, per name and hour.
    Counts,
    /// Who the users are.
    Identifications,
}

/// A table of a view. Its rows belong to a project and a generation.
pub(super) struct ViewTable {
    pub(super) name: &'static str,
    /// What tells the rows of a generation apart.
    pub(super) key: &'static str,
    /// Everything else.
    pub(super) values: &'static str,
    /// Rows that are copied or removed in one transaction: about 50 ms.
    pub(super) step_rows: i64,
}

impl View {
    pub(super) const ALL: [Self; 2] = [Self::Counts, Self::Identifications];

    /// Its name in `view_state` and `view_live`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Identifications => "identifications",
        }
    }

    pub(super) fn tables(self) -> &'static [ViewTable] {
        match self {
            Self::Counts => &[
                ViewTable { name: "rollup_counts", key: "name, hour_ms", values: "count", step_rows: 10_000 },
                // Sketches take at most 3 KiB each.
                ViewTable {
                    name: "rollup_users",
                    key: "hours, start_ms, name",
                    values: "sketch",
                    step_rows: 2_000,
                },
            ],
            Self::Identifications => &[ViewTable {
                name: "identification",
                key: "user_id",
                values: "linked_to, linked_at, identified, links, events, first_ms, last_ms, last_position, email, traits, refused",
                step_rows: 2_000,
            }],
        }
    }
}
