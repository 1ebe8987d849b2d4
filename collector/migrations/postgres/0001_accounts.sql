-- Accounts, their projects and the projects' keys. They may live in another database than the log.

CREATE TABLE account (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    email      text    NOT NULL UNIQUE,
    team       text    NOT NULL,
    created_ms bigint  NOT NULL
);

CREATE TABLE project (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    account    integer NOT NULL REFERENCES account (id),
    name       text    NOT NULL,
    created_ms bigint  NOT NULL,
    UNIQUE (account, name)
);

-- Keys are kept as SHA-256 of 256 random bits. Revoked ones stay, so that a stale key can be told from a mistyped one.
CREATE TABLE api_key (
    hash       bytea   PRIMARY KEY,
    project    integer NOT NULL REFERENCES project (id),
    kind       text    NOT NULL CHECK (kind IN ('write', 'secret')),
    browser    boolean NOT NULL,
    created_ms bigint  NOT NULL,
    revoked_ms bigint
);

CREATE INDEX api_key_project ON api_key (project, kind);
