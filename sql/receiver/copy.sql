-- Copies rows in the binary format. It checks neither for newer states nor for equal keys, so it is only for
-- rows that are new to the table.
-- Writes the entity's table.
copy {table} ("_site", "_epoch", "_version", {columns}) from stdin (format binary)
