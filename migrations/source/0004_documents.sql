-- A row's JSON as jsonb, although a column of type json may hold what jsonb refuses: the character of number 0, and half
-- a surrogate pair. A statement of the site must not fail because of it.

-- document: the row as jsonb, with such escapes behind a mark. No text can have the mark but one of control characters.
create function document(row_text text) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
    select case when strpos(row_text, '\u') = 0 then row_text
        else regexp_replace(row_text, '(?<!\\)((?:\\\\)*)\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})',
                            '\1\\u0001\\u0012\\u0011\\u0001\2', 'g')
    end::jsonb
$$;

-- plain: an image without the marks, as its row was written.
create function plain(image text) returns text
language sql immutable set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
    select replace(image, '\u0001\u0012\u0011\u0001', '\u')
$$;

-- What the functions' own text means must not depend on the writer's session: the patterns that find credentials have
-- backslashes.
alter function redact(text, text[]) set standard_conforming_strings = on;
alter function image(jsonb, text[], text[], text[]) set standard_conforming_strings = on;
alter function put(smallint, "char", text, text) set standard_conforming_strings = on;
alter function trim_slot(integer, pg_snapshot, bigint) set standard_conforming_strings = on;
