-- Events received per project and UTC day (days since 1970) by the collector's clock, whatever became of them: what quotas
-- are counted by. Written with the ranges.
CREATE TABLE usage (
    project  INTEGER NOT NULL,
    day      INTEGER NOT NULL,
    received INTEGER NOT NULL,
    PRIMARY KEY (project, day)
) STRICT, WITHOUT ROWID;

INSERT INTO usage
SELECT project, (received_ms - (received_ms % 86400000 + 86400000) % 86400000) / 86400000, sum(received) FROM ranges
GROUP BY 1, 2;
