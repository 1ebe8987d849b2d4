-- What tells this store from every other, for the servers that only one may use: it stays through restores and on new servers,
-- where the epoch doesn't.
CREATE TABLE identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       uuid    NOT NULL DEFAULT gen_random_uuid()
);

INSERT INTO identity DEFAULT VALUES;
