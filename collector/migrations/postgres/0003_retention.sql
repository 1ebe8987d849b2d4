-- Who drops old events, and how far forgetting their identities has come. Every transaction that does either holds this row
-- and finds its own token in it, so that a process that was paused doesn't go on beside the one that has taken over.
CREATE TABLE retention (
    only_row     boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    token        bigint      NOT NULL,
    -- Identities of what was dropped before this time are being forgotten; NULL when none are.
    sweep_before timestamptz,
    -- The first page of event_id that wasn't looked at yet.
    sweep_page   bigint      NOT NULL DEFAULT 0
);
