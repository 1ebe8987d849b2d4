-- Events received per project and UTC day (days since 1970) by their collector's clock, whatever became of them: what quotas
-- are counted by. Written with the ranges; it outlives them.
CREATE TABLE usage (
    project  integer NOT NULL,
    day      bigint  NOT NULL,
    received bigint  NOT NULL,
    PRIMARY KEY (project, day)
) WITH (fillfactor = 50);

-- Ranges that were folded into one, without a batch, don't know their days any more.
INSERT INTO usage
SELECT project, floor(received_ms / 86400000.0)::int8, sum(received) FROM ranges
WHERE batch <> '00000000-0000-0000-0000-000000000000' GROUP BY 1, 2;
