-- The tables of the recorded conversations. Rows of types, toast and big come from the records themselves.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE TYPE comp AS (a int, b text);
-- The embedded Postgres has no XML; a domain of that name looks the same from outside.
CREATE DOMAIN public.xml AS text;
CREATE TABLE types (
    id int PRIMARY KEY, i2 int2, i8 int8, num numeric, num2 numeric(10,2), f4 float4, f8 float8, txt text,
    vc varchar(20) NOT NULL, ch char(5), b bool, u uuid, ts timestamp, tstz timestamptz, d date, t time, ttz timetz,
    iv interval, by bytea, j json, jb jsonb, ia int[], ta text[], ia2 int[][], m mood, ma mood[], dom posint, cmp comp,
    r int4range, ip inet, cd cidr, mac macaddr, bt bit(3), vb varbit, mon money, x public.xml, pt point, tsv tsvector, nul text);
CREATE TABLE items (id int PRIMARY KEY, title text, done bool NOT NULL, prio int);
INSERT INTO items SELECT g, 'item ' || g, g % 2 = 0, g FROM generate_series(1, 5) g;
CREATE TABLE empty (id int PRIMARY KEY, v text);
CREATE TABLE mv (id int PRIMARY KEY, v text);
INSERT INTO mv VALUES (1, 'a'), (2, 'b');
CREATE TABLE fl (id int PRIMARY KEY, v text, w text, n int);
INSERT INTO fl VALUES (1, 'a', 'w', 1), (2, 'b', 'w', 2);
CREATE TABLE wide (id int PRIMARY KEY, title text, done bool, prio int, "Mixed Case" text, "quo""te" text);
INSERT INTO wide VALUES (1, 'a', false, 1, 'mc', 'q'), (2, 'b', false, 2, 'mc', 'q');
CREATE TABLE wh (id int PRIMARY KEY, v text, n int);
INSERT INTO wh SELECT g, 'v' || g, CASE WHEN g > 1 THEN g ELSE 0 END FROM generate_series(1, 6) g;
CREATE TABLE nw (id int PRIMARY KEY, v text);
INSERT INTO nw VALUES (1, 'a');
CREATE TABLE co (id int PRIMARY KEY, v text);
INSERT INTO co VALUES (1, 'a');
CREATE TABLE sse (id int PRIMARY KEY, v text);
INSERT INTO sse VALUES (1, 'a');
CREATE SCHEMA other;
CREATE TABLE other."Weird Table" (id int PRIMARY KEY, v text);
INSERT INTO other."Weird Table" VALUES (1, 'w');
CREATE VIEW vw AS SELECT * FROM items;
CREATE TABLE part (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
INSERT INTO part VALUES (1, 'eu', 'a'), (2, 'us', 'b');
CREATE TABLE gen (id int PRIMARY KEY, n int, dbl int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE del (id int PRIMARY KEY, v text);
INSERT INTO del VALUES (1, 'a');
CREATE TABLE trunc (id int PRIMARY KEY, v text);
INSERT INTO trunc VALUES (1, 'a'), (2, 'b');
CREATE TABLE nopk (a int, b text);
INSERT INTO nopk VALUES (1, 'x'), (1, 'x'), (2, NULL);
CREATE TABLE norepl (id int PRIMARY KEY, v text);
ALTER TABLE norepl REPLICA IDENTITY NOTHING;
INSERT INTO norepl VALUES (1, 'a');
CREATE TABLE et (id int PRIMARY KEY, v text);
INSERT INTO et VALUES (1, 'a');
CREATE TABLE projects (id int PRIMARY KEY, owner int, active bool);
INSERT INTO projects VALUES (1, 10, true), (2, 10, true), (3, 11, false);
CREATE TABLE tasks (id int PRIMARY KEY, project_id int, title text);
INSERT INTO tasks VALUES (1, 1, 't1'), (2, 1, 't2'), (3, 2, 't3'), (4, 3, 't4'), (5, 3, 't5');
CREATE TABLE tx1 (id int PRIMARY KEY, v text);
CREATE TABLE tx2 (id int PRIMARY KEY, v text);
CREATE TABLE cpk (a int, b text, v text, PRIMARY KEY (b, a));
INSERT INTO cpk VALUES (1, 'k/1', 'v1'), (2, 'k "2"', 'v2'), (3, '', 'v3');
CREATE TABLE toast (id int PRIMARY KEY, n int, big text);
CREATE TABLE alt (id int PRIMARY KEY, v text);
INSERT INTO alt VALUES (1, 'a');
CREATE TABLE dropme (id int PRIMARY KEY, v text);
INSERT INTO dropme VALUES (1, 'a');
CREATE TABLE big (id int PRIMARY KEY, pad text);
CREATE TABLE loglog (id int PRIMARY KEY, pad text);
INSERT INTO loglog VALUES (0, 'start');
CREATE TABLE s (id int PRIMARY KEY, v text);
CREATE TABLE comp_rows (id int PRIMARY KEY, v text);
INSERT INTO comp_rows SELECT g, 'row ' || g FROM generate_series(1, 600) g;
