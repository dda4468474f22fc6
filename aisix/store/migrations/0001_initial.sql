-- Key-value facts about the database: the growing write revision, the canary of the sealing key.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

INSERT INTO meta (name, value) VALUES ('revision', 0);

-- Every resource of every kind. `doc` is JSON without secrets; `secret` is sealed.
-- A rowid grows with each insert, so its order is the order of creation.
CREATE TABLE resources (
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    revision   INTEGER NOT NULL CHECK (revision > 0),
    doc        TEXT    NOT NULL,
    secret     BLOB,
    created_at REAL    NOT NULL,
    PRIMARY KEY (kind, id),
    UNIQUE (kind, name)
);
