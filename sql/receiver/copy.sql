-- Takes new rows in binary form. Neither guards against newer states nor against equal keys: for rows without either.
-- Writes the entity's table.
copy {table} ("_site", "_epoch", "_version", {columns}) from stdin (format binary)
